"""Gaussians: KL divergence and the likelihood of 8-bit pixels (section 2.1 of the paper)."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

NATS_PER_BIT = math.log(2.0)


class Gaussian(NamedTuple):
    """A diagonal Gaussian. The parts broadcast against each other.

    Attributes:
        mean: [B, H, W, C].
        variance: [B, 1, 1, 1] or [B, H, W, C].
        log_variance: its natural logarithm, finite even where the variance is 0.
    """

    mean: jax.Array
    variance: jax.Array
    log_variance: jax.Array


def kl(
    mean_1: jax.Array, log_variance_1: jax.Array, mean_2: jax.Array, log_variance_2: jax.Array
) -> jax.Array:
    """KL(N(mean_1, variance_1) || N(mean_2, variance_2)), element by element.

    Args:
        mean_1, log_variance_1: first Gaussian; any shapes that broadcast.
        mean_2, log_variance_2: second Gaussian.

    Returns:
        Divergence in nats, broadcast shape.
    """
    return 0.5 * (
        -1.0
        + log_variance_2
        - log_variance_1
        + jnp.exp(log_variance_1 - log_variance_2)
        + (mean_1 - mean_2) ** 2 * jnp.exp(-log_variance_2)
    )


def standard_normal_cdf(x: jax.Array) -> jax.Array:
    """The approximate normal CDF 0.5 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).

    OpenAI's code and all published likelihoods use this approximation. 0.5 (1 + tanh u) is
    sigmoid(2 u), which keeps the digits of a small tail that 1 + tanh loses.

    Args:
        x: any shape, in standard deviations.

    Returns:
        Probability in [0, 1], same shape.
    """
    return jax.nn.sigmoid(_logit_of_cdf(x))


def _logit_of_cdf(x: jax.Array) -> jax.Array:
    return 2.0 * math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)


def discretised_log_likelihood(x: jax.Array, mean: jax.Array, log_scale: jax.Array) -> jax.Array:
    """Log-probability of 8-bit pixel values under a Gaussian integrated over each value's bin.

    Ho et al. 2020, equation 13; the L_0 of Nichol & Dhariwal 2021, section 2.1. A bin reaches 1/255
    to either side of its value, the outer two to infinity; probabilities are floored at 1e-12.

    With sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)) nothing cancels, so
    values and gradients are those of float64. OpenAI's float32 code sticks at the floor beyond 5
    standard deviations and has NaN gradients at tiny scales.

    Args:
        x: pixel values in [-1, 1], multiples of 1/127.5 from -1.
        mean: mean of the Gaussian, same shape.
        log_scale: natural logarithm of its standard deviation, broadcastable.

    Returns:
        Log-probability in nats, at least log(1e-12), same shape as x.
    """
    # Outside this range the answer is 0, the floor or a half to all digits; inside, no power
    # overflows.
    inverse_scale = jnp.exp(-jnp.clip(log_scale, -20.0, 40.0))
    upper = inverse_scale * (x - mean + 1.0 / 255.0)
    lower = inverse_scale * (x - mean - 1.0 / 255.0)
    width = inverse_scale * (2.0 / 255.0)
    # logit(upper) - logit(lower), by a^3 - b^3 = (a - b) (a^2 + a b + b^2): a sum of positive
    # terms.
    logit_width = (2.0 * math.sqrt(2.0 / math.pi)) * (
        width * (1.0 + 0.044715 * (upper**2 + upper * lower + lower**2))
    )
    log_cdf_upper = jax.nn.log_sigmoid(_logit_of_cdf(upper))
    log_one_minus_cdf_lower = jax.nn.log_sigmoid(-_logit_of_cdf(lower))
    log_probability = jnp.where(
        x < -0.999,
        log_cdf_upper,
        jnp.where(
            x > 0.999,
            log_one_minus_cdf_lower,
            log_cdf_upper + log_one_minus_cdf_lower + jnp.log(-jnp.expm1(-logit_width)),
        ),
    )
    return jnp.maximum(log_probability, math.log(1e-12))
