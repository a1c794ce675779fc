"""Every score of a set of samples that its features and those of a reference allow."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from iddpm_jax.evaluation.features import Features
from iddpm_jax.evaluation.fid import (
    Distance,
    Statistics,
    check_comparable,
    frechet_distance,
    jackknife,
    statistics,
)
from iddpm_jax.evaluation.neighbours import precision_recall
from iddpm_jax.evaluation.reference import Saved
from iddpm_jax.evaluation.subset_scores import (
    inception_scores,
    kernel_distances,
    random_subsets,
    shuffled_splits,
)

SPLITS = 10
"""Parts of the samples that the Inception Score is averaged over, as everybody has it."""


class Side(NamedTuple):
    """What is known of one set of images.

    Attributes:
        features: None where there are only statistics.
        pool, spatial: statistics that were given, not made of `features`; None without.
    """

    features: Features | None
    pool: Statistics | None = None
    spatial: Statistics | None = None


class Settings(NamedTuple):
    """Keys of the config's section fid, by name: see there."""

    neighbours: int
    manifold_images: int
    kid_subsets: int
    kid_subset_size: int
    resamples: int
    seed: int


class Score(NamedTuple):
    """One row of a table.

    Attributes:
        name: such as "FID".
        value: the score.
        error: standard error; None where it cannot be told.
        error_from: what the error is, in words; "" without.
        better: "lower" or "higher".
        note: what to beware of; "" mostly.
    """

    name: str
    value: float
    error: float | None
    error_from: str
    better: str
    note: str


def side(features: Features | None, saved: Saved | None = None) -> Side:
    """One set of images, by its features, by a file's statistics, or by both.

    Where both are there, distances are to the file's statistics, as in guided-diffusion's
    evaluator: those may be of more images than the file has.
    """
    return Side(features) if saved is None else Side(features, saved.pool, saved.spatial)


def scores(samples: Side, reference: Side, distance: str, settings: Settings) -> list[Score]:
    """What can be said of samples.

    The Frechet distance of the whole image's features is always there, that of spatial ones where
    both sides have them. Inception Score needs features of the samples, kernel distance, precision
    and recall those of both. Errors are of the samples: how much each score would differ for
    others of the same model, with the reference as it is.

    Args:
        samples, reference: the two sets, of one network.
        distance: what the Frechet distance is called: "FID", or "FD-digits" and the like, whose
            name then marks all scores.
        settings: numbers of neighbours, subsets, groups.

    Returns:
        Scores in the order of the table.

    Raises:
        InputError: too few images, or features that do not fit together.
    """
    found = [*_frechet(samples, reference, settings)]
    if samples.features is not None:
        found += _inception(samples.features.logits, settings)
        if reference.features is not None:
            pools = samples.features.pool, reference.features.pool
            found += [*_kernel(*pools, settings), *_manifolds(*pools, settings)]
    return [score._replace(name=_named(score.name, distance)) for score in found]


def _named(name: str, distance: str) -> str:
    """A score's name, which never is that of papers where the network is another."""
    if distance == "FID":
        return name
    if "FID" in name:
        return name.replace("FID", distance)
    return name.replace("KID", "KD") + distance.removeprefix("FD")


def _frechet(samples: Side, reference: Side, settings: Settings) -> Iterator[Score]:
    for name, kind in (("FID", "pool"), ("sFID", "spatial")):
        theirs = _statistics_of(reference, kind)
        given = getattr(samples, kind)
        ours = given if given is not None else _features_of(samples, kind)
        if ours is None or theirs is None:
            continue
        if given is None:
            found, count = jackknife(ours, theirs, settings.resamples, settings.seed), len(ours)
        else:
            check_comparable(given, theirs)
            found, count = Distance(frechet_distance(given, theirs), None, None), given.count
        known = [n for n in (count, theirs.count) if n is not None]
        yield Score(
            name,
            found.value,
            found.error,
            "" if found.error is None else "jackknife of the samples",
            "lower",
            _bias_note(len(theirs.mu), min(known, default=None), found.bias),
        )


def _bias_note(features: int, count: int | None, bias: float | None) -> str:
    if count is not None and count <= features:
        return (
            f"{features:,} features need more than {features:,} images; with {count:,} the "
            "distance is mostly bias"
        )
    return "" if bias is None else f"about {bias:.2g} of it for want of more samples"


def _inception(logits: np.ndarray, settings: Settings) -> Iterator[Score]:
    splits = shuffled_splits(len(logits), min(SPLITS, len(logits)), settings.seed)
    parts = inception_scores(logits, splits)
    error, origin = None, ""
    if len(parts) > 1:
        error = float(parts.std(ddof=1) / np.sqrt(len(parts)))
        origin = f"{len(parts)} parts of the samples"
    classes = logits.shape[1]
    note = ""
    if len(splits[0]) < classes:
        note = f"parts of {len(splits[0]):,} images are few for {classes:,} classes"
    yield Score("IS", float(parts.mean()), error, origin, "higher", note)


def _kernel(samples: np.ndarray, reference: np.ndarray, settings: Settings) -> Iterator[Score]:
    size = min(settings.kid_subset_size, len(samples), len(reference))
    subsets = random_subsets(
        len(samples), len(reference), size, settings.kid_subsets, settings.seed
    )
    found = kernel_distances(samples, reference, subsets)
    note = ""
    if size < settings.kid_subset_size:
        note = f"subsets of {size:,} images, as there are no more"
    value = float(found.values.mean())
    yield Score("KID", value, found.error, "first order in the samples", "lower", note)


def _manifolds(samples: np.ndarray, reference: np.ndarray, settings: Settings) -> Iterator[Score]:
    generator = np.random.default_rng(settings.seed)
    # Files are often in the order of classes, so the first images would not do.
    samples, reference = (
        features[np.sort(generator.permutation(len(features))[: settings.manifold_images])]
        for features in (samples, reference)
    )
    found = precision_recall(samples, reference, settings.neighbours)
    note = f"{len(samples):,} samples, {len(reference):,} of the reference, k={settings.neighbours}"
    for name, inside in (
        ("precision", found.samples_inside),
        ("recall", found.reference_inside),
    ):
        share = float(inside.mean())
        error = float(np.sqrt(share * (1 - share) / len(inside)))
        yield Score(name, share, error, "binomial, neighbourhoods as they are", "higher", note)


def _features_of(side: Side, kind: str) -> np.ndarray | None:
    return None if side.features is None else getattr(side.features, kind)


def _statistics_of(side: Side, kind: str) -> Statistics | None:
    given, features = getattr(side, kind), _features_of(side, kind)
    return statistics(features) if given is None and features is not None else given
