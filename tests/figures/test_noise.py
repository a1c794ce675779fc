"""Figures 1, 3 and 5: their numbers against closed forms in float64."""

import math

import jax
import numpy as np
import pytest
from tiny_config import tiny

from iddpm_jax import build
from iddpm_jax.figures import noise
from iddpm_jax.figures.results import Missing


def cosine_alpha_bar(u: np.ndarray) -> np.ndarray:
    """Equation 17."""
    f = np.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    return f / math.cos(0.008 / 1.008 * math.pi / 2) ** 2


def linear_alpha_bar(T: int) -> np.ndarray:
    """Ho et al. 2020: beta from 1e-4 to 0.02 over 1000 steps, as sums of logarithms."""
    i = np.arange(T)
    beta = (1e-4 + (0.02 - 1e-4) * i / (T - 1)) * 1000 / T
    return np.exp(np.cumsum(np.log1p(-beta)))


def test_alpha_bar_is_the_papers():
    numbers = noise.alpha_bar(500).numbers
    np.testing.assert_allclose(numbers["u"], np.arange(1, 501) / 500, rtol=1e-15)
    # The last beta is cut off at 0.999.
    expected = cosine_alpha_bar(numbers["u"])
    np.testing.assert_allclose(numbers["cosine"][:-1], expected[:-1], rtol=1e-9)
    np.testing.assert_allclose(numbers["cosine"][-1], 0.001 * expected[-2], rtol=1e-9)
    np.testing.assert_allclose(numbers["linear"], linear_alpha_bar(500), rtol=1e-9)


@pytest.mark.parametrize("length", [100, 1000, 4000, 30])
def test_ratio_of_variances_is_that_of_what_is_missing_of_the_signal(length):
    numbers = noise.beta_tilde(30).numbers
    u = np.arange(length + 1) / length
    for name, alpha_bar in (
        ("cosine", cosine_alpha_bar(u)),
        ("linear", np.append(1, linear_alpha_bar(length))),
    ):
        expected = (1 - alpha_bar[:-1]) / (1 - alpha_bar[1:])
        got = numbers[f"{name}_{length}"]
        np.testing.assert_allclose(got[:-1], expected[:-1], rtol=1e-8)
        assert got[0] == 0


def test_too_few_steps_leave_the_linear_schedule_out():
    assert "linear" not in noise.alpha_bar(20).numbers
    assert {"cosine_20", "linear_100"} <= set(noise.beta_tilde(20).numbers)
    assert "linear_20" not in noise.beta_tilde(20).numbers


def test_strips_are_the_test_image_noised_at_equal_distances():
    config = tiny(diffusion__T=64, seed=3)
    model = build.model(config)
    numbers = noise.forward_process(config, model).numbers
    image = build.load_data(config, model, "test")[0]["image"]
    assert numbers["t"].tolist() == [0, 8, 16, 24, 32, 40, 48, 56, 64]
    eps = np.asarray(jax.random.normal(jax.random.key(3), (8, 8, 1)), np.float64)
    np.testing.assert_array_equal(numbers["eps"], eps.astype(np.float32))
    x_0 = image / 127.5 - 1.0
    for name, alpha_bar in (
        ("cosine", cosine_alpha_bar(np.arange(65) / 64)),
        ("linear", np.append(1, linear_alpha_bar(64))),
    ):
        assert numbers[name].shape == (9, 8, 8, 1)
        np.testing.assert_array_equal(numbers[name][0], image)
        for t, got in zip(numbers["t"][1:-1], numbers[name][1:-1], strict=True):
            x_t = math.sqrt(alpha_bar[t]) * x_0 + math.sqrt(1 - alpha_bar[t]) * eps
            expected = np.clip((x_t + 1) * 127.5, 0, 255)
            assert np.abs(got - expected).max() <= 1.01  # truncated to 8 bit


def test_data_that_are_not_at_hand_are_missing():
    config = tiny(
        data__name="folder:/nowhere", data__image_shape=(8, 8, 1), model__class_conditional=False
    )
    with pytest.raises(Missing, match="/nowhere"):
        noise.forward_process(config, build.model(config))
