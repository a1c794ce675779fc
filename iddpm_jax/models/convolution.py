"""3x3 convolutions in forms that CPUs compute fast, their gradients in loops too.

XLA passes a convolution on a CPU to a fast library if its arrays are in the order [B, H, W, C] and
[3, 3, C, K]. It brings the two convolutions of a gradient into that order only outside of loops, so
that with microbatches, or several steps per dispatch, weights' gradients take tens of times as
long. Here they are written in that order; and with few pixels, where the weights are the larger
part, as products of matrices, which read the weights as they lie. Images that were enlarged by
repeating their pixels are convolved without being made.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision

from iddpm_jax.models.winograd import transform

PIXELS = 4096
"""So many pixels, of x or of dy, are summed by one convolution in a weight's gradient. The library
goes through all of them for every few channels; more do not stay in a core's cache:
benchmarks/README.md."""


def convolve(x: jax.Array, w: jax.Array, stride: int) -> jax.Array:
    """3x3 convolution with one pixel of zero padding on every side.

    Args:
        x: [B, H, W, C], float32.
        w: [3, 3, C, K].
        stride: 1 or 2.

    Returns:
        [B, ceil(H / stride), ceil(W / stride), K].
    """
    batch, height, width, _ = x.shape
    pixels = batch * -(-height // stride) * -(-width // stride)
    # Below that, all neighbourhoods together are smaller than the weights.
    return (_gathered if pixels < w.shape[-1] else _direct)(x, w, stride)


def _gathered(x: jax.Array, w: jax.Array, stride: int) -> jax.Array:
    """The product of every pixel's neighbourhood [9 C] with the weights [9 C, K]."""
    height, width, channels = x.shape[1:]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    neighbours = [
        padded[:, i : i + height : stride, j : j + width : stride]
        for i in range(3)
        for j in range(3)
    ]
    gathered = jnp.concatenate(neighbours, axis=-1)
    return jnp.matmul(gathered, w.reshape(9 * channels, -1), precision=Precision.HIGHEST)


_SUMS = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 1], [0, 0, 1]], np.float32)
"""Three weights in a line, summed over every two equal pixels."""


@jax.custom_vjp
def convolve_enlarged(x: jax.Array, w: jax.Array) -> jax.Array:
    """3x3 convolution of an image twice as large, every pixel repeated 2x2, without making it.

    Of three neighbours in a line two are the same pixel. So the four results at a pixel are four
    convolutions of 2x2, whose weights are sums of w: 16 products where the plain sum has 36. They
    make up one kernel of 4x4, and the gradient is its convolution, of stride 2.

    Args:
        x: [B, H, W, C], float32.
        w: [3, 3, C, K].

    Returns:
        [B, 2 H, 2 W, K].
    """
    batch, height, width, _ = x.shape
    summed = _summed(w)
    kernels = [summed[i::2, j::2] for i in range(2) for j in range(2)]
    y = _convolution(x, jnp.concatenate(kernels, axis=-1), ((1, 1), (1, 1)))
    y = y.reshape(batch, height + 1, width + 1, 2, 2, -1)
    rows = [
        jnp.stack([y[:, i : i + height, j : j + width, i, j] for j in range(2)], axis=3)
        for i in range(2)
    ]
    return jnp.stack(rows, axis=2).reshape(batch, 2 * height, 2 * width, -1)


def _enlarged_forward(x: jax.Array, w: jax.Array) -> tuple[jax.Array, tuple]:
    return convolve_enlarged(x, w), (x, w)


def _enlarged_backward(kept: tuple, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, w = kept
    dx = _convolution(dy, _summed(_turned(w)), ((1, 1), (1, 1)), stride=2)
    d_summed = _weight_gradient(dy, x, 2, [(1, 1), (1, 1)])
    dw = transform(_SUMS.T, d_summed.reshape(16, -1)).reshape(3, 3, *d_summed.shape[2:])
    return dx, _turned(dw)


convolve_enlarged.defvjp(_enlarged_forward, _enlarged_backward)


def _summed(w: jax.Array) -> jax.Array:
    """The kernel's sums over every 2x2 equal pixels: [3, 3, C, K] -> [4, 4, C, K]."""
    return transform(_SUMS, w.reshape(9, -1)).reshape(4, 4, *w.shape[2:])


def _turned(w: jax.Array) -> jax.Array:
    """Turned by 180 degrees, and from results to channels: [h, w, C, K] -> [h, w, K, C]."""
    return w[::-1, ::-1].swapaxes(2, 3)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _direct(x: jax.Array, w: jax.Array, stride: int) -> jax.Array:
    return _convolution(x, w, ((1, 1), (1, 1)), stride=stride)


def _forward(x: jax.Array, w: jax.Array, stride: int) -> tuple[jax.Array, tuple]:
    return _direct(x, w, stride), (x, w)


def _backward(stride: int, kept: tuple, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, w = kept
    # How far the pixels of dy, `stride` apart, end before those of x.
    beyond = [n - (stride * (m - 1) + 1) for n, m in zip(x.shape[1:3], dy.shape[1:3], strict=True)]
    # The gradient of x is the convolution of dy with the kernel turned by 180 degrees.
    dx = _convolution(dy, _turned(w), [(1, 1 + n) for n in beyond], apart=stride)
    return dx, _weight_gradient(x, dy, stride, [(1, 1 - n) for n in beyond])


_direct.defvjp(_forward, _backward)


def _weight_gradient(
    x: jax.Array, dy: jax.Array, stride: int, padding: list[tuple[int, int]]
) -> jax.Array:
    """[B, H, W, C], [B, H', W', K] -> [3, 3, C, K]: images are summed over as channels are."""

    def of(images: tuple[jax.Array, jax.Array]) -> jax.Array:
        x, dy = images
        channels_first, kernel = x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3)
        dw = _convolution(channels_first, kernel, padding, kernel_apart=stride)
        return dw.transpose(1, 2, 0, 3)

    batch = len(x)
    most = max(1, PIXELS // max(math.prod(a.shape[1:3]) for a in (x, dy)))
    at_once = max(n for n in range(1, min(batch, most) + 1) if batch % n == 0)
    if at_once == batch:
        return of((x, dy))
    parts = [a.reshape(batch // at_once, at_once, *a.shape[1:]) for a in (x, dy)]
    return jax.lax.map(of, tuple(parts)).sum(axis=0)


def _convolution(
    x: jax.Array,
    w: jax.Array,
    padding: Sequence[tuple[int, int]],
    *,
    stride: int = 1,
    apart: int = 1,
    kernel_apart: int = 1,
) -> jax.Array:
    """In the library's order; `apart`: how far x's pixels are, or the kernel's."""
    return jax.lax.conv_general_dilated(
        x,
        w,
        (stride, stride),
        padding,
        lhs_dilation=(apart, apart),
        rhs_dilation=(kernel_apart, kernel_apart),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=Precision.HIGHEST,
    )
