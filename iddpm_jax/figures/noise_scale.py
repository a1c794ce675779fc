"""Gradient noise scales against the training step (figure 7)."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from iddpm_jax.figures.drawing import (
    COLOURS,
    DASHES,
    MARKERS,
    NARROW,
    WIDTH,
    Figure,
    logarithmic,
    shared_legend,
)
from iddpm_jax.figures.results import Missing, Run
from iddpm_jax.figures.seeds import by_seed, mean_and_spread

LINES = {
    ("l_simple", "uniform"): r"$L_{\mathrm{simple}}$",
    ("l_hybrid", "uniform"): r"$L_{\mathrm{hybrid}}$",
    ("l_hybrid", "importance"): r"$L_{\mathrm{hybrid}}$, importance",
    ("l_vlb", "uniform"): r"$L_{\mathrm{vlb}}$",
    ("l_vlb", "importance"): r"$L_{\mathrm{vlb}}$, importance",
}
"""(objective, how t is drawn) -> label."""

PANELS = 3
"""In a row."""


class Line(NamedTuple):
    """Noise scales of one objective and sampler of t, by training step [P].

    Attributes:
        step: ascending.
        scale: examples; NaN where only a lower bound is known.
        error: standard error; where seeds are joined, the standard deviation between them.
        at_least: lower bound where there is no scale, NaN elsewhere.
    """

    step: np.ndarray
    scale: np.ndarray
    error: np.ndarray
    at_least: np.ndarray


def noise_scales(runs: list[Run]) -> Figure:
    """A panel for each entry, and in it a line per objective and way of drawing t.

    Args:
        runs: whose gradients/ are read.

    Raises:
        Missing: no run has any, or a file cannot be read.
    """
    measured = {run.folder: _newest(run) for run in runs}
    files = tuple(path for steps in measured.values() for path, _ in steps.values())
    if not files:
        raise Missing(
            f"{runs[0].folder} holds no gradient noise; measure it with --mode gradients "
            "(after training with train.keep_every_steps, to have several checkpoints)"
        )
    panels = {}
    for group in by_seed(runs):
        records = [record for run in group.runs for _, record in measured[run.folder].values()]
        if records:
            panels[group.label] = {
                key: line for key in LINES if len((line := _line(key, records)).step)
            }
    numbers = {
        "_".join([*([name] if len(panels) > 1 else []), *key, field]): values
        for name, lines in panels.items()
        for key, line in lines.items()
        for field, values in line._asdict().items()
    }
    columns = min(len(panels), PANELS)
    rows = -(-len(panels) // PANELS)
    size = (NARROW if len(panels) == 1 else WIDTH, 0.5 + 2.4 * rows)

    def draw(canvas):
        grid = canvas.subplots(rows, columns, squeeze=False, sharey=True)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for axes, (name, lines) in zip(grid.flat, panels.items(), strict=False):
            _draw_lines(axes, lines)
            if len(panels) > 1:
                axes.set_title(name)
        for row in grid:
            row[0].set_ylabel("noise scale (images)")
        shared_legend(canvas, list(grid.flat))

    return Figure(numbers, _caption(list(panels)), size, draw, files)


def _newest(run: Run) -> dict[int, tuple[Path, dict]]:
    """Of each training step the measurement of most images: step -> (file, record)."""
    found: dict[int, tuple[Path, dict]] = {}
    for path in sorted((run.folder / "gradients").glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            step, _, _ = record["step"], record["rows"], record["importance"]
            better = step not in found or _images(record) >= _images(found[step][1])
        except (ValueError, KeyError):
            raise Missing(f"{path} is not whole; measure it again") from None
        if better:
            found[step] = path, record
    return found


def _images(record: dict) -> int:
    size = record["made_by"]["gradients"]
    return size["batches"] * size["batch_size"]


def _line(key: tuple[str, str], records: list[dict]) -> Line:
    """One line of a panel; records of one step belong to several seeds."""
    by_step: dict[int, list[tuple]] = {}
    for record in sorted(records, key=lambda record: record["step"]):
        for row in record["rows"]:
            if (row["objective"], row["timesteps"]) == key:
                by_step.setdefault(record["step"], []).append(_point(row, record["importance"]))
    points = [_joined(points) for points in by_step.values()]
    columns = np.array(points, np.float64).reshape(len(points), 3).T
    return Line(np.array(list(by_step)), *columns)


def _point(row: dict, importance: dict) -> tuple[float, float, float]:
    """(scale, error, at least) of a row; |G|^2 by importance where its own is lost in the noise."""
    if row["resolved"]:
        return row["noise_scale"], row["noise_scale_error"], np.nan
    found = importance.get(row["objective"], {}) if row["timesteps"] == "uniform" else {}
    if found.get("scale_evenly") is not None:
        return found["scale_evenly"], found["scale_evenly_error"], np.nan
    least = row["noise_scale_at_least"]
    return np.nan, np.nan, np.nan if least is None else least


def _joined(points: list[tuple]) -> tuple[float, float, float]:
    """Points of several seeds as mean and spread, or as the lowest bound if one has no scale."""
    if len(points) == 1:
        return points[0]
    scales, _, bounds = np.array(points, np.float64).T
    if np.isnan(scales).any():
        # Of a seed that is lost altogether not even a bound is known, so there is none of all.
        lowest = np.where(np.isnan(scales), bounds, scales).min()
        return np.nan, np.nan, lowest
    return *mean_and_spread(scales), np.nan


def _draw_lines(axes, lines: dict[tuple[str, str], Line]) -> None:
    objectives = [objective for objective, timesteps in LINES if timesteps == "uniform"]
    for key, line in lines.items():
        kind = objectives.index(key[0])
        colour, dashed = COLOURS[kind], key[1] == "importance"
        # L_hybrid is mostly L_simple, and would hide it.
        wide = {"lw": 4.5, "ms": 8, "alpha": 0.45} if key[0] == "l_simple" else {}
        axes.errorbar(
            line.step,
            line.scale,
            # Below 0 there is no place on a logarithmic axis.
            yerr=[np.minimum(line.error, 0.9 * line.scale), line.error],
            label=LINES[key],
            color=colour,
            ls=DASHES[1 if dashed else 0],
            marker=MARKERS[kind],
            mfc="white" if dashed else colour,
            **wide,
        )
        axes.plot(line.step, line.at_least, ls="", marker=r"$\uparrow$", ms=9, color=colour)
    axes.set_xlabel("training step")
    logarithmic(axes)


def _caption(panels: list[str]) -> str:
    text = (
        "Gradient noise scales (after the paper's figure 7): tr(Sigma) / |G|^2 in images, the "
        "batch whose noise is as large as the gradient itself (McCandlish et "
        "al. 2018), at the checkpoints of a run. Every objective is measured at the same "
        "parameters, whichever was trained, with t drawn evenly (full lines) and by importance "
        "(dashed). Bars: standard errors by the jackknife. Where |G|^2 is lost in "
        "the noise with t drawn evenly, it is that found by importance, which estimates the same "
        "gradient. Arrows: it is lost in both, and the scale is at least this."
    )
    if any(name.endswith(" seeds)") for name in panels):
        text += " Where seeds are joined: mean and standard deviation between them."
    return text
