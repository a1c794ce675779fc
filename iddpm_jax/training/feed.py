"""What a call of the compiled program is given to train on: batches, or a split that stays.

Batches are read and sent by the host. A split (data.resident) is sent once; each step draws its own
batch from it, so that the host has nothing to do between steps.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from iddpm_jax import build, data
from iddpm_jax.errors import InputError
from iddpm_jax.training.parallel import (
    batch_sharding,
    batches_sharding,
    place,
    replicated,
    share_to_devices,
)

ORDER = 2**32 - 1
"""Folded into the run's key where a step's key has its number: key of the order of the images."""

LARGEST_SHARE = 0.5
"""Of a device's memory, that a split may take."""

Arrays = dict[str, jax.Array]
"""{"image": uint8 [..., H, W, C], "label": int32 [...]}."""


class Feed(Protocol):
    """Source of the second argument of the compiled program."""

    like: dict[str, jax.ShapeDtypeStruct | jax.Array]
    """Shapes, types and shardings of what comes."""

    def __next__(self) -> Arrays:
        """What the next call is given, on the devices."""
        ...

    def get_state(self) -> dict:
        """The position, which is saved with the train state."""
        ...

    def set_state(self, position: dict) -> None:
        """Go on from a position."""
        ...


def open_feed(config: ConfigDict, model: build.Model, mesh: Mesh) -> Feed:
    """The training split of a config's data, as its data.resident asks for.

    Args:
        config: checked.
        model: built from it.
        mesh: devices that share each batch.

    Returns:
        Feed at its beginning.

    Raises:
        InputError: no such data, fewer images than a batch, pictures that cannot be read, or a
            split that is too large to stay on a device.
    """
    source = build.load_data(config, model, "train")
    if not config.data.resident:
        batches = build.training_batches(config, source, jax.process_index(), jax.process_count())
        return Batches(config, model, mesh, batches)
    data.check_batch_size(source, config.train.batch_size)
    return Split(source, mesh, config.data.num_threads)


class Batches:
    """Batches [B, ...], or [K, B, ...] for the K steps of a call, read while the devices work."""

    def __init__(self, config: ConfigDict, model: build.Model, mesh: Mesh, batches: Any):
        """Take over an iterator over this process's share of each batch.

        Args:
            config: its batch size and steps per dispatch are read.
            model: built from it.
            mesh: devices that share each batch.
            batches: of build.training_batches.
        """
        self._batches, self._mesh = batches, mesh
        self._at_once = config.train.steps_per_dispatch
        lead, self._sharding = (config.train.batch_size,), batch_sharding(mesh)
        if self._at_once > 1:
            lead, self._sharding = (self._at_once, *lead), batches_sharding(mesh)
        shapes = {"image": (*lead, *model.image_shape), "label": lead}
        self.like = {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=self._sharding)
            for (name, shape), dtype in zip(shapes.items(), (np.uint8, np.int32), strict=True)
        }
        self.get_state, self.set_state = batches.get_state, batches.set_state

    def __next__(self) -> Arrays:
        shares = [next(self._batches) for _ in range(self._at_once)]
        if self._at_once == 1:
            return share_to_devices(self._mesh, shares[0])
        stacked = jax.tree.map(lambda *parts: np.stack(parts), *shares)
        return share_to_devices(self._mesh, stacked, self._sharding)


class Split:
    """A whole split [N, ...] on every device; its position is the step of the train state."""

    def __init__(self, source: data.Source, mesh: Mesh, num_threads: int = 1):
        """Read the split and put it on every device.

        Args:
            source: training split.
            mesh: devices, each of which gets all of it.
            num_threads: that read pictures.

        Raises:
            InputError: pictures that cannot be read, or too many for a device's memory.
        """
        _check_fits(source, mesh)
        host = _whole(source, num_threads)
        self.like = place(host, jax.tree.map(lambda _: replicated(mesh), host))

    def __next__(self) -> Arrays:
        return self.like

    def get_state(self) -> dict:
        """Nothing: a step's number is all that its batch depends on."""
        return {}

    def set_state(self, position: dict) -> None:
        """Nothing to do."""


def _check_fits(source: data.Source, mesh: Mesh) -> None:
    device = mesh.local_devices[0]
    size = len(source) * (np.prod(source.image_shape, dtype=np.int64) + 4)
    limit = (device.memory_stats() or {}).get("bytes_limit", np.inf)
    if size > LARGEST_SHARE * limit:
        raise InputError(
            f"data.resident would put {size / 2**30:.1f} GiB of images on every device, more than "
            f"half of its {limit / 2**30:.1f} GiB; leave it out"
        )


def _whole(source: data.Source, num_threads: int) -> dict[str, np.ndarray]:
    if isinstance(source, data.ArraySource):
        return {"image": source.images, "label": source.labels}
    image = np.empty((len(source), *source.image_shape), np.uint8)
    label = np.empty(len(source), np.int32)

    def read(index: int) -> None:
        example = source[index]
        image[index], label[index] = example["image"], example["label"]

    with ThreadPoolExecutor(num_threads) as threads:
        done = threads.map(read, range(len(source)))
        for _ in tqdm(done, "reading", len(source), unit=" pictures", mininterval=0.5, leave=False):
            pass
    return {"image": image, "label": label}


def drawing(
    seed: int, batch_size: int, random_flip: bool, mesh: Mesh
) -> Callable[[Arrays, jax.Array], Arrays]:
    """How a step draws its batch from a split.

    Every pass over the split is a new permutation. As in OpenAI's code, what is left of it when no
    whole batch is left is not seen in that pass.

    Args:
        seed: of the order and the flips.
        batch_size: images of a step, B.
        random_flip: mirror images at random.
        mesh: devices that share each batch.

    Returns:
        Function (split [N, ...], step int32 scalar) -> batch [B, ...].
    """

    def draw(split: Arrays, step: jax.Array) -> Arrays:
        images = len(split["label"])
        a_pass = images // batch_size
        key_order, key_flip = jax.random.split(jax.random.fold_in(jax.random.key(seed), ORDER))
        order = jax.random.permutation(jax.random.fold_in(key_order, step // a_pass), images)
        index = jax.lax.dynamic_slice(order, [step % a_pass * batch_size], [batch_size])
        batch = jax.tree.map(lambda a: a[index], split)
        if random_flip:
            flipped = jax.random.bernoulli(jax.random.fold_in(key_flip, step), 0.5, (batch_size,))
            image = batch["image"]
            batch["image"] = jnp.where(flipped[:, None, None, None], image[:, :, ::-1], image)
        return jax.lax.with_sharding_constraint(batch, batch_sharding(mesh))

    return draw
