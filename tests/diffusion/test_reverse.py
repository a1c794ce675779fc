"""The reverse process: recorded values, the ends of the learned range, perfect predictions."""

import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import OUTPUT, assert_close, cases, to_nchw
from toy_model import (
    images,
    parametrization_of,
    process_of,
    spec_of,
    steps,
    toy_network,
    transform_of,
)

from iddpm_jax.diffusion.process import make_process
from iddpm_jax.diffusion.reverse import (
    MEANS,
    VARIANCES,
    Parametrization,
    clip_x_0,
    mean_target,
    p_mean_variance,
    predict_x_0,
    reverse_variance,
    v_of,
    with_variance,
)
from iddpm_jax.diffusion.schedules import make_betas

FILE = "03_diffusion.npz"
CASES = cases(FILE, "p_mean_variance")

T = 20
BETAS = make_betas("cosine", T)
PROCESS = make_process(BETAS)
ALPHA_BAR = np.cumprod(1 - BETAS)
BETA_TILDE = BETAS * (1 - np.append(1.0, ALPHA_BAR[:-1])) / (1 - ALPHA_BAR)
EVERY_T = jnp.arange(T)


@pytest.mark.parametrize("name, case", CASES, ids=[name for name, _ in CASES])
def test_reverse_step_matches_recording(name, case):
    spec = spec_of(case["group"])
    process, parametrization = process_of(spec), parametrization_of(case)
    x_t, t = images(FILE, f"{case['inputs']}/x_t"), steps(FILE, f"{case['inputs']}/t")
    output = toy_network(case, spec)(x_t, jnp.asarray(process.model_t)[t])
    reverse = p_mean_variance(process, parametrization, output, x_t, t, transform_of(case))
    ours = [to_nchw(jnp.broadcast_to(part, x_t.shape)) for part in reverse]
    assert_close(FILE, name, np.stack(ours), OUTPUT)


def _log_variance(variance: str, v: float | None = None) -> np.ndarray:
    v = None if v is None else jnp.full((T, 1, 1, 1), v)
    value, log_value = reverse_variance(PROCESS, Parametrization("eps", variance), v, EVERY_T)
    if v is not None:
        np.testing.assert_allclose(value, np.exp(np.asarray(log_value)), rtol=1e-5)
    return np.asarray(log_value).ravel()


def test_learned_range_ends_at_the_fixed_variances():
    log_beta_tilde = np.log(np.append(BETA_TILDE[1], BETA_TILDE[1:]))
    np.testing.assert_allclose(_log_variance("learned_range", -1.0), log_beta_tilde, rtol=1e-6)
    np.testing.assert_allclose(_log_variance("fixed_small"), log_beta_tilde, rtol=1e-6)
    # fixed_large borrows its entry at t = 0; the range's upper end there is log beta itself.
    np.testing.assert_allclose(_log_variance("learned_range", 1.0), np.log(BETAS), rtol=1e-5)
    np.testing.assert_allclose(_log_variance("fixed_large")[1:], np.log(BETAS[1:]), rtol=1e-6)
    np.testing.assert_allclose(_log_variance("fixed_large")[0], log_beta_tilde[0], rtol=1e-6)


def test_learned_range_is_linear_and_not_clamped():
    log_beta_tilde = np.log(np.append(BETA_TILDE[1], BETA_TILDE[1:]))
    for v in (-2.0, 0.0, 0.5, 3.0):
        expected = log_beta_tilde + (v + 1) / 2 * (np.log(BETAS) - log_beta_tilde)
        np.testing.assert_allclose(_log_variance("learned_range", v), expected, rtol=1e-5)


def test_learned_output_is_the_log_variance():
    np.testing.assert_array_equal(_log_variance("learned", -3.5), -3.5)


def test_v_is_found_in_a_log_variance():
    """Where float32 can tell: at the end of a long linear schedule it cannot."""
    v = np.linspace(-1.5, 1.5, T)
    log_beta_tilde = np.log(np.append(BETA_TILDE[1], BETA_TILDE[1:]))
    log_variance = log_beta_tilde + (v + 1) / 2 * (np.log(BETAS) - log_beta_tilde)
    output = np.stack([np.zeros(T), log_variance], axis=-1)[:, None, None].astype(np.float32)
    found = v_of(PROCESS, Parametrization("eps", "learned"), output, EVERY_T)
    np.testing.assert_allclose(np.ravel(found), v, atol=2e-4)
    output[..., 1] = v[:, None, None]
    found = v_of(PROCESS, Parametrization("eps", "learned_range"), output, EVERY_T)
    np.testing.assert_allclose(np.ravel(found), v, rtol=1e-6)

    long, t = make_process(make_betas("linear", 1000)), np.array([10, 999])
    output = np.zeros((2, 1, 1, 2), np.float32)
    found = np.ravel(v_of(long, Parametrization("eps", "learned"), output, t))
    assert np.isfinite(found[0]) and np.isnan(found[1])


def test_fixed_variance_replaces_a_learned_one():
    x_t, output = np.ones((T, 1, 1, 1), np.float32), np.full((T, 1, 1, 2), 0.3, np.float32)
    learned = p_mean_variance(PROCESS, Parametrization(), output, x_t, EVERY_T)
    large = with_variance(PROCESS, learned, "fixed_large", EVERY_T)
    np.testing.assert_array_equal(large.mean, learned.mean)
    expected = np.append(BETA_TILDE[1], BETAS[1:])
    np.testing.assert_allclose(np.ravel(large.variance), expected, rtol=1e-6)
    np.testing.assert_allclose(np.ravel(large.log_variance), np.log(expected), rtol=1e-6)


def test_fixed_small_variance_is_zero_at_the_first_step():
    variance, _ = reverse_variance(PROCESS, Parametrization("eps", "fixed_small"), None, EVERY_T)
    np.testing.assert_allclose(np.ravel(variance), BETA_TILDE, rtol=1e-6)
    assert np.ravel(variance)[0] == 0.0


@pytest.mark.parametrize("mean", MEANS)
def test_perfect_prediction_gives_x_0_and_the_posterior_mean(mean):
    random = np.random.RandomState(0)
    x_0 = random.uniform(-1, 1, (T, 2, 2, 3))
    eps = random.randn(T, 2, 2, 3)
    alpha_bar = ALPHA_BAR[:, None, None, None]
    x_t = np.sqrt(alpha_bar) * x_0 + np.sqrt(1 - alpha_bar) * eps
    prev, beta = np.append(1.0, ALPHA_BAR[:-1])[:, None, None, None], BETAS[:, None, None, None]
    of_x_0 = np.sqrt(prev) * beta / (1 - alpha_bar)
    of_x_t = np.sqrt(1 - beta) * (1 - prev) / (1 - alpha_bar)
    mu = of_x_0 * x_0 + of_x_t * x_t
    output = {"eps": eps, "x_0": x_0, "prev_mean": mu}[mean]
    # Solving for x_0 divides the rounding of the inputs by the share of x_0 in them.
    rounding = {"eps": 1 / np.sqrt(alpha_bar), "x_0": 0.0, "prev_mean": (1 + of_x_t) / of_x_0}

    x_0, eps, x_t, output = (jnp.asarray(a, jnp.float32) for a in (x_0, eps, x_t, output))
    parametrization = Parametrization(mean, "fixed_small")
    reverse = p_mean_variance(PROCESS, parametrization, output, x_t, EVERY_T)
    assert (np.abs(reverse.x_0 - x_0) <= 1e-6 * rounding[mean]).all()
    np.testing.assert_allclose(reverse.mean, mu, atol=1e-5)
    target = mean_target(PROCESS, parametrization, x_0, x_t, EVERY_T, eps)
    np.testing.assert_allclose(target, output, atol=1e-5)


@pytest.mark.parametrize("mean", MEANS)
def test_transform_acts_on_x_0(mean):
    x_t = jnp.asarray(np.random.RandomState(0).randn(T, 2, 2, 3), jnp.float32)
    parametrization = Parametrization(mean, "fixed_large")
    output = 0.9 * x_t
    plain = p_mean_variance(PROCESS, parametrization, output, x_t, EVERY_T)
    clipped = p_mean_variance(PROCESS, parametrization, output, x_t, EVERY_T, clip_x_0)
    np.testing.assert_array_equal(clipped.x_0, np.clip(plain.x_0, -1, 1))
    assert (np.abs(plain.x_0) > 1).any()
    if mean == "prev_mean":
        np.testing.assert_array_equal(clipped.mean, plain.mean)
    else:
        assert (np.abs(clipped.mean - plain.mean) > 0).any()


@pytest.mark.parametrize("variance", VARIANCES)
def test_channels_of_the_output_are_mean_then_variance(variance):
    parametrization = Parametrization("x_0", variance)
    channels = parametrization.output_channels(3)
    assert channels == (6 if variance.startswith("learned") else 3)
    output = jnp.broadcast_to(
        jnp.arange(channels, dtype=jnp.float32)[None, None, None], (2, 1, 1, channels)
    )
    mean_part, v = parametrization.split(output)
    np.testing.assert_array_equal(mean_part[0, 0, 0], [0, 1, 2])
    if v is None:
        assert not parametrization.learns_variance
    else:
        np.testing.assert_array_equal(v[0, 0, 0], [3, 4, 5])
    x_t = jnp.zeros((2, 1, 1, 3))
    x_0 = predict_x_0(PROCESS, parametrization, mean_part, x_t, EVERY_T[:2])
    np.testing.assert_array_equal(x_0, mean_part)


@pytest.mark.parametrize("variance", VARIANCES)
def test_wrong_number_of_channels_is_refused(variance):
    x_t = jnp.zeros((2, 1, 1, 3))
    with pytest.raises(ValueError, match="expected"):
        p_mean_variance(
            PROCESS, Parametrization("eps", variance), jnp.zeros((2, 1, 1, 4)), x_t, EVERY_T[:2]
        )


def test_unknown_words_are_refused_with_the_legal_ones():
    with pytest.raises(ValueError, match="eps, x_0, prev_mean"):
        Parametrization(mean="epsilon")
    with pytest.raises(ValueError, match="learned_range"):
        Parametrization(variance="small")
