"""Training in float16: the same direction as in float32, and steps that overflow are not taken."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_config import tiny

from iddpm_jax import build, data
from iddpm_jax.errors import DivergedError
from iddpm_jax.training import loop, loss_scale, runs
from iddpm_jax.training.loss_scale import LossScale
from iddpm_jax.training.parallel import make_mesh, replicated, to_devices

# Nearly all of it compiles a training step.
pytestmark = pytest.mark.slow

IMPORTANCE = {"loss__timesteps": "importance", "loss__history_size": 2}


class Stepper:
    """A compiled step of a config with this dtype, and a perturbed state before its first step."""

    def __init__(self, dtype: str):
        config = tiny(model__dtype=dtype, **IMPORTANCE)
        model, self.mesh = build.model(config), make_mesh(jax.devices()[:1])
        state = runs.new_state(config, model, self.mesh)()
        rng = np.random.default_rng(0)
        # Away from the zero initialisation, under which most gradients vanish.
        params = jax.tree.map(
            lambda p: p + 0.05 * rng.standard_normal(p.shape).astype("f"),
            jax.device_get(state.params),
        )
        ema = {rate: jax.tree.map(lambda p: 2 * p, params) for rate in state.ema}
        self.state = dataclasses.replace(jax.device_get(state), params=params, ema=ema)
        self.batch = next(data.training_batches(data.load("digits", "train"), 16, 0, False))
        self._step = runs.step_function(config, model, self.mesh)

    def after(self, state=None, log2=None):
        """(state, metrics) on the host after a step from this state under this scale."""
        state = self.state if state is None else state
        if log2 is not None:
            state = dataclasses.replace(state, loss_scale=LossScale(jnp.float32(log2)))
        state = jax.device_put(state, replicated(self.mesh))
        return jax.device_get(self._step(state, to_devices(self.mesh, self.batch)))


@pytest.fixture(scope="module")
def half():
    return Stepper("float16")


@pytest.fixture(scope="module")
def full():
    return Stepper("float32")


def first_moment(state) -> np.ndarray:
    """Adam's, a tenth of the first gradient, in one vector."""
    leaves = jax.tree.leaves(optax.tree.get(state.opt_state, "mu"))
    return np.concatenate([leaf.ravel().astype(np.float64) for leaf in leaves])


def test_float16_steps_in_the_direction_of_float32(half, full):
    (state, metrics), (expected, expected_metrics) = half.after(log2=12), full.after()
    a, b = first_moment(state), first_moment(expected)
    # Rounding to 11 bits in every layer makes about 0.1%.
    assert np.linalg.norm(a - b) < 0.01 * np.linalg.norm(b)
    for name, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=0.01, atol=0.01, err_msg=name)
    assert metrics["skipped"] == 0 and metrics["log2_loss_scale"] == 12
    assert expected.loss_scale is None
    assert not {"skipped", "log2_loss_scale"} & expected_metrics.keys()


def test_parameters_averages_and_history_are_float32(half):
    state, _ = half.after(log2=12)
    for leaf in jax.tree.leaves([state.params, state.ema, state.opt_state, state.history]):
        assert leaf.dtype in (np.float32, np.int32)


def test_scale_cancels_out(half):
    (a, few), (b, many) = half.after(log2=6), half.after(log2=14)
    # Powers of two round nothing, but for what underflows.
    a, b = first_moment(a), first_moment(b)
    assert np.linalg.norm(a - b) < 0.001 * np.linalg.norm(b)
    assert few["loss"] == many["loss"]


def test_good_step_raises_the_scale(half):
    state, _ = half.after(log2=12)
    np.testing.assert_allclose(state.loss_scale.log2, 12.001, rtol=1e-6)
    assert state.step == 1


def assert_not_taken(before, after):
    """Nothing but the step and the scale has changed, to the last bit."""
    assert after.step == before.step + 1
    for name in ("params", "ema", "opt_state", "history"):
        old, new = getattr(before, name), getattr(after, name)
        for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True):
            np.testing.assert_array_equal(a, b, err_msg=name)


def test_step_that_overflows_is_not_taken(half):
    before, _ = half.after(log2=12)  # with an optimizer and a history that hold something
    state, metrics = half.after(before, log2=60)
    assert_not_taken(before, state)
    assert state.loss_scale.log2 == 59
    assert metrics["skipped"] == 1 and metrics["log2_loss_scale"] == 60
    assert not np.isfinite(metrics["gradient_norm"]) and np.isfinite(metrics["loss"])
    # The same state under a scale that fits moves on.
    moved, _ = half.after(before, log2=12)
    assert not np.array_equal(first_moment(moved), first_moment(before))


@pytest.mark.parametrize("log2", [0.0, 0.25])
def test_scale_stays_at_its_floor(half, log2):
    params = jax.tree.map(lambda p: np.full_like(p, np.inf), half.state.params)
    broken = dataclasses.replace(half.state, params=params)
    state, metrics = half.after(broken, log2=log2)
    assert_not_taken(broken, state)
    assert state.loss_scale.log2 == loss_scale.FLOOR
    assert metrics["skipped"] == 1


class NoCheckpoints:
    latest = None


def check(half_precision: bool = True, **changes: float) -> None:
    """loop._check_finite of a good step's metrics, changed."""
    metrics = {"loss": 0.1, "gradient_norm": 1.0}
    if half_precision:
        metrics |= {"skipped": 0.0, "log2_loss_scale": 12.0}
    metrics = {name: np.float32(value) for name, value in {**metrics, **changes}.items()}
    loop._check_finite(7, metrics, NoCheckpoints())


@pytest.mark.parametrize("wrong", [np.inf, np.nan])
def test_overflow_ends_a_run_at_the_floor_only(wrong):
    check()
    for log2 in (20.0, 0.001):
        check(gradient_norm=wrong, skipped=1.0, log2_loss_scale=log2)
        check(gradient_norm=wrong, loss=wrong, skipped=1.0, log2_loss_scale=log2)
    with pytest.raises(DivergedError, match="not finite at step 7"):
        check(gradient_norm=wrong, skipped=1.0, log2_loss_scale=loss_scale.FLOOR)
    with pytest.raises(DivergedError):
        check(loss=wrong)


@pytest.mark.parametrize("name", ["loss", "gradient_norm"])
def test_float32_run_ends_as_soon_as_it_is_not_finite(name):
    check(half_precision=False)
    with pytest.raises(DivergedError, match="not finite at step 7"):
        check(half_precision=False, **{name: np.nan})
