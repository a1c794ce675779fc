"""Learning curves of L_simple and L_vlb, and the state of importance sampling (figure 6)."""

from pathlib import Path

import numpy as np

from iddpm_jax.figures.drawing import (
    COLOURS,
    DASHES,
    WIDTH,
    Figure,
    line_style,
    logarithmic,
    shared_legend,
)
from iddpm_jax.figures.results import Missing, Run
from iddpm_jax.figures.results import curves as read
from iddpm_jax.figures.seeds import by_seed

POINTS = 200
"""Of a curve that is drawn; a longer one is averaged down to fewer than twice as many."""

QUARTERS = {
    "_q0": "1st quarter of $t$ (least noise)",
    "_q1": "2nd",
    "_q2": "3rd",
    "_q3": "4th (most noise)",
}

IMPORTANCE = {
    "effective_sample_size": "effective sample size",
    "warmed_up": "full histories",
}
"""Columns of runs under importance sampling; both are shares."""


Columns = dict[str, np.ndarray]
"""metrics.jsonl of one entry: name -> [seeds, rows], NaN where a run lacks it; "step" [rows]."""


def learning_curves(runs: list[Run]) -> Figure:
    """L_simple and L_vlb against the training step; of a single entry also by quarter of t.

    Args:
        runs: whose metrics.jsonl are read.

    Raises:
        Missing: no run has any.
    """
    groups = by_seed(runs)
    found: dict[str, Columns] = {}
    numbers: dict[str, np.ndarray] = {}
    files: list[Path] = []
    for group in groups:
        columns_of = {run.folder / "metrics.jsonl": read(run) for run in group.runs}
        there = {path: columns for path, columns in columns_of.items() if "l_vlb" in columns}
        if there:
            found[group.label] = together(list(there.values()))
            files += there
            prefix = f"{group.name}_" if len(groups) > 1 else ""
            numbers |= {prefix + k: v for k, v in _to_write(found[group.label]).items()}
    if not found:
        folder = runs[0].folder
        raise Missing(f"{folder} holds no metrics.jsonl; it was not trained here")
    sampled = any(key in columns for columns in found.values() for key in IMPORTANCE)

    def draw(canvas):
        panels = canvas.subplots(1, 3 if sampled else 2)
        for axes, key in zip(panels, ("l_simple", "l_vlb"), strict=False):
            _draw_loss(axes, found, key)
        panels[0].set_ylabel(r"$L_{\mathrm{simple}}$")
        panels[1].set_ylabel(r"$L_{\mathrm{vlb}}$ (bits/dim)")
        if sampled:
            _draw_importance(panels[2], found)
        shared_legend(canvas, panels[1:])

    return Figure(numbers, _caption(found, sampled), (WIDTH, 2.8), draw, tuple(files))


def together(runs: list[Columns]) -> Columns:
    """The columns of several seeds, row by row of the steps that any of them has.

    Args:
        runs: name -> [rows].
    """
    step = np.unique(np.concatenate([columns["step"] for columns in runs]))
    names = dict.fromkeys(name for columns in runs for name in columns if _is_drawn(name))
    table = {name: np.full((len(runs), len(step)), np.nan) for name in names if name != "step"}
    for i, columns in enumerate(runs):
        rows = np.searchsorted(step, columns["step"])
        for name in table:
            if name in columns:
                table[name][i, rows] = columns[name]
    return {"step": step, **table}


def _to_write(columns: Columns) -> Columns:
    """Means over seeds, and NAME_spread, the standard deviation over them where there are some."""
    seeds = len(columns["l_vlb"])
    found = {"step": columns["step"]}
    for name in columns:
        if name != "step":
            found[name], spread = over_seeds(columns[name])
            found |= {f"{name}_spread": spread} if seeds > 1 else {}
    return found


def _is_drawn(key: str) -> bool:
    beginnings = ("l_simple", "l_vlb", *IMPORTANCE)
    return key == "step" or key.startswith(beginnings) or key.endswith("_bits_per_dim")


def _draw_loss(axes, found: dict[str, Columns], key: str) -> None:
    """One loss of all entries; of a single one its quarters too, and what was measured."""
    alone = len(found) == 1
    for i, (name, columns) in enumerate(found.items()):
        if alone:
            for q, (quarter, label) in enumerate(QUARTERS.items()):
                style = {"color": COLOURS[q], "ls": DASHES[q + 1], "lw": 0.9}
                _draw_curve(axes, columns, key + quarter, label, style)
        style = line_style(i) | ({"color": "black"} if alone else {})
        colour = style["color"]
        width = {"lw": 1.6 if alone else 1.3}
        _draw_curve(axes, columns, key, "all $t$" if alone else name, style | width)
        if key == "l_vlb":
            for column in (c for c in columns if c.endswith("_bits_per_dim")):
                mean, spread = over_seeds(columns[column])
                look = {"color": colour, "mfc": "white", "ms": 4 if alone else 3, "elinewidth": 0.8}
                axes.errorbar(columns["step"], mean, spread, fmt="D", **look)
    for column in dict.fromkeys(c for columns in found.values() for c in columns):
        if key == "l_vlb" and column.endswith("_bits_per_dim"):
            label = f"measured, {column.removesuffix('_bits_per_dim')} split"
            axes.plot([], [], "D", color="black", mfc="white", label=label)
    logarithmic(axes)
    axes.set_xlabel("training step")


def _draw_curve(axes, columns: Columns, key: str, label: str | None, style: dict) -> None:
    """Means over seeds of neighbouring rows, in a band of one standard deviation over seeds."""
    each = [averaged(columns["step"], values) for values in columns[key]]
    mean, spread = over_seeds(np.array([value for _, value in each]))
    axes.plot(each[0][0], mean, label=label, **style)
    if len(each) > 1:
        band = {"color": style["color"], "alpha": 0.2, "lw": 0}
        low = np.maximum(mean - spread, 0.1 * mean)  # a logarithmic axis has no place for less
        axes.fill_between(each[0][0], low, mean + spread, **band)


def _draw_importance(axes, found: dict[str, Columns]) -> None:
    """How even the weights are, and how many histories are full."""
    for i, columns in enumerate(found.values()):
        for j, (key, label) in enumerate(IMPORTANCE.items()):
            if key in columns:
                alone = len(found) == 1
                style = {"color": COLOURS[4 + j if alone else i % 7], "ls": DASHES[j]}
                _draw_curve(axes, columns, key, label if alone else None, style)
                if not alone:  # whose it is, its colour tells
                    axes.plot([], [], label=label, color="black", ls=DASHES[j])
    axes.set(xlabel="training step", ylabel="share", ylim=(0, 1.02))


def over_seeds(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over seeds of each row, NaN where too few seeds have it.

    Args:
        values: [seeds, rows]; NaN counts for nothing.
    """
    known = ~np.isnan(values)
    count = known.sum(axis=0)
    filled = np.where(known, values, 0.0)
    mean = np.where(count > 0, filled.sum(axis=0) / np.maximum(count, 1), np.nan)
    squares = np.where(known, (values - mean) ** 2, 0.0).sum(axis=0)
    return mean, np.where(count > 1, np.sqrt(squares / np.maximum(count - 1, 1)), np.nan)


def averaged(step: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of runs of neighbouring rows, so that a long curve can be read.

    Args:
        step: of each row [R].
        value: of each row [R]; NaN counts for nothing.

    Returns:
        The last step of each part, and the mean value in it, NaN where there is none.
    """
    parts = np.array_split(np.arange(len(step)), -(-len(step) // _width(len(step))))
    known = [value[part][~np.isnan(value[part])] for part in parts]
    means = [each.mean() if each.size else np.nan for each in known]
    return np.array([step[part[-1]] for part in parts]), np.array(means)


def _width(rows: int) -> int:
    """Rows that a drawn point is the mean of."""
    return max(1, rows // POINTS)


def _caption(found: dict[str, Columns], sampled: bool) -> str:
    by = "of all t (bold) and by quarter of t" if len(found) == 1 else "a line for each run"
    width = max(_width(len(columns["step"])) for columns in found.values())
    text = (
        f"Learning curves (after the paper's figure 6): L_simple, and L_vlb in bits/dim, of the "
        f"training batches, {by}. Both are estimates over evenly drawn t, whatever the sampler of "
        "t. L_vlb of a quarter is T times the mean term in it, so that the four average to the "
        "whole. Training never clips the predicted x_0, which evaluation does by default: its "
        "L_vlb is mostly the larger. Diamonds: bits/dim measured while training, by the running "
        "average."
    )
    if any(len(columns["l_vlb"]) > 1 for columns in found.values()):
        text += (
            " Of several seeds lines are means, and bands and bars one standard deviation over "
            "seeds to either side."
        )
    if width > 1:
        text += f" A point is the mean of up to {width + 1} rows of metrics.jsonl."
    if sampled:
        text += (
            " Right: effective sample size of the importance weights as a share of the draws (1 if "
            "t is drawn evenly), and the share of steps t whose history is full; before all are, "
            "t is drawn evenly."
        )
    return text
