"""In-painting: an unconditional network fills the unknown part of an image (RePaint)."""

import jax
import jax.numpy as jnp

from iddpm_jax.diffusion.process import Process, at
from iddpm_jax.diffusion.reverse import Parametrization, X0Transform, clip_x_0
from iddpm_jax.diffusion.samplers import Network, Noise, Samples, draw, predict, run_steps


def inpaint(
    network: Network,
    process: Process,
    parametrization: Parametrization,
    image: jax.Array,
    mask: jax.Array,
    x: jax.Array,
    noise: Noise,
    *,
    repeats: jax.Array | int = 1,
    transform: X0Transform | None = clip_x_0,
    frames: int = 0,
) -> Samples:
    """Sample the unknown part of images: after each step the known part is put back, noised.

    Lugmayr et al. 2022 (RePaint), algorithm 1 with jump length 1. It prints alpha_bar_t for the
    known part of x_{t-1} and beta_{t-1} for the way back to x_t; q has alpha_bar_{t-1} and beta_t,
    and so has this.

    Args:
        network: the model, which knows nothing of the mask.
        process: noise process with T steps, respaced or not.
        parametrization: what the network's output stands for.
        image: clean images [B, H, W, C] in [-1, 1]; anything finite where unknown.
        mask: [B, H, W, 1 or C], 1 where the image is known and 0 elsewhere. A fraction blends the
            known and the sampled pixel at every step.
        x: starting images [B, H, W, C], standard normal, such as noise(T).
        noise: standard normal, called with the index (T + 1) n + t. Round r of step t, from 0,
            draws the unknown part with n = 3 r and the known part with n = 3 r + 1, and goes back
            to x_t with n = 3 r + 2. So round 0 draws as ancestral does, and T is left for x.
        repeats: how often each step is taken (the paper's U), 1 or more. In between x_{t-1} is
            noised again to x_t, which makes the two parts agree. t = 0 is taken once.
        transform: applied to every predicted x_0.
        frames: as in samplers.ancestral; of the last round of a step.

    Returns:
        Samples. Where the mask is 1, x is the image, exactly.

    Raises:
        ValueError: image or mask of another shape than x, or repeats below 1.
    """
    _check(image, mask, x, repeats)

    def step(x: jax.Array, t: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array]:
        # As in the paper: t = 0 has the known part itself, and no noise to undo.
        rounds = jnp.where(index > 0, repeats, 1)

        def take(r: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            x_t, _ = carry
            for_unknown, for_known, for_back = (
                noise((process.T + 1) * (3 * r + i) + index) for i in range(3)
            )
            reverse = predict(network, process, parametrization, x_t, t, transform)
            unknown = draw(reverse, index, for_unknown)
            known = _known(process, image, t, for_known)
            x_prev = mask * known + (1.0 - mask) * unknown
            last = r == rounds - 1
            return jnp.where(last, x_prev, _back(process, x_prev, t, for_back)), reverse.x_0

        return jax.lax.fori_loop(0, rounds, take, (x, x))

    return run_steps(step, process, x, None, frames, backwards=True)


def _back(process: Process, x_prev: jax.Array, t: jax.Array, eps: jax.Array) -> jax.Array:
    """x_t ~ q(x_t | x_{t-1}), Nichol & Dhariwal 2021, equation 2."""
    beta = at(process.beta, t)
    return jnp.sqrt(1.0 - beta) * x_prev + jnp.sqrt(beta) * eps


def _known(process: Process, image: jax.Array, t: jax.Array, eps: jax.Array) -> jax.Array:
    """x_{t-1} ~ q(x_{t-1} | x_0 = image): q_sample at t - 1, and the image itself at t = 0."""
    signal = jnp.sqrt(at(process.alpha_bar_prev, t))
    return signal * image + jnp.sqrt(at(process.one_minus_alpha_bar_prev, t)) * eps


def _check(image: jax.Array, mask: jax.Array, x: jax.Array, repeats: jax.Array | int) -> None:
    if image.shape != x.shape:
        raise ValueError(f"image has shape {image.shape}, expected that of x, {x.shape}")
    if mask.shape not in (x.shape, (*x.shape[:-1], 1)):
        raise ValueError(f"mask has shape {mask.shape}, expected {(*x.shape[:-1], 1)} or {x.shape}")
    if isinstance(repeats, int) and repeats < 1:
        raise ValueError(f"repeats is {repeats}; use 1 or more")
