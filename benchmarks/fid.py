"""Scores of features as large as Inception's: seconds and memory, each beside a peer's.

python benchmarks/fid.py [--images 50000] [--manifold-images 10000] [--size 2048] [--rounds 3]

Each measurement is a process of its own, so that its peak of memory is its own; the features are
part of it. Peers: np.cov and scipy's sqrtm, as pytorch-fid calls them, and scikit-learn's nearest
neighbours. scikit-learn compares in float32 with rounding, so its shares may differ in the last
digit.
"""

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable

import numpy as np
import scipy.linalg
from harness import report
from sklearn.metrics import pairwise_distances_chunked
from sklearn.neighbors import NearestNeighbors

from iddpm_jax.evaluation import fid, neighbours

K = 3


def features(count: int, size: int, seed: int) -> np.ndarray:
    """Float32 features whose variances fall off, as those of images do."""
    spread = np.arange(1, size + 1, dtype=np.float32) ** -0.5
    generator = np.random.default_rng(seed)
    return generator.standard_normal((count, size), dtype=np.float32) * spread


def two_statistics(count: int, size: int) -> list[fid.Statistics]:
    """Statistics of two sets of as many images as features, twice over."""
    return [fid.statistics(features(2 * size, size, seed)) for seed in (0, 1)]


def cov_of(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance as pytorch-fid has them, from a float64 array of all features."""
    x = x.astype(np.float64)
    return x.mean(axis=0), np.cov(x, rowvar=False)


def root_of_product(a: fid.Statistics, b: fid.Statistics) -> float:
    """The distance as pytorch-fid has it."""
    gap = a.mu - b.mu
    root = scipy.linalg.sqrtm(a.sigma @ b.sigma)
    return float(gap @ gap + np.trace(a.sigma) + np.trace(b.sigma) - 2 * np.trace(root).real)


def shares_by_scikit_learn(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Precision and recall."""
    reach = [NearestNeighbors(n_neighbors=K, algorithm="brute").fit(x) for x in (a, b)]
    reach = [n.kneighbors()[0][:, -1] for n in reach]
    precision, inside = [], np.zeros(len(b), bool)
    first = 0
    for block in pairwise_distances_chunked(a, b, working_memory=200):
        precision.append((block <= reach[1]).any(axis=1))
        inside |= (block <= reach[0][first : first + len(block), None]).any(axis=0)
        first += len(block)
    return float(np.concatenate(precision).mean()), float(inside.mean())


def jackknife(x: np.ndarray, reference: fid.Statistics) -> fid.Distance:
    """The distance with its error, as --mode fid has it."""
    return fid.jackknife(x, reference, 20, 0)


def shares(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Precision and recall."""
    found = neighbours.precision_recall(a, b, K)
    return found.precision, found.recall


def inputs_of(name: str, count: int, manifold: int, size: int) -> list:
    """What a measurement is given."""
    if name.startswith("statistics"):
        return [features(count, size, 0)]
    if name.startswith("distance"):
        return two_statistics(count, size)
    if name == "jackknife":
        return [features(count, size, 0), fid.statistics(features(2 * size, size, 1))]
    return [features(manifold, size, seed) * (1 + 0.1 * seed) for seed in (0, 1)]


MEASURED: dict[str, Callable] = {
    "statistics": fid.statistics,
    "statistics_np_cov": cov_of,
    "distance": fid.frechet_distance,
    "distance_sqrtm": root_of_product,
    "jackknife": jackknife,
    "precision_recall": shares,
    "precision_recall_scikit_learn": shares_by_scikit_learn,
}


def measure(name: str, count: int, manifold: int, size: int) -> tuple[float, float, object]:
    """(seconds, GiB at the peak of this process, the result where it is small)."""
    given = inputs_of(name, count, manifold, size)
    begin = time.perf_counter()
    result = MEASURED[name](*given)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return seconds, peak, None if name.startswith("statistics") else result


def main() -> None:
    """Measure in turns, each in a new process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=50000)
    parser.add_argument("--manifold-images", type=int, default=10000)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=MEASURED, default=list(MEASURED))
    args = parser.parse_args()
    found: dict[str, list] = {name: [] for name in args.only}
    context = multiprocessing.get_context("spawn")
    for _ in range(args.rounds):
        for name, results in found.items():
            with context.Pool(1) as pool:
                given = (name, args.images, args.manifold_images, args.size)
                results.append(pool.apply(measure, given))
            print(f"{name}: {results[-1][0]:.1f} s, {results[-1][1]:.2f} GiB", flush=True)
    report(
        "fid",
        {
            "images": args.images,
            "manifold_images": args.manifold_images,
            "features": args.size,
            **{
                name: {
                    "seconds": [round(r[0], 2) for r in results],
                    "median_seconds": round(statistics.median(r[0] for r in results), 2),
                    "peak_gib": round(max(r[1] for r in results), 2),
                    **({} if results[0][2] is None else {"result": results[0][2]}),
                }
                for name, results in found.items()
            },
        },
    )


if __name__ == "__main__":
    main()
