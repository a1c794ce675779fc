"""Picture files of any kind as grey or colour, 8 bit."""

from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from iddpm_jax.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp")

_ORIENTATION = 0x0112  # the EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(file: Path | BinaryIO, channels: int) -> Image.Image:
    """Read a picture, turned as its camera was held.

    What is transparent becomes white, 16-bit grey keeps its upper 8 bits rounded, of an animation
    the first frame is taken.

    Args:
        file: a path or an open file.
        channels: 1 or 3.

    Returns:
        A picture of mode L or RGB.

    Raises:
        Exception: whatever Pillow raises where it is no picture or a damaged one.
    """
    with Image.open(file) as opened:
        opened.load()
        turn = _turn(opened)
        upright = opened if turn is None else opened.transpose(turn)
        return _flat(upright, "L" if channels == 1 else "RGB")


def shape_of(file: Path | BinaryIO) -> tuple[int, int, int]:
    """(H, W, C) as decode would give it, from the head of a file; C is 1 for grey, else 3.

    Raises:
        Exception: as decode.
    """
    with Image.open(file) as opened:
        width, height = opened.size
        turn = _turn(opened)
        if turn is not None and turn not in (_UPRIGHT[2], _UPRIGHT[3], _UPRIGHT[4]):
            width, height = height, width  # it lies on its side
        grey = opened.mode in ("1", "L", "LA") or opened.mode.startswith("I")
        return height, width, 1 if grey else 3


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What sets a picture upright."""
    try:
        return _UPRIGHT.get(image.getexif().get(_ORIENTATION))
    except Exception:  # damaged words about a picture do not make it a damaged picture
        return None


def check_channels(image_shape: tuple[int, ...]) -> None:
    """Refuse what no picture file can give.

    Raises:
        InputError: neither 1 nor 3 channels.
    """
    if image_shape and image_shape[2] not in (1, 3):
        raise InputError(
            f"pictures are read as grey or colour, 1 or 3 channels, not {image_shape[2]}; change "
            "data.image_shape"
        )


def _flat(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow would clip at 255.
        levels = np.rint(np.asarray(image, np.float64) / 257)
        image = Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == mode else image.convert(mode)
