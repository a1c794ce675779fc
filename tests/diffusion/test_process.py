"""The forward process: recorded values, Bayes' rule, and tables without cancellation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import OUTPUT, assert_close, cases, load, to_nchw
from toy_model import images, process_of, spec_of, steps

from iddpm_jax.diffusion.process import (
    coefficients,
    eps_from_x_0,
    make_process,
    posterior,
    q_mean_variance,
    q_sample,
    x_0_from_eps,
    x_0_from_prev_mean,
)
from iddpm_jax.diffusion.schedules import make_betas

FILE = "03_diffusion.npz"
GROUPS = cases(FILE, "group")
FORWARD = cases(FILE, "forward")


def _pictures(batch: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.RandomState(seed).uniform(-1, 1, (batch, 4, 3, 2)), jnp.float32)


@pytest.mark.parametrize("name, case", GROUPS, ids=[name for name, _ in GROUPS])
def test_network_time_matches_recording(name, case):
    process = process_of(case["spec"])
    assert process.T == case["num_timesteps"]
    fed = np.asarray(process.model_t)[load(FILE)[f"{name}/t"]]
    np.testing.assert_array_equal(fed, load(FILE)[f"{name}/model_timesteps"])
    assert np.issubdtype(fed.dtype, np.floating) == case["spec"]["rescale_timesteps"]


@pytest.mark.parametrize("name, case", FORWARD, ids=[name for name, _ in FORWARD])
def test_forward_process_matches_recording(name, case):
    process = process_of(spec_of(case["group"]))
    x_0, eps, x_t = (images(FILE, f"{case['inputs']}/{k}") for k in ("x_start", "noise", "x_t"))
    t = steps(FILE, f"{case['inputs']}/t")
    q = q_mean_variance(process, x_0, t)
    back = posterior(process, x_0, x_t, t)
    ours = {
        "q_mean": q.mean,
        "q_variance": q.variance,
        "q_log_variance": q.log_variance,
        "q_sample": q_sample(process, x_0, t, eps),
        "posterior_mean": back.mean,
        "posterior_variance": back.variance,
        "posterior_log_variance": back.log_variance,
        "xstart_from_eps": x_0_from_eps(process, x_t, t, eps),
        "xstart_from_xprev": x_0_from_prev_mean(process, x_t, t, eps),
        "eps_from_xstart": eps_from_x_0(process, x_t, t, x_0),
    }
    for key, value in ours.items():
        value = to_nchw(jnp.broadcast_to(value, x_0.shape))
        assert_close(FILE, f"{name}/{key}", value, OUTPUT)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_tables_keep_their_digits_in_float32(schedule):
    betas = make_betas(schedule, 4000)
    process = make_process(betas)
    # log1p and expm1 never form the cancelling difference, not even in float64.
    log_alpha_bar = np.cumsum(np.log1p(-betas))
    exact = {
        "alpha_bar": np.exp(log_alpha_bar),
        "one_minus_alpha_bar": -np.expm1(log_alpha_bar),
        "log_one_minus_alpha_bar": np.log(-np.expm1(log_alpha_bar)),
        "sqrt_one_minus_alpha_bar": np.sqrt(-np.expm1(log_alpha_bar)),
        "sqrt_recipm1_alpha_bar": np.sqrt(np.expm1(-log_alpha_bar)),
        "beta_tilde": betas
        * -np.expm1(np.append(0.0, log_alpha_bar[:-1]))
        / -np.expm1(log_alpha_bar),
    }
    for name, table in exact.items():
        assert getattr(process, name).dtype == np.float32
        np.testing.assert_allclose(getattr(process, name), table, rtol=3e-7, atol=1e-37)


def test_q_sample_has_the_moments_of_equation_8():
    process = make_process(make_betas("cosine", 100))
    n, t = 200_000, 40
    alpha_bar = np.cumprod(1 - make_betas("cosine", 100))[t]
    eps = jnp.asarray(np.random.RandomState(0).randn(n, 1, 1, 1), jnp.float32)
    x_t = q_sample(process, jnp.full(eps.shape, 0.7), jnp.full((n,), t), eps)
    variance = 1 - alpha_bar
    np.testing.assert_allclose(x_t.mean(), np.sqrt(alpha_bar) * 0.7, atol=4 * np.sqrt(variance / n))
    np.testing.assert_allclose(x_t.var(), variance, rtol=4 * np.sqrt(2 / n))


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_single_steps_compose_to_q(schedule):
    betas = make_betas(schedule, 30)
    process = make_process(betas)
    scale, variance = 1.0, 0.0
    x_0 = jnp.ones((30, 1, 1, 1))
    q = q_mean_variance(process, x_0, jnp.arange(30))
    for t, beta in enumerate(betas):
        scale, variance = np.sqrt(1 - beta) * scale, (1 - beta) * variance + beta
        np.testing.assert_allclose(q.mean[t].item(), scale, rtol=1e-6)
        np.testing.assert_allclose(q.variance[t].item(), variance, rtol=1e-6)
        np.testing.assert_allclose(q.log_variance[t].item(), np.log(variance), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_posterior_is_bayes_rule(schedule):
    """N(x_{t-1}; sqrt(abar') x_0, 1 - abar') N(x_t; sqrt(1 - beta) x_{t-1}, beta), normalised."""
    betas = make_betas(schedule, 40)
    process = make_process(betas)
    alpha_bar_prev = np.append(1.0, np.cumprod(1 - betas)[:-1])
    x_0, x_t = 0.3, -1.2
    t = np.arange(1, 40)
    q = posterior(process, jnp.full((39, 1, 1, 1), x_0), jnp.full((39, 1, 1, 1), x_t), jnp.array(t))
    prior_precision = 1 / (1 - alpha_bar_prev[t])
    precision = prior_precision + (1 - betas[t]) / betas[t]
    mean = prior_precision * np.sqrt(alpha_bar_prev[t]) * x_0
    mean = (mean + np.sqrt(1 - betas[t]) / betas[t] * x_t) / precision
    np.testing.assert_allclose(q.mean.ravel(), mean, rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(q.variance.ravel(), 1 / precision, rtol=2e-6)
    np.testing.assert_allclose(q.log_variance.ravel(), -np.log(precision), rtol=2e-6)


def test_posterior_at_the_first_step_is_x_0():
    process = make_process(make_betas("cosine", 10))
    x_0, x_t = _pictures(2), _pictures(2, 1)
    q = posterior(process, x_0, x_t, jnp.zeros((2,), jnp.int32))
    np.testing.assert_allclose(q.mean, x_0, rtol=1e-6)
    np.testing.assert_array_equal(q.variance, 0.0)
    np.testing.assert_array_equal(q.log_variance, np.asarray(process.log_beta_tilde)[1])


def test_fixed_large_borrows_its_first_entry():
    betas = make_betas("cosine", 10)
    tables = coefficients(betas)
    np.testing.assert_array_equal(tables["fixed_large"][1:], betas[1:])
    assert tables["fixed_large"][0] == tables["beta_tilde"][1]
    np.testing.assert_allclose(tables["log_fixed_large"], np.log(tables["fixed_large"]), rtol=1e-12)


def test_conversions_return_what_was_put_in():
    process = make_process(make_betas("cosine", 50))
    t = jnp.array([0, 1, 20, 40])
    x_0, eps = _pictures(4), _pictures(4, 1)
    x_t = q_sample(process, x_0, t, eps)
    mu = posterior(process, x_0, x_t, t).mean
    np.testing.assert_allclose(x_0_from_eps(process, x_t, t, eps), x_0, atol=1e-5)
    np.testing.assert_allclose(eps_from_x_0(process, x_t, t, x_0), eps, atol=1e-4)
    np.testing.assert_allclose(x_0_from_prev_mean(process, x_t, t, mu), x_0, atol=1e-4)


def test_process_is_an_argument_of_a_compiled_function():
    traces = []

    @jax.jit
    def noised(process, x_0, t, eps):
        traces.append(process.T)
        return q_sample(process, x_0, t, eps)

    x_0, eps, t = _pictures(2), _pictures(2, 1), jnp.array([3, 4])
    for schedule in ("linear", "cosine"):
        betas = make_betas(schedule, 25)
        alpha_bar = np.cumprod(1 - betas)[np.array([3, 4])][:, None, None, None]
        expected = np.sqrt(alpha_bar) * np.asarray(x_0) + np.sqrt(1 - alpha_bar) * np.asarray(eps)
        np.testing.assert_allclose(noised(make_process(betas), x_0, t, eps), expected, atol=1e-6)
    assert traces == [25]


def test_last_beta_of_one_is_allowed():
    process = make_process(np.array([0.1, 0.5, 1.0]))
    np.testing.assert_array_equal(process.alpha_bar[-1], 0.0)
    np.testing.assert_allclose(process.posterior_x_0[-1], np.sqrt(0.45), rtol=1e-6)


def test_network_time_may_be_renamed():
    process = make_process(np.full(3, 0.1), np.array([0, 5, 9]), 10, rescale_timesteps=True)
    np.testing.assert_array_equal(process.timesteps, [0, 5, 9])
    np.testing.assert_array_equal(process.model_t, [0.0, 500.0, 900.0])


@pytest.mark.parametrize(
    "betas", [[], [[0.1, 0.2]], [0.0, 0.1], [0.1, -0.2], [0.1, 1.5], [0.1, np.nan]], ids=str
)
def test_impossible_betas_are_refused(betas):
    with pytest.raises(ValueError, match="betas must"):
        make_process(np.array(betas))


def test_wrong_number_of_timesteps_is_refused():
    with pytest.raises(ValueError, match="4 betas"):
        make_process(np.full(4, 0.1), timesteps=np.arange(5))


@pytest.mark.parametrize("formula", [q_sample, posterior])
def test_images_of_different_shapes_are_refused(formula):
    process, x = make_process(np.full(4, 0.1)), _pictures(2)
    arguments = (x, jnp.array([0, 1]), x[:1]) if formula is q_sample else (x, x[:1], jnp.array([0]))
    with pytest.raises(ValueError, match="differ in shape"):
        formula(process, *arguments)
