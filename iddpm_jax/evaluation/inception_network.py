"""Inception-v3 as FID uses it: the network of TensorFlow's 2015-12-05 archive, in plain JAX.

Szegedy et al. 2015 (arXiv 1512.00567). The layers have torchvision's names, which the files of
weights use; three things differ from torchvision's own network: average pools do not count the
padding, the last block (Mixed_7c) pools by maximum, and there are 1008 classes.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from iddpm_jax.evaluation.features import Features

SIZE = 299
CLASSES = 1008

SPATIAL_CHANNELS = 7
"""The evaluator of guided-diffusion keeps so many of 192, as in Nash et al. 2021 (2103.03841)."""

PREPROCESSING = ("pytorch_fid", "tensorflow")

Conv = Callable[..., jax.Array]
"""(x [B, H, W, C], layer's name, channels, (height, width) of the kernel, stride, padding) -> the
layer's output after ReLU."""


def shapes() -> dict[str, tuple[int, int, int, int]]:
    """Kernels of all convolutions by layer: (height, width, channels in, channels out)."""
    found = {}

    def record(x, name, channels, kernel=(1, 1), stride=1, padding="SAME"):
        found[name] = (*kernel, x.shape[-1], channels)
        return _conv_relu(x, jnp.zeros(found[name]), jnp.zeros(channels), stride, padding)

    jax.eval_shape(lambda x: _trunk(record, x), jnp.zeros((1, SIZE, SIZE, 3)))
    return found


def prepare(images: jax.Array, preprocessing: str) -> jax.Array:
    """Resize and scale images as an evaluator does.

    Neither low-passes before it shrinks. pytorch-fid's grid has half-pixel centres; that of
    TensorFlow 1 puts the first pixels of both images at the same place.

    Args:
        images: [B, H, W, 3] in 0..255.
        preprocessing: one of PREPROCESSING.

    Returns:
        Images [B, 299, 299, 3] from -1 to 1.

    Raises:
        ValueError: an unknown preprocessing.
    """
    if preprocessing not in PREPROCESSING:
        raise ValueError(f"preprocessing is {preprocessing!r}; use one of {PREPROCESSING}")
    rows, columns = (_resizing(size, preprocessing) for size in images.shape[1:3])
    product = jnp.einsum("oh,bhwc->bowc", rows, images, precision=lax.Precision.HIGHEST)
    resized = jnp.einsum("ow,bhwc->bhoc", columns, product, precision=lax.Precision.HIGHEST)
    if preprocessing == "tensorflow":
        return (resized - 128) / 128
    return 2 * (resized / 255) - 1


def _resizing(size: int, preprocessing: str) -> np.ndarray:
    """Bilinear interpolation of one axis as a matrix [299, size]."""
    # Positions are float32 in both evaluators, which moves weights by 1e-5 at pixel 255. PyTorch
    # rounds once (a fused multiply-add), as is done here in float64.
    scale = np.float64(np.float32(size / SIZE))
    pixels = np.arange(SIZE)
    if preprocessing == "tensorflow":
        position = (pixels * scale).astype(np.float32)
    else:
        position = np.maximum((pixels + 0.5) * scale - 0.5, 0).astype(np.float32)
    low = np.minimum(position.astype(int), size - 1)
    high = np.minimum(low + 1, size - 1)
    share = position - low.astype(np.float32)
    matrix = np.zeros((SIZE, size), np.float32)
    np.add.at(matrix, (pixels, low), 1 - share)
    np.add.at(matrix, (pixels, high), share)
    return matrix


def features(params: dict, images: jax.Array) -> Features:
    """What scores are made of.

    Args:
        params: layer's name -> {"kernel" [h, w, in, out], "bias" [out]}, batch norm multiplied out;
            "fc" -> {"kernel" [2048, 1008]}.
        images: from prepare, [B, 299, 299, 3].

    Returns:
        Features: pool [B, 2048], spatial [B, 17 * 17 * 7], logits [B, 1008].
    """

    def conv(x, name, channels, kernel=(1, 1), stride=1, padding="SAME"):
        layer = params[name]
        return _conv_relu(x, layer["kernel"], layer["bias"], stride, padding)

    pool, spatial = _trunk(conv, images)
    logits = jnp.dot(pool, params["fc"]["kernel"], precision=lax.Precision.HIGHEST)
    return Features(pool, spatial, logits)


def _trunk(conv: Conv, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Images [B, 299, 299, 3] -> (pool [B, 2048], spatial [B, 2023])."""
    x = conv(x, "Conv2d_1a_3x3", 32, (3, 3), stride=2, padding="VALID")
    x = conv(x, "Conv2d_2a_3x3", 32, (3, 3), padding="VALID")
    x = conv(x, "Conv2d_2b_3x3", 64, (3, 3))
    x = _max_pool(x, stride=2, padding="VALID")
    x = conv(x, "Conv2d_3b_1x1", 80)
    x = conv(x, "Conv2d_4a_3x3", 192, (3, 3), padding="VALID")
    x = _max_pool(x, stride=2, padding="VALID")
    for block, channels in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
        x = _block_a(conv, x, block, channels)
    x = _block_b(conv, x, "Mixed_6a")
    for block, channels in (("Mixed_6b", 128), ("Mixed_6c", 160)):
        x = _block_c(conv, x, block, channels)
    x = _block_c(conv, x, "Mixed_6d", 160)
    # Its first branch comes first. In TensorFlow's graph it is mixed_6/conv, after ReLU.
    spatial = x[..., :SPATIAL_CHANNELS].reshape(len(x), -1)
    x = _block_c(conv, x, "Mixed_6e", 192)
    x = _block_d(conv, x, "Mixed_7a")
    x = _block_e(conv, x, "Mixed_7b", _average_pool)
    x = _block_e(conv, x, "Mixed_7c", _max_pool)
    return x.mean((1, 2)), spatial


def _chain(conv: Conv, x: jax.Array, name: str, *layers: tuple[int, tuple[int, int]]) -> jax.Array:
    """Layers name_1, name_2, ..., given as (channels, kernel)."""
    for i, (channels, kernel) in enumerate(layers, start=1):
        x = conv(x, f"{name}_{i}", channels, kernel)
    return x


def _block_a(conv: Conv, x: jax.Array, block: str, channels: int) -> jax.Array:
    """35 x 35."""
    branches = [
        conv(x, f"{block}.branch1x1", 64),
        _chain(conv, x, f"{block}.branch5x5", (48, (1, 1)), (64, (5, 5))),
        _chain(conv, x, f"{block}.branch3x3dbl", (64, (1, 1)), (96, (3, 3)), (96, (3, 3))),
        conv(_average_pool(x), f"{block}.branch_pool", channels),
    ]
    return jnp.concatenate(branches, axis=-1)


def _block_b(conv: Conv, x: jax.Array, block: str) -> jax.Array:
    """35 x 35 -> 17 x 17."""
    double = _chain(conv, x, f"{block}.branch3x3dbl", (64, (1, 1)), (96, (3, 3)))
    branches = [
        conv(x, f"{block}.branch3x3", 384, (3, 3), stride=2, padding="VALID"),
        conv(double, f"{block}.branch3x3dbl_3", 96, (3, 3), stride=2, padding="VALID"),
        _max_pool(x, stride=2, padding="VALID"),
    ]
    return jnp.concatenate(branches, axis=-1)


def _block_c(conv: Conv, x: jax.Array, block: str, channels: int) -> jax.Array:
    """17 x 17."""
    point, wide, high = (channels, (1, 1)), (channels, (1, 7)), (channels, (7, 1))
    branches = [
        conv(x, f"{block}.branch1x1", 192),
        _chain(conv, x, f"{block}.branch7x7", point, wide, (192, (7, 1))),
        _chain(conv, x, f"{block}.branch7x7dbl", point, high, wide, high, (192, (1, 7))),
        conv(_average_pool(x), f"{block}.branch_pool", 192),
    ]
    return jnp.concatenate(branches, axis=-1)


def _block_d(conv: Conv, x: jax.Array, block: str) -> jax.Array:
    """17 x 17 -> 8 x 8."""
    single = _chain(conv, x, f"{block}.branch3x3", (192, (1, 1)))
    seven = _chain(conv, x, f"{block}.branch7x7x3", (192, (1, 1)), (192, (1, 7)), (192, (7, 1)))
    branches = [
        conv(single, f"{block}.branch3x3_2", 320, (3, 3), stride=2, padding="VALID"),
        conv(seven, f"{block}.branch7x7x3_4", 192, (3, 3), stride=2, padding="VALID"),
        _max_pool(x, stride=2, padding="VALID"),
    ]
    return jnp.concatenate(branches, axis=-1)


def _block_e(
    conv: Conv, x: jax.Array, block: str, pool: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """8 x 8."""
    single = _chain(conv, x, f"{block}.branch3x3", (384, (1, 1)))
    double = _chain(conv, x, f"{block}.branch3x3dbl", (448, (1, 1)), (384, (3, 3)))
    branches = [
        conv(x, f"{block}.branch1x1", 320),
        conv(single, f"{block}.branch3x3_2a", 384, (1, 3)),
        conv(single, f"{block}.branch3x3_2b", 384, (3, 1)),
        conv(double, f"{block}.branch3x3dbl_3a", 384, (1, 3)),
        conv(double, f"{block}.branch3x3dbl_3b", 384, (3, 1)),
        conv(pool(x), f"{block}.branch_pool", 192),
    ]
    return jnp.concatenate(branches, axis=-1)


def _conv_relu(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, stride: int, padding: str
) -> jax.Array:
    y = lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=lax.Precision.HIGHEST,  # accelerators would round to fewer bits
    )
    return jax.nn.relu(y + bias[None, None, None])


def _max_pool(x: jax.Array, stride: int = 1, padding: str = "SAME") -> jax.Array:
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, stride, stride, 1), padding)


def _average_pool(x: jax.Array) -> jax.Array:
    """Means of 3 x 3, at the border of those pixels that are in the image."""
    total = lax.reduce_window(x, 0.0, lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")
    inside = [
        np.minimum(np.arange(n), 1) + np.minimum(np.arange(n)[::-1], 1) + 1 for n in x.shape[1:3]
    ]
    return total / np.multiply.outer(*inside).astype(np.float32)[None, :, :, None]
