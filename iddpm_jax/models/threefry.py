"""The numbers of jax.random, its Threefry generator taken entry by entry.

On CPUs jax.random passes over an array five times, four of the 20 rounds at a time, which takes
eight times as long and many times as long to compile. The generator is Threefry-2x32 of Salmon et
al. 2011, "Parallel random numbers: as easy as 1, 2, 3"; entry i is drawn with the counter (0, i).
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = np.uint32(0x1BD11BDA)
MANTISSA_BITS = 23
ONE = np.uint32(127 << MANTISSA_BITS)
"""The bits of 1.0 in float32."""


def masks(keys: jax.Array, p: float, shape: tuple[int, ...], in_turn: bool) -> jax.Array:
    """jax.random.bernoulli(key, p, shape) for each key.

    Args:
        keys: [B].
        p: probability of True.
        shape: of a mask.
        in_turn: draw one after the other, each in one pass, as is fastest on CPUs.

    Returns:
        [B, *shape] bool.
    """
    if not in_turn or not _draws(keys):
        return jax.vmap(lambda key: jax.random.bernoulli(key, p, shape))(keys)
    limit = np.uint32(math.ceil(np.float32(p) * 2**MANTISSA_BITS))

    # A loop, or XLA would draw a mask again at every place that reads it.
    drawn = jax.lax.map(
        lambda key: _mantissas(key, count=math.prod(shape)) < limit, jax.random.key_data(keys)
    )
    return drawn.reshape(-1, *shape)


def uniform(key: jax.Array, shape: tuple[int, ...], bound: float) -> jax.Array:
    """jax.random.uniform(key, shape, minval=-bound, maxval=bound), float32."""
    if not _draws(key):
        return jax.random.uniform(key, shape, minval=-bound, maxval=bound)
    mantissas = _mantissas(jax.random.key_data(key), count=math.prod(shape)).reshape(shape)
    from_0_to_1 = jax.lax.bitcast_convert_type(ONE | mantissas, jnp.float32) - 1.0
    bound = np.float32(bound)
    return jnp.maximum(-bound, from_0_to_1 * (2 * bound) - bound)


def _draws(key: jax.Array) -> bool:
    """Whether jax.random would draw these numbers: as it does unless it is set otherwise."""
    return jax.random.key_impl(key) == "threefry2x32" and jax.config.jax_threefry_partitionable


@functools.partial(jax.jit, static_argnames="count")  # traced once for all arrays of a size
def _mantissas(key: jax.Array, count: int) -> jax.Array:
    """23 random bits for each of `count` entries, uint32, from a key's two words."""
    words = (key[0], key[1], key[0] ^ key[1] ^ PARITY)
    a = jnp.broadcast_to(words[0], (count,))
    b = jax.lax.iota(jnp.uint32, count) + words[1]
    for i in range(5):
        for r in ROTATIONS[i % 2]:
            a = a + b
            b = a ^ ((b << r) | (b >> (32 - r)))
        a = a + words[(i + 1) % 3]
        b = b + words[(i + 2) % 3] + np.uint32(i + 1)
    return (a ^ b) >> (32 - MANTISSA_BITS)
