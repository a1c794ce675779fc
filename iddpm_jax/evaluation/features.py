"""Features of images by a network that scores are named after, on all devices."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from iddpm_jax import data
from iddpm_jax.errors import InputError
from iddpm_jax.evaluation.parts import Parts
from iddpm_jax.training.parallel import (
    check_batch,
    is_main_process,
    map_batch,
    replicated,
    to_devices,
    to_host,
)


class Features(NamedTuple):
    """What scores are made of; [N, ...] float32.

    Attributes:
        pool: features of the whole image [N, D].
        spatial: features that know places, flattened [N, S].
        logits: of the network's own classes [N, K], without the last layer's bias.
    """

    pool: Any
    spatial: Any
    logits: Any


class FeatureNetwork(NamedTuple):
    """A fixed network.

    Attributes:
        distance: what the Frechet distance of its features is called, such as "FID".
        channels: of the images it takes.
        params: its arrays.
        apply: (params, images float32 [B, H, W, channels] in 0..255) -> Features.
    """

    distance: str
    channels: int
    params: Any
    apply: Callable[[Any, Any], Features]


def extract(
    network: FeatureNetwork,
    read: Callable[[np.ndarray], np.ndarray],
    count: int,
    mesh: Mesh,
    batch_size: int,
    progress: bool = True,
    parts: Parts | None = None,
) -> Features | None:
    """Features of images 0 ... count - 1.

    Args:
        network: what makes them.
        read: indices [B] -> images uint8 [B, H, W, C]; grey ones are repeated for a network that
            takes colour.
        count: number of images.
        mesh: devices that share each batch.
        batch_size: images at a time, over all devices.
        progress: show a bar.
        parts: features so far, to go on after; None keeps them in memory.

    Returns:
        Features [count, ...]; with parts on disk None beside the main process.

    Raises:
        InputError: channels that the network cannot take, or a batch the devices cannot share.
    """
    check_batch(mesh, batch_size, name="fid.batch_size")
    _with_channels(read(np.arange(1)), network)  # refused here, not in the middle of a bar
    parts = Parts(None, {}) if parts is None else parts
    parts.extend(_batches(network, read, parts.done, count, mesh, batch_size, progress), 30.0)
    found = parts.read()
    return Features(**found) if found else None


def _batches(
    network: FeatureNetwork,
    read: Callable[[np.ndarray], np.ndarray],
    first: int,
    count: int,
    mesh: Mesh,
    batch_size: int,
    progress: bool,
) -> Iterator[dict[str, np.ndarray]]:
    """Features of images first ... count - 1, by name."""
    apply = _compiled(network.apply, mesh)
    params = jax.device_put(network.params, replicated(mesh))  # once, not with each batch
    with tqdm(
        initial=first,
        total=count,
        desc="features",
        unit="image",
        disable=not (progress and is_main_process()),
        leave=False,
    ) as bar:
        for offset, real in data.padded_chunks(count - first, batch_size):
            images = _with_channels(read(first + offset), network)
            found = to_host(apply(params, to_devices(mesh, images)))
            bar.update(real)
            yield {name: values[:real] for name, values in found._asdict().items()}


@functools.lru_cache(maxsize=2)
def _compiled(apply: Callable[[Any, Any], Features], mesh: Mesh) -> Callable:
    """Compiled (params, images uint8 [B, H, W, C]) -> Features, for both sides of a comparison."""
    return map_batch(lambda params, images: apply(params, images.astype("float32")), mesh)


def _with_channels(images: np.ndarray, network: FeatureNetwork) -> np.ndarray:
    if images.shape[-1] == network.channels:
        return images
    if images.shape[-1] == 1:
        return np.repeat(images, network.channels, axis=-1)
    raise InputError(
        f"the images have {images.shape[-1]} channels, and the network of {network.distance} takes "
        f"{network.channels}; choose another --config.fid.network"
    )
