"""The gradient noise scale from the gradients of many batches, with errors (section 3.3)."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

GROUPS = 10
"""Groups of consecutive batches; the jackknife leaves out one after the other."""


class Sums(NamedTuple):
    """What is kept of the gradients g_1 ... g_N of independent batches, in K groups.

    Attributes:
        batch_size: b, examples that each gradient is a mean over.
        squared_norm: |g_i|^2 [N].
        gram: <S_k, S_l> [K, K], where S_k is the sum of the gradients of group k; the groups are
            consecutive, see group_sizes.
        loss: mean loss of each batch [N].
        loss_variance: mean squared deviation from it within each batch [N].
    """

    batch_size: int
    squared_norm: np.ndarray
    gram: np.ndarray
    loss: np.ndarray
    loss_variance: np.ndarray


class Value(NamedTuple):
    """A number with its standard error."""

    value: float
    error: float


class Noise(NamedTuple):
    """How noisy a gradient is.

    Attributes:
        scale: B_simple = tr(Sigma) / |G|^2, examples; NaN if |G|^2 comes out as 0 or below.
        scale_at_least: lower end of the interval of twice the error.
        resolved: whether |G|^2 is further than twice its error from 0; else only scale_at_least
            means something.
        squared_gradient: |G|^2, of the gradient without noise.
        variance: tr(Sigma), the summed variances of the gradient of one example.
        norm: mean of |g_i| over the batches.
        norm_variance: variance of |g_i| between batches.
        loss: mean.
        loss_variance: of the loss of one example.
    """

    scale: Value
    scale_at_least: float
    resolved: bool
    squared_gradient: Value
    variance: Value
    norm: Value
    norm_variance: Value
    loss: Value
    loss_variance: Value


class Comparison(NamedTuple):
    """What drawing t by importance changes.

    Attributes:
        factor: tr(Sigma) by importance over tr(Sigma) evenly.
        scale_evenly: tr(Sigma) evenly over |G|^2 found by importance, examples; NaN where that is
            not resolved.
    """

    factor: Value
    scale_evenly: Value


def group_sizes(batches: int) -> np.ndarray:
    """Batches in each group [K], as even as can be."""
    return np.array([len(part) for part in np.array_split(np.arange(batches), GROUPS)])


def estimate(sums: Sums) -> Noise:
    """Unbiased estimates of |G|^2 and tr(Sigma), and what follows from them.

    McCandlish et al. 2018 ("An Empirical Model of Large-Batch Training"), section 2.2 and appendix
    A.1: E|g_i|^2 = |G|^2 + tr(Sigma) / b, and for the sum S of all N gradients
    E|S|^2 = N^2 |G|^2 + N tr(Sigma) / b. Solved for the two unknowns,

        |G|^2     = (|S|^2 - sum |g_i|^2) / (N (N - 1)), the mean of <g_i, g_j> over all i != j
        tr(Sigma) = b (sum |g_i|^2 - |S|^2 / N) / (N - 1), b times the variance between batches.

    This is their pair of estimators for batches of b and N b. Both are unbiased; the ratio is not,
    but little where |G|^2 is well above its error.

    Args:
        sums: of at least as many batches as groups.

    Returns:
        Noise. Errors are the jackknife's, which leaves out a group of batches at a time. That of
        the scale comes from |G|^2 / tr(Sigma), of which the uncertain number is the numerator.
    """
    values = _jackknife(_point, sums)
    inverse = values.pop("inverse_scale")
    scale = Value(math.nan, math.nan)
    if inverse.value > 0:
        scale = Value(1 / inverse.value, inverse.error / inverse.value**2)
    upper = inverse.value + 2 * inverse.error
    return Noise(
        scale,
        1 / upper if upper > 0 else math.inf,
        bool(inverse.value > 2 * inverse.error),
        **values,
    )


def compare(importance: Sums, evenly: Sums) -> Comparison:
    """One loss with t drawn in two ways, on the same images.

    Neither has a bias, so G is the same, and the ratio of tr(Sigma) is that of the noise scales: it
    does not ask for |G|^2, which is harder to measure. Where |G|^2 is lost in the noise of one,
    the other may still know it.

    Args:
        importance, evenly: sums of the same objective at the same parameters.

    Returns:
        Comparison, with the errors of a paired jackknife.
    """

    def values(first: Sums, second: Sums) -> dict[str, float]:
        first, second = _point(first), _point(second)
        return {
            "factor": first["variance"] / second["variance"],
            "scale_evenly": second["variance"] / first["squared_gradient"],
        }

    found = _jackknife(values, importance, evenly)
    if not estimate(importance).resolved:
        found["scale_evenly"] = Value(math.nan, math.nan)
    return Comparison(**found)


def _point(sums: Sums) -> dict[str, float]:
    """The estimates without errors; the scale as |G|^2 / tr(Sigma)."""
    b, N = sums.batch_size, len(sums.squared_norm)
    of_each, of_sum = sums.squared_norm.sum(), sums.gram.sum()
    signal = (of_sum - of_each) / (N * (N - 1))
    variance = b * (of_each - of_sum / N) / (N - 1)
    norm = np.sqrt(sums.squared_norm)
    between = np.sum((sums.loss - sums.loss.mean()) ** 2)
    return {
        "inverse_scale": signal / variance if variance > 0 else math.inf,
        "squared_gradient": signal,
        "variance": variance,
        "norm": norm.mean(),
        "norm_variance": norm.var(ddof=1),
        "loss": sums.loss.mean(),
        "loss_variance": b * (sums.loss_variance.sum() + between) / (N * b - 1),
    }


def _without(sums: Sums, group: int) -> Sums:
    """The sums of all batches but those of one group."""
    group_of = np.repeat(np.arange(GROUPS), group_sizes(len(sums.squared_norm)))
    kept, groups = group_of != group, np.arange(GROUPS) != group
    return Sums(
        sums.batch_size,
        sums.squared_norm[kept],
        sums.gram[np.ix_(groups, groups)],
        sums.loss[kept],
        sums.loss_variance[kept],
    )


def _jackknife(function: Callable[..., dict[str, float]], *each: Sums) -> dict[str, Value]:
    """Values with errors: the delete-a-group jackknife, of the same group in all."""
    left = [function(*(_without(sums, k) for sums in each)) for k in range(GROUPS)]
    values = {}
    for name, value in function(*each).items():
        others = np.array([found[name] for found in left])
        spread = np.sum((others - others.mean()) ** 2)
        values[name] = Value(float(value), math.sqrt((GROUPS - 1) / GROUPS * spread))
    return values
