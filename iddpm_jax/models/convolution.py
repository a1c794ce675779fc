"""3x3 convolutions whose gradients CPUs compute fast, in loops and outside of them.

XLA passes a convolution on a CPU to a fast library if its arrays are in the order [B, H, W, C] and
[3, 3, C, K]. It brings the two convolutions of a gradient into that order only outside of loops, so
that with microbatches, or several steps per dispatch, weights' gradients take tens of times as
long. Here they are written in that order; and with few pixels, where the weights are the larger
part, as products of matrices, which read the weights as they lie.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.lax import Precision

PIXELS = 4096
"""So many pixels are summed by one convolution in a weight's gradient. The library goes through all
of them for every few channels; more do not stay in a core's cache: benchmarks/README.md."""


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
    turned = w[::-1, ::-1].transpose(0, 1, 3, 2)
    dx = _convolution(dy, turned, [(1, 1 + n) for n in beyond], apart=stride)
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

    batch, height, width, _ = dy.shape
    most = max(1, PIXELS // (height * width))
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
