"""L_simple, the terms of the variational bound, L_vlb and L_hybrid (sections 2.1, 2.2 and 3.1).

Per-example losses are means over H, W and C. Terms of the bound are in bits per dimension.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from iddpm_jax.diffusion.gaussian import NATS_PER_BIT, discretised_log_likelihood, kl
from iddpm_jax.diffusion.process import Process, posterior, q_mean_variance
from iddpm_jax.diffusion.reverse import (
    Parametrization,
    Reverse,
    X0Transform,
    mean_target,
    p_mean_variance,
)

OBJECTIVES = ("l_simple", "l_hybrid", "l_vlb")


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is minimised.

    Attributes:
        name: "l_simple" (equation 14), "l_hybrid" (equation 16) or "l_vlb" (equation 4).
        vlb_weight: lambda of L_hybrid = L_simple + lambda L_vlb, where L_vlb is the whole bound, T
            L_t. The paper has 0.001. OpenAI's class-conditional ImageNet-64, upsampler and LSUN
            models add a single term L_t instead, which is lambda = 1 / T.
    """

    name: str = "l_hybrid"
    vlb_weight: float = 0.001

    def __post_init__(self):
        if self.name not in OBJECTIVES:
            raise ValueError(f"loss {self.name!r} is unknown; use one of {', '.join(OBJECTIVES)}")


class Losses(NamedTuple):
    """Per-example losses [B].

    Attributes:
        loss: the objective.
        l_simple: mean squared error of the mean's target.
        l_t: the term L_t of the bound, bits/dim, one of T.
    """

    loss: jax.Array
    l_simple: jax.Array
    l_t: jax.Array


def mean_flat(x: jax.Array) -> jax.Array:
    """Mean over all axes but the first: [B, ...] -> [B]."""
    return x.reshape(x.shape[0], -1).mean(axis=1)


def reverse_term(
    process: Process, reverse: Reverse, x_0: jax.Array, x_t: jax.Array, t: jax.Array
) -> jax.Array:
    """The term of the variational bound that belongs to step t, of a reverse step at hand.

    Nichol & Dhariwal 2021, equations 5 and 6: -log p(x_0 | x_1) at t = 0, and
    KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) above.

    Args:
        process: noise process with T steps.
        reverse: p(x_{t-1} | x_t).
        x_0: clean images [B, H, W, C] in [-1, 1], on the grid of 8-bit values.
        x_t: noised images [B, H, W, C].
        t: step index [B], int32.

    Returns:
        L_t [B] in bits/dim.
    """
    q = posterior(process, x_0, x_t, t)
    divergence = kl(q.mean, q.log_variance, reverse.mean, reverse.log_variance)
    decoder = -discretised_log_likelihood(x_0, reverse.mean, 0.5 * reverse.log_variance)
    nats = jnp.where(t == 0, mean_flat(decoder), mean_flat(divergence))
    return nats / NATS_PER_BIT


def bound_term(
    process: Process,
    parametrization: Parametrization,
    output: jax.Array,
    x_0: jax.Array,
    x_t: jax.Array,
    t: jax.Array,
    transform: X0Transform | None = None,
) -> tuple[jax.Array, Reverse]:
    """The term of the variational bound that belongs to step t, from a network output.

    Args:
        process: noise process with T steps.
        parametrization: what the output stands for.
        output: network output [B, H, W, C or 2 C].
        x_0: clean images [B, H, W, C] in [-1, 1], on the grid of 8-bit values.
        x_t: noised images [B, H, W, C].
        t: step index [B], int32.
        transform: applied to the predicted x_0, such as clip_x_0. None in training.

    Returns:
        (L_t [B] in bits/dim, the reverse step it compares).
    """
    reverse = p_mean_variance(process, parametrization, output, x_t, t, transform)
    return reverse_term(process, reverse, x_0, x_t, t), reverse


def prior_term(process: Process, x_0: jax.Array) -> jax.Array:
    """L_T = KL(q(x_T | x_0) || N(0, I)), which no training changes.

    Nichol & Dhariwal 2021, equation 7.

    Args:
        process: noise process with T steps.
        x_0: clean images [B, H, W, C] in [-1, 1].

    Returns:
        [B] in bits/dim.
    """
    t = jnp.full(x_0.shape[:1], process.T - 1, jnp.int32)
    q = q_mean_variance(process, x_0, t)
    return mean_flat(kl(q.mean, q.log_variance, 0.0, 0.0)) / NATS_PER_BIT


def training_losses(
    process: Process,
    parametrization: Parametrization,
    objective: Objective,
    output: jax.Array,
    x_0: jax.Array,
    x_t: jax.Array,
    t: jax.Array,
    eps: jax.Array,
) -> Losses:
    """Loss of each example at its own step.

    Nichol & Dhariwal 2021, equations 4, 14 and 16. In L_hybrid the bound sees the mean through a
    stop-gradient, so that it trains the variance alone (section 3.1).

    Args:
        process: noise process with T steps.
        parametrization: what the output stands for.
        objective: what is minimised.
        output: network output for (x_t, t) [B, H, W, C or 2 C].
        x_0: clean images [B, H, W, C] in [-1, 1].
        x_t: q_sample(process, x_0, t, eps) [B, H, W, C].
        t: step index [B], int32.
        eps: the noise in x_t [B, H, W, C].

    Returns:
        Losses: loss, l_simple and l_t, each [B]. All three are finite for every objective, so that
        a run can show L_simple and the bound apart whichever it minimises.
    """
    output = output.astype(jnp.float32)
    mean_part, v = parametrization.split(output)
    target = mean_target(process, parametrization, x_0, x_t, t, eps)
    l_simple = mean_flat((target - mean_part) ** 2)

    output_in_bound = output
    if objective.name == "l_hybrid":
        frozen = jax.lax.stop_gradient(mean_part)
        output_in_bound = frozen if v is None else jnp.concatenate([frozen, v], axis=-1)
    l_t, _ = bound_term(process, parametrization, output_in_bound, x_0, x_t, t)

    if objective.name == "l_simple":
        loss = l_simple
    elif objective.name == "l_hybrid":
        loss = l_simple + objective.vlb_weight * process.T * l_t
    else:
        loss = process.T * l_t
    return Losses(loss, l_simple, l_t)
