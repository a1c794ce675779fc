"""Precision and recall equal a comparison of all pairs in float64, exactly."""

from pathlib import Path

import numpy as np
import pytest

from iddpm_jax.errors import InputError
from iddpm_jax.evaluation import neighbours
from iddpm_jax.evaluation.neighbours import precision_recall

RECORDED = Path(__file__).resolve().parents[1] / "golden" / "scores.npz"


def all_pairs(samples, reference, k):
    """Which samples and which of the reference are inside, by every squared distance."""

    def distances(x, y):
        return np.array([np.square(u - y.astype(np.float64)).sum(axis=1) for u in x])

    reach = [np.sort(distances(x, x), axis=1)[:, k] for x in (samples, reference)]
    across = distances(samples, reference)
    return (across <= reach[1]).any(axis=1), (across <= reach[0][:, None]).any(axis=0)


def features(kind, count, size, seed):
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((count, size)).astype(np.float32)
    if kind == "ties":
        return np.round(x)  # many distances are equal
    if kind == "duplicates":
        return x[generator.integers(0, max(count // 4, 1), count)]
    if kind == "one image":
        return np.repeat(x[:1], count, axis=0)
    if kind == "far away":
        return 1000 + 1e-3 * x  # little is left of the differences in float32
    if kind == "clusters":
        return x * np.float32(1e-4) + 10 * generator.integers(0, 3, (count, 1)).astype(np.float32)
    if kind == "tiny":
        return x * np.float32(1e-30)
    return x


KINDS = ["normal", "ties", "duplicates", "one image", "far away", "clusters", "tiny"]


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_precision_and_recall_equal_all_pairs_exactly(monkeypatch, kind, k):
    monkeypatch.setattr(neighbours, "ROWS", 64)
    monkeypatch.setattr(neighbours, "PAIRS", 100)
    inside = 0
    for seed, (n, m, size) in enumerate([(150, 90, 2), (60, 130, 40), (6, 200, 3)]):
        samples = features(kind, n, size, seed)
        reference = features(kind, m, size, seed + 10)
        if kind == "duplicates":
            reference[: n // 3] = samples[: n // 3][:m]
        found = precision_recall(samples, reference, k)
        expected = all_pairs(samples, reference, k)
        np.testing.assert_array_equal(found.samples_inside, expected[0])
        np.testing.assert_array_equal(found.reference_inside, expected[1])
        assert (found.precision, found.recall) == tuple(map(np.mean, expected))
        inside += sum(map(np.sum, expected))
    assert inside or kind == "one image"


def test_precision_and_recall_equal_torch_fidelitys():
    with np.load(RECORDED) as recorded:
        a = recorded["a"]
        for k in (1, 3, 5):
            found = precision_recall(a[:150], a[150:], k)
            expected = recorded[f"prc_{k}"]
            np.testing.assert_allclose([found.precision, found.recall], expected, rtol=1e-6)


def test_neighbourhoods_include_their_boundary_and_not_their_centre():
    # On a line, the nearest other image of each is 1 away, but 4 away for the last.
    samples = np.array([[0.0], [1.0], [2.0], [6.0]], np.float32)
    reference = np.array([[-1.0], [3.5], [10.0]], np.float32)
    found = precision_recall(samples, reference, 1)
    assert found.reference_inside.tolist() == [True, True, True]  # 3.5 and 10 by the last
    # Reach of the reference: 4.5, 4.5, 6.5.
    assert found.samples_inside.tolist() == [True, True, True, True]
    near = precision_recall(samples[:3], reference[1:] + 0.25, 1)
    assert near.reference_inside.tolist() == [False, False]


def test_collapsed_samples_cost_no_more_than_others(monkeypatch):
    # Models do collapse. Every distance within such a set could be the smallest to float32.
    pairs = []
    exact = neighbours._squared_distances
    monkeypatch.setattr(
        neighbours, "_squared_distances", lambda *given: pairs.append(given) or exact(*given)
    )
    reference = features("normal", 200, 40, 0)
    same, nearly = np.repeat(reference[:1], 200, axis=0), features("far away", 200, 40, 1)
    assert precision_recall(same, reference, 3).precision == 1
    assert len({pair for *_, i, j in pairs[:1] for pair in zip(i, j, strict=True)}) == 1
    pairs.clear()
    assert precision_recall(nearly, reference, 3).precision == 0
    assert sum(len(rows) for *_, rows, _ in pairs) < 4000


@pytest.mark.parametrize(("k", "n", "m"), [(3, 3, 9), (3, 9, 3), (0, 9, 9)])
def test_more_neighbours_than_images_are_refused(k, n, m):
    with pytest.raises(
        InputError, match=f"neighbours is {k}, but there are {3 if k else 9} images"
    ):
        precision_recall(np.ones((n, 2)), np.ones((m, 2)), k)


def test_features_of_two_networks_are_refused():
    with pytest.raises(InputError, match="5 and 4 features"):
        precision_recall(np.ones((9, 5)), np.ones((9, 4)), 3)
