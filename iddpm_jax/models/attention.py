"""Attention image by image, with its own gradient: for CPUs.

The weights of one image stay in a core's cache. They are not kept for the gradient, but computed
again from the logarithms of their sums, as in Dao et al. 2022, "FlashAttention" (arXiv 2205.14135),
appendix B.
"""

import jax
import jax.numpy as jnp
from jax.lax import Precision


@jax.custom_vjp
def attend_by_image(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q k) v over all positions, for every head.

    Args:
        q, k, v: [B, N, heads, channels of a head]; q and k already scaled.

    Returns:
        Same shape and type.
    """
    return _forward(q, k, v)[0]


def _forward(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, tuple]:
    def of(image: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        q, k, v = (x.swapaxes(0, 1) for x in image)
        logits = _logits(q, k)
        largest = logits.max(axis=-1, keepdims=True)
        weights = jnp.exp(logits - largest)
        total = weights.sum(axis=-1, keepdims=True)
        y = _product(weights.astype(v.dtype), 2, v, 1) / total
        return y.swapaxes(0, 1).astype(v.dtype), largest + jnp.log(total)

    y, log_totals = jax.lax.map(of, (q, k, v))
    return y, (q, k, v, y, log_totals)


def _backward(kept: tuple, dy: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    *arrays, log_totals = kept

    def of(image: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        log_total, *arrays = image
        q, k, v, y, dy = (x.swapaxes(0, 1) for x in arrays)
        weights = jnp.exp(_logits(q, k) - log_total)
        # The derivative of softmax: d_weights less their mean under the weights, which is y dy.
        mean = (y * dy).astype(jnp.float32).sum(axis=-1, keepdims=True)
        d_logits = (weights * (_logits(dy, v) - mean)).astype(q.dtype)
        dq = _product(d_logits, 2, k, 1).swapaxes(0, 1)
        # The small factor first: XLA's CPU library does not take the large one's transpose.
        dk, dv = _product(q, 1, d_logits, 1), _product(dy, 1, weights.astype(dy.dtype), 1)
        return dq, *(x.transpose(2, 0, 1) for x in (dk, dv))

    return jax.lax.map(of, (log_totals, *arrays, dy))


attend_by_image.defvjp(_forward, _backward)


def _logits(a: jax.Array, b: jax.Array) -> jax.Array:
    """Products of all positions with all, [heads, N, C] each -> [heads, N, N], float32."""
    return _product(a, 2, b, 2).astype(jnp.float32)


def _product(a: jax.Array, i: int, b: jax.Array, j: int) -> jax.Array:
    """Matrix products of every head, over axis i of a and j of b."""
    return jax.lax.dot_general(a, b, (((i,), (j,)), ((0,), (0,))), precision=Precision.HIGHEST)
