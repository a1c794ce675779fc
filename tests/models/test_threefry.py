"""The numbers are those of jax.random, to the last bit."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn.initializers import variance_scaling

from iddpm_jax.models import threefry
from iddpm_jax.models.layers import dropout, fan_in_uniform

KEY = jax.random.key(2**31 + 7)


@pytest.mark.parametrize("p", [0.9, 0.7, 0.1, 1.0, 0.0, 1 - 1e-9, 1e-9])
@pytest.mark.parametrize("shape", [(8, 8, 3), (5,), ()])
def test_masks_are_those_of_jax_random(p, shape):
    keys = jax.random.split(KEY, 3)
    expected = jax.vmap(lambda key: jax.random.bernoulli(key, p, shape))(keys)
    found = jax.jit(lambda keys: threefry.masks(keys, p, shape, in_turn=True))(keys)
    assert found.dtype == bool
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shape", [(3, 3, 16, 8), (1000,), (1,), ()])
@pytest.mark.parametrize("bound", [1.0, 1 / math.sqrt(27), 1 / 3])
def test_uniform_is_that_of_jax_random(shape, bound):
    expected = jax.jit(lambda: jax.random.uniform(KEY, shape, minval=-bound, maxval=bound))()
    np.testing.assert_array_equal(jax.jit(lambda: threefry.uniform(KEY, shape, bound))(), expected)


@pytest.mark.parametrize("shape", [(3, 3, 16, 8), (40, 7)])
def test_weights_are_those_of_variance_scaling(shape):
    official = variance_scaling(1.0 / 3.0, "fan_in", "uniform")
    expected = jax.jit(lambda: official(KEY, shape, jnp.float32))()
    found = jax.jit(lambda: fan_in_uniform(KEY, shape))()
    np.testing.assert_array_equal(found, expected)
    assert np.abs(found).max() <= 1 / math.sqrt(math.prod(shape[:-1]))


def test_dropout_is_the_same_in_both_forms_with_its_gradient():
    x = jax.random.normal(KEY, (4, 6, 6, 5))
    keys = jax.random.split(KEY, 4)
    expected, its_gradient = jax.vjp(lambda x: dropout(x, keys, 0.3), x)
    found, gradient = jax.vjp(lambda x: dropout(x, keys, 0.3, by_image=True), x)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(gradient(x), its_gradient(x))


@pytest.mark.parametrize("setting", ["another generator", "the older counters"])
def test_other_settings_of_jax_random_keep_its_numbers(setting):
    older = setting == "the older counters"
    with jax.threefry_partitionable(not older):
        key = KEY if older else jax.random.key(0, impl="rbg")
        keys = jax.random.split(key, 2)
        masks = jax.vmap(lambda key: jax.random.bernoulli(key, 0.4, (6,)))(keys)
        found = threefry.masks(keys, 0.4, (6,), in_turn=True)
        np.testing.assert_array_equal(found, masks)
        expected = jax.random.uniform(key, (6,), minval=-2.0, maxval=2.0)
        np.testing.assert_array_equal(threefry.uniform(key, (6,), 2.0), expected)
