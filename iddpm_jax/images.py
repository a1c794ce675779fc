"""Pictures between files and arrays: 8 bit, resizing, grids, PNG."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image


def to_float(pixels: jax.Array) -> jax.Array:
    """uint8 0..255 -> float32 [-1, 1], any shape."""
    # Centred first: compiled, x / 127.5 - 1 leaves the range by a rounding.
    return (pixels.astype(jnp.float32) - 127.5) / 127.5


def to_uint8(x: np.ndarray) -> np.ndarray:
    """float [-1, 1] -> uint8, clamped and truncated as in OpenAI's published batches, any shape."""
    return np.clip((np.asarray(x, np.float32) + 1.0) * 127.5, 0, 255).astype(np.uint8)


def prepare(image: Image.Image, height: int, width: int) -> np.ndarray:
    """Picture of a given size: halve while twice too large, bicubic, centre crop.

    As OpenAI's image_datasets.py, which knows squares only.

    Args:
        image: any size, mode L or RGB.
        height, width: of the result, pixels.

    Returns:
        uint8 [height, width] or [height, width, 3].
    """
    pixels = _covering(image, height, width)
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def random_crop(
    image: Image.Image, height: int, width: int, smallest: float, rng: np.random.Generator
) -> np.ndarray:
    """Picture of a given size: a window of random size and place.

    As guided-diffusion's random_crop_arr, for which smallest is 0.8.

    Args:
        image: any size, mode L or RGB.
        height, width: of the result, pixels.
        smallest: share of the largest window that fits which the window has at least, by side;
            above 0, at most 1.
        rng: gives size and place.

    Returns:
        uint8 [height, width] or [height, width, 3].
    """
    side = min(height, width)
    larger = rng.integers(side, math.ceil(side / smallest), endpoint=True) / side
    pixels = _covering(image, math.ceil(height * larger), math.ceil(width * larger))
    top = rng.integers(pixels.shape[0] - height, endpoint=True)
    left = rng.integers(pixels.shape[1] - width, endpoint=True)
    return pixels[top : top + height, left : left + width]


def _covering(image: Image.Image, height: int, width: int) -> np.ndarray:
    """The smallest version of the picture that covers height x width."""
    while image.height >= 2 * height and image.width >= 2 * width:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(height / image.height, width / image.width)
    size = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(image)


def area_average(x: jax.Array, height: int, width: int) -> jax.Array:
    """Average down to height x width; bins overlap where the size does not divide.

    The small image of a super-resolution training pair.

    Args:
        x: [B, H, W, C].
        height, width: of the result.

    Returns:
        [B, height, width, C].
    """

    def weights(length: int, size: int) -> np.ndarray:
        i = np.arange(size)
        first, last = i * length // size, -(-(i + 1) * length // size)
        pixel = np.arange(length)
        inside = (pixel >= first[:, None]) & (pixel < last[:, None])
        return (inside / (last - first)[:, None]).astype(np.float32)

    rows, columns = weights(x.shape[1], height), weights(x.shape[2], width)
    # Full float32: accelerators would otherwise round the pixels.
    return jnp.einsum("ih,jw,bhwc->bijc", rows, columns, x, precision=jax.lax.Precision.HIGHEST)


def area_average_uint8(images: np.ndarray, height: int, width: int) -> np.ndarray:
    """The same for pictures in 8 bit, rounded: to_uint8 would darken each by half a level.

    Args:
        images: uint8 [B, H, W, C].
        height, width: of the result.

    Returns:
        uint8 [B, height, width, C].
    """
    return np.rint(area_average(images.astype(np.float32), height, width)).astype(np.uint8)


def enlarge(images: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pictures [B, h, w, C] -> [B, height, width, C] by the nearest pixel, without smoothing."""
    rows = np.arange(height) * images.shape[1] // height
    columns = np.arange(width) * images.shape[2] // width
    return images[:, rows][:, :, columns]


def grid(images: np.ndarray, columns: int | None = None, scale: int | None = None) -> np.ndarray:
    """Pictures side by side.

    Args:
        images: uint8 [N, H, W, C], C being 1 or 3.
        columns: pictures in a row; about square by default.
        scale: every pixel becomes scale x scale; by default small pictures grow to about 48 pixels.

    Returns:
        uint8 [rows H', columns W', C], unused places black, one pixel of black between pictures.
    """
    count, height, width, channels = images.shape
    columns = columns or int(np.ceil(np.sqrt(count)))
    scale = scale or max(1, 48 // max(height, width))
    rows = -(-count // columns)
    big = images.repeat(scale, axis=1).repeat(scale, axis=2)
    big = np.pad(big, ((0, rows * columns - count), (0, 1), (0, 1), (0, 0)))
    big = big.reshape(rows, columns, *big.shape[1:]).transpose(0, 2, 1, 3, 4)
    return big.reshape(rows * (height * scale + 1), columns * (width * scale + 1), channels)


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write uint8 [H, W, 1 or 3] as a PNG, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(path)
