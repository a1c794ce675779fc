"""Bits/dim and sample quality against the number of steps (section 4)."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from iddpm_jax.figures.bound import VARIANCES
from iddpm_jax.figures.drawing import (
    COLOURS,
    DASHES,
    MARKERS,
    NARROW,
    WIDTH,
    Figure,
    logarithmic,
    shared_legend,
    step_ticks,
)
from iddpm_jax.figures.results import Missing, Run, labels, likelihoods
from iddpm_jax.figures.results import scores as read_scores


class Point(NamedTuple):
    """A value at some number of steps, its standard error (NaN if unknown), and its file."""

    value: float
    error: float
    path: Path


Curves = dict[tuple[str, ...], dict[int, Point]]
"""By what decided it, a curve: steps -> Point."""


def bits_per_dim(runs: list[Run]) -> Figure:
    """The bound against the number of steps, under the model's own and the fixed variances.

    Args:
        runs: whose nll/ is read; with several of them, each one's own variance alone is drawn.

    Raises:
        Missing: nothing was measured with two numbers of steps.
    """
    found = [each for run in runs for each in likelihoods(run)]
    # Of several with the same steps, the most certain last, so that it is the one that stays.
    found.sort(key=lambda each: -each.record["standard_error"])
    curves: Curves = {}
    for each in found:
        record = each.record
        own = VARIANCES[record["settings"]["diffusion"]["variance"]]
        bounds = {own: record}
        if len(runs) == 1:
            bounds |= {VARIANCES[n]: b for n, b in record["others"].items() if n in VARIANCES}
        for variance, bound in bounds.items():
            point = Point(bound["bits_per_dim"], bound["standard_error"], each.path)
            curves.setdefault((variance, *each.words), {})[each.steps] = point
    curves = _long_enough(curves)
    if not curves:
        raise Missing(
            f"{runs[0].folder / 'nll'} holds bits/dim at less than two numbers of steps; measure "
            "more with --mode nll --config.nll.steps=25"
        )
    numbers, names = _numbers({"bits_per_dim": curves})

    def draw(canvas):
        axes = canvas.subplots()
        _draw_curves(axes, curves, names)
        axes.set_ylabel("bits/dim")
        shared_legend(canvas, [axes], 3 if len(runs) == 1 else 1)

    caption = (
        "Bits/dim against the number of steps of the reverse process (after the paper's section "
        f"4), {_common({'': curves})}. A fixed variance takes the same network's eps. Bars are "
        "standard errors between images, most of which all points have in common, as they saw the "
        "same images."
    )
    return Figure(numbers, caption, (NARROW, 2.8), draw, _files({"": curves}))


def scores(runs: list[Run]) -> Figure:
    """Every score of samples against the number of sampling steps, a curve for each sampler.

    Args:
        runs: whose fid/ is read.

    Raises:
        Missing: no sampler was measured with two numbers of steps.
    """
    found = [each for run in runs for each in read_scores(run)]
    panels: dict[str, Curves] = {}
    better = {}
    for each in found:
        for score in each.record["scores"]:
            error = np.nan if score["error"] is None else score["error"]
            curve = panels.setdefault(score["name"], {}).setdefault(each.words, {})
            curve[each.steps] = Point(score["value"], error, each.path)
            better[score["name"]] = score["better"]
    panels = {name: _long_enough(curves) for name, curves in panels.items()}
    panels = {name: curves for name, curves in panels.items() if curves}
    if not panels:
        raise Missing(
            f"{runs[0].folder / 'fid'} holds no sampler's scores at two numbers of steps with as "
            "many samples; measure more with --mode fid --config.sample.steps=25"
        )
    numbers, names = _numbers(panels)
    rows = -(-len(panels) // 3)

    def draw(canvas):
        places = canvas.subplots(rows, 3, squeeze=False).ravel()
        for axes, (name, curves) in zip(places, panels.items(), strict=False):
            _draw_curves(axes, curves, names)
            axes.set_title(f"{name} ({better[name]} is better)")
        for axes in places[len(panels) :]:
            axes.set_visible(False)
        shared_legend(canvas, places)

    caption = (
        "Scores of samples against the number of sampling steps (after the paper's section 4), "
        f"{_common(panels)}. Bars are standard errors, as docs/metrics.md says."
    )
    return Figure(numbers, caption, (WIDTH, 0.4 + 1.9 * rows), draw, _files(panels))


def _long_enough(curves: Curves) -> Curves:
    """Those with two points or more, their steps ascending."""
    return {k: dict(sorted(curve.items())) for k, curve in curves.items() if len(curve) > 1}


def _files(panels: dict[str, Curves]) -> tuple[Path, ...]:
    """Where the points come from."""
    curves = [curve for curves in panels.values() for curve in curves.values()]
    return tuple(sorted({point.path for curve in curves for point in curve.values()}))


def _numbers(panels: dict[str, Curves]) -> tuple[dict[str, np.ndarray], dict[tuple, str]]:
    """(arrays to write, the label of each curve).

    Curve i of a panel is PANEL_i_steps, PANEL_i_value and PANEL_i_error; the array "curves" has the
    labels by i.
    """
    words = list(dict.fromkeys(key for curves in panels.values() for key in curves))
    names = dict(zip(words, labels(words), strict=True))
    numbers: dict[str, np.ndarray] = {"curves": np.array(list(names.values()))}
    for panel, curves in panels.items():
        for key, curve in curves.items():
            stem = f"{panel}_{words.index(key)}"
            numbers[f"{stem}_steps"] = np.array(list(curve))
            numbers[f"{stem}_value"] = np.array([point.value for point in curve.values()])
            numbers[f"{stem}_error"] = np.array([point.error for point in curve.values()])
    return numbers, names


def _draw_curves(axes, curves: Curves, names: dict[tuple, str]) -> None:
    """Curves with bars, a little beside each other so that no bar hides another."""
    every = [steps for curve in curves.values() for steps in curve]
    apart = (max(every) / min(every)) ** 0.012
    for place, (key, curve) in enumerate(curves.items()):
        i = list(names).index(key)
        x = np.array(list(curve)) * apart ** (place - (len(curves) - 1) / 2)
        value, error = ([point[part] for point in curve.values()] for part in (0, 1))
        style = {"color": COLOURS[i % 7], "ls": DASHES[i % 7], "marker": MARKERS[i % 7]}
        axes.errorbar(x, value, error, label=names[key], elinewidth=0.8, **style)
    values = [point.value for curve in curves.values() for point in curve.values()]
    if min(values) > 0 and max(values) > 5 * min(values):
        logarithmic(axes)
    step_ticks(axes, np.array(every))
    axes.set_xlabel("number of steps")


def _common(panels: dict[str, Curves]) -> str:
    """The words that all curves have."""
    words = [set(key) for curves in panels.values() for key in curves]
    first = next(iter(next(iter(panels.values()))))
    return ", ".join(word for word in first if word in set.intersection(*words))
