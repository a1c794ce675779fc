"""The order in which training sees a source, its random flips and crops, and fixed chunks."""

from collections.abc import Iterator

import grain
import numpy as np

from iddpm_jax.data.protocol import Source
from iddpm_jax.errors import InputError
from iddpm_jax.images import random_crop as cropped


class _Read(grain.transforms.RandomMap):
    """Index -> example, cropped and mirrored at random where asked."""

    def __init__(self, source: Source, random_flip: bool, random_crop: float):
        self.source, self.random_flip, self.random_crop = source, random_flip, random_crop

    def random_map(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        if self.random_crop:
            image, label = self.source.original(index)
            shape = self.source.image_shape
            pixels = cropped(image, *shape[:2], self.random_crop, rng).reshape(shape)
            example = {"image": pixels, "label": np.int32(label)}
        else:
            example = self.source[index]
        if self.random_flip and rng.random() < 0.5:
            example = {**example, "image": example["image"][:, ::-1]}
        return example


def check_batch_size(source: Source, batch_size: int) -> None:
    """Refuse a batch larger than the data.

    Raises:
        InputError: says how many images there are.
    """
    if len(source) < batch_size:
        raise InputError(
            f"train.batch_size {batch_size} is more than the {len(source)} images there are for "
            f"training; give more pictures, or --config.train.batch_size={len(source)} or less"
        )


def training_batches(
    source: Source,
    batch_size: int,
    seed: int,
    random_flip: bool,
    random_crop: float = 0.0,
    process: int = 0,
    processes: int = 1,
    num_threads: int = 2,
    prefetch: int = 8,
) -> grain.DatasetIterator:
    """Endless shuffled batches; every pass over the data is a new permutation.

    The pictures of a global batch, their flips and crops depend on the seed alone. With several
    processes each reads its own part of every batch, and their parts in order are that batch.

    Args:
        source: training split.
        batch_size: images per batch, over all processes.
        seed: of the order, the flips and the crops.
        random_flip: mirror images at random.
        random_crop: smallest share of a picture's shorter side that a random crop keeps; 0: no
            random crops.
        process: this one's number.
        processes: how many there are.
        num_threads: threads that read, a batch each.
        prefetch: batches read ahead.

    Returns:
        Iterator of {"image": uint8 [B / processes, H, W, C], "label": int32 [B / processes]}.
        get_state and set_state give and take its position, exactly; it is the number of batches
        seen, the same in every process and for any number of them.

    Raises:
        InputError: fewer images than a batch, a batch that the processes cannot share, or crops of
            pictures that are neither grey nor in colour.
    """
    check_batch_size(source, batch_size)
    if batch_size % processes:
        raise InputError(
            f"train.batch_size {batch_size} is not divisible by {processes} processes; change one "
            "of them"
        )
    if random_crop and source.image_shape[2] not in (1, 3):
        raise InputError(
            f"data.random_crop takes pictures of 1 or 3 channels, not {source.image_shape[2]}; "
            "set it to 0"
        )
    dataset = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat(None)
    if random_flip or random_crop:
        dataset = dataset.random_map(_Read(source, random_flip, random_crop))
    else:  # without a random generator for each picture, a fifth of the time of arrays
        dataset = dataset.map(source.__getitem__)
    # Consecutive parts make up a batch, so that its content does not depend on their number; and
    # the slice comes last, so that no process reads the parts of others.
    dataset = dataset.batch(batch_size // processes, drop_remainder=True)[process::processes]
    # Threads, not processes: only then is the position one number that survives any restart.
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch)
    return iter(dataset.to_iter_dataset(options))


def independent_batch(
    source: Source,
    batch_size: int,
    seed: tuple[int, ...],
    random_flip: bool,
    random_crop: float = 0.0,
    process: int = 0,
    processes: int = 1,
) -> dict[str, np.ndarray]:
    """A batch drawn evenly with replacement, for statistics that need independent batches.

    Those of training_batches are not: what one pass over the data has shown does not come again.

    Args:
        source: training split.
        batch_size: images, over all processes.
        seed: of the choice, the flips and the crops; another for each batch.
        random_flip, random_crop, process, processes: see training_batches.

    Returns:
        {"image": uint8 [B / processes, H, W, C], "label": int32 [B / processes]}.
    """
    read = _Read(source, random_flip, random_crop)
    index = np.random.default_rng(seed).integers(len(source), size=batch_size)
    own = np.array_split(np.arange(batch_size), processes)[process]
    examples = [
        read.random_map(int(index[i]), np.random.default_rng((*seed, i))) for i in own.tolist()
    ]
    return {name: np.stack([e[name] for e in examples]) for name in ("image", "label")}


def padded_chunks(count: int, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Cut 0..count-1 into chunks of one size, the last filled up by repeating its last index.

    Args:
        count: how many indices.
        size: of a chunk.

    Yields:
        (indices [size] int64, how many of them are not filling).
    """
    for start in range(0, count, size):
        indices = np.arange(start, start + size)
        yield np.minimum(indices, count - 1), min(size, count - start)
