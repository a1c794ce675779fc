"""What every data set looks like from outside, and a split held in memory."""

import dataclasses
from collections.abc import Iterable
from typing import Protocol

import numpy as np
from PIL import Image

from iddpm_jax.images import prepare


class Source(Protocol):
    """Random access to one split of a data set.

    Reading is safe from several threads at once. Lazy sources raise InputError, with the file's
    name, where a picture cannot be read.
    """

    image_shape: tuple[int, int, int]  # H, W, C
    class_names: tuple[str, ...]  # empty where pictures have no classes

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """{"image": uint8 [H, W, C], "label": int32 scalar}: the picture prepared, uncropped."""
        ...

    def original(self, index: int) -> tuple[Image.Image, int]:
        """The picture at the size it is kept in (L for C = 1, RGB for C = 3), and its label."""
        ...


def example(image: Image.Image, label: int, shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """A picture as Source.__getitem__ gives it: halved, resized and cropped to [H, W, C]."""
    pixels = prepare(image, *shape[:2])
    return {"image": pixels.reshape(shape), "label": np.int32(label)}


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource:
    """A split held in memory.

    Attributes:
        images: uint8 [N, H, W, C].
        labels: int32 [N].
        class_names: by label.
        originals: the pictures before they were averaged down, if they were.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    originals: np.ndarray | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return self.images.shape[1:]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"image": self.images[index], "label": self.labels[index]}

    def original(self, index: int) -> tuple[Image.Image, int]:
        """As Source.original; C must be 1 or 3."""
        pixels = (self.images if self.originals is None else self.originals)[index]
        pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
        return Image.fromarray(pixels), int(self.labels[index])


def is_test(n: int, count: int) -> np.ndarray:
    """The fixed split of data that have none: every n-th is for testing; bool [count]."""
    return np.arange(count) % n == n - 1


def every(
    n: int, images: np.ndarray, labels: np.ndarray, names: Iterable, split: str
) -> ArraySource:
    """Arrays split by that rule.

    Args:
        n: every n-th is a test picture.
        images: uint8 [N, H, W, C].
        labels: whole numbers [N].
        names: of the classes, by label.
        split: "train" or "test".

    Returns:
        ArraySource.
    """
    test = is_test(n, len(images))
    chosen = test if split == "test" else ~test
    return ArraySource(images[chosen], labels[chosen].astype(np.int32), tuple(map(str, names)))
