"""The paper's tables 1 and 2: bits/dim and sample quality by schedule, T and objective."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from iddpm_jax.figures.captions import description, version
from iddpm_jax.figures.results import (
    Missing,
    OfRun,
    Run,
    all_steps,
    best_bound,
    commonest,
    count_steps,
    kind,
    sampler_words,
    scores,
)
from iddpm_jax.figures.seeds import Group, by_seed, mean_and_spread, settings

NLL = "NLL (bits/dim)"

_OBJECTIVE = ("loss.name", "loss.timesteps", "diffusion.variance")


class Cell(NamedTuple):
    """What was measured of an entry.

    Attributes:
        values: by seed.
        error: standard error of a single run, NaN if unknown.
        better: "lower" or "higher".
        paths: of the files.
    """

    values: list[float]
    error: float
    better: str
    paths: list[Path]


class Row(NamedTuple):
    """An entry: what tells it apart, and what was measured."""

    group: Group
    about: dict[str, str]
    cells: dict[str, Cell]


def write(folder: Path, runs: list[Run]) -> Path:
    """Write tables.md, and the same in full as tables.json.

    Args:
        folder: where to.
        runs: a row for all that differ in their seed alone.

    Returns:
        Path of tables.md.

    Raises:
        Missing: fewer than two entries, or nothing was measured.
    """
    groups = by_seed(runs)
    if len(groups) < 2:
        raise Missing("it compares runs that differ in more than their seed; name more in --with")
    bounds, bound_words = _bounds(groups)
    compared, score_words = _scores(groups)
    if not bounds and not compared:
        raise Missing("no run has bits/dim of all steps or scores of samples")
    rows = [
        Row(group, about | _steps(group, bounds, compared), _cells(group, bounds, compared))
        for group, about in zip(groups, _about(groups), strict=True)
    ]
    notes = []
    if bounds:
        notes.append(
            f"{NLL}: the bound of all T steps under the model's own variance, "
            f"{', '.join(bound_words)}."
        )
    if compared:
        samplers = dict.fromkeys(each.sampler[0] for _, each in compared)
        notes.append(f"Scores of samples: {', '.join((*samplers, *score_words))}.")
    path = folder / "tables.md"
    path.write_text(_markdown(rows, notes), encoding="utf-8")
    record = {"notes": notes, "rows": [_in_full(row) for row in rows], "drawn_by": version()}
    path.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return path


def _bounds(groups: list[Group]) -> tuple[list[OfRun], list[str]]:
    """The bound of each run, of the kind that most have, and the words of that kind."""
    found = [(run, each) for group in groups for run in group.runs if (each := all_steps(run))]
    return commonest(found, kind)


def _scores(groups: list[Group]) -> tuple[list[OfRun], list[str]]:
    """Scores of each run's newest checkpoint under its own sampler, of the commonest kind.

    With its default number of steps, or where no run has such, with the commonest number.
    """
    found = []
    for run in (run for group in groups for run in group.runs):
        there = [each for each in scores(run) if each.sampler == _own_sampler(run)[0]]
        newest = max((each.training_step for each in there), default=0)
        found += [(run, each) for each in there if each.training_step == newest]
    default = [(run, each) for run, each in found if each.steps == _own_sampler(run)[1]]
    if default:
        return commonest(default, kind)
    return commonest(found, lambda run, each: (*kind(run, each), f"{each.steps:,} steps"))


def _own_sampler(run: Run) -> tuple[tuple[str, ...], int]:
    """The words and the number of steps of the sampler that the config asks for."""
    s, d = run.config.sample, run.config.diffusion
    steps = (s.steps or str(d.T)).replace(",", "-")
    words = sampler_words(s.sampler, steps, s.eta, s.skip, s.variance or d.variance)
    return words, count_steps(steps)


def _cells(group: Group, bounds: Iterable[OfRun], compared: Iterable[OfRun]) -> dict[str, Cell]:
    """What was measured of a group; of several results of a run the last."""
    cells: dict[str, dict[Path, Cell]] = {}

    def add(run: Run, name: str, value: float, error: float, better: str, path: Path) -> None:
        cells.setdefault(name, {})[run.folder] = Cell([value], error, better, [path])

    folders = {run.folder for run in group.runs}
    for run, each in bounds:
        if run.folder in folders:
            add(run, NLL, *best_bound(each.record), "lower", each.path)
    for run, each in compared:
        if run.folder in folders:
            for score in each.record["scores"]:
                error = np.nan if score["error"] is None else score["error"]
                add(run, score["name"], score["value"], error, score["better"], each.path)
    return {name: _together(list(by_run.values())) for name, by_run in cells.items()}


def _together(cells: list[Cell]) -> Cell:
    values = [value for cell in cells for value in cell.values]
    return cells[0]._replace(values=values, paths=[path for cell in cells for path in cell.paths])


def _about(groups: list[Group]) -> list[dict[str, str]]:
    """The columns that tell entries apart: the paper's, and what else differs."""
    all_settings = [settings(group.runs[0]) for group in groups]
    shown = {"diffusion.T", "diffusion.schedule", "train.steps", *_OBJECTIVE}
    others = [
        key
        for key in all_settings[0]
        if key not in shown and len({repr(each[key]) for each in all_settings}) > 1
    ]
    rows = []
    for group, each in zip(groups, all_settings, strict=True):
        rows.append(
            {
                "training steps": f"{each['train.steps']:,}",
                "T": f"{each['diffusion.T']:,}",
                "schedule": str(each["diffusion.schedule"]),
                "objective": _objective(each),
                **{key: str(each[key]) for key in others},
                "sampling steps": "",
                "seeds": str(len(group.runs)),
            }
        )
    return rows


def _steps(group: Group, bounds: list[OfRun], compared: list[OfRun]) -> dict[str, str]:
    """Training steps, also of the checkpoints where these are others, and sampling steps."""
    folders = {run.folder for run in group.runs}
    steps = group.runs[0].config.train.steps
    checkpoints = {e.training_step for run, e in (*bounds, *compared) if run.folder in folders}
    sampling = {each.steps for run, each in compared if run.folder in folders}
    trained = f"{steps:,}"
    if checkpoints - {steps}:
        trained = f"{_listed(checkpoints)} of {trained}"
    return {"training steps": trained, "sampling steps": _listed(sampling)}


def _listed(numbers: set[int]) -> str:
    return ", ".join(f"{number:,}" for number in sorted(numbers)) or "-"


def _objective(each: dict[str, object]) -> str:
    sampling = " (importance sampling)" if each["loss.timesteps"] == "importance" else ""
    variance = str(each["diffusion.variance"])
    usual = variance in ("learned_range", "fixed_large")
    return f"{each['loss.name']}{sampling}" + ("" if usual else f", {variance}")


def _markdown(rows: list[Row], notes: list[str]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row.cells))
    better = {name: cell.better for row in rows for name, cell in row.cells.items()}
    same = {key for key in rows[0].about if len({row.about[key] for row in rows}) == 1}
    keys = [key for key in rows[0].about if key not in same or key in ("T", "schedule")]
    arrows = {"lower": "↓", "higher": "↑"}
    head = [*keys, *(f"{name} {arrows[better[name]]}" for name in columns)]
    lines = [head, [":---"] * len(keys) + ["---:"] * len(columns)]
    best = {name: _best(rows, name) for name in columns}
    for row in rows:
        seeds = len(row.group.runs)
        cells = [_text(row.cells.get(name), best[name], seeds) for name in columns]
        about = (row.about[key].replace("|", "\\|") for key in keys)  # a bar would end the cell
        lines.append([*about, *cells])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    common = ", ".join(f"{key}: {rows[0].about[key]}" for key in rows[0].about if key not in keys)
    spread = (
        "± is the standard deviation over seeds; in brackets, the standard error of a single run. "
        "The best mean of each column is bold, whether or not others lie within its spread."
    )
    from_ = "\n".join(f"- {_whence(row.group)}" for row in rows)
    notes = [*notes, *([f"All rows: {common}."] if common else []), spread]
    text = "\n".join(f"- {note}" for note in notes)
    return (
        "# Bits/dim and sample quality\n\nAfter the paper's tables 1 and 2.\n\n"
        f"{table}\n\n{text}\n\nRuns:\n\n{from_}\n\nDrawn by {version()}.\n"
    )


def _whence(group: Group) -> str:
    """A group's config, and its workdirs by seed."""
    about = description(group.runs[0]).rpartition(", seed ")[0]
    return f"{about}; " + ", ".join(f"seed {r.config.seed}: `{r.folder}`" for r in group.runs)


def _best(rows: list[Row], name: str) -> float:
    """The best mean of a column, NaN where all are the same."""
    cells = [row.cells[name] for row in rows if name in row.cells]
    means = {mean_and_spread(cell.values)[0] for cell in cells}
    choose = min if cells[0].better == "lower" else max
    return choose(means) if len(means) > 1 else float("nan")


def _text(cell: Cell | None, best: float, seeds: int) -> str:
    """A cell of the table; it says of how many seeds it is where that is not all of them."""
    if cell is None:
        return "-"
    mean, spread = mean_and_spread(cell.values)
    error = spread if len(cell.values) > 1 else cell.error
    digits = _digits(error)
    value = f"{mean:.{digits}f}"
    value = f"**{value}**" if mean == best else value
    if len(cell.values) > 1:
        value += f" ± {error:.{digits}f}"
    elif not np.isnan(error):
        value += f" [{error:.{digits}f}]"
    return value if len(cell.values) == seeds else f"{value} (of {len(cell.values)})"


def _digits(error: float) -> int:
    """Decimals that show two figures of an error, from 1 to 4."""
    if np.isnan(error) or error <= 0:
        return 3
    return int(np.clip(1 - np.floor(np.log10(error)), 1, 4))


def _in_full(row: Row) -> dict:
    return {
        "name": row.group.name,
        "folders": [str(run.folder) for run in row.group.runs],
        "seeds": [run.config.seed for run in row.group.runs],
        "settings": row.about,
        "measured": {
            name: {
                "values": cell.values,
                "mean": mean_and_spread(cell.values)[0],
                "spread": _or_none(mean_and_spread(cell.values)[1]),
                "standard_error": _or_none(cell.error) if len(cell.values) == 1 else None,
                "better": cell.better,
                "files": [str(path) for path in cell.paths],
            }
            for name, cell in row.cells.items()
        },
    }


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else value
