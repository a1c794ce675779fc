"""Bits/dim and sample quality against training compute and width (section 6, figure 10)."""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from iddpm_jax import build
from iddpm_jax.figures.drawing import WIDTH, Figure, line_style, logarithmic
from iddpm_jax.figures.points import Curves, Found, Point, bars, draw_legend, files, pooled
from iddpm_jax.figures.results import (
    Missing,
    Run,
    all_steps,
    best_bound,
    commonest,
    curves,
    kind,
    scores,
)
from iddpm_jax.figures.seeds import Group, by_seed, settings
from iddpm_jax.models.flops import training_flops_per_image

KEY = "model.width"

ON_THE_WAY = "_bits_per_dim"
"""How columns of metrics.jsonl end that hold bits/dim measured while training."""


MOST = 700.0
"""Of the logarithm of a power law's scale: no number is larger than e to this, or not by much."""

LAW = {"color": "black", "ls": ":", "lw": 1.0}
"""How a power law is drawn."""


class Fit(NamedTuple):
    """loss = floor + (compute / scale)^-exponent; compute in FLOPs."""

    floor: float
    scale: float
    exponent: float

    def __call__(self, compute: np.ndarray) -> np.ndarray:
        """The loss at a compute."""
        return self.floor + (compute / self.scale) ** -self.exponent

    def __str__(self) -> str:
        floor = f"{self.floor:.3g} + " if self.floor else ""
        return f"{floor}(C / {self.scale:.3g})^-{self.exponent:.3g}"


def scaling(runs: list[Run]) -> Figure:
    """Bits/dim and the distance of samples against training compute, a line for each width.

    Args:
        runs: those that differ in model.width and seed alone are compared.

    Raises:
        Missing: no two widths, or nothing measured.
    """
    groups = by_seed(runs)
    family = widths(groups)
    if len(family) < 2:
        raise Missing("no two runs differ in model.width alone; name some in --with")
    panels = {name: found for name, found in _by_compute(family).items() if len(found) > 1}
    if not panels:
        raise Missing(
            "no two widths have bits/dim measured while training (train.evaluate_every_steps) or "
            "scores of as many samples"
        )
    at_the_end = {name: _at_the_end(name, found, family) for name, found in panels.items()}
    fits = {name: power_law(*frontier(found)) for name, found in panels.items()}

    def draw(canvas):
        rows = canvas.subplots(len(panels), 2, squeeze=False)
        for (left, right), (name, found) in zip(rows, panels.items(), strict=True):
            _draw_by_compute(left, found, fits[name], list(family))
            _draw_by_width(right, at_the_end[name], list(family))
            left.set_ylabel(name)
        rows[-1, 0].set_xlabel("training compute (FLOPs)")
        rows[-1, 1].set_xlabel("width at the end of training")
        labels = [f"width {width}" for width in family]
        legend = {label: line_style(i, True) for i, label in enumerate(labels)}
        draw_legend(canvas, legend | ({"power law": LAW} if any(fits.values()) else {}))

    size = WIDTH, 0.6 + 2.1 * len(panels)
    every = {**panels, **{f"{name}, at the end": found for name, found in at_the_end.items()}}
    numbers = _numbers(panels, at_the_end, fits)
    return Figure(numbers, _caption(every, fits), size, draw, files(every))


def widths(groups: list[Group]) -> dict[int, Group]:
    """The most groups that differ in model.width alone, by width, ascending."""
    families: dict[tuple, dict[int, Group]] = {}
    for group in groups:
        those = settings(group.runs[0])
        width = those.pop(KEY)
        families.setdefault(tuple(map(repr, those.items())), {}).setdefault(width, group)
    return dict(sorted(max(families.values(), key=len).items()))


def _by_compute(family: dict[int, Group]) -> dict[str, Curves]:
    """Curves over training compute, words being the width, by what was measured."""
    found: dict[str, list[Found]] = {}
    compared = []
    for width, group in family.items():
        flops = flops_per_step(group.runs[0])
        for run in group.runs:
            for name, step, value in _on_the_way(run):
                point = Point(value, np.nan, (run.folder / "metrics.jsonl",))
                entry = Found((f"width {width}",), step * flops, run, point)
                found.setdefault(name, []).append(entry)
            compared += [(run, each) for each in scores(run)]
    # Of each comparison the distance, which comes first.
    chosen, _ = commonest(compared, lambda run, each: (*kind(run, each), each.sampler, each.steps))
    for run, each in chosen:
        score = each.record["scores"][0]
        error = np.nan if score["error"] is None else score["error"]
        point = Point(score["value"], error, (each.path,))
        x = each.training_step * flops_per_step(run)
        entry = Found((f"width {run.config.model.width}",), x, run, point)
        found.setdefault(score["name"], []).append(entry)
    return {name: pooled(points, least=1) for name, points in found.items()}


def _on_the_way(run: Run) -> Iterable[tuple[str, int, float]]:
    """(name, training step, value) of bits/dim measured while training."""
    columns = curves(run)
    for name in (name for name in columns if name.endswith(ON_THE_WAY)):
        there = ~np.isnan(columns[name])
        label = f"bits/dim, {name.removesuffix(ON_THE_WAY)} split"
        for step, value in zip(columns["step"][there], columns[name][there], strict=True):
            yield label, int(step), float(value)


def flops_per_step(run: Run) -> float:
    """FLOPs of an optimizer step: forward and backward pass of a batch."""
    model = build.model(run.config)
    per_image = training_flops_per_image(model.spec, model.image_shape)
    return float(per_image * run.config.train.batch_size)


def _at_the_end(name: str, found: Curves, family: dict[int, Group]) -> Curves:
    """The last point of each width; of bits/dim the bound of all steps where there are two."""
    last = {
        (f"width {width}",): {width: curve[max(curve)]}
        for width in family
        if (curve := found.get((f"width {width}",)))
    }
    if not name.startswith("bits/dim"):
        return last
    measured = []
    for width, group in family.items():
        for run in group.runs:
            if each := all_steps(run):
                point = Point(*best_bound(each.record), (each.path,))
                measured.append(Found((f"width {width}",), width, run, point))
    whole = pooled(measured, least=1)
    return whole if len(whole) > 1 else last


def frontier(found: Curves) -> tuple[np.ndarray, np.ndarray]:
    """(compute, value) of the points that no cheaper one is as good as, ascending in compute."""
    points = sorted((x, p.value) for curve in found.values() for x, p in curve.items())
    best: list[tuple[float, float]] = []
    for x, value in points:
        if not best or value < best[-1][1]:
            best.append((x, value))
    return np.array([x for x, _ in best]), np.array([value for _, value in best])


def power_law(compute: np.ndarray, loss: np.ndarray) -> Fit | None:
    """A power law through points, with a floor where the points tell one.

    Least squares of log loss. Three parameters are taken only from five points or more, and only
    where floor and exponent come out well away from their limits and with small errors.

    Args:
        compute: FLOPs [N], ascending.
        loss: [N].

    Returns:
        Fit, or None: fewer than three points, a loss that is not positive, or hardly any fall.
    """
    if len(compute) < 3 or min(loss) <= 0:
        return None
    x, y = np.log(compute), np.log(loss)
    slope, intercept = np.polyfit(x, y, 1)
    if slope >= 0 or -intercept / slope > MOST:
        return None
    return _with_floor(x, y, -slope) or Fit(0.0, float(np.exp(-intercept / slope)), float(-slope))


def _with_floor(x: np.ndarray, y: np.ndarray, exponent: float) -> Fit | None:
    """loss = floor + (compute / scale)^-exponent, None where that is not well determined."""
    from scipy.optimize import OptimizeWarning, curve_fit

    if len(x) < 5:
        return None
    least, centre = np.exp(y.min()), x.mean()

    def model(x, share, exponent, log_scale):
        # Far from the solution the power may overflow.
        power = np.exp(np.clip(-exponent * (x - centre) + log_scale, -50, 50))
        return np.log(share * least + power)

    start = 0.5, 2 * exponent, float(np.log(0.5 * np.exp(y).mean()))
    limits = ([0.0, 1e-3, -50.0], [1.0, 10.0, 50.0])
    try:
        found, covariance = curve_fit(model, x, y, start, bounds=limits, max_nfev=2000)
    except (RuntimeError, ValueError, OptimizeWarning):
        return None
    errors = np.sqrt(np.diag(covariance))
    share, exponent, log_scale = found
    sure = np.isfinite(errors).all() and errors[0] < 0.2 and errors[1] < exponent / 3
    if not (sure and 0.02 < share < 0.98):
        return None
    scale = np.exp(centre + log_scale / exponent)
    return Fit(float(share * least), float(scale), float(exponent))


def _draw_by_compute(axes: Any, found: Curves, fit: Fit | None, family: list[int]) -> None:
    from matplotlib.ticker import NullFormatter

    for i, width in enumerate(family):
        curve = found.get((f"width {width}",), {})
        value, error = ([point[part] for point in curve.values()] for part in (0, 1))
        axes.errorbar(list(curve), value, error, elinewidth=0.8, **line_style(i, True))
    axes.set_xscale("log")
    axes.xaxis.set_minor_formatter(NullFormatter())  # 2 x 10^12 and the like have no room
    if fit:
        x = np.geomspace(*axes.get_xlim(), 50)
        axes.plot(x, fit(x), zorder=1, **LAW)
    if min(point.value for curve in found.values() for point in curve.values()) > 0:
        logarithmic(axes)


def _draw_by_width(axes: Any, found: Curves, family: list[int]) -> None:
    from matplotlib.ticker import NullLocator

    points = [(x, p) for curve in found.values() for x, p in curve.items()]
    axes.plot([x for x, _ in points], [p.value for _, p in points], color="#999999", lw=0.8)
    for x, point in points:
        style = {**line_style(family.index(x), True), "ls": ""}
        axes.errorbar([x], [point.value], [point.error], elinewidth=0.8, **style)
    axes.set_xscale("log")
    axes.set_xticks(family, [f"{x:,}" for x in family])
    axes.xaxis.set_minor_locator(NullLocator())
    if min(p.value for _, p in points) > 0:
        logarithmic(axes)


def _numbers(
    panels: dict[str, Curves], at_the_end: dict[str, Curves], fits: dict[str, Fit | None]
) -> dict[str, np.ndarray]:
    """NAME_WIDTH_flops, _value, _error and _seeds; NAME_end_...; NAME_fit, as the fields of Fit."""
    numbers = {}
    for kind_, which, x in (("", panels, "flops"), ("_end", at_the_end, "width")):
        for name, found in which.items():
            for (label,), curve in found.items():
                stem = re.sub(r"\W+", "_", f"{name}{kind_} {label}")
                numbers[f"{stem}_{x}"] = np.array(list(curve))
                for field in ("value", "error", "seeds"):
                    values = [getattr(point, field) for point in curve.values()]
                    numbers[f"{stem}_{field}"] = np.array(values)
    for name, fit in fits.items():
        if fit:
            numbers[re.sub(r"\W+", "_", f"{name} fit")] = np.array(fit)
    return numbers


def _caption(every: dict[str, Curves], fits: dict[str, Fit | None]) -> str:
    laws = [f"{name} = {fit}" for name, fit in fits.items() if fit]
    text = (
        "Left: against the compute of training, C FLOPs, for networks that differ in width alone "
        "(after the paper's figure 10): three forward passes for each training image, two FLOPs "
        "for a multiply-add. Right: at the end of training against the width. "
        f"{bars(every, 'standard errors')} "
    )
    if not laws:
        return text + "Too few points, or too uneven ones, for a power law."
    return text + (
        f"Dotted: the power law {' and '.join(laws)}, a least-squares fit of the logarithm to the "
        "points that no cheaper one is as good as; a floor is fitted only where five points or "
        "more determine it."
    )
