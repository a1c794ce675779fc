"""The Frechet distance of two sets of features, which is FID or sFID by the features' origin.

All in float64, whatever the features are kept in: a covariance in float32 is good to three digits.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy.linalg

from iddpm_jax.errors import InputError

BLOCK = 4096
"""Images that are float64 at a time."""


class Statistics(NamedTuple):
    """What the Frechet distance knows of a set of features.

    Attributes:
        mu: mean [D], float64.
        sigma: covariance [D, D], float64, divided by N - 1.
        count: number of images N; None where a file does not say.
    """

    mu: np.ndarray
    sigma: np.ndarray
    count: int | None


class Distance(NamedTuple):
    """A distance from a reference, and how well the samples determine it.

    Attributes:
        value: the distance.
        error: standard error over other samples of the same model, with the reference as it is;
            None where there are too few groups to say.
        bias: by about how much `value` is too large for the want of samples; None likewise.
    """

    value: float
    error: float | None
    bias: float | None


class _Moments(NamedTuple):
    count: int
    mean: np.ndarray
    scatter: np.ndarray  # sum of (x - mean) (x - mean)^T


def check_features(features: np.ndarray, least: int = 2) -> None:
    """Refuse what no score can be made of.

    Args:
        features: [N, D].
        least: number of images that is needed.

    Raises:
        InputError: fewer images, or a feature that is not finite.
    """
    if features.ndim != 2 or not features.size:
        raise InputError(f"features are {list(features.shape)}; they must be [images, features]")
    if len(features) < least:
        images = "image" if len(features) == 1 else "images"
        raise InputError(f"there are features of {len(features)} {images}; give {least} or more")
    for first in range(0, len(features), BLOCK):
        bad = ~np.isfinite(features[first : first + BLOCK]).all(axis=1)
        if bad.any():
            raise InputError(
                f"the features of image {first + int(np.argmax(bad))} are not finite; its network "
                "overflows, or the file of features is damaged"
            )


def statistics(features: np.ndarray) -> Statistics:
    """Mean and covariance of features, as np.mean and np.cov give them in float64.

    Args:
        features: [N, D], N at least 2; any float.

    Returns:
        Statistics.

    Raises:
        InputError: fewer than 2 images, or features that are not finite.
    """
    check_features(features)
    return _statistics(_moments(features))


def check_comparable(a: Statistics, b: Statistics) -> None:
    """Refuse statistics of another number of features.

    Raises:
        InputError: names both numbers.
    """
    if a.mu.shape != b.mu.shape:
        raise InputError(
            f"the statistics are of {len(a.mu):,} and of {len(b.mu):,} features; only those of one "
            "network can be compared"
        )


def root(sigma: np.ndarray) -> np.ndarray:
    """A matrix A with A A^T = sigma and no more columns than sigma has rank.

    Args:
        sigma: covariance [D, D].

    Returns:
        [D, R] float64. What is below D times the rounding of the largest eigenvalue counts as 0.
    """
    values, vectors = scipy.linalg.eigh(sigma, driver="evd")
    kept = values > len(values) * np.finfo(np.float64).eps * max(values[-1], 0)
    return vectors[:, kept] * np.sqrt(values[kept])


def frechet_distance(a: Statistics, b: Statistics, root_b: np.ndarray | None = None) -> float:
    """|mu_a - mu_b|^2 + tr(sigma_a + sigma_b - 2 (sigma_a sigma_b)^(1/2)).

    Heusel et al. 2017, equation 6. The product of the covariances is not symmetric, and its square
    root is unstable where it is singular. With B B^T = sigma_b, the symmetric B^T sigma_a B has the
    same eigenvalues but for zeros, and the trace is the sum of their roots. Of N images a
    covariance has at most N - 1 eigenvalues that are not 0; the rest, and negative ones, are
    rounding and left out, where adding 1e-6 to the diagonals would change the distance.

    Args:
        a, b: of the two sets; the distance is symmetric but for rounding.
        root_b: root(b.sigma), where many are compared with one b: it takes most of the time.

    Returns:
        The distance, in squared units of the features. A set and itself have 0 but for rounding.

    Raises:
        InputError: different numbers of features.
    """
    check_comparable(a, b)
    root_b = root(b.sigma) if root_b is None else root_b
    values = np.linalg.eigvalsh(root_b.T @ a.sigma @ root_b)  # ascending
    if a.count is not None:
        values = values[max(len(values) - (a.count - 1), 0) :]
    difference = a.mu - b.mu
    overlap = np.sqrt(np.maximum(values, 0)).sum()
    traces = np.trace(a.sigma) + np.trace(b.sigma)
    return float(difference @ difference + traces - 2 * overlap)


def jackknife(features: np.ndarray, reference: Statistics, groups: int, seed: int) -> Distance:
    """The distance of samples from a reference, and how well so many determine it.

    The delete-a-group jackknife: the distance without each of `groups` random parts of the samples
    in turn. A bootstrap draws images more than once. That lowers the rank of the covariance and so
    raises the distance itself, by as much again as it is too large for the want of samples. With
    N below D the error comes out too large, by half for N = 0.8 D, and so does the bias.

    Args:
        features: of the samples [N, D].
        reference: what they are compared with; it is taken as it is, without an error of its own.
        groups: number of parts; 20 know the error to a sixth of itself. Below 2: no error.
        seed: of the random parts.

    Returns:
        Distance.

    Raises:
        InputError: fewer than 2 images, features that are not finite, or another number of them.
    """
    check_features(features)
    whole = _moments(features)
    check_comparable(_statistics(whole), reference)
    root_reference = root(reference.sigma)
    value = frechet_distance(_statistics(whole), reference, root_reference)
    groups = min(groups, len(features))
    if groups < 2 or len(features) < 4:
        return Distance(value, None, None)
    without = np.array(
        [
            frechet_distance(rest, reference, root_reference)
            for rest in _leave_out(features, whole, groups, seed)
        ]
    )
    error, bias = np.sqrt((groups - 1) * without.var()), (groups - 1) * (without.mean() - value)
    return Distance(value, float(error), float(bias))


def _moments(features: np.ndarray) -> _Moments:
    count, size = features.shape
    # Block by block: one float64 copy of everything would be most of the memory.
    blocks = [slice(i, i + BLOCK) for i in range(0, count, BLOCK)]
    mean = sum(features[block].sum(axis=0, dtype=np.float64) for block in blocks) / count
    scatter = np.zeros((size, size))
    for block in blocks:
        centred = features[block] - mean
        scatter += centred.T @ centred
    return _Moments(count, mean, scatter)


def _statistics(moments: _Moments) -> Statistics:
    return Statistics(moments.mean, moments.scatter / (moments.count - 1), moments.count)


def _leave_out(
    features: np.ndarray, whole: _Moments, groups: int, seed: int
) -> Iterator[Statistics]:
    """Statistics without each group in turn: those of all, less what the group adds."""
    order = np.random.default_rng(seed).permutation(len(features))
    for index in np.array_split(order, groups):
        part = _moments(features[index])
        count = whole.count - part.count
        mean = (whole.count * whole.mean - part.count * part.mean) / count
        apart = part.mean - mean
        between = part.count * count / whole.count * np.outer(apart, apart)
        yield _statistics(_Moments(count, mean, whole.scatter - part.scatter - between))
