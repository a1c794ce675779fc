"""Running the process backwards and forwards: ancestral sampling, DDIM, DDIM inversion (section 4).

All three take (network, process, parametrization, x, ...) and are one compiled loop each. The
process and eta are traced, and so is the number of steps, so none of their values causes another
compilation. `predict`, `draw` and `run_steps` are what they share, with inpainting too.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from iddpm_jax.diffusion.guidance import CondFn, shift_mean, shift_score
from iddpm_jax.diffusion.process import Process, at, eps_from_x_0
from iddpm_jax.diffusion.reverse import (
    Parametrization,
    Reverse,
    X0Transform,
    clip_x_0,
    p_mean_variance,
    with_variance,
)

Network = Callable[[jax.Array, jax.Array], jax.Array]
"""(x_t [B, H, W, C], what the network is fed for t [B]) -> output [B, H, W, C or 2 C]."""

Noise = Callable[[jax.Array], jax.Array]
"""Step index t (int32 scalar) -> standard normal noise [B, H, W, C] of that step."""

Step = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
"""(x before the step, its index t [B], the same t as a scalar) -> (x after it, predicted x_0)."""


class Samples(NamedTuple):
    """Result of a sampler.

    Attributes:
        x: images after the last step [B, H, W, C], not clipped.
        x_0: the clean images predicted at that step [B, H, W, C].
        x_frames, x_0_frames: snapshots of both along the way [frames, B, H, W, C].
    """

    x: jax.Array
    x_0: jax.Array
    x_frames: jax.Array
    x_0_frames: jax.Array


def noise_per_sample(keys: jax.Array, shape: tuple[int, ...]) -> Noise:
    """Noise that depends on a sample's own key and the step, not on its place in a batch.

    Args:
        keys: one random key a sample [B].
        shape: shape of one image (H, W, C).

    Returns:
        Noise function. The starting x_T is noise(T), one step beyond the last.
    """

    def noise(t: jax.Array) -> jax.Array:
        return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, t), shape))(keys)

    return noise


def ancestral(
    network: Network,
    process: Process,
    parametrization: Parametrization,
    x: jax.Array,
    noise: Noise,
    *,
    steps: jax.Array | int | None = None,
    variance: str | None = None,
    transform: X0Transform | None = clip_x_0,
    cond_fn: CondFn | None = None,
    frames: int = 0,
) -> Samples:
    """Sample x_{t-1} ~ p(x_{t-1} | x_t) down to t = 0.

    Nichol & Dhariwal 2021, equation 3; Ho et al. 2020, algorithm 2. With cond_fn, Dhariwal & Nichol
    2021, algorithm 1.

    Args:
        network: the model.
        process: noise process with T steps, respaced or not.
        parametrization: what the network's output stands for.
        x: starting images [B, H, W, C]; standard normal for a whole run.
        noise: noise of each step; the one at t = 0 is not used.
        steps: how many steps to run, ending at t = 0; all T by default. Fewer starts from a less
            noisy x.
        variance: "fixed_small" or "fixed_large" in place of the parametrization's own.
        transform: applied to every predicted x_0.
        cond_fn: gradient of a classifier's log-probability; None for no classifier guidance.
        frames: number of snapshots to keep, at most the number of steps; evenly spread, the last
            after the last step.

    Returns:
        Samples.
    """

    def step(x: jax.Array, t: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array]:
        reverse = predict(network, process, parametrization, x, t, transform)
        if variance is not None:
            reverse = with_variance(process, reverse, variance, t)
        if cond_fn is not None:
            reverse = shift_mean(reverse, cond_fn(x, model_t(process, t)))
        return draw(reverse, index, noise(index)), reverse.x_0

    return run_steps(step, process, x, steps, frames, backwards=True)


def ddim(
    network: Network,
    process: Process,
    parametrization: Parametrization,
    x: jax.Array,
    noise: Noise,
    *,
    eta: jax.Array | float = 0.0,
    steps: jax.Array | int | None = None,
    transform: X0Transform | None = clip_x_0,
    cond_fn: CondFn | None = None,
    frames: int = 0,
) -> Samples:
    """DDIM: the same marginals with less noise, or none (eta = 0), along the way.

    Song et al. 2020 (DDIM), equations 12 and 16, used in Nichol & Dhariwal 2021, section 4. The
    noise prediction is derived again from the transformed x_0. With cond_fn, Dhariwal & Nichol
    2021, algorithm 2: the predicted x_0 is the guided one, which the transform has not seen.

    Args:
        network, process, parametrization, x, noise, steps, transform, cond_fn, frames: as in
            ancestral.
        eta: share of the ancestral noise, 0 to 1: sigma_t = eta sqrt(beta_tilde_t).

    Returns:
        Samples.
    """

    def step(x: jax.Array, t: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array]:
        reverse = predict(network, process, parametrization, x, t, transform)
        if cond_fn is not None:
            reverse = shift_score(process, reverse, x, t, cond_fn(x, model_t(process, t)))
        eps = eps_from_x_0(process, x, t, reverse.x_0)
        # (1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev) is beta_tilde.
        variance = eta**2 * at(process.beta_tilde, t)
        direction = jnp.sqrt(jnp.maximum(at(process.one_minus_alpha_bar_prev, t) - variance, 0.0))
        mean = jnp.sqrt(at(process.alpha_bar_prev, t)) * reverse.x_0 + direction * eps
        return mean + jnp.sqrt(variance) * noise(index), reverse.x_0

    return run_steps(step, process, x, steps, frames, backwards=True)


def ddim_inversion(
    network: Network,
    process: Process,
    parametrization: Parametrization,
    x: jax.Array,
    *,
    steps: jax.Array | int | None = None,
    transform: X0Transform | None = clip_x_0,
    frames: int = 0,
) -> Samples:
    """Run deterministic DDIM (eta = 0) forwards: from images to the noise that leads back to them.

    Song et al. 2020 (DDIM), section 4.3. The step beyond the last has alpha_bar = 0.

    Args:
        network, process, parametrization, transform, frames: as in ancestral.
        x: images [B, H, W, C] in [-1, 1].
        steps: how many steps to run from t = 0; all T by default.

    Returns:
        Samples, x being the noise.
    """

    def step(x: jax.Array, t: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array]:
        del index
        x_0 = predict(network, process, parametrization, x, t, transform).x_0
        eps = eps_from_x_0(process, x, t, x_0)
        signal = jnp.sqrt(at(process.alpha_bar_next, t))
        return signal * x_0 + jnp.sqrt(at(process.one_minus_alpha_bar_next, t)) * eps, x_0

    return run_steps(step, process, x, steps, frames, backwards=False)


def model_t(process: Process, t: jax.Array) -> jax.Array:
    """What the network, or a classifier beside it, is fed for step t: [B] -> [B]."""
    return jnp.asarray(process.model_t)[t]


def predict(
    network: Network,
    process: Process,
    parametrization: Parametrization,
    x: jax.Array,
    t: jax.Array,
    transform: X0Transform | None,
) -> Reverse:
    """p(x_{t-1} | x_t) from one evaluation of the network; arguments as in ancestral, t [B]."""
    output = network(x, model_t(process, t))
    return p_mean_variance(process, parametrization, output, x, t, transform)


def draw(reverse: Reverse, index: jax.Array, eps: jax.Array) -> jax.Array:
    """x_{t-1} ~ p(x_{t-1} | x_t).

    Nichol & Dhariwal 2021, equation 3.

    Args:
        reverse: p(x_{t-1} | x_t).
        index: t, int32 scalar; the step at t = 0 adds no noise.
        eps: standard normal noise [B, H, W, C].

    Returns:
        x_{t-1} [B, H, W, C].
    """
    std = jnp.where(index > 0, jnp.exp(0.5 * reverse.log_variance), 0.0)
    return reverse.mean + std * eps


def run_steps(
    step: Step,
    process: Process,
    x: jax.Array,
    steps: jax.Array | int | None,
    frames: int,
    *,
    backwards: bool,
) -> Samples:
    """Apply `step` at each index, compiled once; keep `frames` snapshots.

    Args:
        step: what to do at one index.
        process, x, steps, frames: as in ancestral.
        backwards: from index steps - 1 down to 0, or else upwards.

    Returns:
        Samples.
    """
    steps = jnp.asarray(process.T if steps is None else steps, jnp.int32)
    buffer = jnp.zeros((frames, *x.shape), x.dtype)

    def body(i: jax.Array, carry: Samples) -> Samples:
        index = steps - 1 - i if backwards else i
        t = jnp.full(x.shape[:1], index, jnp.int32)
        new, x_0 = step(carry.x, t, index)
        if not frames:
            return carry._replace(x=new, x_0=x_0)
        # Steps that share a frame overwrite each other; the last one stays.
        frame = (i * frames) // steps
        return Samples(
            new,
            x_0,
            carry.x_frames.at[frame].set(new),
            carry.x_0_frames.at[frame].set(x_0),
        )

    return jax.lax.fori_loop(0, steps, body, Samples(x, x, buffer, buffer))
