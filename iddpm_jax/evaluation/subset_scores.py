"""Scores that are averages over parts of the images: Inception Score and kernel distance."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from scipy.special import log_softmax

from iddpm_jax.errors import InputError
from iddpm_jax.evaluation.fid import check_features


class KernelDistances(NamedTuple):
    """Kernel distances of subsets.

    Attributes:
        values: unbiased squared MMD of each subset [subsets]; a little below 0 for equal sets.
        error: standard error of their mean over other samples of the same model, with the reference
            as it is. The spread of `values`, which others print, is that of one subset; and the
            subsets share images, so that dividing it by the root of their number is too little.
    """

    values: np.ndarray
    error: float


def shuffled_splits(count: int, number: int, seed: int) -> list[np.ndarray]:
    """Equal parts in random order, as torch-fidelity's (number 10, seed 2020).

    Args:
        count: number of images.
        number: of parts, at most count.
        seed: of the order.

    Returns:
        Indices of each part.

    Raises:
        InputError: more parts than images.
    """
    if not 1 <= number <= count:
        raise InputError(f"{count} images cannot be cut into {number} parts; give more images")
    # The legacy generator, so that the parts are those of torch-fidelity.
    order = np.random.RandomState(seed).permutation(count)
    return [order[i * count // number : (i + 1) * count // number] for i in range(number)]


def inception_scores(logits: np.ndarray, splits: Iterable[np.ndarray]) -> np.ndarray:
    """exp E[KL(p(y|x) | p(y))], each part with a p(y) of its own.

    Salimans et al. 2016. The score of N images lies below that of more: compare equal sizes.

    Args:
        logits: [N, classes].
        splits: indices of each part.

    Returns:
        Score of each part [parts], from 1 to the number of classes.

    Raises:
        InputError: logits that are not finite.
    """
    check_features(logits, least=1)
    scores = []
    for index in splits:
        log_p = log_softmax(logits[index].astype(np.float64), axis=1)
        p = np.exp(log_p)
        marginal = p.mean(axis=0)
        # A class that no image can have adds 0, not 0 log 0.
        log_marginal = np.log(marginal, where=marginal > 0, out=np.zeros_like(marginal))
        scores.append(np.exp((p * (log_p - log_marginal)).sum(axis=1).mean()))
    return np.array(scores)


def random_subsets(
    count_a: int, count_b: int, size: int, number: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Subsets of two sets, without repetition within each; torch-fidelity's, given its seed.

    Args:
        count_a, count_b: images of the two sets.
        size: images of each subset, at most the smaller count.
        number: of pairs of subsets.
        seed: torch-fidelity's is 2020.

    Yields:
        Indices [size] into the first set and into the second.
    """
    generator = np.random.RandomState(seed)
    for _ in range(number):
        yield (
            generator.choice(count_a, size, replace=False),
            generator.choice(count_b, size, replace=False),
        )


def kernel_distances(
    a: np.ndarray, b: np.ndarray, subsets: Iterable[tuple[np.ndarray, np.ndarray]]
) -> KernelDistances:
    """Squared maximum mean discrepancy of features, with the kernel (x . y / D + 1)^3: KID.

    Binkowski et al. 2018, unbiased. The error follows from what each sample contributes: to first
    order a distance is a mean over the samples of 2 (E k(x, x') - E k(x, y)).

    Args:
        a: features of the samples [N, D].
        b: features of the reference [M, D].
        subsets: pairs of indices [m] into both; m at least 2.

    Returns:
        KernelDistances.

    Raises:
        InputError: fewer than 2 images, other numbers of features, or ones that are not finite.
    """
    for features in (a, b):
        check_features(features)
    if a.shape[1] != b.shape[1]:
        raise InputError(
            f"there are {a.shape[1]:,} and {b.shape[1]:,} features; only those of one network can "
            "be compared"
        )
    values, contributions = [], []
    for index_a, index_b in subsets:
        x, y = a[index_a].astype(np.float64), b[index_b].astype(np.float64)
        within_x, within_y = _mean_of_others(_kernel(x, x)), _mean_of_others(_kernel(y, y))
        across = _kernel(x, y).mean(axis=1)
        values.append(within_x.mean() + within_y.mean() - 2 * across.mean())
        contributions.append(2 * (within_x - across))
    return KernelDistances(np.array(values), float(np.std(contributions) / np.sqrt(len(a))))


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _mean_of_others(kernel: np.ndarray) -> np.ndarray:
    return (kernel.sum(axis=1) - np.diagonal(kernel)) / (len(kernel) - 1)
