"""Guidance: Gaussian data, where it is Bayes' rule, and loops in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iddpm_jax.diffusion.guidance import classifier_free, shift_mean, shift_score
from iddpm_jax.diffusion.process import make_process
from iddpm_jax.diffusion.respacing import respace
from iddpm_jax.diffusion.reverse import MEANS, VARIANCES, Parametrization, Reverse, p_mean_variance
from iddpm_jax.diffusion.samplers import ancestral, ddim
from iddpm_jax.diffusion.schedules import make_betas

SHAPE = (3, 4, 5, 2)
T, STEPS = 50, np.array([1, 20, 49])
BETAS = make_betas("linear", T)


def _images(seed: int, channels: int = SHAPE[-1]) -> np.ndarray:
    shape = (*SHAPE[:-1], channels)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _tables() -> tuple[np.ndarray, ...]:
    """alpha_bar, alpha_bar_prev and beta at STEPS, float64 [B, 1, 1, 1]."""
    alpha_bar = np.cumprod(1 - BETAS)
    tables = (alpha_bar, np.append(1.0, alpha_bar[:-1]), BETAS)
    return tuple(table[STEPS][:, None, None, None] for table in tables)


def _to_32(x) -> jax.Array:
    return jnp.asarray(x, jnp.float32)


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
def test_classifier_free_extrapolates_the_mean_and_keeps_the_conditional_variance(variance, scale):
    parametrization = Parametrization("eps", variance)
    channels = parametrization.output_channels(2)
    conditional, unconditional = _images(0, channels), _images(1, channels)
    guided = jax.jit(functools.partial(classifier_free, parametrization))(
        conditional, unconditional, scale
    )
    c, u = conditional[..., :2].astype(np.float64), unconditional[..., :2].astype(np.float64)
    w = scale - 1  # Ho & Salimans 2022, equation 6, with their w.
    np.testing.assert_allclose(guided[..., :2], (1 + w) * c - w * u, atol=1e-5)
    np.testing.assert_array_equal(guided[..., 2:], conditional[..., 2:])


def test_classifier_free_takes_a_scale_for_each_image():
    c, u = _images(0), _images(1)
    scale = np.array([0.0, 1.0, 2.5], np.float32)[:, None, None, None]
    guided = classifier_free(Parametrization("x_0", "fixed_small"), c, u, scale)
    np.testing.assert_array_equal(guided[0], u[0])
    np.testing.assert_allclose(guided[1], c[1], atol=1e-6)
    np.testing.assert_allclose(guided[2], 2.5 * c[2] - 1.5 * u[2], atol=1e-5)


@pytest.mark.parametrize("mean", MEANS)
def test_classifier_free_is_that_of_eps_under_every_parametrization(mean):
    alpha_bar, _, beta = _tables()
    eps_c, eps_u, x_t = (_images(seed).astype(np.float64) for seed in range(3))

    def x_0_of(eps):
        return (x_t - np.sqrt(1 - alpha_bar) * eps) / np.sqrt(alpha_bar)

    def mean_of(eps):  # Ho et al. 2020, equation 11
        return (x_t - beta / np.sqrt(1 - alpha_bar) * eps) / np.sqrt(1 - beta)

    output_of = {"eps": lambda eps: eps, "x_0": x_0_of, "prev_mean": mean_of}[mean]
    parametrization = Parametrization(mean, "fixed_small")
    output = classifier_free(
        parametrization, _to_32(output_of(eps_c)), _to_32(output_of(eps_u)), 2.0
    )
    reverse = p_mean_variance(
        make_process(BETAS), parametrization, output, _to_32(x_t), jnp.asarray(STEPS)
    )
    eps = eps_u + 2.0 * (eps_c - eps_u)
    np.testing.assert_allclose(reverse.mean, mean_of(eps), atol=1e-4)
    np.testing.assert_allclose(reverse.x_0, x_0_of(eps), atol=1e-3)


@pytest.mark.parametrize("learned", [True, False])
def test_shift_mean_adds_variance_times_gradient(learned):
    variance = np.exp(_images(0)) if learned else np.exp(_images(0)[:, :1, :1, :1])
    reverse = Reverse(_images(1), variance, np.log(variance), _images(2))
    gradient = _images(3)
    shifted = shift_mean(reverse, gradient)
    expected = reverse.mean.astype(np.float64) + variance.astype(np.float64) * gradient
    np.testing.assert_allclose(shifted.mean, expected, atol=1e-5)
    for name in ("variance", "log_variance", "x_0"):
        np.testing.assert_array_equal(getattr(shifted, name), getattr(reverse, name))


def test_shift_score_is_bayes_rule_for_gaussians():
    """x_0 ~ N(0, 1), y ~ N(x_0, s^2): the shift turns E[x_0 | x_t] into E[x_0 | x_t, y]."""
    s, y = 0.3, 0.8
    alpha_bar, prev, beta = _tables()
    x_t = _images(0).astype(np.float64)
    # y | x_t is N(sqrt(alpha_bar) x_t, 1 - alpha_bar + s^2).
    gradient = np.sqrt(alpha_bar) * (y - np.sqrt(alpha_bar) * x_t) / (1 - alpha_bar + s**2)
    reverse = Reverse(_images(1), _images(2), _images(3), _to_32(np.sqrt(alpha_bar) * x_t))
    process, t = make_process(BETAS), jnp.asarray(STEPS)
    shifted = shift_score(process, reverse, _to_32(x_t), t, _to_32(gradient))
    precision = 1 + alpha_bar / (1 - alpha_bar) + 1 / s**2
    x_0 = (np.sqrt(alpha_bar) * x_t / (1 - alpha_bar) + y / s**2) / precision
    # float32 rounds x_0 to about 1e-7 / sqrt(alpha_bar), 3e-5 at the last step.
    np.testing.assert_allclose(shifted.x_0, x_0, atol=2e-4)
    mean = (np.sqrt(prev) * beta * x_0 + np.sqrt(1 - beta) * (1 - prev) * x_t) / (1 - alpha_bar)
    np.testing.assert_allclose(shifted.mean, mean, atol=1e-5)
    np.testing.assert_array_equal(shifted.variance, reverse.variance)
    np.testing.assert_array_equal(shifted.log_variance, reverse.log_variance)


# A network and a classifier's gradient for numpy and jax alike, neither linear in x.


def _output(sin, concatenate, x, tau):
    return concatenate([0.9 * x + 0.3 * sin(2 * x) + tau, sin(3 * x) - 0.2 * tau], -1)


def _gradient(sin, x, tau):
    return 0.4 - x + 2.0 * sin(x + tau)


def _guided_loop(betas, steps, tau, x, noise, eta: float | None):
    """x_{t-1} and x_0 of every step, float64: Dhariwal & Nichol 2021, algorithm 2, or 1 by None."""
    x, noise = x.astype(np.float64), noise.astype(np.float64)
    alpha_bar = np.cumprod(1 - betas)[steps]
    prev = np.append(1.0, alpha_bar[:-1])
    beta, every = 1 - alpha_bar / prev, []
    beta_tilde = beta * (1 - prev) / (1 - alpha_bar)
    log_small = np.log(np.append(beta_tilde[1], beta_tilde[1:]))
    for t in reversed(range(len(steps))):
        a, b = alpha_bar[t], prev[t]
        eps, v = np.split(_output(np.sin, np.concatenate, x, tau[t]), 2, axis=-1)
        gradient = _gradient(np.sin, x, tau[t])
        x_0 = np.clip((x - np.sqrt(1 - a) * eps) / np.sqrt(a), -1, 1)
        if eta is None:
            variance = np.exp((v + 1) / 2 * np.log(beta[t]) + (1 - v) / 2 * log_small[t])
            mean = np.sqrt(b) * beta[t] * x_0 + np.sqrt(1 - beta[t]) * (1 - b) * x
            mean = mean / (1 - a) + variance * gradient
            std = np.sqrt(variance) * (t > 0)
        else:
            eps = (x - np.sqrt(a) * x_0) / np.sqrt(1 - a) - np.sqrt(1 - a) * gradient
            x_0 = (x - np.sqrt(1 - a) * eps) / np.sqrt(a)
            std = eta * np.sqrt((1 - b) / (1 - a) * (1 - a / b))
            mean = np.sqrt(b) * x_0 + np.sqrt(1 - b - std**2) * eps
        x = mean + std * noise[t]
        every.append((x, x_0))
    return [np.stack(arrays) for arrays in zip(*every, strict=True)]


@pytest.mark.parametrize("eta", [None, 0.0, 0.6])
def test_every_guided_step_matches_a_loop_in_float64(eta):
    betas = make_betas("linear", 500)
    process = respace(betas, "6", rescale_timesteps=True)
    sampler = ancestral if eta is None else functools.partial(ddim, eta=eta)
    x, noise = _images(0), np.stack([_images(seed) for seed in range(1, 7)])

    def tau_of(model_t):
        return model_t[:, None, None, None] / 1000

    samples = jax.jit(
        lambda process, x, noise: sampler(
            lambda x, model_t: _output(jnp.sin, jnp.concatenate, x, tau_of(model_t)),
            process,
            Parametrization("eps", "learned_range"),
            x,
            lambda t: noise[t],
            cond_fn=lambda x, model_t: _gradient(jnp.sin, x, tau_of(model_t)),
            frames=6,
        )
    )(process, x, noise)
    tau = process.timesteps / 500  # model_t is timesteps * 1000 / 500
    x_frames, x_0_frames = _guided_loop(betas, process.timesteps, tau, x, noise, eta)
    np.testing.assert_allclose(samples.x_frames, x_frames, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(samples.x_0_frames, x_0_frames, rtol=1e-4, atol=1e-4)
