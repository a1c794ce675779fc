"""The terms of the variational bound against the diffusion step (figure 2)."""

import zipfile
from pathlib import Path

import numpy as np

from iddpm_jax.figures.drawing import WIDTH, Figure, line_style, shared_legend
from iddpm_jax.figures.results import (
    VARIANCES,
    Measured,
    Missing,
    Run,
    all_steps,
    best_bound,
    labels,
)
from iddpm_jax.figures.seeds import Group, by_seed


def terms(runs: list[Run]) -> Figure:
    """L_t at every step, and the sum up to it, from each run's newest evaluation.

    Args:
        runs: of those that differ in their seed alone the first that has an evaluation; of several
            entries each one's own variance alone is drawn.

    Raises:
        Missing: no run has measured bits/dim with all its steps.
    """
    groups = by_seed(runs)
    chosen = [found for found in map(_first, groups) if found]
    if not chosen:
        raise Missing(
            f"{runs[0].folder / 'nll'} holds no bits/dim of all steps; measure "
            "them with --mode nll --config.nll.terms=0"
        )
    files = tuple(found.path.with_suffix(".npz") for found in chosen)
    names = labels([found.words for found in chosen])
    numbers, curves, notes = {}, [], []
    for i, (found, path) in enumerate(zip(chosen, files, strict=True)):
        prefix = f"{i}_" if len(chosen) > 1 else ""
        arrays = _read(path)
        numbers |= {prefix + key: value for key, value in arrays.items()}
        own = VARIANCES[found.record["settings"]["diffusion"]["variance"]]
        curves.append((prefix, "mean_l_t", names[i] if prefix else own))
        if not prefix:
            others = [name for name in ("fixed_large", "fixed_small") if f"{name}_l_t" in arrays]
            curves += [("", f"{name}_l_t", VARIANCES[name]) for name in others]
        notes.append(f"{names[i]}: {_note(found, arrays)}" if prefix else _note(found, arrays))
    for prefix, name, _ in curves:
        sums = _cumulated(numbers[f"{prefix}t"], numbers[prefix + name])
        numbers[f"{prefix}{name.removesuffix('_l_t')}_cumulated"] = sums

    def draw(canvas):
        left, right = canvas.subplots(1, 2)
        for i, (prefix, name, label) in enumerate(curves):
            style = {**line_style(i), "lw": 1.2 if i == 0 or prefix else 0.9}
            t, l_t = numbers[f"{prefix}t"] + 1, numbers[prefix + name]
            there = ~np.isnan(l_t)
            left.plot(t[there], l_t[there], label=label, zorder=3 - 0.1 * i, **style)
            sums = numbers[f"{prefix}{name.removesuffix('_l_t')}_cumulated"]
            right.plot(t, sums, label=label, zorder=3 - 0.1 * i, **style)
        left.set(xscale="log", yscale="log", xlabel="diffusion step $t$")
        left.set_ylabel("term of the bound $L_{t-1}$ (bits/dim)")
        right.set(xscale="log", xlabel="diffusion step $t$", ylim=(0, None))
        right.set_ylabel("sum of the terms up to $t$ (bits/dim)")
        if len(chosen) > 1:
            shared_legend(canvas, [right])
        else:
            right.legend(loc="lower right")

    caption = (
        "Terms of the variational bound against the diffusion step (the paper's figure 2), and "
        "their sum from the first step on. t counts from 1, as in the paper, and both axes of the "
        f"left panel are logarithmic. Means over images. {' '.join(notes)}"
    )
    return Figure(numbers, caption, (WIDTH, 2.7), draw, files)


def _first(group: Group) -> Measured | None:
    """The evaluation of the first run that has one, by that run's seed where there are several."""
    for run in group.runs:
        name = f"{group.name}, seed {run.config.seed}" if len(group.runs) > 1 else group.name
        found = all_steps(run._replace(name=name))
        if found:
            return found
    return None


def _read(path: Path) -> dict[str, np.ndarray]:
    """The means by step, without the tables by image."""
    try:
        with path.open("rb") as stream, np.load(stream) as file:
            wanted = {"t", "mean_l_t", "fixed_large_l_t", "fixed_small_l_t"} & set(file.files)
            return {name: file[name] for name in sorted(wanted)}
    except (OSError, ValueError, zipfile.BadZipFile):
        raise Missing(f"{path} is not whole; measure it again") from None


def _note(found: Measured, arrays: dict[str, np.ndarray]) -> str:
    r, l_t = found.record, arrays["mean_l_t"]
    first = l_t[0] / np.nansum(l_t)
    mean, error = best_bound(r)
    some = "all" if r["terms"] == r["steps"] else f"{r['terms']:,} random ones of the"
    return (
        f"{r['images']:,} images of {found.words[2]}, {some} {r['steps']:,} terms of each, "
        f"together {mean:.3f} +- {error:.3f} bits/dim, of which the "
        f"first is {first:.0%} and L_T {r['prior']:.1g} bits/dim."
    )


def _cumulated(t: np.ndarray, l_t: np.ndarray) -> np.ndarray:
    """Sums of the terms up to each step [K]; those not measured lie between their neighbours."""
    there = ~np.isnan(l_t)
    return np.cumsum(np.interp(t, t[there], l_t[there])) if there.any() else l_t
