"""Frechet distance: equal to closed forms, to scipy's and to pytorch-fid's; an honest error."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg

from iddpm_jax.errors import InputError
from iddpm_jax.evaluation.fid import (
    BLOCK,
    Statistics,
    frechet_distance,
    jackknife,
    root,
    statistics,
)

RECORDED = Path(__file__).resolve().parents[1] / "golden" / "scores.npz"


@pytest.fixture(name="recorded", scope="module")
def recorded_scores():
    with np.load(RECORDED) as arrays:
        return dict(arrays)


def normal(count, size=8, seed=0, shift=0.0):
    """Features of correlated kinds, float32 as networks give them."""
    generator = np.random.default_rng(seed)
    mix = np.random.default_rng(99).standard_normal((size, size))
    return (generator.standard_normal((count, size)) @ mix + shift).astype(np.float32)


def by_square_root(a, b):
    """The formula as written, with scipy's root of the product of covariances."""
    product = scipy.linalg.sqrtm(a.sigma @ b.sigma)
    gap = a.mu - b.mu
    return gap @ gap + np.trace(a.sigma) + np.trace(b.sigma) - 2 * np.trace(product).real


def by_singular_values(a, b):
    """The trace of the root as the sum of singular values of the two sets' inner products."""
    means = [x.mean(axis=0, dtype=np.float64) for x in (a, b)]
    x, y = ((v - m) / np.sqrt(len(v) - 1) for v, m in zip((a, b), means, strict=True))
    gap = means[0] - means[1]
    overlap = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    return gap @ gap + np.square(x).sum() + np.square(y).sum() - 2 * overlap


@pytest.mark.parametrize("count", [2, 7, BLOCK, BLOCK + 1, 2 * BLOCK + 5])
def test_statistics_equal_numpys_in_float64(count):
    features = normal(count, shift=50)
    found = statistics(features)
    exact = features.astype(np.float64)
    np.testing.assert_allclose(found.mu, exact.mean(axis=0), rtol=1e-13)
    covariance = np.cov(exact, rowvar=False)
    np.testing.assert_allclose(found.sigma, covariance, atol=1e-12 * np.abs(covariance).max())
    assert found.count == count and found.sigma.dtype == np.float64


def test_distance_of_independent_features_is_that_of_their_deviations():
    mu, deviation = np.arange(4.0), np.array([1.0, 2.0, 0.0, 0.5])
    a = Statistics(mu, np.diag(deviation**2), None)
    b = Statistics(mu + 2, np.diag((deviation + 3) ** 2), None)
    assert frechet_distance(a, b) == pytest.approx(4 * 2**2 + 4 * 3**2, rel=1e-12)
    assert frechet_distance(b, a) == pytest.approx(4 * 2**2 + 4 * 3**2, rel=1e-12)


def test_distance_equals_pytorch_fids(recorded):
    a, b = recorded["a"], recorded["b"]
    pairs = {"pytorch_fid": (a, b), "pytorch_fid_near": (a[:200], a[200:])}
    for key, pair in pairs.items():
        found = frechet_distance(*map(statistics, pair))
        assert found == pytest.approx(float(recorded[key]), rel=1e-10)


def test_distance_of_few_images_equals_pytorch_fids_and_the_exact_one(recorded):
    few = recorded["a"][:30], recorded["b"][:40]  # of 64 features
    found = frechet_distance(*map(statistics, few))
    assert found == pytest.approx(by_singular_values(*few), rel=1e-12)
    assert found == pytest.approx(float(recorded["pytorch_fid_few"]), rel=1e-6)


def test_root_has_as_many_columns_as_rank(recorded):
    for count, rank in ((30, 29), (400, 64)):
        sigma = statistics(recorded["a"][:count]).sigma
        found = root(sigma)
        assert found.shape == (64, rank)
        np.testing.assert_allclose(found @ found.T, sigma, atol=1e-13)


def test_distance_equals_scipys():
    a, b = statistics(normal(300)), statistics(normal(200, seed=1, shift=0.1))
    assert frechet_distance(a, b) == pytest.approx(by_square_root(a, b), rel=1e-10)
    assert frechet_distance(a, b, root(b.sigma)) == frechet_distance(a, b)


def test_distance_equals_that_of_pytorch_fid_itself():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fid_score = pytest.importorskip("pytorch_fid.fid_score", exc_type=ImportError)
        a, b = statistics(normal(300)), statistics(normal(200, seed=1))
        theirs = fid_score.calculate_frechet_distance(a.mu, a.sigma, b.mu, b.sigma)
    assert frechet_distance(a, b) == pytest.approx(theirs, rel=1e-6)


def test_features_that_never_vary_do_not_spoil_the_distance():
    dead = [np.pad(normal(100, seed=s), ((0, 0), (0, 5)), constant_values=3.0) for s in (0, 1)]
    alive = [x[:, :8] for x in dead]
    expected = frechet_distance(*map(statistics, alive))
    assert frechet_distance(*map(statistics, dead)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("count", [5, 100])
def test_a_set_and_itself_have_no_distance(count):
    s = statistics(normal(count))
    assert abs(frechet_distance(s, s)) < 1e-12 * np.trace(s.sigma)


def test_one_picture_many_times_has_a_distance():
    same = statistics(np.ones((10, 8), np.float32))
    other = statistics(normal(50))
    expected = np.square(other.mu - 1).sum() + np.trace(other.sigma)
    assert frechet_distance(same, other) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(other, same) == pytest.approx(expected, rel=1e-12)


def test_jackknife_leaves_each_group_out_once():
    features, reference = normal(40), statistics(normal(60, seed=1))
    found = jackknife(features, reference, 40, seed=3)  # groups of one, in any order
    without = [
        by_square_root(statistics(np.delete(features, i, axis=0)), reference) for i in range(40)
    ]
    value = by_square_root(statistics(features), reference)
    assert found.value == pytest.approx(value, rel=1e-10)
    expected = np.sqrt(39 / 40 * np.square(without - np.mean(without)).sum())
    assert found.error == pytest.approx(expected, rel=1e-6)
    assert found.bias == pytest.approx(39 * (np.mean(without) - value), rel=1e-6)


def test_error_is_the_spread_of_independent_sets():
    reference = statistics(normal(2000, seed=1))
    found = [
        jackknife(normal(300, seed=s, shift=0.3), reference, 20, seed=s) for s in range(100, 200)
    ]
    spread = np.std([f.value for f in found], ddof=1)
    assert np.sqrt(np.mean([f.error**2 for f in found])) == pytest.approx(spread, rel=0.25)
    whole = statistics(normal(200_000, seed=5, shift=0.3))
    excess = np.mean([f.value for f in found]) - frechet_distance(whole, reference)
    assert np.mean([f.bias for f in found]) == pytest.approx(excess, rel=0.5)


@pytest.mark.parametrize(("count", "groups"), [(40, 0), (40, 1), (3, 20)])
def test_without_groups_there_is_a_distance_and_no_error(count, groups):
    features, reference = normal(count), statistics(normal(60, seed=1))
    found = jackknife(features, reference, groups, seed=0)
    assert found.value == frechet_distance(statistics(features), reference)
    assert found.error is None and found.bias is None


@pytest.mark.parametrize(
    ("features", "words"),
    [
        (normal(1), "features of 1 image; give 2 or more"),
        (np.zeros((0, 8)), "must be [images, features]"),
        (np.where(np.arange(40).reshape(5, 8) == 26, np.inf, 1.0), "of image 3 are not finite"),
    ],
)
def test_features_without_statistics_are_refused(features, words):
    with pytest.raises(InputError) as refused:
        statistics(features)
    assert words in str(refused.value)


def test_features_of_two_networks_are_refused():
    with pytest.raises(InputError, match="of 8 and of 5 features"):
        frechet_distance(statistics(normal(10)), statistics(normal(10, size=5)))
