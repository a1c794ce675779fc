"""Pictures with labels: sources by name, and the order in which training sees them."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path, PurePath
from typing import Protocol

import grain
import numpy as np

from iddpm_jax.errors import InputError
from iddpm_jax.images import area_average_uint8


class Source(Protocol):
    """Random access to one split of a data set."""

    image_shape: tuple[int, int, int]  # H, W, C
    class_names: tuple[str, ...]  # empty where pictures have no classes

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """{"image": uint8 [H, W, C], "label": int32 scalar}."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
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


def read_npz(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Pictures in the form that evaluators exchange: arr_0, and arr_1 where there are classes.

    Args:
        path: an .npz file, such as the samples written here.

    Returns:
        (uint8 [N, H, W, C], classes int32 [N] or None).

    Raises:
        InputError: unreadable, or not such arrays.
    """
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            images, labels = np.asarray(arrays["arr_0"]), arrays.get("arr_1")
    except Exception as error:  # numpy, zipfile and zlib each raise their own
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path} cannot be read as pictures ({reason}); give an .npz with arr_0, uint8 "
            "[N, H, W, C]"
        ) from None
    if images.dtype != np.uint8 or images.ndim != 4 or not images.size:
        raise InputError(
            f"{path}: arr_0 is {images.dtype} {list(images.shape)}; pictures are uint8 [N, H, W, C]"
        )
    if labels is None:
        return images, None
    whole = labels.shape == images.shape[:1] and labels.dtype.kind in "iu"
    if not whole or labels.min() < 0 or labels.max() > np.iinfo(np.int32).max:
        raise InputError(
            f"{path}: arr_1 is {labels.dtype} {list(labels.shape)}; classes are whole numbers from "
            f"0, one for each of the {len(images)} pictures"
        )
    return images, labels.astype(np.int32)


def _npz(address: str, split: str) -> ArraySource:
    """A folder of train.npz and test.npz, or one file of which every tenth picture is for testing.

    Without arr_1 there are no classes, and all labels are 0.
    """
    path = Path(address)
    if not path.exists():
        raise InputError(
            f"{path} does not exist; give a folder of train.npz and test.npz, or a file"
        )
    images, labels = read_npz(path / f"{split}.npz" if path.is_dir() else path)
    names = () if labels is None else tuple(map(str, range(labels.max() + 1)))
    labels = np.zeros(len(images), np.int32) if labels is None else labels
    if path.is_dir():
        return ArraySource(images, labels, names)
    source = _every(10, images, labels, names, split)
    if not len(source):
        raise InputError(
            f"{path} has {len(images)} pictures, and every tenth is for testing, so there is none; "
            "give 10 or more, or a folder with a test.npz"
        )
    return source


_BUILT_IN: dict[str, Callable[[str], Source]] = {"digits": _digits, "emoji": _emoji}
_BY_PREFIX: dict[str, Callable[[str, str], Source]] = {"npz": _npz}


def load(name: str, split: str, image_shape: tuple[int, ...] = ()) -> Source:
    """A split of a data set.

    Args:
        name: "digits", "emoji", or "npz:" and a path; see config.base.
        split: "train" or "test".
        image_shape: (H, W, C) wanted; larger pictures of the same proportions are averaged down to
            it. () takes them as they are.

    Returns:
        The source. Its image_shape may still differ from the one wanted; see build.load_data.

    Raises:
        InputError: unknown name or split, or unreadable files.
    """
    source = _load(name, split)
    if not image_shape:
        return source
    (height, width, channels), (rows, columns, depth) = image_shape, source.image_shape
    if channels != depth or height >= rows or height * columns != width * rows:
        return source
    return _shrunk(source, height, width)


@functools.cache
def _shrunk(source: ArraySource, height: int, width: int) -> ArraySource:
    small = [
        area_average_uint8(source.images[i : i + 1000], height, width)
        for i in range(0, len(source), 1000)
    ]
    return dataclasses.replace(source, images=np.concatenate(small))


@functools.cache
def _load(name: str, split: str) -> Source:
    if split not in ("train", "test"):
        raise InputError(f"split {split!r} is unknown; use train or test")
    if name in _BUILT_IN:
        return _BUILT_IN[name](split)
    prefix, colon, address = name.partition(":")
    if colon and prefix in _BY_PREFIX:
        try:
            return _BY_PREFIX[prefix](address, split)
        except InputError as error:
            raise InputError(f"data.name {name}: {error}") from None
    raise InputError(
        f"data.name {name!r} is unknown; use one of {', '.join(_BUILT_IN)}, npz:FILE or npz:FOLDER"
    )


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
    source: Source,
    batch_size: int,
    seed: int,
    random_flip: bool,
    process: int = 0,
    processes: int = 1,
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
    dataset = dataset.batch(batch_size // processes, drop_remainder=True)[process::processes]
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
