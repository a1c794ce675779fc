"""Improved precision and recall: how much of one set lies within the neighbourhoods of another.

Both need every distance between two sets, compared exactly. Products of matrices in float32 find
all but a few of the answers, with bounds on their rounding; the few are computed pair by pair in
float64. So the result is that of comparing all pairs in float64, and no N x N matrix exists.
"""

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from iddpm_jax.errors import InputError
from iddpm_jax.evaluation.fid import check_features

ROWS = 512
"""Images that are compared with all others at a time."""

PAIRS = 256
"""Pairs that are computed in float64 at a time; few, to stay in the processor's cache."""


class PrecisionRecall(NamedTuple):
    """Shares of two sets, from 0 to 1, and which images they are.

    Attributes:
        precision: share of the samples within the reference's neighbourhoods.
        recall: share of the reference within the samples' neighbourhoods.
        samples_inside: bool [N].
        reference_inside: bool [M].
    """

    precision: float
    recall: float
    samples_inside: np.ndarray
    reference_inside: np.ndarray


class _Set(NamedTuple):
    """A set of features as the products see it: moved and scaled, in float32.

    A squared distance between rows i and j lies from low_i + low_j to high_i + high_j, less twice
    their product.
    """

    exact: np.ndarray  # [N, D] as they came
    first: np.ndarray  # [N] the first row that equals each
    rounded: np.ndarray  # [N, D] float32
    low: np.ndarray  # [N] float32
    high: np.ndarray  # [N] float32


def precision_recall(samples: np.ndarray, reference: np.ndarray, k: int) -> PrecisionRecall:
    """Precision and recall of samples.

    Kynkaanniemi et al. 2019. The neighbourhood of an image reaches to the k-th nearest other image
    of its set, its boundary included; images that occur twice are each other's neighbours.

    Args:
        samples: features [N, D].
        reference: features [M, D].
        k: the paper of the measure and guided-diffusion's evaluator use 3; Nichol & Dhariwal 5.

    Returns:
        PrecisionRecall.

    Raises:
        InputError: a set of k images or fewer, other numbers of features, or ones not finite.
    """
    for name, features in (("samples", samples), ("reference", reference)):
        check_features(features)
        if not 1 <= k < len(features):
            raise InputError(
                f"neighbours is {k}, but there are {len(features)} images in the {name}; it must "
                "be at least 1 and less than that"
            )
    if samples.shape[1] != reference.shape[1]:
        raise InputError(
            f"there are {samples.shape[1]:,} and {reference.shape[1]:,} features; only those of "
            "one network can be compared"
        )
    centre = reference.mean(axis=0, dtype=np.float64)
    scale = max(_largest_norm(samples, centre), _largest_norm(reference, centre)) or 1.0
    a_reach, b_reach = (_squared_radii(features, k) for features in (samples, reference))
    a, b = (_prepared(features, centre, scale) for features in (samples, reference))
    a_inside = np.zeros(len(samples), bool)
    b_inside = np.zeros(len(reference), bool)
    for rows in _blocks(len(samples)):
        # One product serves both ways.
        block = _part(a, rows)
        product = -2 * (block.rounded @ b.rounded.T)
        _mark_inside(a_inside[rows], block, b, product, b_reach, scale)
        _mark_inside(b_inside, b, block, product.T, a_reach[rows], scale)
    return PrecisionRecall(float(a_inside.mean()), float(b_inside.mean()), a_inside, b_inside)


def _blocks(count: int) -> Iterator[slice]:
    return (slice(i, min(i + ROWS, count)) for i in range(0, count, ROWS))


def _largest_norm(features: np.ndarray, centre: np.ndarray) -> float:
    return max(np.linalg.norm(features[r] - centre, axis=1).max() for r in _blocks(len(features)))


def _prepared(features: np.ndarray, centre: np.ndarray, scale: float) -> _Set:
    """Moved to where norms are small, as rounding is relative to them, and scaled to at most 1."""
    rounded = np.empty(features.shape, np.float32)
    norms = np.empty(len(features))
    for rows in _blocks(len(features)):
        rounded[rows] = (features[rows] - centre) / scale
        norms[rows] = np.square(rounded[rows], dtype=np.float64).sum(axis=1)
    # A product of D terms is off by at most D half units of the norms' product, in whatever order
    # they are added; 32 more stand for the rounding of everything else, and the last term for
    # numbers too small for float32.
    unit = np.finfo(np.float32).eps / 2
    slack = (features.shape[1] + 32) * (unit * norms + np.finfo(np.float32).tiny)
    low, high = (norms - slack).astype(np.float32), (norms + slack).astype(np.float32)
    return _Set(features, _first_equal(features), rounded, low, high)


def _first_equal(features: np.ndarray) -> np.ndarray:
    """The first row that equals each, so that a picture drawn a thousand times costs one."""
    first: dict[bytes, int] = {}
    marks = (hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in features)
    return np.array([first.setdefault(mark, i) for i, mark in enumerate(marks)])


def _part(s: _Set, rows: slice) -> _Set:
    return s._replace(
        first=s.first[rows], rounded=s.rounded[rows], low=s.low[rows], high=s.high[rows]
    )


def _squared_radii(features: np.ndarray, k: int) -> np.ndarray:
    # Around its own centre, where a set whose images are nearly the same has small norms.
    centre = features.mean(axis=0, dtype=np.float64)
    s = _prepared(features, centre, _largest_norm(features, centre) or 1.0)
    reach = np.empty(len(features))
    for rows in _blocks(len(reach)):
        product = -2 * (s.rounded[rows] @ s.rounded.T)
        # At least k + 1 images, itself among them, are within the k + 1st smallest upper bound.
        bound = np.partition(product + s.high, k, axis=1)[:, k] + s.high[rows]
        near = product + s.low <= (bound - s.low[rows])[:, None]
        row, column = np.nonzero(near)
        squared = _squared_distances(s.exact, s.exact, s.first[rows][row], s.first[column])
        ends = np.cumsum(near.sum(axis=1))
        for i, part in enumerate(np.split(squared, ends[:-1])):
            reach[rows.start + i] = np.partition(part, k)[k]
    return reach


def _mark_inside(
    inside: np.ndarray,
    points: _Set,
    centres: _Set,
    product: np.ndarray,
    reach: np.ndarray,
    scale: float,
) -> None:
    """Set inside [points] for points within reach of any centre; product is -2 points . centres."""
    room = reach / scale**2
    todo = np.flatnonzero(~inside)
    product = product[todo]
    surely = product <= (room - centres.high).astype(np.float32) - points.high[todo, None]
    inside[todo] = surely.any(axis=1)
    unclear = ~inside[todo]
    todo, product = todo[unclear], product[unclear]
    perhaps = product <= (room - centres.low).astype(np.float32) - points.low[todo, None]
    row, column = np.nonzero(perhaps)
    squared = _squared_distances(
        points.exact, centres.exact, points.first[todo[row]], centres.first[column]
    )
    inside[todo[row[squared <= reach[column]]]] = True


def _squared_distances(
    a: np.ndarray, b: np.ndarray, rows: np.ndarray, columns: np.ndarray
) -> np.ndarray:
    """Squared distances of pairs of rows, float64: differences, squared, summed; equal pairs once.

    Args:
        a, b: [N, D], [M, D].
        rows, columns: indices into them [P].

    Returns:
        [P].
    """
    pairs, place = np.unique(rows * len(b) + columns, return_inverse=True)
    rows, columns = np.divmod(pairs, len(b))
    squared = np.empty(len(pairs))
    for first in range(0, len(pairs), PAIRS):
        part = slice(first, first + PAIRS)
        difference = np.subtract(a[rows[part]], b[columns[part]], dtype=np.float64)
        squared[part] = np.square(difference, out=difference).sum(axis=1)
    return squared[place]
