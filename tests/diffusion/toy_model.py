"""The toy network of the recordings, and official words <-> ours (golden/README.md, section 2)."""

import jax
import jax.numpy as jnp
from golden_cases import load, manifest, to_nhwc

from iddpm_jax.diffusion.process import Process, make_process
from iddpm_jax.diffusion.respacing import respace
from iddpm_jax.diffusion.reverse import Parametrization, X0Transform
from iddpm_jax.diffusion.samplers import Network
from iddpm_jax.diffusion.schedules import make_betas

MEANS = {"previous_x": "prev_mean", "start_x": "x_0", "epsilon": "eps"}
"""Official word for the mean -> ours. The words for the variance are the same."""

TABLES = {
    "betas": "beta",
    "alphas_cumprod": "alpha_bar",
    "alphas_cumprod_prev": "alpha_bar_prev",
    "alphas_cumprod_next": "alpha_bar_next",
    "sqrt_alphas_cumprod": "sqrt_alpha_bar",
    "sqrt_one_minus_alphas_cumprod": "sqrt_one_minus_alpha_bar",
    "log_one_minus_alphas_cumprod": "log_one_minus_alpha_bar",
    "sqrt_recip_alphas_cumprod": "sqrt_recip_alpha_bar",
    "sqrt_recipm1_alphas_cumprod": "sqrt_recipm1_alpha_bar",
    "posterior_variance": "beta_tilde",
    "posterior_log_variance_clipped": "log_beta_tilde",
    "posterior_mean_coef1": "posterior_x_0",
    "posterior_mean_coef2": "posterior_x_t",
}
"""Official name of a table -> ours."""


def process_of(spec: dict) -> Process:
    """The process of a recorded spec."""
    betas = make_betas(spec["schedule"], spec["T"])
    if spec["respacing"] is None:
        return make_process(betas, rescale_timesteps=spec["rescale_timesteps"])
    return respace(betas, spec["respacing"], spec["rescale_timesteps"])


def spec_of(group: str) -> dict:
    """The spec of a group of file 03."""
    return manifest()["files"]["03_diffusion.npz"]["cases"][f"{group}/in"]["spec"]


def parametrization_of(case: dict) -> Parametrization:
    """What the output stands for in a recorded case."""
    return Parametrization(MEANS[case["mean_type"]], case["var_type"])


def transform_of(case: dict) -> X0Transform | None:
    """What a recorded case does to the predicted x_0: scale, then clip."""
    scale, clip = case.get("denoised_scale"), case["clip_denoised"]
    if scale is None and not clip:
        return None

    def transform(x_0: jax.Array) -> jax.Array:
        scaled = x_0 if scale is None else scale * x_0
        return jnp.clip(scaled, -1.0, 1.0) if clip else scaled

    return transform


def toy_network(case: dict, spec: dict) -> Network:
    """The closed-form network of the recordings."""
    p = manifest()["toy_model"]["parameters"][case["mean_type"]]

    def network(x: jax.Array, model_t: jax.Array) -> jax.Array:
        tau = model_t.astype(jnp.float32)[:, None, None, None] / spec["toy_t_scale"]
        channel = jnp.arange(x.shape[-1], dtype=jnp.float32)[None, None, None, :]
        mean_part = p["a"] * x + p["b"] * tau + p["e"] * channel
        if not case["var_type"].startswith("learned"):
            return mean_part
        v = p["c"] * jnp.sin(p["k"] * x) + p["d"] + p["g"] * tau
        return jnp.concatenate([mean_part, v], axis=-1)

    return network


def images(file: str, key: str) -> jax.Array:
    """A recorded array of images as [..., H, W, C]."""
    return jnp.asarray(to_nhwc(load(file)[key]))


def steps(file: str, key: str) -> jax.Array:
    """Recorded step indices, int32."""
    return jnp.asarray(load(file)[key], jnp.int32)
