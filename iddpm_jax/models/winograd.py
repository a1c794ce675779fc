"""3x3 convolutions by Winograd's minimal filtering: 16 products where the plain sum has 36.

Lavin & Gray 2016, "Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308), section
4.1, F(2x2, 3x3): y = A^T [(G w G^T) . (B^T x B)] A for every tile x of 4x4 pixels, two apart, whose
result y is 2x2 pixels. The sum over channels is a product of matrices at each of the 16 points.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision

_KERNEL = np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]], np.float32) / 2  # G
_RESULT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]], np.float32)  # A^T


@jax.custom_vjp
def convolve(x: jax.Array, w: jax.Array) -> jax.Array:
    """3x3 convolution of stride 1 with one pixel of zero padding on every side.

    Args:
        x: [B, H, W, C], float32; H and W even.
        w: [3, 3, C, K].

    Returns:
        [B, H, W, K].
    """
    return _result(_product(_tiles(x), _kernel(w, _KERNEL), 2, 1), x.shape)


def _forward(x: jax.Array, w: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return convolve(x, w), (x, w)


def _backward(kept: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, w = kept
    # The gradient of x is the convolution of dy with the kernel turned by 180 degrees.
    turned = _kernel(w, _KERNEL[:, ::-1])
    dx = _result(_product(_tiles(dy), turned, 2, 2), dy.shape)
    # That of w goes back through the transforms.
    d_products = transform(_RESULT.T, _pixels_first(dy))
    d_kernel = _product(_tiles(x), d_products.reshape(16, -1, dy.shape[-1]), 1, 1)
    dw = transform(_KERNEL.T, d_kernel.reshape(16, -1))
    return dx, dw.reshape(w.shape)


convolve.defvjp(_forward, _backward)


def _tiles(x: jax.Array) -> jax.Array:
    """B^T x B of all tiles: [B, H, W, C] -> [16, tiles, C]."""
    height, width, channels = x.shape[1:]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    columns = jnp.stack(_sums(lambda j: x[:, :, j : j + width - 1 : 2]))
    tiles = jnp.stack(_sums(lambda i: columns[:, :, i : i + height - 1 : 2]))
    return tiles.reshape(16, -1, channels)


def _sums(line: Callable[[int], jax.Array]) -> list[jax.Array]:
    """B^T's four sums of a tile's four lines."""
    return [line(0) - line(2), line(1) + line(2), line(2) - line(1), line(1) - line(3)]


def _kernel(w: jax.Array, m: np.ndarray) -> jax.Array:
    """G w G^T: [3, 3, C, K] -> [16, C, K]."""
    return transform(m, w.reshape(9, -1)).reshape(16, *w.shape[2:])


def _result(products: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A^T m A of all tiles, put together: [16, tiles, K] -> [B, H, W, K]."""
    batch, height, width, _ = shape
    y = transform(_RESULT, products.reshape(16, -1))
    y = y.reshape(2, 2, batch, height // 2, width // 2, -1)
    return y.transpose(2, 3, 0, 4, 1, 5).reshape(batch, height, width, -1)


def _pixels_first(y: jax.Array) -> jax.Array:
    """The four pixels of every 2x2 first: [B, H, W, K] -> [4, B H W K / 4]."""
    return jnp.stack([y[:, i::2, j::2] for i in range(2) for j in range(2)]).reshape(4, -1)


def transform(m: np.ndarray, entries: jax.Array) -> jax.Array:
    """m e m^T of every small matrix e, whose entries come first: [q q, n] -> [p p, n]."""
    return jnp.dot(jnp.asarray(np.kron(m, m)), entries, precision=Precision.HIGHEST)


def _product(a: jax.Array, b: jax.Array, i: int, j: int) -> jax.Array:
    """Matrix products at all points, over axis i of a and j of b."""
    return jax.lax.dot_general(a, b, (((i,), (j,)), ((0,), (0,))), precision=Precision.HIGHEST)
