"""The noise scale: pair sums and a quadratic loss whose answers are known."""

import numpy as np
import pytest

from iddpm_jax.evaluation.gradient_noise import GROUPS, Sums, compare, estimate, group_sizes

BATCH, DIMENSIONS = 4, 6
MEAN = np.array([0.3, -0.1, 0.2, 0.0, 0.1, -0.2])
STD = np.array([1.0, 0.5, 2.0, 0.1, 1.5, 0.7])
"""Of x in the loss |theta - x|^2 / 2 at theta = 0: G = -MEAN, Sigma = diag(STD^2)."""


def sums_of(gradients: np.ndarray, batch_size: int = BATCH, loss: np.ndarray | None = None) -> Sums:
    """Sums of gradients [N, P]; losses [N, b] of the examples."""
    loss = np.ones((len(gradients), batch_size)) if loss is None else loss
    parts = np.split(gradients, np.cumsum(group_sizes(len(gradients)))[:-1])
    totals = np.stack([part.sum(axis=0) for part in parts])
    return Sums(
        batch_size,
        (gradients**2).sum(axis=1),
        totals @ totals.T,
        loss.mean(axis=1),
        loss.var(axis=1),
    )


def quadratic(rng: np.random.Generator, batches: int, scale: float = 1.0) -> Sums:
    x = MEAN + scale * STD * rng.standard_normal((batches, BATCH, DIMENSIONS))
    return sums_of(-x.mean(axis=1), loss=(x**2).sum(axis=2) / 2)


@pytest.mark.parametrize("batches", [GROUPS, 27])
def test_estimates_are_those_of_pairs_and_of_the_covariance(batches):
    rng = np.random.default_rng(0)
    gradients = 0.4 + rng.standard_normal((batches, DIMENSIONS))
    loss = rng.gamma(1.0, 1.0, (batches, BATCH))
    found = estimate(sums_of(gradients, loss=loss))
    products = gradients @ gradients.T
    signal = products[~np.eye(batches, dtype=bool)].mean()
    trace = BATCH * np.trace(np.cov(gradients.T))
    norms = np.linalg.norm(gradients, axis=1)
    expected = [trace / signal, signal, trace, norms.mean(), norms.var(ddof=1)]
    expected += [loss.mean(), loss.var(ddof=1)]
    values = [value for value in found if isinstance(value, tuple)]
    np.testing.assert_allclose([value.value for value in values], expected, rtol=1e-12)


def test_errors_leave_out_a_group_at_a_time():
    gradients = 0.4 + np.random.default_rng(1).standard_normal((27, DIMENSIONS))
    group_of = np.repeat(np.arange(GROUPS), group_sizes(27))
    left = [BATCH * np.trace(np.cov(gradients[group_of != group].T)) for group in range(GROUPS)]
    error = estimate(sums_of(gradients)).variance.error
    np.testing.assert_allclose(error, np.sqrt((GROUPS - 1) * np.var(left)), rtol=1e-10)


def test_quadratic_loss_is_measured_without_bias_and_with_honest_errors():
    rng = np.random.default_rng(2)
    found = [estimate(quadratic(rng, 60)) for _ in range(300)]
    truth = {
        "squared_gradient": MEAN @ MEAN,
        "variance": (STD**2).sum(),
        "loss": ((MEAN**2 + STD**2) / 2).sum(),
        "loss_variance": (STD**4 / 2 + (MEAN * STD) ** 2).sum(),
    }
    for name, expected in truth.items():
        values, errors = np.array([getattr(noise, name) for noise in found]).T
        spread = values.std(ddof=1)
        assert abs(values.mean() - expected) < 3.5 * spread / np.sqrt(300), name
        assert 0.85 < np.sqrt((errors**2).mean()) / spread < 1.2, name


def test_scale_of_a_clear_gradient_is_within_its_error():
    truth = (0.1 * STD) @ (0.1 * STD) / (MEAN @ MEAN)
    found = estimate(quadratic(np.random.default_rng(3), 400, scale=0.1))
    assert found.resolved
    assert abs(found.scale.value - truth) < 3 * found.scale.error
    assert found.scale.error < 0.1 * truth
    assert found.scale_at_least < truth


def test_gradient_that_drowns_in_noise_gives_a_lower_bound():
    found = estimate(quadratic(np.random.default_rng(4), 20, scale=100.0))
    assert not found.resolved
    truth = 1e4 * (STD**2).sum() / (MEAN @ MEAN)
    assert 0 < found.scale_at_least < truth


def test_no_gradient_at_all_has_no_scale():
    x = np.random.default_rng(5).standard_normal((20, DIMENSIONS))
    found = estimate(sums_of(x - x.mean(axis=0)))
    assert found.squared_gradient.value < 0
    assert np.isnan(found.scale.value) and not found.resolved


def test_ratio_of_paired_gradients_is_surer_than_its_parts():
    x = np.random.default_rng(6).standard_normal((50, DIMENSIONS))
    found = compare(sums_of(0.5 * x), sums_of(x))
    np.testing.assert_allclose(found.factor, (0.25, 0.0), atol=1e-12)


def test_gradient_lost_in_one_noise_is_found_in_the_other():
    rng = np.random.default_rng(7)
    quiet, loud = quadratic(rng, 200, scale=0.1), quadratic(rng, 200, scale=30.0)
    assert not estimate(loud).resolved
    truth = 900 * (STD @ STD) / (MEAN @ MEAN)
    value, error = compare(quiet, loud).scale_evenly
    assert abs(value - truth) < 3 * error < 0.5 * truth
    assert np.isnan(compare(loud, loud).scale_evenly.value)
