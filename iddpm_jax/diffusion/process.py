"""The forward process q and its posterior (Nichol & Dhariwal 2021, section 2.1)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from iddpm_jax.diffusion.gaussian import Gaussian


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Process:
    """A noise process with T steps: every per-step table that the formulas need, [T], float32.

    It is a pytree, so a compiled function takes it as an argument and runs any schedule or any
    choice of steps of the same count without compiling again. Index t is 0-based: the paper's t is
    t + 1.

    Attributes:
        timesteps: index of each step in the process the network was trained on, int32.
        model_t: what the network is fed for each step; int32, or float32 where time is rescaled.
        beta: variance added by each step.
        alpha_bar: product of 1 - beta up to and including the step (section 2.1).
        alpha_bar_prev: the same one step earlier, 1 at t = 0.
        alpha_bar_next: the same one step later, 0 at the last step.
        one_minus_alpha_bar, one_minus_alpha_bar_prev, one_minus_alpha_bar_next,
        log_one_minus_alpha_bar, sqrt_alpha_bar, sqrt_one_minus_alpha_bar, sqrt_recip_alpha_bar,
        sqrt_recipm1_alpha_bar: built in float64, because for small t the difference 1 - alpha_bar
            has few correct digits in float32.
        log_beta: natural logarithm of beta.
        beta_tilde: variance of the posterior q(x_{t-1} | x_t, x_0) (equation 10), 0 at t = 0.
        log_beta_tilde: its logarithm; the entry at t = 0 repeats t = 1 ("clipped"), or log_beta in
            a process of one step.
        fixed_large, log_fixed_large: beta, with the entry at t = 0 replaced by beta_tilde of t = 1.
        posterior_x_0, posterior_x_t: coefficients of x_0 and x_t in mu_tilde (equation 11).
        recip_posterior_x_0, posterior_ratio: 1 / posterior_x_0 and posterior_x_t / posterior_x_0.
    """

    timesteps: jax.Array
    model_t: jax.Array
    beta: jax.Array
    alpha_bar: jax.Array
    alpha_bar_prev: jax.Array
    alpha_bar_next: jax.Array
    one_minus_alpha_bar: jax.Array
    one_minus_alpha_bar_prev: jax.Array
    one_minus_alpha_bar_next: jax.Array
    log_one_minus_alpha_bar: jax.Array
    sqrt_alpha_bar: jax.Array
    sqrt_one_minus_alpha_bar: jax.Array
    sqrt_recip_alpha_bar: jax.Array
    sqrt_recipm1_alpha_bar: jax.Array
    log_beta: jax.Array
    beta_tilde: jax.Array
    log_beta_tilde: jax.Array
    fixed_large: jax.Array
    log_fixed_large: jax.Array
    posterior_x_0: jax.Array
    posterior_x_t: jax.Array
    recip_posterior_x_0: jax.Array
    posterior_ratio: jax.Array

    @property
    def T(self) -> int:
        """Number of steps."""
        return self.beta.shape[0]


def coefficients(betas: np.ndarray) -> dict[str, np.ndarray]:
    """Every table of a Process that follows from the betas, in float64.

    Nichol & Dhariwal 2021, section 2.1, equations 10 and 11.

    Args:
        betas: [T], each above 0 and at most 1.

    Returns:
        Tables [T], float64, by the attribute names of Process.

    Raises:
        ValueError: not one-dimensional, empty, or a beta outside (0, 1].
    """
    beta = np.asarray(betas, dtype=np.float64)
    if beta.ndim != 1 or beta.size == 0:
        raise ValueError(f"betas must be a non-empty vector, got shape {beta.shape}")
    if not ((beta > 0) & (beta <= 1)).all():
        raise ValueError(f"betas must lie in (0, 1], got {beta.min():.3g} to {beta.max():.3g}")

    alpha_bar = np.cumprod(1 - beta)
    alpha_bar_prev = np.append(1.0, alpha_bar[:-1])
    # A beta of exactly 1 ends in alpha_bar = 0: its reciprocals are infinite, as they should be.
    with np.errstate(divide="ignore"):
        beta_tilde = beta * (1 - alpha_bar_prev) / (1 - alpha_bar)
        posterior_x_0 = beta * np.sqrt(alpha_bar_prev) / (1 - alpha_bar)
        posterior_x_t = (1 - alpha_bar_prev) * np.sqrt(1 - beta) / (1 - alpha_bar)
        second = beta_tilde[1] if beta.size > 1 else beta[0]
        clipped_beta_tilde = np.append(second, beta_tilde[1:])
        fixed_large = np.append(second, beta[1:])
        alpha_bar_next = np.append(alpha_bar[1:], 0.0)
        return {
            "beta": beta,
            "alpha_bar": alpha_bar,
            "alpha_bar_prev": alpha_bar_prev,
            "alpha_bar_next": alpha_bar_next,
            "one_minus_alpha_bar": 1 - alpha_bar,
            "one_minus_alpha_bar_prev": 1 - alpha_bar_prev,
            "one_minus_alpha_bar_next": 1 - alpha_bar_next,
            "log_one_minus_alpha_bar": np.log(1 - alpha_bar),
            "sqrt_alpha_bar": np.sqrt(alpha_bar),
            "sqrt_one_minus_alpha_bar": np.sqrt(1 - alpha_bar),
            "sqrt_recip_alpha_bar": np.sqrt(1 / alpha_bar),
            "sqrt_recipm1_alpha_bar": np.sqrt(1 / alpha_bar - 1),
            "log_beta": np.log(beta),
            "beta_tilde": beta_tilde,
            "log_beta_tilde": np.log(clipped_beta_tilde),
            "fixed_large": fixed_large,
            "log_fixed_large": np.log(fixed_large),
            "posterior_x_0": posterior_x_0,
            "posterior_x_t": posterior_x_t,
            "recip_posterior_x_0": 1 / posterior_x_0,
            "posterior_ratio": posterior_x_t / posterior_x_0,
        }


def make_process(
    betas: np.ndarray,
    timesteps: np.ndarray | None = None,
    original_T: int | None = None,
    rescale_timesteps: bool = False,
) -> Process:
    """Build a Process from its betas.

    Args:
        betas: [T], see schedules.make_betas, or respacing.respaced_betas.
        timesteps: index of each step in the original process [T]; all of them by default.
        original_T: number of steps of the original process; T by default.
        rescale_timesteps: feed the network t * 1000 / original_T as a float instead of the index t.

    Returns:
        Process with T steps.

    Raises:
        ValueError: impossible betas, or a timesteps of another length.
    """
    tables = {k: np.asarray(v, np.float32) for k, v in coefficients(betas).items()}
    T = len(tables["beta"])
    timesteps = np.asarray(np.arange(T) if timesteps is None else timesteps, np.int32)
    if timesteps.shape != (T,):
        raise ValueError(f"timesteps has shape {timesteps.shape}, but there are {T} betas")
    scale = np.float32(1000.0 / (original_T or T))
    model_t = timesteps.astype(np.float32) * scale if rescale_timesteps else timesteps
    return Process(timesteps=timesteps, model_t=model_t, **tables)


def at(table: jax.Array, t: jax.Array) -> jax.Array:
    """Entries of a per-step table for a batch, ready to multiply images.

    Args:
        table: [T].
        t: step index [B], int32.

    Returns:
        table[t] as [B, 1, 1, 1].
    """
    return jnp.asarray(table)[t][:, None, None, None]


def q_mean_variance(process: Process, x_0: jax.Array, t: jax.Array) -> Gaussian:
    """Mean and variance of q(x_t | x_0).

    Nichol & Dhariwal 2021, equation 8.

    Args:
        process: noise process with T steps.
        x_0: clean images [B, H, W, C] in [-1, 1].
        t: step index [B], int32, 0 <= t < T (0 is the paper's step 1).

    Returns:
        Gaussian: mean [B, H, W, C]; variance, log_variance [B, 1, 1, 1].
    """
    return Gaussian(
        at(process.sqrt_alpha_bar, t) * x_0,
        at(process.one_minus_alpha_bar, t),
        at(process.log_one_minus_alpha_bar, t),
    )


def q_sample(process: Process, x_0: jax.Array, t: jax.Array, eps: jax.Array) -> jax.Array:
    """Diffuse clean images: x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps.

    Nichol & Dhariwal 2021, equation 9.

    Args:
        process: noise process with T steps.
        x_0: clean images [B, H, W, C] in [-1, 1].
        t: step index [B], int32.
        eps: standard normal noise [B, H, W, C].

    Returns:
        x_t [B, H, W, C].

    Raises:
        ValueError: x_0 and eps differ in shape.
    """
    _check_same_shape("x_0", x_0, "eps", eps)
    return at(process.sqrt_alpha_bar, t) * x_0 + at(process.sqrt_one_minus_alpha_bar, t) * eps


def posterior(process: Process, x_0: jax.Array, x_t: jax.Array, t: jax.Array) -> Gaussian:
    """Mean and variance of q(x_{t-1} | x_t, x_0).

    Nichol & Dhariwal 2021, equations 10 to 12 (beta_tilde, mu_tilde).

    Args:
        process: noise process with T steps.
        x_0: clean images [B, H, W, C] in [-1, 1].
        x_t: noised images [B, H, W, C].
        t: step index [B], int32, 0 <= t < T (0 is the paper's step 1).

    Returns:
        Gaussian: mean [B, H, W, C]; variance, log_variance [B, 1, 1, 1]. The log-variance at t = 0
        repeats t = 1, where the true variance is 0.

    Raises:
        ValueError: x_0 and x_t differ in shape.
    """
    _check_same_shape("x_0", x_0, "x_t", x_t)
    return Gaussian(
        at(process.posterior_x_0, t) * x_0 + at(process.posterior_x_t, t) * x_t,
        at(process.beta_tilde, t),
        at(process.log_beta_tilde, t),
    )


def x_0_from_eps(process: Process, x_t: jax.Array, t: jax.Array, eps: jax.Array) -> jax.Array:
    """The x_0 that x_t and its noise imply; equation 9 solved for x_0.

    Args:
        process: noise process with T steps.
        x_t: noised images [B, H, W, C].
        t: step index [B], int32.
        eps: the noise in x_t [B, H, W, C].

    Returns:
        x_0 [B, H, W, C], not clipped.
    """
    return at(process.sqrt_recip_alpha_bar, t) * x_t - at(process.sqrt_recipm1_alpha_bar, t) * eps


def eps_from_x_0(process: Process, x_t: jax.Array, t: jax.Array, x_0: jax.Array) -> jax.Array:
    """The noise that x_t and x_0 imply; equation 9 solved for eps.

    Args:
        process: noise process with T steps.
        x_t: noised images [B, H, W, C].
        t: step index [B], int32.
        x_0: clean images [B, H, W, C].

    Returns:
        eps [B, H, W, C].
    """
    difference = at(process.sqrt_recip_alpha_bar, t) * x_t - x_0
    return difference / at(process.sqrt_recipm1_alpha_bar, t)


def x_0_from_prev_mean(
    process: Process, x_t: jax.Array, t: jax.Array, prev_mean: jax.Array
) -> jax.Array:
    """The x_0 whose posterior mean is prev_mean; equation 11 solved for x_0.

    Args:
        process: noise process with T steps.
        x_t: noised images [B, H, W, C].
        t: step index [B], int32.
        prev_mean: mean of x_{t-1} [B, H, W, C].

    Returns:
        x_0 [B, H, W, C], not clipped.
    """
    return at(process.recip_posterior_x_0, t) * prev_mean - at(process.posterior_ratio, t) * x_t


def _check_same_shape(name_1: str, array_1: jax.Array, name_2: str, array_2: jax.Array) -> None:
    if array_1.shape != array_2.shape:
        raise ValueError(f"{name_1} {array_1.shape} and {name_2} {array_2.shape} differ in shape")
