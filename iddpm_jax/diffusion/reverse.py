"""The reverse process: network output -> p(x_{t-1} | x_t) (Nichol & Dhariwal 2021, section 3.1)."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from iddpm_jax.diffusion.process import (
    Process,
    at,
    posterior,
    x_0_from_eps,
    x_0_from_prev_mean,
)

MEANS = ("eps", "x_0", "prev_mean")
VARIANCES = ("fixed_small", "fixed_large", "learned", "learned_range")

X0Transform = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Parametrization:
    """What the network's output stands for.

    Attributes:
        mean: "eps" (the noise, the paper's choice), "x_0" (the clean image) or "prev_mean" (mu
            itself).
        variance: "fixed_small" (beta_tilde), "fixed_large" (beta), "learned" (the output is the
            log-variance) or "learned_range" (the output is v, interpolating log beta_tilde and
            log beta; equation 15).
    """

    mean: str = "eps"
    variance: str = "learned_range"

    def __post_init__(self):
        if self.mean not in MEANS:
            raise ValueError(f"mean {self.mean!r} is unknown; use one of {', '.join(MEANS)}")
        if self.variance not in VARIANCES:
            raise ValueError(
                f"variance {self.variance!r} is unknown; use one of {', '.join(VARIANCES)}"
            )

    @property
    def learns_variance(self) -> bool:
        """Whether the network has a second set of output channels."""
        return self.variance in ("learned", "learned_range")

    def output_channels(self, channels: int) -> int:
        """Number of channels the network must put out for images of this many channels."""
        return 2 * channels if self.learns_variance else channels

    def split(self, output: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """The mean's part [B, H, W, C] of a network output and the variance's part, or None."""
        if not self.learns_variance:
            return output, None
        mean_part, variance_part = jnp.split(output, 2, axis=-1)
        return mean_part, variance_part


class Reverse(NamedTuple):
    """p(x_{t-1} | x_t) and the x_0 it rests on.

    Attributes:
        mean, variance, log_variance: [B, H, W, C], or [B, 1, 1, 1] where the variance is fixed.
        x_0: predicted clean image [B, H, W, C], after the transform.
    """

    mean: jax.Array
    variance: jax.Array
    log_variance: jax.Array
    x_0: jax.Array


def clip_x_0(x_0: jax.Array) -> jax.Array:
    """The usual transform of predicted clean images while sampling: clip to [-1, 1]."""
    return jnp.clip(x_0, -1.0, 1.0)


def predict_x_0(
    process: Process,
    parametrization: Parametrization,
    output: jax.Array,
    x_t: jax.Array,
    t: jax.Array,
) -> jax.Array:
    """The clean image that a network output implies.

    Args:
        process: noise process with T steps.
        parametrization: what the output stands for.
        output: the mean's part of a network output [B, H, W, C].
        x_t: noised images [B, H, W, C].
        t: step index [B], int32.

    Returns:
        x_0 [B, H, W, C], not clipped.
    """
    if parametrization.mean == "eps":
        return x_0_from_eps(process, x_t, t, output)
    if parametrization.mean == "prev_mean":
        return x_0_from_prev_mean(process, x_t, t, output)
    return output


def reverse_variance(
    process: Process, parametrization: Parametrization, v: jax.Array | None, t: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Variance of p(x_{t-1} | x_t).

    Nichol & Dhariwal 2021, equation 15: Sigma = exp(v log beta_t + (1 - v) log beta_tilde_t), where
    the paper's v is (v + 1) / 2 of the network's and is not clamped.

    Args:
        process: noise process with T steps, respaced or not.
        parametrization: which variance.
        v: the variance's part of a network output [B, H, W, C]; None for fixed variances.
        t: step index [B], int32.

    Returns:
        (variance, log_variance), [B, H, W, C] where learned, else [B, 1, 1, 1]. For fixed_small at
        t = 0 the variance is 0 and the log-variance repeats t = 1.
    """
    if parametrization.variance == "fixed_small":
        return at(process.beta_tilde, t), at(process.log_beta_tilde, t)
    if parametrization.variance == "fixed_large":
        return at(process.fixed_large, t), at(process.log_fixed_large, t)
    if parametrization.variance == "learned":
        log_variance = v
    else:
        fraction = (v + 1.0) / 2.0
        log_variance = fraction * at(process.log_beta, t) + (1.0 - fraction) * at(
            process.log_beta_tilde, t
        )
    return jnp.exp(log_variance), log_variance


def v_of(
    process: Process, parametrization: Parametrization, output: jax.Array, t: jax.Array
) -> jax.Array:
    """The v that a learned variance amounts to: -1 is beta_tilde, 1 is beta.

    Nichol & Dhariwal 2021, equation 15, solved for v under "learned"; the paper's v is (v + 1) / 2.

    Args:
        process: noise process with T steps.
        parametrization: one that learns the variance.
        output: network output [B, H, W, 2 C].
        t: step index [B], int32.

    Returns:
        v [B, H, W, C]; under "learned" NaN where log beta and log beta_tilde are so close that
        float32 cannot tell where between them a log-variance lies.
    """
    _, variance_part = parametrization.split(output)
    if parametrization.variance == "learned_range":
        return variance_part
    low = at(process.log_beta_tilde, t)
    gap = at(process.log_beta, t) - low
    known = jnp.abs(gap) > 1e-4
    return jnp.where(known, 2.0 * (variance_part - low) / jnp.where(known, gap, 1.0) - 1.0, jnp.nan)


def p_mean_variance(
    process: Process,
    parametrization: Parametrization,
    output: jax.Array,
    x_t: jax.Array,
    t: jax.Array,
    transform: X0Transform | None = None,
) -> Reverse:
    """p(x_{t-1} | x_t) from a network output.

    Nichol & Dhariwal 2021, equations 3, 13 and 15.

    Args:
        process: noise process with T steps.
        parametrization: what the output stands for.
        output: network output [B, H, W, C], or [B, H, W, 2 C] where the variance is learned.
        x_t: noised images [B, H, W, C].
        t: step index [B], int32.
        transform: applied to the predicted x_0 before the mean is formed, such as clip_x_0. Under
            "prev_mean" it changes the reported x_0 only, as in OpenAI's code.

    Returns:
        Reverse: mean, variance, log_variance and x_0.

    Raises:
        ValueError: the output has the wrong number of channels.
    """
    expected = (*x_t.shape[:-1], parametrization.output_channels(x_t.shape[-1]))
    if output.shape != expected:
        raise ValueError(f"output has shape {output.shape}, expected {expected}")
    mean_part, v = parametrization.split(output)
    variance, log_variance = reverse_variance(process, parametrization, v, t)
    x_0 = predict_x_0(process, parametrization, mean_part, x_t, t)
    if transform is not None:
        x_0 = transform(x_0)
    if parametrization.mean == "prev_mean":
        mean = mean_part
    else:
        mean = posterior(process, x_0, x_t, t).mean
    return Reverse(mean, variance, log_variance, x_0)


def with_variance(process: Process, reverse: Reverse, variance: str, t: jax.Array) -> Reverse:
    """The same prediction with a fixed variance in place of its own.

    Args:
        process: noise process with T steps.
        reverse: from p_mean_variance.
        variance: "fixed_small" or "fixed_large".
        t: step index [B], int32.

    Returns:
        Reverse whose variance and log_variance are [B, 1, 1, 1].
    """
    fixed = Parametrization(variance=variance)
    value, log_value = reverse_variance(process, fixed, None, t)
    return reverse._replace(variance=value, log_variance=log_value)


def mean_target(
    process: Process,
    parametrization: Parametrization,
    x_0: jax.Array,
    x_t: jax.Array,
    t: jax.Array,
    eps: jax.Array,
) -> jax.Array:
    """What the mean's part of the output should be: eps, x_0 or the posterior mean [B, H, W, C]."""
    if parametrization.mean == "eps":
        return eps
    if parametrization.mean == "x_0":
        return x_0
    return posterior(process, x_0, x_t, t).mean
