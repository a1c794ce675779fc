"""What a workdir holds that can be drawn: curves, likelihoods, scores."""

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict


class Missing(Exception):
    """What a figure shows is not there; the text says what, and how to get it."""


VARIANCES = {
    "learned": "learned variance",
    "learned_range": "learned variance",
    "fixed_large": r"fixed $\beta_t$",
    "fixed_small": r"fixed $\tilde{\beta}_t$",
}
"""What variances are called in legends."""


class Run(NamedTuple):
    """A run whose results are drawn.

    Attributes:
        name: of its workdir, for labels; runs of one name are one entry (see seeds.py).
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
        steps: of the process it was measured with, those that were skipped included.
        words: what else decided it; the same for results that belong on one curve.
        record: the whole file.
        sampler: of samples, those of the words that tell how they were drawn.
        skip: of samples, the share of the steps that was left out.
    """

    path: Path
    training_step: int
    steps: int
    words: tuple[str, ...]
    record: dict
    sampler: tuple[str, ...] = ()
    skip: float = 0.0


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


_OF_LIKELIHOODS = (
    *("bits_per_dim", "standard_error", "adjusted", "prior", "others"),
    *("images", "steps", "terms", "draws", "settings"),
)
_OF_SCORES = (
    *("samples", "samples_count", "reference", "network"),
    *("preprocessing", "settings", "scores"),
)

_LIKELIHOOD = re.compile(r"step(\d+)_(.+)_([^_]+)steps(?:_\d+terms)?(?:_\d+draws)?_(.+)")
_SAMPLES = re.compile(
    r"step(\d+)_(ancestral|ddim)_([^_]+)(?:_eta([^_]+))?(?:_skip([^_]+))?"
    r"(?:_(fixed-small|fixed-large))?_(.+)"
)


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
            record = _read(path, _OF_LIKELIHOODS)
            words = (run.name, _step(training_step), data, *rest.split("_"), *_spacing(steps))
            found.append(Measured(path, int(training_step), record["steps"], words, record))
    return found


def all_steps(run: Run) -> Measured | None:
    """A bound of all steps: the newest checkpoint's, and of those that with most terms.

    With fewer steps every term is another one, and they are no terms of what was trained.

    Raises:
        Missing: a file cannot be read.
    """
    whole = [found for found in likelihoods(run) if found.steps == run.config.diffusion.T]
    there = [found for found in whole if found.path.with_suffix(".npz").exists()]

    def worth(found: Measured) -> tuple:
        return found.training_step, found.record["terms"], found.record["draws"]

    return max(there, key=worth, default=None)


def best_bound(record: dict) -> tuple[float, float]:
    """Mean and standard error of bits/dim; adjusted where that is known, which errs far less."""
    if record["adjusted"]:
        return record["adjusted"]["mean"], record["adjusted"]["standard_error"]
    return record["bits_per_dim"], record["standard_error"]


def scores(run: Run) -> list[Measured]:
    """Every comparison in fid/ of samples that --mode sample drew, in the order of their names.

    Raises:
        Missing: a file cannot be read.
    """
    found = []
    for path in sorted((run.folder / "fid").glob("*.json")):
        record = _read(path, _OF_SCORES)
        match = _SAMPLES.fullmatch(Path(record["samples"].replace("\\", "/")).parent.name)
        if match:
            training_step, sampler, steps, eta, skip, variance, rest = match.groups()
            skip = float(skip or 0)
            variance = (variance or run.config.diffusion.variance).replace("-", "_")
            how = sampler_words(sampler, steps, float(eta or 0), skip, variance)
            words = (
                *how,
                run.name,
                _step(training_step),
                *rest.split("_"),
                f"{record['samples_count']:,} samples",
                f"against {record['reference']}",
                f"k={record['settings']['neighbours']}",
                f"features of {record['network']} {record['preprocessing']}".strip(),
            )
            step = int(training_step)
            found.append(Measured(path, step, count_steps(steps), words, record, how, skip))
    return found


def sampler_words(
    sampler: str, steps: str, eta: float, skip: float, variance: str
) -> tuple[str, ...]:
    """How samples are drawn, in words.

    Args:
        sampler: "ancestral" or "ddim".
        steps: as sample.steps; only what is said of their spacing counts.
        eta: of DDIM.
        skip: share of the steps that is left out.
        variance: of ancestral sampling, as diffusion.variance.
    """
    own = ("DDIM", *([f"eta {eta:g}"] if eta else [])) if sampler == "ddim" else ("ancestral",)
    own += (VARIANCES[variance],) if sampler == "ancestral" else ()
    return (*own, *_spacing(steps), *([skip_word(skip)] if skip else []))


def skip_word(skip: float) -> str:
    """What is said of a skipped beginning of the reverse process."""
    return f"first {100 * skip:g}% skipped"


def count_steps(text: str) -> int:
    """How many steps a name speaks of: "250", "ddim50", "10-15-20"."""
    return sum(int(part.removeprefix("ddim")) for part in text.split("-"))


def labels(words: Sequence[tuple[str, ...]]) -> list[str]:
    """What tells several things apart: each one's words that not all have, or else its first."""
    common = set.intersection(*map(set, words))
    told = [", ".join(word for word in each if word not in common) for each in words]
    return [label or each[0] for label, each in zip(told, words, strict=True)]


OfRun = tuple[Run, Measured]
"""A result and whose it is."""


def kind(run: Run, each: Measured) -> tuple[str, ...]:
    """How something was measured: its words, but for the run and what its config decides."""
    own = (run.name, f"training step {each.training_step:,}", *each.sampler)
    return tuple(word for word in without_seed(each.words) if word not in own)


def commonest(
    found: list[OfRun], kind_of: Callable[[Run, Measured], tuple]
) -> tuple[list[OfRun], list[str]]:
    """Those of the kind that most runs have, and of two kinds that with more samples.

    Seldom measured kinds would stand in a column of their own, with numbers that do not compare.
    """
    if not found:
        return [], []
    count = Counter(kind_of(*each) for each in found)
    samples = {kind_of(*each): each[1].record.get("samples_count", 0) for each in found}
    chosen = max(count, key=lambda each: (count[each], samples[each]))
    return [each for each in found if kind_of(*each) == chosen], list(chosen)


def without_seed(words: Sequence[str]) -> tuple[str, ...]:
    """Words but for the seed of sampling or of measuring."""
    return tuple(word for word in words if not re.fullmatch(r"seed\d+", word))


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
