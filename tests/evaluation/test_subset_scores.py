"""Inception Score and kernel distance: torch-fidelity's numbers, closed forms, honest errors."""

import warnings
from pathlib import Path

import numpy as np
import pytest

from iddpm_jax.errors import InputError
from iddpm_jax.evaluation.subset_scores import (
    inception_scores,
    kernel_distances,
    random_subsets,
    shuffled_splits,
)

RECORDED = Path(__file__).resolve().parents[1] / "golden" / "scores.npz"


@pytest.fixture(name="recorded", scope="module")
def recorded_scores():
    with np.load(RECORDED) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("splits", [1, 10])
def test_inception_score_equals_torch_fidelitys(recorded, splits):
    logits = recorded["logits"]
    found = inception_scores(logits, shuffled_splits(len(logits), splits, 2020))
    mean, std = recorded[f"isc_{splits}"]
    assert found.mean() == pytest.approx(mean, rel=1e-10)
    assert found.std() == pytest.approx(std, rel=1e-10, abs=1e-12)


def test_inception_score_of_images_in_order_equals_torch_fidelitys(recorded):
    logits = recorded["logits"]
    found = inception_scores(logits, np.split(np.arange(203), 7))
    mean, std = recorded["isc_7_in_order"]
    assert found.mean() == pytest.approx(mean, rel=1e-10)
    assert found.std() == pytest.approx(std, rel=1e-10)


def test_inception_score_of_certain_classes_is_their_number():
    logits = 2000 * np.eye(5, dtype=np.float32)[np.arange(20) % 4]  # exp underflows
    assert inception_scores(logits, [np.arange(20)]) == pytest.approx([4.0])
    assert inception_scores(np.ones((6, 5)), [np.arange(6)]) == pytest.approx([1.0])


def test_splits_hold_every_image_once():
    shuffled = shuffled_splits(11, 3, 0)
    assert sorted(np.concatenate(shuffled)) == list(range(11))
    assert [len(part) for part in shuffled] == [3, 4, 4]
    with pytest.raises(InputError, match="2 images cannot be cut into 3 parts"):
        shuffled_splits(2, 3, 0)


def test_kernel_distance_equals_torch_fidelitys(recorded):
    a, b = recorded["a"], recorded["b"]
    found = kernel_distances(a, b, random_subsets(len(a), len(b), 100, 20, 2020)).values
    mean, std = recorded["kid_float64"]
    assert found.mean() == pytest.approx(mean, rel=1e-10)
    assert found.std() == pytest.approx(std, rel=1e-10)


def test_scores_equal_those_of_torch_fidelity_itself(recorded):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch = pytest.importorskip("torch")
        isc = pytest.importorskip("torch_fidelity.metric_isc", exc_type=ImportError)
        kid = pytest.importorskip("torch_fidelity.metric_kid", exc_type=ImportError)
        theirs = kid.kid_features_to_metric(
            *(torch.from_numpy(recorded[key]).double() for key in "ab"),
            **{"kid_subsets": 5, "kid_subset_size": 50, "rng_seed": 1, "verbose": False},
        )
        score = isc.isc_features_to_metric(torch.from_numpy(recorded["logits"]), 5, True, 1)
    a, b, logits = (recorded[key] for key in ("a", "b", "logits"))
    ours = kernel_distances(a, b, random_subsets(len(a), len(b), 50, 5, 1)).values.mean()
    assert ours == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-6)
    ours = inception_scores(logits, shuffled_splits(len(logits), 5, 1)).mean()
    assert ours == pytest.approx(score["inception_score_mean"], rel=1e-6)


def test_kernel_distance_equals_its_definition_pair_by_pair():
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((4, 3)), generator.standard_normal((5, 3))

    def k(u, v):
        return (sum(p * q for p, q in zip(u, v, strict=True)) / 3 + 1) ** 3

    index, other = np.array([0, 1, 3]), np.array([4, 2, 0])
    xs, ys = x[index], y[other]
    within = sum(k(s[i], s[j]) for s in (xs, ys) for i in range(3) for j in range(3) if i != j)
    across = sum(k(u, v) for u in xs for v in ys)
    found = kernel_distances(x, y, [(index, other)]).values
    assert found == pytest.approx([within / 6 - 2 * across / 9], rel=1e-12)


def test_error_of_kernel_distance_is_the_spread_of_independent_sets():
    generator = np.random.default_rng(0)
    reference = generator.standard_normal((400, 4))
    values, errors = [], []
    for seed in range(100):
        samples = generator.standard_normal((300, 4)) + 0.5
        found = kernel_distances(samples, reference, random_subsets(300, 400, 150, 10, seed))
        values.append(found.values.mean())
        errors.append(found.error)
    spread = np.std(values, ddof=1)
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(spread, rel=0.25)


def test_features_that_cannot_be_compared_are_refused():
    with pytest.raises(InputError, match="3 and 4 features"):
        kernel_distances(np.ones((5, 3)), np.ones((5, 4)), [])
    with pytest.raises(InputError, match="image 1 are not finite"):
        inception_scores(np.array([[0.0, 1.0], [np.nan, 0.0]]), [np.arange(2)])
