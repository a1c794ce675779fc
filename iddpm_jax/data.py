"""Pictures with labels: sources by name, and the order in which training sees them."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import resources
from pathlib import PurePath
from typing import Protocol

import grain
import numpy as np

from iddpm_jax.errors import InputError


class Source(Protocol):
    """Random access to one split of a data set."""

    image_shape: tuple[int, int, int]  # H, W, C
    class_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """{"image": uint8 [H, W, C], "label": int32 scalar}."""
        ...


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """A split held in memory.

    Attributes:
        images: uint8 [N, H, W, C].
        labels: int32 [N].
        class_names: by label.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return self.images.shape[1:]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"image": self.images[index], "label": self.labels[index]}


def _every(n: int, images: np.ndarray, labels: np.ndarray, names: Iterable, split: str):
    """Split by a fixed rule: every n-th picture is a test picture."""
    is_test = np.arange(len(images)) % n == n - 1
    chosen = is_test if split == "test" else ~is_test
    return ArraySource(images[chosen], labels[chosen].astype(np.int32), tuple(map(str, names)))


def _digits(split: str) -> ArraySource:
    """1,797 scanned handwritten digits, 8x8 grey, 17 levels; every fifth is for testing."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    return _every(5, images, digits.target, digits.target_names, split)


def _emoji(split: str) -> ArraySource:
    """1,906 emoji, 32x32 colour, 9 categories; every tenth is for testing.

    Real art, but few and easily overfitted. People are of one skin tone, the default yellow.
    """
    with resources.files("iddpm_jax").joinpath("assets/emoji32.npz").open("rb") as file:
        arrays = np.load(file)
        return _every(10, arrays["images"], arrays["labels"], arrays["label_names"], split)


# A data set is a word here, or will be a prefix and an address: "tfds:", "folder:", "npz:".
_BUILT_IN: dict[str, Callable[[str], Source]] = {"digits": _digits, "emoji": _emoji}


@functools.cache
def load(name: str, split: str) -> Source:
    """A split of a data set.

    Args:
        name: "digits" or "emoji".
        split: "train" or "test".

    Returns:
        The source.

    Raises:
        InputError: unknown name or split.
    """
    if split not in ("train", "test"):
        raise InputError(f"split {split!r} is unknown; use train or test")
    if name not in _BUILT_IN:
        raise InputError(f"data.name {name!r} is unknown; use one of {', '.join(_BUILT_IN)}")
    return _BUILT_IN[name](split)


class _Flip(grain.transforms.RandomMap):
    """Mirror left to right with probability a half."""

    def random_map(self, element: dict, rng: np.random.Generator) -> dict:
        if rng.random() < 0.5:
            element = {**element, "image": element["image"][:, ::-1]}
        return element


def check_batch_size(source: Source, batch_size: int) -> None:
    """Refuse a batch larger than the data.

    Raises:
        InputError: says how many images there are.
    """
    if len(source) < batch_size:
        raise InputError(
            f"train.batch_size {batch_size} is more than the {len(source)} images there are"
        )


def training_batches(
    source: Source, batch_size: int, seed: int, random_flip: bool
) -> grain.DatasetIterator:
    """Endless shuffled batches; every pass over the data is a new permutation.

    Args:
        source: training split.
        batch_size: images per batch.
        seed: of the order and the flips.
        random_flip: mirror images at random.

    Returns:
        Iterator of {"image": uint8 [B, H, W, C], "label": int32 [B]}. get_state and set_state give
        and take its position, exactly.

    Raises:
        InputError: fewer images than a batch.
    """
    check_batch_size(source, batch_size)
    dataset = grain.MapDataset.source(source).seed(seed).shuffle().repeat(None)
    if random_flip:
        dataset = dataset.random_map(_Flip())
    dataset = dataset.batch(batch_size, drop_remainder=True)
    # Threads, not processes: only then is the position one number that survives any restart.
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
    return iter(dataset.to_iter_dataset(options))


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


PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif")


def labels_from_names(paths: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """OpenAI's rule: the class is the file name up to the first underscore.

    Args:
        paths: files of any kind, relative to one folder.

    Returns:
        (the pictures among them in the order they are read, label of each: index of its class among
        the sorted names).
    """

    pictures = (PurePath(p) for p in paths if PurePath(p).suffix.lower() in PICTURE_SUFFIXES)
    # By parts: a folder's own files and its subfolders together, each subfolder in its place.
    ordered = [str(path) for path in sorted(pictures, key=lambda path: path.parts)]
    classes = [PurePath(path).name.split("_")[0] for path in ordered]
    names = sorted(set(classes))
    return ordered, np.array([names.index(name) for name in classes], np.int32)
