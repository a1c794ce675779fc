"""Learning curves of L_simple and L_vlb, and the state of importance sampling (figure 6)."""

from pathlib import Path

import numpy as np

from iddpm_jax.figures.drawing import COLOURS, DASHES, WIDTH, Figure, logarithmic, shared_legend
from iddpm_jax.figures.results import Missing, Run
from iddpm_jax.figures.results import curves as read

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


def learning_curves(runs: list[Run]) -> Figure:
    """L_simple and L_vlb against the training step; of a single run also by quarter of t.

    Args:
        runs: whose metrics.jsonl is read.

    Raises:
        Missing: no run has any.
    """
    read_runs = {run.name: (run.folder / "metrics.jsonl", read(run)) for run in runs}
    found = {name: columns for name, (_, columns) in read_runs.items() if "l_vlb" in columns}
    if not found:
        raise Missing(f"{runs[0].folder} holds no metrics.jsonl; it was not trained here")
    files: tuple[Path, ...] = tuple(read_runs[name][0] for name in found)
    sampled = any(key in columns for columns in found.values() for key in IMPORTANCE)
    numbers = {}
    for name, columns in found.items():
        prefix = f"{name}_" if len(found) > 1 else ""
        numbers |= {prefix + key: columns[key] for key in columns if _is_drawn(key)}

    def draw(canvas):
        panels = canvas.subplots(1, 3 if sampled else 2)
        for axes, key in zip(panels, ("l_simple", "l_vlb"), strict=False):
            _draw_loss(axes, found, key)
        panels[0].set_ylabel(r"$L_{\mathrm{simple}}$")
        panels[1].set_ylabel(r"$L_{\mathrm{vlb}}$ (bits/dim)")
        if sampled:
            _draw_importance(panels[2], found)
        shared_legend(canvas, panels[1:])

    return Figure(numbers, _caption(found, sampled), (WIDTH, 2.8), draw, files)


def _is_drawn(key: str) -> bool:
    beginnings = ("l_simple", "l_vlb", *IMPORTANCE)
    return key == "step" or key.startswith(beginnings) or key.endswith("_bits_per_dim")


def _draw_loss(axes, found: dict[str, dict], key: str) -> None:
    """One loss of every run; of a single one its quarters too, and what was measured on the way."""
    alone = len(found) == 1
    for i, (name, columns) in enumerate(found.items()):
        step = columns["step"]
        if alone:
            for q, (quarter, label) in enumerate(QUARTERS.items()):
                style = {"color": COLOURS[q], "ls": DASHES[q + 1], "lw": 0.9}
                axes.plot(*averaged(step, columns[key + quarter]), label=label, **style)
        colour = "black" if alone else COLOURS[i % 7]
        label = "all $t$" if alone else name
        style = {"color": colour, "ls": DASHES[i % 7], "lw": 1.6 if alone else 1.3}
        axes.plot(*averaged(step, columns[key]), label=label, **style)
        if key == "l_vlb":
            for column in (c for c in columns if c.endswith("_bits_per_dim")):
                label = f"measured, {column.removesuffix('_bits_per_dim')} split"
                axes.plot(step, columns[column], "D", color=colour, mfc="white", label=label)
    logarithmic(axes)
    axes.set_xlabel("training step")


def _draw_importance(axes, found: dict[str, dict]) -> None:
    """How even the weights are, and how many histories are full."""
    for i, (name, columns) in enumerate(found.items()):
        for j, (key, label) in enumerate(IMPORTANCE.items()):
            if key in columns:
                alone = len(found) == 1
                label = label if alone else f"{label}, {name}"
                style = {"color": COLOURS[4 + j if alone else i % 7], "ls": DASHES[j]}
                axes.plot(*averaged(columns["step"], columns[key]), label=label, **style)
    axes.set(xlabel="training step", ylabel="share", ylim=(0, 1.02))


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


def _caption(found: dict[str, dict], sampled: bool) -> str:
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
    if width > 1:
        text += f" A point is the mean of up to {width + 1} rows of metrics.jsonl."
    if sampled:
        text += (
            " Right: effective sample size of the importance weights as a share of the draws (1 if "
            "t is drawn evenly), and the share of steps t whose history is full; before all are, "
            "t is drawn evenly."
        )
    return text
