"""Checksums: as numpy computes them, on any devices, and changed by any one word."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from iddpm_jax.training.checksum import checksums


def expected(array: np.ndarray) -> int:
    """In Python's integers, word by word."""
    if array.dtype == bool:
        array = array.astype(np.uint8)
    word = {1: np.uint8, 2: np.uint16}.get(array.itemsize, np.uint32)
    total = 0
    for index, value in enumerate(array.reshape(-1).view(word).tolist()):
        h = (value + index * 0x9E3779B1) % 2**32
        h = (h ^ h >> 16) * 0x85EBCA6B % 2**32
        h = (h ^ h >> 13) * 0xC2B2AE35 % 2**32
        total += h ^ h >> 16
    return total % 2**32


def noise(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 50, shape).astype(dtype)


@pytest.mark.parametrize(
    "array",
    [
        noise(3, 4, 5),
        noise(7, dtype=np.float16),
        noise(7, 2, dtype=ml_dtypes.bfloat16),
        noise(6, dtype=np.int8),
        noise(6, dtype=np.int32),
        noise(2, 3) > 0,
        np.float32(-0.0).reshape(()),
        np.zeros((0, 3), np.float32),
    ],
    ids=lambda a: f"{a.dtype}{a.shape}",
)
def test_checksum_is_that_of_numpy(array):
    assert checksums({"a": jnp.asarray(array)}) == {"['a']": expected(array)}


def test_eight_byte_words_count_as_two():
    array = noise(3, 2, dtype=np.float64)
    with jax.enable_x64(True):
        assert checksums(jnp.asarray(array)) == {"": expected(array)}


def test_random_keys_count_as_their_data():
    key = jax.random.key(3)
    assert checksums([key]) == {"[0]": expected(np.asarray(jax.random.key_data(key)))}


@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize(
    "spec",
    [
        PartitionSpec(),
        PartitionSpec("fsdp"),
        PartitionSpec(None, "fsdp"),
        PartitionSpec("data", "fsdp"),
    ],
    ids=str,
)
def test_checksum_is_the_same_on_any_devices(devices, spec):
    array = noise(8, 4, 3)
    grid = np.array(jax.devices()[:devices]).reshape(2 if devices == 4 else 1, -1)
    sharding = NamedSharding(Mesh(grid, ("data", "fsdp")), spec)
    assert checksums([jax.device_put(array, sharding)]) == {"[0]": expected(array)}


def test_any_flipped_bit_and_any_two_swapped_words_show():
    array = noise(2, 3)
    before = checksums(jnp.asarray(array))
    for word in range(array.size):
        for bit in range(32):
            changed = array.copy()
            changed.reshape(-1).view(np.uint32)[word] ^= np.uint32(1 << bit)
            assert checksums(jnp.asarray(changed)) != before
    assert checksums(jnp.asarray(array[::-1])) != before


def test_long_arrays_are_counted_to_their_end():
    array = noise(2**16 + 3)
    assert checksums(jnp.asarray(array)) == {"": expected(array)}
