"""Estimates and their errors on tables made up in numpy, and the files."""

import json

import numpy as np
import pytest

from iddpm_jax.evaluation.likelihood import Bound, Estimate, Likelihood, by_step, numbers, paired
from iddpm_jax.evaluation.terms import steps_of_images

ONES = np.ones((2, 3), np.float32)


def likelihood(l_t, weight, draws=None, **more):
    """With prior 0; the bound of each image from the table unless the draws are given."""
    l_t = np.asarray(l_t, np.float32)
    if draws is None:
        draws = np.nansum(l_t.astype(np.float64) * weight, axis=1)[:, None]
    count, K = l_t.shape
    return Likelihood(np.arange(K), weight, l_t, l_t, l_t, np.zeros(count), draws, **more)


def made_up(count, K, rng):
    """True terms of images [count, K]: alike but for a factor, the first unlike all others."""
    image = 1 + 0.3 * rng.standard_normal((count, 1))
    terms = image * 0.1 / (1 + np.arange(K) / 10)
    terms[:, 0] = 1.0 + 0.02 * rng.standard_normal(count)
    return terms


def test_parts_add_up_to_the_bound():
    prior = np.array([0.5, 1.5])
    draws = 3.0 + prior[:, None]
    found = Likelihood(np.arange(3), np.ones(3), ONES, ONES, ONES, prior, draws)
    assert found.per_image.tolist() == [3.5, 4.5] and found.kl.tolist() == [2.0, 2.0]
    assert (found.bits_per_dim, found.standard_error, found.decoder) == (4.0, 0.5, 1.0)
    assert found.terms == 3 and found.mean_l_t.tolist() == [1, 1, 1]


def test_decoder_of_a_subset_is_that_of_the_images_that_have_it():
    weight = np.array([2, 2])
    found = likelihood([[np.nan, 1.0], [np.nan, 2.0]], weight)
    assert found.decoder is None and found.kl.tolist() == [2.0, 4.0] and found.terms == 1
    found = likelihood([[3.0, np.nan], [np.nan, 2.0]], weight)
    assert found.decoder == 3.0 and found.kl.tolist() == [0.0, 4.0]
    assert found.mean_l_t.tolist() == [3.0, 2.0]


def test_single_image_has_no_errors():
    found = likelihood(np.ones((1, 4)), np.ones(4))
    assert found.standard_error == 0.0 and found.monte_carlo_error is None


def test_error_by_draws_is_that_of_the_noise():
    rng = np.random.default_rng(0)
    true = 4 + rng.standard_normal((2000, 1))
    draws = true + 0.5 * rng.standard_normal((2000, 3))
    found = likelihood(np.ones((2000, 5)), np.ones(5), draws)
    expected = 0.5 / np.sqrt(3 * 2000)
    np.testing.assert_allclose(found.monte_carlo_error, expected, rtol=0.03)
    np.testing.assert_allclose(found.standard_error, np.sqrt(1 / 2000 + expected**2), rtol=0.05)


@pytest.mark.parametrize("K", [200, 201])
def test_error_of_one_draw_by_neighbouring_terms(K):
    rng = np.random.default_rng(1)
    true = made_up(1000, K, rng)
    noise = rng.standard_normal((1000, K)) * (0.02 + 0.1 * (np.arange(K) == 0))
    found = likelihood(true + noise, np.ones(K))
    expected = np.sqrt((0.12**2 + (K - 1) * 0.02**2) / 1000)
    assert 0.97 < found.monte_carlo_error / expected < 1.1


@pytest.mark.parametrize("terms", [20, 1])
def test_error_of_a_subset_of_terms_is_honest(terms):
    """Against the variance of drawing one step from each part, summed over parts and images."""
    rng, K = np.random.default_rng(2), 200
    true = made_up(1000, K, rng)
    steps, weight = steps_of_images(1000, K, terms, seed=3)
    l_t = np.full((1000, K), np.nan)
    np.put_along_axis(l_t, steps, np.take_along_axis(true, steps, 1), 1)
    found = likelihood(l_t, weight)
    parts = true.reshape(1000, terms, K // terms)
    variance = ((K // terms) ** 2 * parts.var(axis=2)).sum()
    error = np.sqrt(variance) / 1000
    assert 0.95 < found.monte_carlo_error / error < 1.2
    assert abs(found.bits_per_dim - true.sum(axis=1).mean()) < 3 * error


def test_adjusted_estimate_leaves_out_the_luck_of_the_draw():
    """200 draws of terms for the same images: unbiased, narrower, and as wide as it says."""
    rng, K, count = np.random.default_rng(7), 40, 300
    true = made_up(count, K, rng)
    found = []
    for seed in range(200):
        steps, weight = steps_of_images(count, K, 8, seed)
        l_t = np.full((count, K), np.nan)
        np.put_along_axis(l_t, steps, np.take_along_axis(true, steps, 1), 1)
        found.append(likelihood(l_t, weight))
    means = np.array([each.adjusted.mean for each in found])
    expected, spread = true.sum(axis=1).mean(), means.std()
    assert abs(means.mean() - expected) < 4 * spread / np.sqrt(200)
    assert spread < 0.2 * np.std([each.bits_per_dim for each in found])
    # What is reported is for new images too: the spread of whole bounds comes on top.
    images = true.sum(axis=1).std() / np.sqrt(count)
    errors = [each.adjusted.standard_error for each in found]
    np.testing.assert_allclose(np.mean(errors), np.hypot(images, spread), rtol=0.05)


def test_adjusted_estimate_of_all_terms_is_the_bound():
    table = np.random.default_rng(8).random((50, 7))
    found = likelihood(table, np.ones(7))
    np.testing.assert_allclose(found.adjusted, (found.bits_per_dim, found.standard_error))
    weight = np.array([2, 2])
    assert likelihood([[1.0, np.nan], [1.0, np.nan], [np.nan, 1.0]], weight).adjusted is None


def test_blocks_of_rows_do_not_matter(monkeypatch):
    table = np.random.default_rng(4).random((50, 7))
    expected = likelihood(table, np.ones(7))
    error, mean = expected.monte_carlo_error, expected.mean_l_t
    monkeypatch.setattr("iddpm_jax.evaluation.likelihood.BLOCK_ELEMENTS", 30)
    found = likelihood(table, np.ones(7))
    np.testing.assert_allclose(found.monte_carlo_error, error)
    np.testing.assert_allclose(found.mean_l_t, mean)
    np.testing.assert_allclose(mean, table.mean(axis=0), rtol=1e-6)


def test_paired_difference_leaves_out_what_both_have():
    rng = np.random.default_rng(5)
    images, small = 4 + rng.standard_normal(500), 0.01 * rng.standard_normal(500)
    mean, error = paired(images + 0.2 + small, images)
    np.testing.assert_allclose(mean, 0.2 + small.mean())
    np.testing.assert_allclose(error, small.std(ddof=1) / np.sqrt(500))


def test_ranges_of_steps_add_up_to_the_bound():
    rng = np.random.default_rng(6)
    table = rng.random((4, 42))
    bound = Bound(2 * table.sum(axis=1), 2 * table.mean(axis=0))
    found = likelihood(
        table, np.ones(42), others={"fixed_small": bound}, v=np.arange(42.0), v_outside=np.ones(42)
    )
    rows = by_step(found)
    assert [(row["first"], row["last"]) for row in rows] == [
        *((0, 0), (1, 10), (11, 20), (21, 30), (31, 41)),
    ]
    np.testing.assert_allclose(sum(row["bound"] for row in rows), found.bits_per_dim, rtol=1e-6)
    np.testing.assert_allclose(
        sum(row["fixed_small"] for row in rows), 2 * found.bits_per_dim, rtol=1e-6
    )
    assert rows[1]["v"] == 5.5 and rows[1]["v_outside"] == 1.0
    for K in (1, 2, 3):
        rows = by_step(likelihood(np.ones((2, K)), np.ones(K)))
        assert [row["first"] for row in rows] == list(range(K))


def test_files_hold_everything(tmp_path):
    prior = np.array([0.5, 1.5])
    other = Bound(np.array([4.5, 5.5]), np.ones(3))
    found = Likelihood(
        *(np.arange(3), np.ones(3), ONES, ONES, ONES, prior, 3.0 + prior[:, None]),
        {"unclipped": other},
    )
    path = tmp_path / "nll" / "a_ema0.99.npz"
    found.save(path, {"seed": 0}, {"0": Estimate(0.25, 0.125)})
    with np.load(path) as arrays:
        assert arrays["total"].tolist() == [3.5, 4.5]
        assert arrays["unclipped_total"].tolist() == [4.5, 5.5]
        assert arrays["bits_per_dim"] == 4.0 and arrays["standard_error"] == 0.5
        names = "t weight l_t x_0_mse eps_mse prior draws kl mean_l_t monte_carlo_error settings"
        assert set(names.split()) <= set(arrays) and "v" not in arrays
    text = json.loads(path.with_suffix(".json").read_text())
    assert text.pop("settings") == {"seed": 0}
    assert text.pop("minus_averages") == {"0": {"mean": 0.25, "standard_error": 0.125}}
    assert text == numbers(found)
    assert text["others"]["unclipped"]["difference"] == 1.0
    assert text["others"]["unclipped"]["difference_standard_error"] == 0.0
    assert sorted(p.suffix for p in path.parent.iterdir()) == [".json", ".npz"]
