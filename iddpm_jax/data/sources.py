"""Data sets by name."""

import dataclasses
import functools
from collections.abc import Callable
from importlib import resources

import numpy as np

from iddpm_jax.data import folder, npz, tfds
from iddpm_jax.data.protocol import ArraySource, Source, every
from iddpm_jax.errors import InputError
from iddpm_jax.images import area_average_uint8


def _digits(split: str) -> ArraySource:
    """1,797 scanned handwritten digits, 8x8 grey, 17 levels; every fifth is for testing."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    return every(5, images, digits.target, digits.target_names, split)


def _emoji(split: str) -> ArraySource:
    """1,906 emoji, 32x32 colour, 9 categories; every tenth is for testing.

    Real art, but few and easily overfitted. People are of one skin tone, the default yellow.
    """
    with resources.files("iddpm_jax").joinpath("assets/emoji32.npz").open("rb") as file:
        arrays = np.load(file)
        return every(10, arrays["images"], arrays["labels"], arrays["label_names"], split)


_BUILT_IN: dict[str, Callable[[str], ArraySource]] = {"digits": _digits, "emoji": _emoji}


def load(
    name: str,
    split: str,
    image_shape: tuple[int, ...] = (),
    labels: str = "auto",
    corrupt: str = "fail",
    tfds_dir: str = "",
) -> Source:
    """A split of a data set.

    Args:
        name: "digits", "emoji", or "npz:", "folder:" or "tfds:" and where; see config.base.
        split: "train" or "test".
        image_shape: (H, W, C) wanted. Larger arrays of the same proportions are averaged down to
            it; pictures of folders and TFDS are halved, resized and cropped. () takes them as they
            are.
        labels: where a folder's classes are: "auto", "folders", "prefix" or "none".
        corrupt: a file of a folder that cannot be read is refused ("fail") or replaced ("skip").
        tfds_dir: where TFDS data sets lie; "" is TFDS's own choice.

    Returns:
        The source. Its image_shape may still differ from the one wanted; see build.load_data.

    Raises:
        InputError: unknown name or split, or unreadable files.
    """
    if split not in ("train", "test"):
        raise InputError(f"split {split!r} is unknown; use train or test")
    kind, _, address = name.partition(":")
    try:
        if name in _BUILT_IN or (kind == "npz" and address):
            return _averaged(_array(name, split), image_shape)
        if kind == "folder" and address:
            return folder.load(address, split, tuple(image_shape), labels, corrupt)
        if kind == "tfds" and address:
            return tfds.load(address, split, tuple(image_shape), tfds_dir)
    except InputError as error:
        raise InputError(f"data.name {name}: {error}") from None
    raise InputError(
        f"data.name {name!r} is unknown; use one of {', '.join(_BUILT_IN)}, npz:FILE, npz:FOLDER, "
        "folder:FOLDER, tfds:NAME or tfds:FOLDER"
    )


@functools.cache
def _array(name: str, split: str) -> ArraySource:
    """Read once in a process."""
    if name in _BUILT_IN:
        return _BUILT_IN[name](split)
    return npz.load(name.partition(":")[2], split)


def _averaged(source: ArraySource, image_shape: tuple[int, ...]) -> ArraySource:
    """Larger pictures of the same proportions, averaged down; others as they are."""
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
    return dataclasses.replace(source, images=np.concatenate(small), originals=source.images)
