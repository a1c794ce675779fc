"""Small feature networks for the built-in sets, with their weights: FD-digits and FD-emoji.

They stand in for Inception where nothing can be downloaded. Their Frechet distances compare models
of the same data with each other, and with nothing else: none of them is an FID. They give 99.2% of
the test digits the right class, and 69% of the test emoji. What the distances make of spoilt
pictures is in benchmarks/README.md.
"""

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from iddpm_jax.errors import InputError
from iddpm_jax.evaluation.features import FeatureNetwork, Features

POOL = 64
"""Size of the pool features; far fewer than the pictures at hand, so that covariances have an
inverse."""

SPATIAL_CHANNELS = 4
"""Channels of the first 4x4 map that become the spatial features, 64 in all."""

Params = Mapping[str, jax.Array]


class Spec(NamedTuple):
    """What shapes a network.

    Attributes:
        image_shape: (H, W, C) that it works at.
        layers: (channels, stride) of its 3x3 convolutions; the last ones see 4x4 positions and
            have POOL channels.
        classes: number of classes.
    """

    image_shape: tuple[int, int, int]
    layers: tuple[tuple[int, int], ...]
    classes: int


SPECS = {
    "digits": Spec((8, 8, 1), ((24, 1), (32, 1), (48, 2), (POOL, 1)), 10),
    "emoji": Spec((32, 32, 3), ((32, 2), (32, 1), (64, 2), (64, 1), (96, 2), (POOL, 1)), 9),
}


def network(name: str, path: Path | None = None) -> FeatureNetwork:
    """The network of a built-in set.

    Args:
        name: "digits" or "emoji".
        path: weights that train_small_network wrote; None takes those in the package.

    Returns:
        FeatureNetwork: pool [B, 64], spatial [B, 64], logits [B, classes]. Over the real training
        pictures the features of either kind have a variance of 1 on average, so that a model whose
        pictures all have the mean's features gets 64. Pictures of another size than the set's are
        resized, smoothly.

    Raises:
        InputError: an unknown name, or a file that does not hold this network.
    """
    if name not in SPECS:
        raise InputError(f"there is no small network {name!r}; choose one of {', '.join(SPECS)}")
    spec = SPECS[name]
    return FeatureNetwork(
        distance=f"FD-{name}",
        channels=spec.image_shape[-1],
        params=read(path or packaged(name), spec)[0],
        apply=lambda params, images: apply(spec, params, images),
    )


def apply(spec: Spec, params: Params, images: jax.Array) -> Features:
    """Features of images.

    Args:
        spec: the network's shape.
        params: arrays by name, as shapes lists them.
        images: float32 [B, H, W, C] in 0..255; H and W may differ from the spec's.

    Returns:
        Features.
    """
    height, width, channels = spec.image_shape
    if images.shape[1:3] != (height, width):
        images = jax.image.resize(images, (len(images), height, width, channels), "linear")
    x = (images - 127.5) / 127.5
    spatial = None
    for i, (_, stride) in enumerate(spec.layers):
        x = jax.nn.silu(_conv3(x, params[f"conv{i}.weight"], params[f"conv{i}.bias"], stride))
        if spatial is None and x.shape[1] == 4:
            spatial = x[..., :SPATIAL_CHANNELS].reshape(len(x), -1)
    pool = x.mean(axis=(1, 2))
    logits = jnp.dot(pool, params["classes.weight"], precision=jax.lax.Precision.HIGHEST)
    return Features(pool * params["pool.scale"], spatial * params["spatial.scale"], logits)


def _conv3(x: jax.Array, weight: jax.Array, bias: jax.Array, stride: int) -> jax.Array:
    # float32 means float32 on every device: features must not depend on where they are made.
    x = jax.lax.conv_general_dilated(
        x,
        weight,
        (stride, stride),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=jax.lax.Precision.HIGHEST,
    )
    return x + bias[None, None, None]


def shapes(spec: Spec) -> dict[str, tuple[int, ...]]:
    """Shape of every array of a network, by name."""
    found: dict[str, tuple[int, ...]] = {}
    below = spec.image_shape[-1]
    for i, (channels, _) in enumerate(spec.layers):
        found[f"conv{i}.weight"] = (3, 3, below, channels)
        found[f"conv{i}.bias"] = (channels,)
        below = channels
    return {**found, "classes.weight": (below, spec.classes), "pool.scale": (), "spatial.scale": ()}


def write(path: Path, params: Params, about: dict) -> None:
    """Write weights, and how they came to be.

    Args:
        path: .npz file.
        params: arrays by name.
        about: the command, seed, data and accuracy; anything that JSON can hold.
    """
    with path.open("wb") as file:
        np.savez_compressed(file, about=np.array(json.dumps(about)), **params)


def read(path: Path, spec: Spec) -> tuple[dict[str, np.ndarray], dict]:
    """Weights that write wrote.

    Args:
        path: .npz file.
        spec: the network it should hold.

    Returns:
        (float32 arrays by name, how they came to be).

    Raises:
        InputError: unreadable, another network's, or not finite.
    """
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            about = json.loads(str(arrays["about"]))
            params = {name: arrays[name].astype(np.float32) for name in shapes(spec)}
    except Exception as error:  # numpy, zipfile, zlib and json each raise their own
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path} cannot be read as a small feature network ({reason}); give a file that "
            "python -m iddpm_jax.evaluation.train_small_network wrote"
        ) from None
    for name, shape in shapes(spec).items():
        if params[name].shape != shape:
            raise InputError(
                f"{path}: {name} is {list(params[name].shape)}, and this network's is "
                f"{list(shape)}; give weights that were trained on the same data set"
            )
        if not np.isfinite(params[name]).all():
            raise InputError(f"{path}: {name} is not finite; the file is damaged, train it anew")
    return params, about


def packaged(name: str) -> Path:
    """Where the package keeps the weights of a set; it is installed as files."""
    return Path(str(resources.files("iddpm_jax").joinpath(f"assets/features_{name}.npz")))
