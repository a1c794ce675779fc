"""The terms of the bound: which ones, and what is measured of a pair of image and step."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from iddpm_jax.diffusion.losses import mean_flat, prior_term, reverse_term
from iddpm_jax.diffusion.process import Process, eps_from_x_0, q_sample
from iddpm_jax.diffusion.reverse import (
    Parametrization,
    clip_x_0,
    p_mean_variance,
    v_of,
    with_variance,
)
from iddpm_jax.images import area_average, to_float
from iddpm_jax.training.parallel import map_batch

TABLES = ("l_t", "x_0_mse", "eps_mse")
"""What is kept of every image and term; of all else, sums over images or over terms."""

SHARES = ("v", "v_outside")


def steps_of_images(count: int, K: int, terms: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which terms are evaluated for each image.

    Args:
        count: number of images.
        K: number of steps of the process.
        terms: how many per image; 0 means all. Fewer are stratified: the process is cut into that
            many parts of K / terms steps, rounded, and one step is drawn from each for each image.
        seed: of the draw.

    Returns:
        (steps [count, K or terms], ascending in each row; size of the part of each step [K]).
    """
    if terms == 0 or terms >= K:
        return np.broadcast_to(np.arange(K), (count, K)), np.ones(K, int)
    edges = np.arange(terms + 1) * K // terms
    sizes = np.diff(edges)
    rng = np.random.default_rng(seed)
    steps = edges[:-1] + rng.integers(0, sizes, (count, terms))
    return steps, np.repeat(sizes, sizes)


@functools.cache
def terms_function(
    network: Callable,
    parametrization: Parametrization,
    clip: bool,
    low_res_shape: tuple[int, int, int] | None,
    mesh: Mesh,
) -> Callable:
    """What is measured of pairs of image and step, compiled once for all steps.

    Args:
        network: its apply.
        parametrization: what its output stands for.
        clip: whether x_0 is clipped in the bound that counts; the other is measured as well.
        low_res_shape: (h, w, C) of the small images of super-resolution, or None.
        mesh: devices that share a batch.

    Returns:
        Function of (params, padded process, key) and a batch (images uint8 [B, H, W, C], labels
        [B] or None, index in the split [B], t [B], number of the noise's draw [B] or None for the
        first) -> [B] by name: those of TABLES, other bounds, and SHARES where the variance is
        learned.
    """

    def terms(shared: tuple, batch: tuple) -> dict[str, jax.Array]:
        params, process, key = shared
        image, y, index, t, draw = batch
        x_0 = to_float(image)

        def noise(i: jax.Array, t: jax.Array, draw: jax.Array | None) -> jax.Array:
            key_t = jax.random.fold_in(jax.random.fold_in(key, i), t)
            if draw is not None:
                key_t = jnp.where(draw == 0, key_t, jax.random.fold_in(key_t, draw))
            return jax.random.normal(key_t, x_0.shape[1:])

        eps = jax.vmap(noise)(index, t, draw)
        x_t = q_sample(process, x_0, t, eps)
        low_res = area_average(x_0, *low_res_shape[:2]) if low_res_shape else None
        output = network(params, x_t, process.model_t[t], y, None, low_res)
        return term_values(process, parametrization, clip, output, x_0, x_t, t, eps)

    return map_batch(terms, mesh)


def term_values(
    process: Process,
    parametrization: Parametrization,
    clip: bool,
    output: jax.Array,
    x_0: jax.Array,
    x_t: jax.Array,
    t: jax.Array,
    eps: jax.Array,
) -> dict[str, jax.Array]:
    """What is measured of a batch of pairs of image and step, from one network output.

    Args:
        process: noise process with K steps.
        parametrization: what the output stands for.
        clip: whether x_0 is clipped in all but the bound named for the other.
        output: network output [B, H, W, C or 2 C].
        x_0: clean images [B, H, W, C] in [-1, 1].
        x_t: q_sample(process, x_0, t, eps) [B, H, W, C].
        t: step index [B], int32.
        eps: the noise in x_t [B, H, W, C].

    Returns:
        [B] by name: those of TABLES; L_t as "unclipped" or "clipped", whichever it is not, and as
        "fixed_small" and "fixed_large", if it is not; SHARES where the variance is learned.
    """
    transform, other = (clip_x_0, None) if clip else (None, clip_x_0)
    reverse = p_mean_variance(process, parametrization, output, x_t, t, transform)
    otherwise = p_mean_variance(process, parametrization, output, x_t, t, other)
    predicted_eps = eps_from_x_0(process, x_t, t, reverse.x_0)
    values = {
        "l_t": reverse_term(process, reverse, x_0, x_t, t),
        "x_0_mse": mean_flat((reverse.x_0 - x_0) ** 2),
        "eps_mse": mean_flat((predicted_eps - eps) ** 2),
        "unclipped" if clip else "clipped": reverse_term(process, otherwise, x_0, x_t, t),
    }
    for variance in ("fixed_small", "fixed_large"):
        if variance != parametrization.variance:
            fixed = with_variance(process, reverse, variance, t)
            values[variance] = reverse_term(process, fixed, x_0, x_t, t)
    if parametrization.learns_variance:
        v = v_of(process, parametrization, output, t)
        outside = jnp.where(jnp.isnan(v), jnp.nan, jnp.abs(v) > 1.0)
        values |= {"v": mean_flat(v), "v_outside": mean_flat(outside)}
    return values


@functools.cache
def prior_function(mesh: Mesh) -> Callable:
    """Compiled (process, images uint8 [B, H, W, C]) -> L_T [B], bits/dim."""
    return map_batch(lambda process, image: prior_term(process, to_float(image)), mesh)
