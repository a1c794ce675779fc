"""Schedules: the recorded betas and tables, and what section 3.2 says of them."""

import math

import numpy as np
import pytest
from golden_cases import EXACT, assert_close, cases, load
from toy_model import TABLES

from iddpm_jax.diffusion.process import coefficients
from iddpm_jax.diffusion.schedules import betas_from_alpha_bar, cosine_betas, make_betas

FILE = "01_schedules.npz"
CASES = cases(FILE)


def _betas(case: dict) -> np.ndarray:
    if case["schedule"] != "from_alpha_bar":
        return make_betas(case["schedule"], case["T"])

    def alpha_bar(t: float) -> float:
        return eval(case["alpha_bar"], {**vars(math), "t": t})  # an expression in t

    return betas_from_alpha_bar(alpha_bar, case["T"], case["max_beta"])


@pytest.mark.parametrize("name, case", CASES, ids=[name for name, _ in CASES])
def test_schedule_matches_recording(name, case):
    if case["error"]:
        with pytest.raises(ValueError):
            coefficients(_betas(case))
        return
    betas = _betas(case)
    assert betas.dtype == np.float64
    tables = coefficients(betas)
    recorded = [key for key in load(FILE) if key.startswith(f"{name}/")]
    assert f"{name}/betas" in recorded
    for key in recorded:
        assert_close(FILE, key, tables[TABLES[key.split("/")[1]]], EXACT)


def test_cosine_alpha_bar_follows_equation_17():
    T, s = 4000, 0.008
    u = np.arange(T + 1) / T
    f = np.cos((u + s) / (1 + s) * np.pi / 2) ** 2
    alpha_bar = np.cumprod(1 - cosine_betas(T))
    # The last few betas are clipped to 0.999; until there the product telescopes.
    np.testing.assert_allclose(alpha_bar[:-4], (f[1:] / f[0])[:-4], rtol=1e-9)


def test_cosine_betas_are_clipped_at_0_999():
    betas = cosine_betas(1000)
    assert betas.max() == 0.999
    assert (np.diff(betas) >= 0).all()


@pytest.mark.parametrize("T", [20, 100, 1000, 4000])
def test_linear_schedule_adds_the_same_noise_at_any_length(T):
    betas = make_betas("linear", T)
    np.testing.assert_allclose(betas[0] * T, 0.1, rtol=1e-12)
    np.testing.assert_allclose(betas[-1] * T, 20.0, rtol=1e-12)
    np.testing.assert_allclose(betas.sum(), 1000 * (1e-4 + 0.02) / 2, rtol=1e-12)


def test_max_beta_clips():
    np.testing.assert_allclose(
        betas_from_alpha_bar(lambda u: 1 - u, 4, 0.4), [0.25, 1 / 3, 0.4, 0.4]
    )


def test_unknown_schedule_lists_the_legal_words():
    with pytest.raises(ValueError, match="linear, cosine"):
        make_betas("sqrt", 10)


@pytest.mark.parametrize("T", [0, -1])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_no_steps_are_refused(schedule, T):
    with pytest.raises(ValueError):
        make_betas(schedule, T)


@pytest.mark.parametrize("T", [1, 10, 19])
def test_short_linear_schedule_is_refused_with_advice(T):
    with pytest.raises(ValueError, match="cosine"):
        make_betas("linear", T)
