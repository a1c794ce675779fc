"""What is measured of a pair of image and step, against the equations in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from iddpm_jax.diffusion.process import make_process, q_sample
from iddpm_jax.diffusion.reverse import Parametrization
from iddpm_jax.diffusion.schedules import make_betas
from iddpm_jax.evaluation.terms import term_values

T = 12
BETAS = make_betas("cosine", T)[:-1]  # the last is so large that float32 has few digits of it
ALPHA_BAR = np.cumprod(1 - BETAS)
PREV = np.append(1.0, ALPHA_BAR[:-1])
BETA_TILDE = BETAS * (1 - PREV) / (1 - ALPHA_BAR)
BETA_TILDE[0] = BETA_TILDE[1]
STEPS = np.arange(T - 1)


@pytest.fixture(scope="module")
def batch():
    """A pair for every step, with predictions that often leave [-1, 1], and v that does."""
    rng = np.random.default_rng(3)
    x_0 = rng.integers(0, 256, (T - 1, 4, 4, 1)) / 127.5 - 1
    eps = rng.standard_normal(x_0.shape)
    wrong = eps + 0.3 * rng.standard_normal(x_0.shape)
    v = rng.uniform(-1.5, 1.2, x_0.shape)
    return x_0, eps, wrong, v


def column(table):
    return table[:, None, None, None]


def expected_term(x_0, eps, predicted_eps, log_variance, clip):
    """(L_t, the predicted x_0) from equations 5, 6 and 11, in float64."""
    x_t = column(np.sqrt(ALPHA_BAR)) * x_0 + column(np.sqrt(1 - ALPHA_BAR)) * eps
    predicted = (x_t - column(np.sqrt(1 - ALPHA_BAR)) * predicted_eps) / column(np.sqrt(ALPHA_BAR))
    predicted = np.clip(predicted, -1, 1) if clip else predicted
    of_x_0 = column(np.sqrt(PREV) * BETAS / (1 - ALPHA_BAR))
    of_x_t = column(np.sqrt(1 - BETAS) * (1 - PREV) / (1 - ALPHA_BAR))
    ratio = column(BETA_TILDE) / np.exp(log_variance)
    gap = of_x_0 * (x_0 - predicted)
    nats = 0.5 * (ratio - 1 - np.log(ratio) + gap**2 / np.exp(log_variance))
    mean, std = of_x_0 * predicted + of_x_t * x_t, np.exp(0.5 * log_variance)
    upper, lower = ((x_0 - mean + s / 255) / std for s in (1, -1))
    upper, lower = np.where(x_0 > 0.999, np.inf, upper), np.where(x_0 < -0.999, -np.inf, lower)
    ends = [np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)) / 2 for z in (upper, lower)]
    nats[0] = -np.log(np.maximum(ends[0] - ends[1], 1e-12))[0]
    return nats.mean(axis=(1, 2, 3)) / np.log(2), predicted


def found(batch, variance, clip):
    x_0, eps, wrong, v = (jnp.asarray(a, jnp.float32) for a in batch)
    log_variance = v
    if variance == "learned":
        share = (batch[3] + 1) / 2
        log_variance = share * column(np.log(BETAS)) + (1 - share) * column(np.log(BETA_TILDE))
    parametrization = Parametrization("eps", variance)
    output = wrong
    if parametrization.learns_variance:
        output = jnp.concatenate([wrong, jnp.asarray(log_variance, jnp.float32)], axis=-1)
    process = make_process(BETAS)
    x_t = q_sample(process, x_0, STEPS, eps)
    return term_values(process, parametrization, clip, output, x_0, x_t, STEPS, eps)


@pytest.mark.parametrize("variance", ["learned_range", "learned", "fixed_small", "fixed_large"])
@pytest.mark.parametrize("clip", [True, False])
def test_every_bound_is_that_of_the_equations(batch, variance, clip):
    x_0, eps, wrong, v = batch
    share = (v + 1) / 2
    log_variances = {
        "learned_range": share * column(np.log(BETAS)) + (1 - share) * column(np.log(BETA_TILDE)),
        "fixed_small": column(np.log(BETA_TILDE)),
        "fixed_large": column(np.log(np.append(BETA_TILDE[1], BETAS[1:]))),
    }
    log_variances["learned"] = log_variances["learned_range"]
    values = found(batch, variance, clip)
    own = log_variances[variance]
    expected, predicted = expected_term(x_0, eps, wrong, own, clip)
    np.testing.assert_allclose(values["l_t"], expected, rtol=1e-4)
    np.testing.assert_allclose(
        values["x_0_mse"], ((predicted - x_0) ** 2).mean(axis=(1, 2, 3)), rtol=1e-4
    )
    other = "unclipped" if clip else "clipped"
    expected_other, _ = expected_term(x_0, eps, wrong, own, not clip)
    np.testing.assert_allclose(values[other], expected_other, rtol=1e-4)
    assert not np.allclose(expected, expected_other, rtol=1e-2)  # clipping does something here
    for fixed in {"fixed_small", "fixed_large"} - {variance}:
        expected, _ = expected_term(x_0, eps, wrong, log_variances[fixed], clip)
        np.testing.assert_allclose(values[fixed], expected, rtol=1e-4)
    assert variance not in values
    if variance.startswith("fixed"):
        assert "v" not in values
    else:
        np.testing.assert_allclose(values["v"], v.mean(axis=(1, 2, 3)), atol=1e-4)
        np.testing.assert_allclose(values["v_outside"], (abs(v) > 1).mean(axis=(1, 2, 3)))
