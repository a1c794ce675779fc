"""The loss scale of float16: its rule, its floor, its start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iddpm_jax.training import loss_scale
from iddpm_jax.training.loss_scale import LossScale


def after(log2: float, finite: list[bool]) -> float:
    """log2 of the scale after steps that were good or bad."""
    scale = LossScale(jnp.float32(log2))
    for good in finite:
        scale = loss_scale.update(scale, jnp.bool_(good))
    assert scale.log2.dtype == jnp.float32 and scale.log2.shape == ()
    return float(scale.log2)


def test_scale_starts_at_two_to_the_twenty():
    scale = loss_scale.init()
    assert float(scale.log2) == 20 and scale.log2.dtype == jnp.float32
    assert float(scale.factor) == 2**20


@pytest.mark.parametrize(
    "log2, finite, expected",
    [
        (20.0, [True], 20.001),
        (20.0, [False], 19.0),
        (20.0, [True] * 500, 20.5),
        (20.0, [False, True, False, True], 18.002),
        (3.0, [False] * 2, 1.0),
        (0.0, [True], 0.001),
    ],
)
def test_good_steps_add_a_thousandth_and_bad_ones_take_one(log2, finite, expected):
    # 500 roundings of float32 near 20, of at most 2**-20 each.
    np.testing.assert_allclose(after(log2, finite), expected, rtol=0, atol=len(finite) * 2**-20)


@pytest.mark.parametrize("log2, bad", [(0.5, 1), (0.0, 1), (20.0, 30)])
def test_scale_does_not_sink_below_an_unscaled_loss(log2, bad):
    assert after(log2, [False] * bad) == 0.0
    assert after(log2, [False] * bad + [True]) == pytest.approx(0.001)


def test_factor_undoes_itself_but_for_a_rounding():
    log2 = np.float32(20.0) + np.arange(4, dtype=np.float32) * np.float32(0.001)
    factors = jax.vmap(lambda value: LossScale(value).factor)(log2)
    np.testing.assert_allclose(factors, 2.0 ** log2.astype(np.float64), rtol=1e-6)


def test_state_is_one_leaf():
    assert len(jax.tree.leaves(loss_scale.init())) == 1
