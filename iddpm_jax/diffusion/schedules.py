"""Noise schedules beta_t (Nichol & Dhariwal 2021, section 3.2), built in numpy float64."""

import math
from collections.abc import Callable

import numpy as np


def linear_betas(T: int) -> np.ndarray:
    """The linear schedule of Ho et al. 2020, stretched so that T steps add about the same noise.

    Nichol & Dhariwal 2021, section 3.2; Ho et al. 2020, section 4: 1e-4 to 0.02 over 1000 steps.

    Args:
        T: number of steps, at least 20 (below that the last beta exceeds 1).

    Returns:
        betas [T], float64.

    Raises:
        ValueError: T is too small.
    """
    if T < 1:
        raise ValueError(f"a schedule needs at least one step, got T = {T}")
    scale = 1000 / T
    if T < 20:
        raise ValueError(
            f"the linear schedule needs T >= 20: with T = {T} its last beta is {0.02 * scale:.3g}, "
            "above 1; use more steps or the cosine schedule"
        )
    return np.linspace(1e-4 * scale, 0.02 * scale, T, dtype=np.float64)


def betas_from_alpha_bar(
    alpha_bar: Callable[[float], float], T: int, max_beta: float = 0.999
) -> np.ndarray:
    """beta_t = min(1 - alpha_bar(t/T) / alpha_bar((t-1)/T), max_beta).

    Nichol & Dhariwal 2021, section 3.2, the text below equation 17.

    Args:
        alpha_bar: decreasing function of u in [0, 1], the share of signal variance left.
        T: number of steps, at least 1.
        max_beta: upper clip that keeps the last steps from being singular.

    Returns:
        betas [T], float64.

    Raises:
        ValueError: T is below 1.
    """
    if T < 1:
        raise ValueError(f"a schedule needs at least one step, got T = {T}")
    return np.array(
        [min(1 - alpha_bar((i + 1) / T) / alpha_bar(i / T), max_beta) for i in range(T)],
        dtype=np.float64,
    )


def cosine_betas(T: int) -> np.ndarray:
    """The cosine schedule, alpha_bar(u) = cos^2((u + s) / (1 + s) * pi / 2) with s = 0.008.

    Nichol & Dhariwal 2021, equation 17.

    Args:
        T: number of steps, at least 1.

    Returns:
        betas [T], float64, at most 0.999.

    Raises:
        ValueError: T is below 1.
    """
    s = 0.008
    return betas_from_alpha_bar(lambda u: math.cos((u + s) / (1 + s) * math.pi / 2) ** 2, T)


SCHEDULES = {"linear": linear_betas, "cosine": cosine_betas}


def make_betas(schedule: str, T: int) -> np.ndarray:
    """The betas of a schedule by name.

    Args:
        schedule: "linear" or "cosine".
        T: number of steps.

    Returns:
        betas [T], float64.

    Raises:
        ValueError: unknown name, or T too small for the schedule.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule {schedule!r} is unknown; use one of {', '.join(SCHEDULES)}")
    return SCHEDULES[schedule](T)
