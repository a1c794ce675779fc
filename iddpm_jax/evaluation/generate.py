"""Samples from a model, on all devices; sample i depends on (seed, i) alone."""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from iddpm_jax import build
from iddpm_jax.data import padded_chunks
from iddpm_jax.diffusion import samplers
from iddpm_jax.diffusion.reverse import Parametrization, clip_x_0
from iddpm_jax.errors import InputError
from iddpm_jax.images import grid, to_uint8, write_png
from iddpm_jax.training.parallel import check_batch, map_batch, to_devices
from iddpm_jax.training.state import Params


def classes_of(config: ConfigDict, model: build.Model, count: int) -> np.ndarray | None:
    """Class of each sample: those of sample.classes in turn, or all of them in turn.

    Args:
        config: sample.classes is read.
        model: the model.
        count: number of samples.

    Returns:
        int32 [count], or None for an unconditional model.

    Raises:
        InputError: a class that does not exist, or classes for an unconditional model.
    """
    wanted = tuple(config.sample.classes)
    if not model.class_conditional:
        if wanted:
            raise InputError("sample.classes is set, but this model is unconditional; leave it out")
        return None
    wrong = [c for c in wanted if not 0 <= c < model.num_classes]
    if wrong:
        raise InputError(
            f"sample.classes has {wrong[0]}; this model has classes 0 to {model.num_classes - 1}"
        )
    return np.resize(np.array(wanted or range(model.num_classes), np.int32), count)


@functools.cache
def _sampling_function(
    network: Callable,
    parametrization: Parametrization,
    image_shape: tuple[int, int, int],
    sampler: str,
    clip: bool,
    mesh: Mesh,
) -> Callable:
    """Compiled (params, process, eta, key), (index [B], classes [B]) -> images [B, H, W, C]."""
    transform = clip_x_0 if clip else None

    def sample(shared: tuple, batch: tuple) -> jax.Array:
        params, process, eta, key = shared
        index, y = batch
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
        noise = samplers.noise_per_sample(keys, image_shape)
        denoise = functools.partial(_apply, network, params, y)
        start = noise(jnp.int32(process.T))
        if sampler == "ddim":
            result = samplers.ddim(
                denoise, process, parametrization, start, noise, eta=eta, transform=transform
            )
        else:
            result = samplers.ancestral(
                denoise, process, parametrization, start, noise, transform=transform
            )
        return result.x

    return map_batch(sample, mesh)


def _apply(network: Callable, params: Params, y: jax.Array | None, x: jax.Array, t: jax.Array):
    return network(params, x, t, y)


def generate(
    config: ConfigDict,
    model: build.Model,
    params: Params,
    mesh: Mesh,
    progress: bool = True,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Draw config.sample.count samples.

    Nichol & Dhariwal 2021, section 4, for fewer steps than trained.

    Args:
        config: its sample part is read.
        model: the model.
        params: its parameters, or an average of them.
        mesh: devices that share each batch.
        progress: show a bar.

    Returns:
        (uint8 [N, H, W, C], classes int32 [N] or None).

    Raises:
        InputError: impossible steps or classes, or a batch the devices cannot share.
    """
    settings = config.sample
    process = model.respaced(settings.steps, "sample.steps")
    classes = classes_of(config, model, settings.count)
    batch_size = _batch_size(settings.batch_size, settings.count, mesh)
    function = _sampling_function(
        model.network.apply,
        model.parametrization,
        model.image_shape,
        settings.sampler,
        settings.clip_x_0,
        mesh,
    )
    shared = (params, process, np.float32(settings.eta), jax.random.key(settings.seed))
    images = []
    with tqdm(
        total=settings.count, desc="sampling", unit="image", disable=not progress, leave=False
    ) as bar:
        for index, real in padded_chunks(settings.count, batch_size):
            y = None if classes is None else classes[index]
            x = function(shared, to_devices(mesh, (index.astype(np.int32), y)))
            images.append(to_uint8(jax.device_get(x)[:real]))
            bar.update(real)
    return np.concatenate(images), classes


def _batch_size(batch_size: int, count: int, mesh: Mesh) -> int:
    """The batch size asked for, or less where fewer samples are wanted; devices must divide it."""
    check_batch(mesh, batch_size)
    devices = mesh.shape["data"]
    return min(batch_size, -(-count // devices) * devices)


def write(
    folder: Path, images: np.ndarray, classes: np.ndarray | None, single: bool
) -> dict[str, Path]:
    """Write samples as people and evaluators expect them.

    Args:
        folder: made if missing.
        images: uint8 [N, H, W, C].
        classes: int32 [N] or None.
        single: also one PNG per image.

    Returns:
        What was written: "npz" (arr_0 images, arr_1 classes), "grid", and "png" (a folder).
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = {
        "npz": folder / f"samples_{'x'.join(map(str, images.shape))}.npz",
        "grid": folder / "grid.png",
    }
    arrays = [images] if classes is None else [images, classes]
    np.savez_compressed(written["npz"], *arrays)
    columns = None
    if classes is not None and len(set(classes)) > 1:
        columns = len(set(classes))  # one class under the other
    write_png(written["grid"], grid(images[:400], columns))
    if single:
        written["png"] = folder / "png"
        for i, image in enumerate(images):
            name = f"{i:06d}.png" if classes is None else f"{i:06d}_class{classes[i]}.png"
            write_png(written["png"] / name, image)
    return written
