"""A checksum of every array of a state, computed where the arrays live."""

import functools
import hashlib
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

GOLDEN = 0x9E3779B1  # odd, so that index -> index * GOLDEN is a bijection modulo 2^32


def checksums(tree: Any) -> dict[str, int]:
    """One number per leaf: the sum, modulo 2^32, of its words mixed with their positions.

    A change of one word always changes the sum, a larger one misses it once in 2^32. The number
    depends on the array alone, however it is spread over devices and processes; only the sums reach
    the host. In several processes, all must call this together.

    Args:
        tree: of arrays, random keys among them.

    Returns:
        Checksum by path of the leaf, such as `.params['out']['bias']`.
    """
    named = jax.tree_util.tree_leaves_with_path(tree)
    # All are under way before the first is waited for.
    pending = [_shard_sums(leaf) for _, leaf in named]
    local = np.array([sum(map(int, parts)) % 2**32 for parts in pending], np.uint32)
    if jax.process_count() > 1:
        local = multihost_utils.process_allgather(local).sum(axis=0, dtype=np.uint32)
    names = [jax.tree_util.keystr(path) for path, _ in named]
    return dict(zip(names, local.tolist(), strict=True))


def digest(tree: Any) -> str:
    """A word for all the arrays of a tree and their names; in several processes called together."""
    text = json.dumps(checksums(tree), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _shard_sums(leaf: jax.Array) -> list[jax.Array | int]:
    """Sums of the parts of a leaf that are here; of devices that hold the same, one counts."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    strides = tuple(math.prod(leaf.shape[axis + 1 :]) for axis in range(leaf.ndim))
    sums = []
    for shard in leaf.addressable_shards:
        if shard.replica_id != 0:
            continue
        if shard.data.shape == leaf.shape and shard.device.platform == "cpu":
            sums.append(_sum_on_host(np.asarray(shard.data)))
        else:
            starts = (part.start or 0 for part in shard.index)
            first = sum(start * stride for start, stride in zip(starts, strides, strict=True))
            sums.append(_sum(shard.data, np.uint32(first % 2**32), strides))
    return sums


def _sum_on_host(array: np.ndarray) -> int:
    """As _sum, for a whole array in the memory of the host, beside a step that is computed there.

    JAX on a CPU must not be asked for this from another thread: its few threads may all wait for
    each other in the step's collective while this program waits for one of them.
    """
    if array.dtype == bool:
        array = array.view(np.uint8)
    words = array.reshape(-1).view({1: np.uint8, 2: np.uint16}.get(array.itemsize, np.uint32))
    total, size = 0, 2**16  # words at a time, in the cache
    ramp = np.arange(min(size, words.size), dtype=np.uint32) * np.uint32(GOLDEN)
    for start in range(0, words.size, size):
        part = words[start : start + size].astype(np.uint32)
        part += ramp[: part.size]
        part += np.uint32(start * GOLDEN % 2**32)
        total += int(_mix(part).sum(dtype=np.uint64))
    return total


@functools.partial(jax.jit, static_argnames="strides")
def _sum(part: jax.Array, first: jax.Array, strides: tuple[int, ...]) -> jax.Array:
    """Sum of the mixed words of a part whose first element has index `first` in the whole."""
    if part.dtype == bool:
        part = part.astype(jnp.uint8)
    size = part.dtype.itemsize
    word = jax.lax.bitcast_convert_type(part, {1: jnp.uint8, 2: jnp.uint16}.get(size, jnp.uint32))
    if size == 8:  # two words each
        first, strides = 2 * first, (*(2 * stride for stride in strides), 1)
    index = first
    for axis, stride in enumerate(strides):
        steps = jax.lax.broadcasted_iota(jnp.uint32, word.shape, axis)
        index = index + steps * np.uint32(stride % 2**32)
    return jnp.sum(_mix(word.astype(jnp.uint32) + index * np.uint32(GOLDEN)), dtype=jnp.uint32)


def _mix(word: Any) -> Any:
    """The finaliser of MurmurHash3, a bijection of 32-bit words."""
    word = (word ^ (word >> 16)) * np.uint32(0x85EBCA6B)
    word = (word ^ (word >> 13)) * np.uint32(0xC2B2AE35)
    return word ^ (word >> 16)
