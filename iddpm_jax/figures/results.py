"""What a workdir holds that can be drawn: curves, likelihoods, scores."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict


class Missing(Exception):
    """What a figure shows is not there; the text says what, and how to get it."""


class Run(NamedTuple):
    """A run whose results are drawn.

    Attributes:
        name: of its workdir, for labels.
        folder: the workdir.
        config: of the run.
    """

    name: str
    folder: Path
    config: ConfigDict


class Measured(NamedTuple):
    """A result with what decided it, told apart from the number of steps.

    Attributes:
        path: the .json it comes from.
        training_step: of the checkpoint.
        steps: of the process it was measured with.
        words: what else decided it; the same for results that belong on one curve.
        record: the whole file.
    """

    path: Path
    training_step: int
    steps: int
    words: tuple[str, ...]
    record: dict


def curves(run: Run) -> dict[str, np.ndarray]:
    """The columns of metrics.jsonl [rows], float64; NaN where a row lacks one. {} if none.

    Raises:
        Missing: the file cannot be read.
    """
    path = run.folder / "metrics.jsonl"
    if not path.exists():
        return {}
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue  # cut off by a kill
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: np.array([row.get(name) for row in rows], np.float64) for name in names}


_LIKELIHOOD = re.compile(r"step(\d+)_(.+)_([^_]+)steps(?:_\d+terms)?(?:_\d+draws)?_(.+)")
_SAMPLES = re.compile(r"step(\d+)_(ancestral|ddim)_([^_]+)_(.+)")


def likelihoods(run: Run) -> list[Measured]:
    """Every evaluation in nll/, in the order of their names; see evaluation/names.py.

    How many terms and draws were measured changes the errors alone, so it decides nothing.

    Raises:
        Missing: a file cannot be read.
    """
    found = []
    for path in sorted((run.folder / "nll").glob("*.json")):
        match = _LIKELIHOOD.fullmatch(path.stem)
        if match:
            training_step, data, steps, rest = match.groups()
            record = _read(path, ("bits_per_dim", "adjusted", "others", "settings"))
            words = (run.name, _step(training_step), data, *rest.split("_"), *_spacing(steps))
            found.append(Measured(path, int(training_step), record["steps"], words, record))
    return found


def scores(run: Run) -> list[Measured]:
    """Every comparison in fid/ of samples that --mode sample drew, in the order of their names.

    Raises:
        Missing: a file cannot be read.
    """
    found = []
    for path in sorted((run.folder / "fid").glob("*.json")):
        record = _read(path, ("samples", "preprocessing", "settings", "scores"))
        match = _SAMPLES.fullmatch(Path(record["samples"].replace("\\", "/")).parent.name)
        if match:
            training_step, sampler, steps, rest = match.groups()
            words = (
                {"ancestral": "ancestral", "ddim": "DDIM"}[sampler],
                run.name,
                _step(training_step),
                *(word for word in rest.split("_") if word != "eta0"),
                *_spacing(steps),
                f"{record['samples_count']:,} samples",
                f"against {record['reference']}",
                f"k={record['settings']['neighbours']}",
                f"features of {record['network']} {record['preprocessing']}".strip(),
            )
            found.append(Measured(path, int(training_step), count_steps(steps), words, record))
    return found


def count_steps(text: str) -> int:
    """How many steps a name speaks of: "250", "ddim50", "10-15-20"."""
    return sum(int(part.removeprefix("ddim")) for part in text.split("-"))


def labels(words: Sequence[tuple[str, ...]]) -> list[str]:
    """What tells several things apart: each one's words that not all have, or else its first."""
    common = set.intersection(*map(set, words))
    told = [", ".join(word for word in each if word not in common) for each in words]
    return [label or each[0] for label, each in zip(told, words, strict=True)]


def _step(text: str) -> str:
    return f"training step {int(text):,}"


def _spacing(steps: str) -> tuple[str, ...]:
    """How the steps were chosen, where that is not evenly."""
    if steps.startswith("ddim"):
        return ("equal strides",)
    return ("in sections",) if "-" in steps else ()


def _read(path: Path, keys: tuple[str, ...]) -> dict:
    """A result that has these keys."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise Missing(f"{path} is not whole; measure it again") from None
    lacking = [key for key in keys if key not in record]
    if lacking:
        raise Missing(f"{path} has no {lacking[0]!r}, as of an older version; measure it again")
    return record
