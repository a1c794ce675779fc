"""Pictures in .npz files, the form that evaluators exchange."""

from pathlib import Path

import numpy as np

from iddpm_jax.data.protocol import ArraySource, every
from iddpm_jax.errors import InputError


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


def load(address: str, split: str) -> ArraySource:
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
    source = every(10, images, labels, names, split)
    if not len(source):
        raise InputError(
            f"{path} has {len(images)} pictures, and every tenth is for testing, so there is none; "
            "give 10 or more, or a folder with a test.npz"
        )
    return source
