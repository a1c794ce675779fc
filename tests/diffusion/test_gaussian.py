"""Gaussians: recorded values in float64, numeric integrals, probabilities that sum to 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import OUTPUT, assert_close, cases, load
from scipy.special import erf

from iddpm_jax.diffusion.gaussian import discretised_log_likelihood, kl, standard_normal_cdf

FILE = "04_likelihoods.npz"
KINDS = {"discretized_gaussian_log_likelihood", "normal_kl", "approx_standard_normal_cdf"}
DISCRETISED = [name for name, _ in cases(FILE, "discretized_gaussian_log_likelihood")]
FLOOR = np.log(1e-12)
PIXELS = (np.arange(256) / 127.5 - 1).astype(np.float32)


def _arrays(name: str, *keys: str) -> list[np.ndarray]:
    return [load(FILE)[f"{name}/{key}"] for key in keys]


def _exact(x: np.ndarray, mean: np.ndarray, log_scale: np.ndarray) -> tuple[np.ndarray, ...]:
    """Log-likelihood and its gradients w.r.t. mean and log_scale, in float64 without cancellation.

    P = sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)).
    """
    c = 2 * np.sqrt(2 / np.pi)
    inverse = np.exp(-log_scale)
    first, last = x < -0.999, x > 0.999
    with np.errstate(over="ignore"):
        upper, lower = inverse * (x - mean + 1 / 255), inverse * (x - mean - 1 / 255)
        a, b = c * (upper + 0.044715 * upper**3), c * (lower + 0.044715 * lower**3)
        gap = c * inverse * (2 / 255) * (1 + 0.044715 * (upper**2 + upper * lower + lower**2))
        log_a, log_b = -np.logaddexp(0, -a), -np.logaddexp(0, b)
        log_p = log_a + log_b + np.log(-np.expm1(-gap))
        log_p = np.where(first, log_a, np.where(last, log_b, log_p))
        # The densities at both ends over P: sigmoid' = sigmoid(a) sigmoid(-a).
        at_upper = np.exp(log_a - np.logaddexp(0, a) - log_p) * c * (1 + 0.134145 * upper**2)
        at_lower = np.exp(log_b - np.logaddexp(0, -b) - log_p) * c * (1 + 0.134145 * lower**2)
        at_upper, at_lower = np.where(last, 0, at_upper), np.where(first, 0, at_lower)
        by_mean = inverse * (at_lower - at_upper)
        by_log_scale = lower * at_lower - upper * at_upper
    alive = log_p > FLOOR
    return np.maximum(log_p, FLOOR), np.where(alive, by_mean, 0), np.where(alive, by_log_scale, 0)


def _value_and_gradients(x, mean, log_scale) -> list[np.ndarray]:
    def total(mean, log_scale):
        values = discretised_log_likelihood(x, mean, log_scale)
        return values.sum(), values

    gradients, values = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(mean, log_scale)
    return [np.asarray(a, np.float64) for a in (values, *gradients)]


def test_every_kind_of_recording_is_used():
    assert {case["kind"] for _, case in cases(FILE)} <= KINDS


@pytest.mark.parametrize("name", DISCRETISED)
def test_exact_likelihood_of_this_file_is_the_recorded_float64(name):
    """The recorded formula cancels: its probabilities are off by about 2e-16 each."""
    x, mean, log_scale = (a.astype(np.float64) for a in _arrays(name, "x", "means", "log_scales"))
    exact = _exact(x, mean, log_scale)
    recorded = _arrays(name, "log_probs_f64", "grad_means_f64", "grad_log_scales_f64")
    cancelled = 4e-16 / np.exp(recorded[0])
    for ours, theirs in zip(exact, recorded, strict=True):
        error = np.abs(ours - theirs)
        assert (error <= (1e-9 + 10 * cancelled) * (1 + np.abs(theirs))).all()


@pytest.mark.parametrize("name", DISCRETISED)
def test_likelihood_and_gradients_are_those_of_float64(name):
    """Everywhere, up to the rounding of x - mean +- 1/255, which float32 cannot avoid.

    That rounding moves the mean by at most delta, so the result lies in the range that the exact
    function takes on within delta, give or take 1e-5. It matters where a bin's edge falls on the
    mean of a Gaussian about as narrow as delta; where the Gaussian is so narrow that the
    likelihood is a step there, the gradient is any number up to the step's steepness.
    """
    x, mean, log_scale = _arrays(name, "x", "means", "log_scales")
    ours = _value_and_gradients(x, mean, log_scale)
    x, mean, log_scale = (a.astype(np.float64) for a in (x, mean, log_scale))
    delta = 2.0**-23 * (np.abs(x - mean) + 1 / 255)
    nearby = [_exact(x, mean + s * delta, log_scale) for s in np.linspace(-1, 1, 41)]
    step = (np.max([n[0] for n in nearby], axis=0) - np.min([n[0] for n in nearby], axis=0)) > 1
    for i, what in enumerate(("log_probs", "grad_means", "grad_log_scales")):
        low, high = (f([n[i] for n in nearby], axis=0) for f in (np.min, np.max))
        slack = 1e-5 * np.maximum(1, np.maximum(np.abs(low), np.abs(high)))
        assert np.isfinite(ours[i]).all(), what
        inside = (ours[i] >= low - slack) & (ours[i] <= high + slack)
        if i > 0:
            inside |= step & (log_scale < -20)
        assert inside.all(), f"{what}: {np.flatnonzero(~inside)}"


@pytest.mark.parametrize("name", DISCRETISED)
def test_likelihood_matches_the_recorded_float32_where_it_is_stable(name):
    x, mean, log_scale, stable = _arrays(name, "x", "means", "log_scales", "stable")
    ours = _value_and_gradients(x, mean, log_scale)
    recorded = _arrays(name, "log_probs", "grad_means", "grad_log_scales")
    where = stable.astype(bool)
    np.testing.assert_allclose(ours[0][where], recorded[0][where], rtol=0, atol=1e-3)
    for value, expected in zip(ours[1:], recorded[1:], strict=True):
        np.testing.assert_allclose(value[where], expected[where], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("log_scale", [-60.0, -20.0, -8.0, 0.0, 30.0, 90.0])
@pytest.mark.parametrize("mean", [-1e4, -1.0, 0.3, 1e4])
def test_likelihood_and_gradients_are_finite_anywhere(mean, log_scale):
    mean, log_scale = np.full(256, mean, np.float32), np.full(256, log_scale, np.float32)
    values, *gradients = _value_and_gradients(PIXELS, mean, log_scale)
    assert (values >= np.float32(FLOOR)).all() and (values <= 0).all()
    for gradient in gradients:
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("log_scale", [-7.0, -4.0, -2.0, 0.0, 2.0])
@pytest.mark.parametrize("mean", [-1.3, -1.0, -0.2, 0.0, 0.7, 1.0])
def test_probabilities_of_all_pixel_values_sum_to_one(mean, log_scale):
    """The bins cover the line; what the floor adds is at most 256e-12."""
    full = [np.full(256, a, np.float32) for a in (mean, log_scale)]
    p = np.exp(np.asarray(discretised_log_likelihood(PIXELS, *full), np.float64))
    # Rounding of each edge, in standard deviations: neighbours round it differently.
    rounding = 2.0**-23 * 2.0 * np.exp(-log_scale)
    np.testing.assert_allclose(p.sum(), 1.0, rtol=0, atol=2e-6 + rounding)


@pytest.mark.parametrize("log_scale", [-4.5, -3.0, -1.0])
def test_likelihood_is_close_to_the_integral_of_the_normal_density(log_scale):
    mean, scale = 0.1, np.exp(log_scale)
    edges = (PIXELS.astype(np.float64)[1:] + PIXELS[:-1]) / 2
    cdf = np.concatenate([[0], (1 + erf((edges - mean) / scale / np.sqrt(2))) / 2, [1]])
    full = [np.full(256, a, np.float32) for a in (mean, log_scale)]
    p = np.exp(discretised_log_likelihood(PIXELS, *full))
    # The tanh approximation is off by at most 3e-4 at each edge.
    np.testing.assert_allclose(p, np.diff(cdf), rtol=0, atol=6e-4)


@pytest.mark.parametrize("name", [n for n, _ in cases(FILE, "approx_standard_normal_cdf")])
def test_cdf_matches_recording(name):
    x = load(FILE)[f"{name}/x"]
    cdf = np.asarray(jax.jit(standard_normal_cdf)(x))
    assert_close(FILE, f"{name}/cdf", cdf, OUTPUT)
    exact = load(FILE)[f"{name}/cdf_f64"]
    # The exponent of the tail carries the rounding of its own size; the recorded float64 loses
    # the digits of 1 + tanh below about 1e-12.
    exponent = 2 * np.sqrt(2 / np.pi) * np.abs(x + 0.044715 * x.astype(np.float64) ** 3)
    assert (np.abs(cdf - exact) <= 3e-7 * (1 + exponent) * exact + 2e-16).all()


def test_cdf_is_close_to_the_normal_cdf():
    x = np.linspace(-6, 6, 1001, dtype=np.float32)
    expected = (1 + erf(x / np.sqrt(2))) / 2
    np.testing.assert_allclose(standard_normal_cdf(x), expected, rtol=0, atol=3.1e-4)


@pytest.mark.parametrize("name", [n for n, _ in cases(FILE, "normal_kl")])
def test_kl_matches_recording(name):
    four = _arrays(name, "mean1", "logvar1", "mean2", "logvar2")
    divergence = np.asarray(jax.jit(kl)(*four))
    assert_close(FILE, f"{name}/kl", divergence, OUTPUT)
    # Element by element: the sum cancels to a value far below its parts where the two agree.
    mean_1, log_variance_1, mean_2, log_variance_2 = (a.astype(np.float64) for a in four)
    gap = log_variance_1 - log_variance_2
    with np.errstate(over="ignore"):
        parts = 1 + np.abs(log_variance_1) + np.abs(log_variance_2)
        parts += (1 + np.abs(gap)) * np.exp(gap)
        parts += (mean_1 - mean_2) ** 2 * np.exp(-log_variance_2) * (1 + np.abs(log_variance_2))
    exact = load(FILE)[f"{name}/kl_f64"]
    assert (np.abs(divergence - exact) <= 4e-7 * parts).all()
    standard = jax.jit(kl)(four[0], four[1], 0.0, 0.0)
    assert_close(FILE, f"{name}/kl_to_standard", standard, OUTPUT)


@pytest.mark.parametrize(
    "mean_1, variance_1, mean_2, variance_2",
    [(0.0, 1.0, 0.0, 1.0), (0.5, 0.3, -0.2, 0.8), (-1.0, 2.0, 1.0, 0.5), (0.0, 1e-3, 0.01, 2e-3)],
)
def test_kl_is_the_integral_of_p_log_p_over_q(mean_1, variance_1, mean_2, variance_2):
    std = np.sqrt(variance_1)
    x = np.linspace(mean_1 - 12 * std, mean_1 + 12 * std, 20001)

    def log_density(mean, variance):
        return -0.5 * (np.log(2 * np.pi * variance) + (x - mean) ** 2 / variance)

    log_p, log_q = log_density(mean_1, variance_1), log_density(mean_2, variance_2)
    integral = np.trapezoid(np.exp(log_p) * (log_p - log_q), x)
    ours = kl(*(jnp.float32(a) for a in (mean_1, np.log(variance_1), mean_2, np.log(variance_2))))
    np.testing.assert_allclose(ours, integral, rtol=2e-6, atol=2e-6)
