"""Measuring gradient noise: a network whose gradients are known, and a real one against numpy."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_config import tiny

from iddpm_jax import build
from iddpm_jax.diffusion import importance
from iddpm_jax.errors import InputError
from iddpm_jax.evaluation.gradient_measurement import Measurement, objectives_of
from iddpm_jax.evaluation.gradient_noise import estimate
from iddpm_jax.models.unet import Network
from iddpm_jax.training.parallel import make_mesh, replicated

# Most of it compiles gradients.
pytestmark = pytest.mark.slow

SHAPE, T = (8, 8, 1), 20
PIXELS = 64
STRENGTH = np.linspace(0.5, 4.0, T)
"""How much the formula's output moves with theta at each t."""


def formula(**changes):
    """(config, model): eps is theta * STRENGTH[t] everywhere, v is 0.

    L_simple of an example is the mean of (eps - theta s_t)^2; its gradient is
    -2 s_t (eps - theta s_t) / PIXELS in every pixel, with eps standard normal.
    """
    settings = {"gradients__batches": 100, "gradients__batch_size": 16, **changes}
    config = tiny(diffusion__rescale_timesteps=False, **settings)
    strength = jnp.asarray(STRENGTH, jnp.float32)

    def apply(params, x, t, y, dropout_keys, low_res):
        eps = params["theta"] * strength[t.astype(jnp.int32)][:, None, None, None]
        return jnp.concatenate([jnp.broadcast_to(eps, x.shape), jnp.zeros_like(x)], axis=-1)

    network = Network(lambda *_: None, apply)
    return config, dataclasses.replace(build.model(config), network=network)


def state_of(params, mesh, history=None):
    params = jax.device_put(params, replicated(mesh))
    return SimpleNamespace(params=params, history=history)


def measured(devices=2, theta=0.0, history=None, **changes):
    """Rows by (objective, sampler)."""
    config, model = formula(**changes)
    mesh = make_mesh(jax.devices()[:devices])
    params = {"theta": jnp.full((1, *SHAPE), theta)}
    rows = Measurement(config, model, mesh).rows(state_of(params, mesh, history), "", False)
    return {(row.objective, row.timesteps): row for row in rows}


@pytest.fixture(scope="module")
def rows():
    return measured(theta=0.25)


def variance_of(p: np.ndarray, theta: float) -> float:
    """tr(Sigma) of L_simple's gradient under p_t and weights 1 / (T p_t), plus |G|^2."""
    weight = 1 / (T * p)
    square = 4 * STRENGTH**2 * (1 + (theta * STRENGTH) ** 2) / PIXELS
    return (p * weight**2 * square).sum()


def squared_gradient(theta: float) -> float:
    return 4 * theta**2 * (STRENGTH**2).mean() ** 2 / PIXELS


def test_noise_of_the_formula_is_its_closed_form(rows):
    noise = rows["l_simple", "uniform"].noise
    G = squared_gradient(0.25)
    expected = {"squared_gradient": G, "variance": variance_of(np.full(T, 1 / T), 0.25) - G}
    for name, truth in expected.items():
        value, error = getattr(noise, name)
        assert abs(value - truth) < 3.5 * error < 0.3 * truth, name
    assert noise.resolved
    truth = expected["variance"] / G
    assert abs(noise.scale.value - truth) < 3.5 * noise.scale.error


def test_loss_of_the_formula_is_its_closed_form(rows):
    value, error = rows["l_simple", "uniform"].noise.loss
    truth = 1 + 0.25**2 * (STRENGTH**2).mean()
    assert abs(value - truth) < 3.5 * error < 0.05 * truth


def test_importance_draws_as_often_as_losses_are_large(rows):
    row = rows["l_hybrid", "importance"]
    assert row.history == "fresh"
    np.testing.assert_allclose(row.p.sum(), 1, rtol=1e-5)
    assert row.p[-1] > 1.3 * row.p[0]  # L_simple, nearly all of it, is 2 and 1.02 there
    assert rows["l_hybrid", "uniform"].history == ""
    np.testing.assert_array_equal(rows["l_hybrid", "uniform"].p, np.float32(1 / T))


def test_any_probabilities_estimate_the_same_gradient_with_their_own_variance():
    config, model = formula()
    mesh = make_mesh(jax.devices()[:2])
    p = (STRENGTH / STRENGTH.sum()).astype(np.float32)
    measurement = Measurement(config, model, mesh)
    bar = SimpleNamespace(update=lambda _: None)
    params = state_of({"theta": jnp.full((1, *SHAPE), 0.25)}, mesh).params
    noise = estimate(measurement._sums(params, "l_simple", p, bar))
    G = squared_gradient(0.25)
    for name, truth in (("squared_gradient", G), ("variance", variance_of(p, 0.25) - G)):
        value, error = getattr(noise, name)
        assert abs(value - truth) < 3.5 * error < 0.3 * truth, name


def test_own_history_is_used_once_every_t_is_known_to_this_objective():
    table = np.linspace(1, 3, T)[:, None] * np.ones((1, 10))
    full = importance.History(jnp.asarray(table, jnp.float32), jnp.full(T, 10))
    rows = measured(history=full, loss__name="l_vlb", gradients__batches=20)
    assert rows["l_vlb", "importance"].history == "run"
    assert rows["l_hybrid", "importance"].history == "fresh"
    expected = 0.999 * table[:, 0] / table[:, 0].sum() + 0.001 / T
    np.testing.assert_allclose(rows["l_vlb", "importance"].p, expected, rtol=1e-5)
    cold = dataclasses.replace(full, seen=full.seen.at[3].set(9))
    rows = measured(history=cold, loss__name="l_vlb", gradients__batches=20)
    assert rows["l_vlb", "importance"].history == "fresh"


def test_number_of_devices_changes_nothing():
    one, four = (measured(devices, 0.25, gradients__batches=20) for devices in (1, 4))
    for key, row in one.items():
        for a, b in zip(row.sums[1:], four[key].sums[1:], strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-4, err_msg=str(key))


def test_fixed_variance_has_no_l_hybrid():
    config = tiny(diffusion__variance="fixed_small", loss__name="l_simple")
    assert objectives_of(build.model(config)) == ("l_simple", "l_vlb")


def test_float16_is_refused():
    config = tiny(model__dtype="float16")
    with pytest.raises(InputError, match="model.dtype=float32"):
        Measurement(config, build.model(config), make_mesh())


def test_batch_that_devices_cannot_share_is_refused():
    config = tiny(gradients__batch_size=6)
    with pytest.raises(InputError, match="gradients.batch_size 6"):
        Measurement(config, build.model(config), make_mesh())


def test_gradient_that_is_not_finite_is_told():
    with pytest.raises(InputError, match="l_simple is not finite"):
        measured(theta=np.nan, gradients__batches=20)
