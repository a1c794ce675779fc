"""Runs that differ only in their seed are one entry of a figure: mean and spread over seeds."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from iddpm_jax import config as configs
from iddpm_jax.figures.results import Run

# What a run may go on with, how long it is trained aside, does not make it another one.
_FREE = ("seed", *(key for key in configs.FREE_ON_RESUME if key != "train.steps"))


class Group(NamedTuple):
    """Runs that differ only in their seed.

    Attributes:
        name: of them all.
        runs: one or more, each with another seed, named after the group and how many there are, so
            that results of the same kind have the same words.
    """

    name: str
    runs: tuple[Run, ...]

    @property
    def label(self) -> str:
        """The name, and how many seeds there are where there are several."""
        return self.runs[0].name


def by_seed(runs: Sequence[Run]) -> list[Group]:
    """Runs by what they are, in the order of their first ones.

    Args:
        runs: of different names.
    """
    found: list[list[Run]] = []
    for run in runs:
        for others in found:
            seeds = {other.config.seed for other in others}
            if run.config.seed not in seeds and _same(run, others[0]):
                others.append(run)
                break
        else:
            found.append([run])
    names = [_shared_name([run.name for run in each]) for each in found]
    if len(set(names)) < len(names):
        names = [each[0].name for each in found]
    return [_group(name, each) for name, each in zip(names, found, strict=True)]


def _group(name: str, runs: list[Run]) -> Group:
    label = f"{name} ({len(runs)} seeds)" if len(runs) > 1 else name
    return Group(name, tuple(run._replace(name=label) for run in runs))


def settings(run: Run) -> dict[str, object]:
    """What makes a run what it is, its seed aside, by dotted key."""
    return {
        key: value
        for key, value in configs.flat(run.config)
        if not key.startswith(_FREE) and not key.endswith("_every_steps")
    }


def _same(one: Run, other: Run) -> bool:
    return settings(one) == settings(other)


def _shared_name(names: list[str]) -> str:
    """What names of one run with several seeds begin with: linear_seed0, linear_seed1 -> linear."""
    if len(names) == 1:
        return names[0]
    start = os.path.commonprefix(names)
    if any(name[len(start) : len(start) + 1].isdigit() for name in names):
        start = start.rstrip("0123456789")  # run11, run12 -> run
    start = re.sub(r"[\W_]*(seed|(?<=[\W_])s)?[\W_]*$", "", start, flags=re.IGNORECASE)
    return Path(start).name or names[0]


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and standard deviation over seeds (divided by n - 1), NaN of fewer than two."""
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    return float(np.mean(values)), spread
