"""Guidance: samples of one class from a conditional network, or from a classifier's gradient."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from iddpm_jax.diffusion.process import Process, at, eps_from_x_0, posterior, x_0_from_eps
from iddpm_jax.diffusion.reverse import Parametrization, Reverse

CondFn = Callable[[jax.Array, jax.Array], jax.Array]
"""(x_t [B, H, W, C], what the network is fed for t [B]) -> gradient of log p(y | x_t) with respect
to x_t [B, H, W, C]. The classes y, and a scale of the gradient, are inside."""


def classifier_free(
    parametrization: Parametrization,
    conditional: jax.Array,
    unconditional: jax.Array,
    scale: jax.Array | float,
) -> jax.Array:
    """Output of the guided network: eps = eps_u + scale (eps_c - eps_u).

    Ho & Salimans 2022 (Classifier-Free Diffusion Guidance), equation 6, where scale is 1 + w. The
    line serves every parametrization.mean: for given x_t, the eps, x_0 and mean of a network are
    affine in each other, and the weights of the two outputs sum to 1.

    Args:
        parametrization: what the outputs stand for.
        conditional: network output given the class [B, H, W, C or 2 C].
        unconditional: network output without it, of the same shape.
        scale: scalar or [B, 1, 1, 1]; 1 is the conditional network, 0 the unconditional one.

    Returns:
        Network output [B, H, W, C or 2 C]. A learned variance is the conditional network's.
    """
    mean_c, v_c = parametrization.split(conditional)
    mean_u, _ = parametrization.split(unconditional)
    mean_part = mean_u + scale * (mean_c - mean_u)
    return mean_part if v_c is None else jnp.concatenate([mean_part, v_c], axis=-1)


def shift_mean(reverse: Reverse, gradient: jax.Array) -> Reverse:
    """Guide p(x_{t-1} | x_t) by a classifier: mean + variance * gradient.

    Dhariwal & Nichol 2021 (Diffusion Models Beat GANs), algorithm 1.

    Args:
        reverse: p(x_{t-1} | x_t) of the network.
        gradient: of log p(y | x_t), times a scale [B, H, W, C].

    Returns:
        Reverse with another mean. x_0 is still the network's own, as in guided-diffusion.
    """
    return reverse._replace(mean=reverse.mean + reverse.variance * gradient)


def shift_score(
    process: Process, reverse: Reverse, x_t: jax.Array, t: jax.Array, gradient: jax.Array
) -> Reverse:
    """Guide the prediction of the noise by a classifier: eps - sqrt(1 - alpha_bar) * gradient.

    Dhariwal & Nichol 2021 (Diffusion Models Beat GANs), algorithm 2. Unlike shift_mean, it does not
    need the variance, so it serves DDIM.

    Args:
        process: noise process with T steps.
        reverse: p(x_{t-1} | x_t) of the network.
        x_t: noised images [B, H, W, C].
        t: step index [B], int32.
        gradient: of log p(y | x_t), times a scale [B, H, W, C].

    Returns:
        Reverse with the x_0 of that eps, and the mean that follows from it. x_0 is not clipped
        again, as in guided-diffusion.
    """
    eps = eps_from_x_0(process, x_t, t, reverse.x_0)
    eps = eps - at(process.sqrt_one_minus_alpha_bar, t) * gradient
    x_0 = x_0_from_eps(process, x_t, t, eps)
    return reverse._replace(mean=posterior(process, x_0, x_t, t).mean, x_0=x_0)
