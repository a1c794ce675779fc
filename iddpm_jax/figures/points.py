"""Curves of measured points with error bars: pooled over seeds, drawn in panels."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from iddpm_jax.figures.drawing import WIDTH, legend_above, line_style, logarithmic
from iddpm_jax.figures.results import Measured, Run, labels, without_seed
from iddpm_jax.figures.results import scores as read_scores
from iddpm_jax.figures.seeds import Group, mean_and_spread


class Point(NamedTuple):
    """A value and where it comes from.

    Attributes:
        value: of one run, or the mean over seeds.
        error: standard error of one run, or the standard deviation over seeds; NaN if unknown.
        paths: of the files.
        seeds: how many.
    """

    value: float
    error: float
    paths: tuple[Path, ...]
    seeds: int = 1


Words = tuple[str, ...]

Curves = dict[Words, dict[float, Point]]
"""By what decided it, a curve: x -> Point."""


class Found(NamedTuple):
    """A point of one run, before seeds are pooled."""

    words: Words
    x: float
    run: Run
    point: Point


def entry_words(group: Group, words: Words) -> Words:
    """The words of a result of a group: where seeds are pooled, that of sampling is no matter."""
    return without_seed(words) if len(group.runs) > 1 else words


def pooled(found: Iterable[Found], least: int = 2) -> Curves:
    """Curves of some points, x ascending, the seeds of a group made one.

    Args:
        found: of several with the same words, x and run the last one stays.
        least: points that a curve must have, or it is left out.
    """
    curves: dict[Words, dict[float, dict[Path, Point]]] = {}
    for words, x, run, point in found:
        curves.setdefault(words, {}).setdefault(x, {})[run.folder] = point
    return {
        words: {x: _over_seeds(list(curve[x].values()), _many(curve)) for x in sorted(curve)}
        for words, curve in curves.items()
        if len(curve) >= least
    }


def _many(curve: dict[float, dict[Path, Point]]) -> bool:
    return any(len(points) > 1 for points in curve.values())


def _over_seeds(points: list[Point], many: bool) -> Point:
    if not many:
        return points[0]
    value, spread = mean_and_spread([point.value for point in points])
    return Point(value, spread, tuple(p for point in points for p in point.paths), len(points))


def score_curves(
    groups: list[Group], where: Callable[[Measured], tuple[Words, float]]
) -> tuple[dict[str, Curves], dict[str, str]]:
    """Every score of samples as curves, by its name, and whether lower or higher is better.

    Args:
        groups: whose fid/ is read.
        where: the words and the x of a comparison.
    """
    found: dict[str, list[Found]] = {}
    better = {}
    for group in groups:
        measured = [(run, each) for run in group.runs for each in read_scores(run)]
        for run, each in measured:
            words, x = where(each)
            for score in each.record["scores"]:
                error = np.nan if score["error"] is None else score["error"]
                point = Point(score["value"], error, (each.path,))
                entry = Found(entry_words(group, words), x, run, point)
                found.setdefault(score["name"], []).append(entry)
                better[score["name"]] = score["better"]
    panels = {name: pooled(points) for name, points in found.items()}
    return {name: curves for name, curves in panels.items() if curves}, better


def files(panels: dict[str, Curves]) -> tuple[Path, ...]:
    """Where the points come from."""
    points = [p for curves in panels.values() for curve in curves.values() for p in curve.values()]
    return tuple(sorted({path for point in points for path in point.paths}))


class Looks(NamedTuple):
    """How curves look, in all panels alike.

    Attributes:
        names: the full label of each curve.
        styles: of each curve, as matplotlib's keywords.
        legend: styles by label.
    """

    names: dict[Words, str]
    styles: dict[Words, dict]
    legend: dict[str, dict]


def looks(panels: dict[str, Curves], groups: list[Group]) -> Looks:
    """Colours by entry and dashes by all else, where entries have several curves each.

    Args:
        panels: by score.
        groups: whose curves they are.
    """
    words = list(dict.fromkeys(key for curves in panels.values() for key in curves))
    entries = {group.label for group in groups}
    of = {key: next((word for word in key if word in entries), "") for key in words}
    kinds = {key: tuple(word for word in key if word != of[key]) for key in words}
    names = dict(zip(words, labels(words), strict=True))
    colours, dashes = list(dict.fromkeys(of.values())), list(dict.fromkeys(kinds.values()))
    if 1 < len(colours) == len(words):
        names = of
    if len(colours) == 1 or len(colours) == len(words) or len(dashes) == len(words):
        styles = {key: line_style(i, True) for i, key in enumerate(words)}
        return Looks(names, styles, {names[key]: styles[key] for key in words})
    colour = {entry: line_style(i)["color"] for i, entry in enumerate(colours)}
    dash = {kind: line_style(i, True) | {"color": "black"} for i, kind in enumerate(dashes)}
    styles = {key: dash[kinds[key]] | {"color": colour[of[key]]} for key in words}
    legend = {entry: {"color": colour[entry], "lw": 3} for entry in colours}
    legend |= dict(zip(labels(dashes), dash.values(), strict=True))
    return Looks(names, styles, legend)


def draw_legend(canvas: Any, legend: dict[str, dict]) -> None:
    """The legend of a figure, above its panels."""
    from matplotlib.lines import Line2D

    legend_above(canvas, {label: Line2D([], [], **style) for label, style in legend.items()})


def numbers(panels: dict[str, Curves], names: dict[Words, str], x: str) -> dict[str, np.ndarray]:
    """Arrays to write.

    Curve i of a panel is PANEL_i_value and PANEL_i_error at PANEL_i_X, of PANEL_i_seeds seeds; the
    array "curves" has the labels by i.

    Args:
        panels: by score.
        names: the label of each curve.
        x: what x is called.
    """
    found: dict[str, np.ndarray] = {"curves": np.array(list(names.values()))}
    for panel, curves in panels.items():
        for key, curve in curves.items():
            stem = f"{panel}_{list(names).index(key)}"
            found[f"{stem}_{x}"] = np.array(list(curve))
            for field in ("value", "error", "seeds"):
                found[f"{stem}_{field}"] = np.array([getattr(p, field) for p in curve.values()])
    return found


def common_words(panels: dict[str, Curves]) -> str:
    """The words that all curves have, for captions."""
    words = [set(key) for curves in panels.values() for key in curves]
    first = next(iter(next(iter(panels.values()))))
    text = ", ".join(word for word in first if word in set.intersection(*words))
    return text.replace(r"$\tilde{\beta}_t$", "beta_tilde").replace(r"$\beta_t$", "beta")


def bars(panels: dict[str, Curves], of_one_run: str) -> str:
    """What the error bars are, in a sentence or two.

    Args:
        panels: by score.
        of_one_run: what they are where nothing is pooled.
    """
    seeds = {p.seeds for curves in panels.values() for c in curves.values() for p in c.values()}
    if max(seeds) == 1:
        return f"Bars are {of_one_run}."
    pooled_ones = "Points of several seeds are means, and their bars standard deviations over seeds"
    return f"{pooled_ones}." + (f" Other bars are {of_one_run}." if 1 in seeds else "")


def draw_curves(axes: Any, curves: Curves, styles: dict[Words, dict], apart: bool) -> None:
    """Curves with bars, a little beside each other so that no bar hides another.

    Args:
        axes: matplotlib's.
        curves: to draw.
        styles: of every curve of the figure.
        apart: x is a number of steps, on a logarithmic axis; else a share, on a linear one.
    """
    every = [x for curve in curves.values() for x in curve]
    gap = min(0.012, 0.05 / len(curves))
    for place, (key, curve) in enumerate(curves.items()):
        offset = gap * (place - (len(curves) - 1) / 2)
        x = np.array(list(curve))
        if apart:
            x = x * (max(every) / min(every)) ** offset
        else:
            x = x + (max(every) - min(every)) * offset
        value, error = ([point[part] for point in curve.values()] for part in (0, 1))
        axes.errorbar(x, value, error, elinewidth=0.8, **styles[key])
    values = [point.value for curve in curves.values() for point in curve.values()]
    if min(values) > 0 and max(values) > 5 * min(values):
        logarithmic(axes)


FEW = 8
"""Curves that panels three in a row have room for."""


def size_of(panels: dict[str, Curves]) -> tuple[float, float]:
    """Width and height of a figure of panels, inches."""
    rows = -(-len(panels) // _columns(panels))
    return WIDTH, 0.4 + (1.9 if _columns(panels) == 3 else 2.5) * rows


def _columns(panels: dict[str, Curves]) -> int:
    return 3 if max(map(len, panels.values())) <= FEW else 2


def draw_panels(
    canvas: Any,
    panels: dict[str, Curves],
    better: dict[str, str],
    draw: Callable[[Any, Curves], None],
) -> None:
    """A panel for each score.

    Args:
        canvas: matplotlib's.
        panels: by score.
        better: "lower" or "higher", by score.
        draw: puts curves into axes.
    """
    columns = _columns(panels)
    places = canvas.subplots(-(-len(panels) // columns), columns, squeeze=False).ravel()
    for axes, (name, curves) in zip(places, panels.items(), strict=False):
        draw(axes, curves)
        axes.set_title(f"{name} ({better[name]} is better)")
    for axes in places[len(panels) :]:
        axes.set_visible(False)
