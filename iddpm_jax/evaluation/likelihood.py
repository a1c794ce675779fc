"""Bits/dim of every image: estimates with their errors, parts, paired differences, files."""

import dataclasses
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

BLOCK_ELEMENTS = 2**22
"""Elements of a table that are copied at a time."""


class Bound(NamedTuple):
    """Another bound from the same network outputs, such as "fixed_small", in bits/dim.

    Attributes:
        total: of each image [N].
        l_t: mean of each term over the images it was evaluated for [K]; NaN where there is none.
    """

    total: np.ndarray
    l_t: np.ndarray


class Estimate(NamedTuple):
    """A mean over images and its standard error for new images, terms and noise."""

    mean: float
    standard_error: float


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """The bound of every image, in bits/dim.

    Attributes:
        t: original index of each step of the process in use [K], ascending.
        weight: number of terms that an evaluated one stands for [K]; 1 where all were evaluated.
        l_t: terms L_0 ... L_{K-1} [N, K], means over the draws of the noise; NaN where a term was
            not evaluated.
        x_0_mse, eps_mse: squared errors of the predicted x_0 and eps [N, K].
        prior: L_T [N].
        draws: bound of each image by each draw of the noise [N, D]; an unbiased estimate where some
            terms are missing.
        others: by name, the bound under the other clipping ("clipped" or "unclipped") and under
            "fixed_small" and "fixed_large" variances, those that are not the model's own.
        v, v_outside: mean of v and share of it outside [-1, 1] at each step [K]; None where the
            variance is not learned. The paper's v is (v + 1) / 2.
    """

    t: np.ndarray
    weight: np.ndarray
    l_t: np.ndarray
    x_0_mse: np.ndarray
    eps_mse: np.ndarray
    prior: np.ndarray
    draws: np.ndarray
    others: dict[str, Bound] = dataclasses.field(default_factory=dict)
    v: np.ndarray | None = None
    v_outside: np.ndarray | None = None

    @functools.cached_property
    def per_image(self) -> np.ndarray:
        """Bound of each image [N], the mean over the draws."""
        return self.draws.mean(axis=1)

    @property
    def bits_per_dim(self) -> float:
        """Mean over the images."""
        return float(self.per_image.mean())

    @property
    def standard_error(self) -> float:
        """Of bits_per_dim for new images, terms and noise, from the spread between images.

        0 for a single image.
        """
        return _error_of_mean(self.per_image)

    @functools.cached_property
    def monte_carlo_error(self) -> float | None:
        """Of bits_per_dim for these very images: what other seeds change.

        Between the draws of the noise where there are several and every term was evaluated. Else by
        collapsed strata (Cochran 1977, Sampling Techniques): neighbouring terms of an image are
        two independent draws from nearly the same distribution, but for a difference that images
        share, which is taken out. What images do not share stays in, so this errs upwards; most
        for L_0, which has no like. None for a single image with one draw.
        """
        count, draws = self.draws.shape
        if draws > 1 and self.terms == len(self.t):
            return float(np.sqrt(self.draws.var(axis=1, ddof=1).mean() / draws / count))
        return self._collapsed() if count > 1 else None

    @functools.cached_property
    def adjusted(self) -> Estimate | None:
        """Bits/dim as the sum of every term's mean over the images that have it.

        Poststratification: of a subset of terms it leaves out the luck of how many images drew
        L_0, which is most of that estimate's error. Biased by as little as the means of different
        terms depend on each other. The error comes from the spread of images around those means.
        With every term it is bits_per_dim. None where a term was evaluated for less than two
        images.
        """
        mean, known = self._means
        if known.min() < 2:
            return None
        scale = self.weight * np.sqrt(known / (known - 1))
        away = [np.nansum((block - mean) * scale, axis=1) for block in self._blocks()]
        away = np.concatenate(away) + self.prior - self.prior.mean()
        error = np.sqrt((away**2).mean() / len(away))
        return Estimate(float(mean.sum() + self.prior.mean()), float(error))

    @property
    def terms(self) -> int:
        """Number of terms evaluated for each image."""
        return round(float((1 / self.weight).sum()))

    @property
    def decoder(self) -> float | None:
        """Mean of L_0, -log p(x_0 | x_1), bits/dim; None if it was evaluated for no image."""
        known = self.l_t[~np.isnan(self.l_t[:, 0]), 0]
        return float(known.mean()) if known.size else None

    @property
    def kl(self) -> np.ndarray:
        """Sum of the terms L_1 ... L_{K-1} of each image [N]; an estimate, as per_image is."""
        decoder = np.nan_to_num(self.l_t[:, 0].astype(np.float64)) * self.weight[0]
        return self.per_image - self.prior - decoder

    @property
    def mean_l_t(self) -> np.ndarray:
        """Mean of each term over the images it was evaluated for [K]; NaN where there is none."""
        return self._means[0]

    def save(self, path: Path, settings: dict, minus: dict[str, Estimate]) -> None:
        """Write all of it as .npz, and the numbers of `numbers` as .json beside it.

        Args:
            path: of the .npz; its folder is made if missing.
            settings: what the numbers were made with, stored in both.
            minus: paired differences from other averages measured in the same pass, for the .json.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        names = [field.name for field in dataclasses.fields(self) if field.name != "others"]
        arrays = {name: getattr(self, name) for name in names}
        for name, bound in self.others.items():
            arrays |= {f"{name}_total": bound.total, f"{name}_l_t": bound.l_t}
        found = numbers(self)
        other_seeds = found["monte_carlo_error"]
        unfinished = path.with_suffix(".unfinished.npz")
        np.savez_compressed(
            unfinished,
            **{name: array for name, array in arrays.items() if array is not None},
            settings=json.dumps(settings),
            total=self.per_image,
            kl=self.kl,
            mean_l_t=self.mean_l_t,
            bits_per_dim=self.bits_per_dim,
            standard_error=self.standard_error,
            monte_carlo_error=np.nan if other_seeds is None else other_seeds,
        )
        unfinished.replace(path)
        averages = {name: difference._asdict() for name, difference in minus.items()}
        text = json.dumps({**found, "minus_averages": averages, "settings": settings}, indent=1)
        path.with_suffix(".json").write_text(text + "\n")

    @functools.cached_property
    def _means(self) -> tuple[np.ndarray, np.ndarray]:
        """mean_l_t [K] and the number of images that each is the mean of [K]."""
        total, known = np.zeros(len(self.t)), np.zeros(len(self.t), int)
        for block in self._blocks():
            total += np.nansum(block, axis=0, dtype=np.float64)
            known += (~np.isnan(block)).sum(axis=0)
        mean = np.divide(total, known, out=np.full(len(total), np.nan), where=known > 0)
        return mean, known

    def _blocks(self) -> Iterator[np.ndarray]:
        """The table l_t in blocks of rows."""
        rows = max(1, BLOCK_ELEMENTS // len(self.t))
        for first in range(0, len(self.l_t), rows):
            yield self.l_t[first : first + rows]

    def _collapsed(self) -> float:
        """See monte_carlo_error."""
        count, terms = len(self.l_t), self.terms
        if terms == 1:
            return self.standard_error
        # Disjoint pairs, so that every term counts once; of an odd number the last counts twice.
        left = np.arange(0, terms, 2)
        left[-1] = min(left[-1], terms - 2)
        total, squares = np.zeros(len(left)), np.zeros(len(left))
        for block in self._blocks():
            known = ~np.isnan(block)
            if (known.sum(axis=1) != terms).any():  # of a network that gives no numbers
                return float("nan")
            value = (block.astype(np.float64) * self.weight)[known].reshape(-1, terms)
            difference = value[:, left] - value[:, left + 1]
            total += difference.sum(axis=0)
            squares += (difference**2).sum(axis=0)
        variance = (squares - total**2 / count) / (count - 1)
        return float(np.sqrt(variance.sum() / count))


def _error_of_mean(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def paired(one: np.ndarray, other: np.ndarray) -> Estimate:
    """How much larger one bound is than another, measured on the same images, terms and noise.

    What both have in common, which is most of the spread between images and of the noise, is not in
    the error.

    Args:
        one, other: bounds of the same images [N], in the same order.
    """
    difference = one - other
    return Estimate(float(difference.mean()), _error_of_mean(difference))


def numbers(likelihood: Likelihood) -> dict:
    """All that is said in a few numbers, of JSON's types; bits/dim."""
    others = {}
    for name, bound in likelihood.others.items():
        difference = paired(bound.total, likelihood.per_image)
        others[name] = {
            "bits_per_dim": float(bound.total.mean()),
            "standard_error": _error_of_mean(bound.total),
            "difference": difference.mean,
            "difference_standard_error": difference.standard_error,
        }
    return {
        "bits_per_dim": likelihood.bits_per_dim,
        "standard_error": likelihood.standard_error,
        "monte_carlo_error": likelihood.monte_carlo_error,
        "adjusted": likelihood.adjusted and likelihood.adjusted._asdict(),
        "prior": float(likelihood.prior.mean()),
        "decoder": likelihood.decoder,
        "kl": float(likelihood.kl.mean()),
        "images": len(likelihood.prior),
        "steps": len(likelihood.t),
        "terms": likelihood.terms,
        "draws": likelihood.draws.shape[1],
        "others": others,
        "by_step": by_step(likelihood),
    }


def by_step(likelihood: Likelihood) -> list[dict]:
    """Sums of the bounds, and means of v, over the first step and quarters of the rest.

    Returns:
        A dict for each range of steps: "first" and "last" (indices in the process in use, both
        included), "bound" and every one of likelihood.others (mean terms times their number), and
        for learned variances "v" and "v_outside". None where nothing was evaluated.
    """
    K = len(likelihood.t)
    edges = [0, *np.unique(1 + np.arange(5) * (K - 1) // 4)]
    columns = {"bound": likelihood.mean_l_t}
    columns |= {name: bound.l_t for name, bound in likelihood.others.items()}
    shares = {"v": likelihood.v, "v_outside": likelihood.v_outside}
    rows = []
    for first, end in zip(edges[:-1], edges[1:], strict=True):
        row = {"first": int(first), "last": int(end) - 1}
        for name, values in columns.items():
            mean = _mean(values[first:end])
            row[name] = None if mean is None else mean * int(end - first)
        for name, values in shares.items():
            if values is not None:
                row[name] = _mean(values[first:end])
        rows.append(row)
    return rows


def _mean(values: np.ndarray) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else None
