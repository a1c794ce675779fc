"""Pictures between files and arrays: 8 bit, resizing, grids, PNG."""

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


def prepare(image: Image.Image, resolution: int) -> np.ndarray:
    """Square picture of a given size: halve while twice too large, bicubic, centre crop.

    As OpenAI's image_datasets.py.

    Args:
        image: any size, mode RGB.
        resolution: height and width of the result, pixels.

    Returns:
        uint8 [resolution, resolution, 3].
    """
    while min(image.size) >= 2 * resolution:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = resolution / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    pixels = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
    top = (pixels.shape[0] - resolution) // 2
    left = (pixels.shape[1] - resolution) // 2
    return pixels[top : top + resolution, left : left + resolution]


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
