"""What a workdir holds besides samples: facts, curves, terms of the bound, weights, results."""

import json
import re
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from iddpm_jax.diffusion import importance
from iddpm_jax.figures import bound, captions, results
from iddpm_jax.figures.curves import averaged
from iddpm_jax.report.charts import QUARTERS, Chart, Series, line
from iddpm_jax.training.runs import Run

LIKELIHOOD = (
    *("bits_per_dim", "standard_error", "adjusted", "prior", "decoder", "kl"),
    *("images", "steps", "terms", "draws", "others", "settings"),
)
"""What a file in nll/ says; one of an older version may not."""

SCORES = ("samples", "samples_count", "reference", "network", "settings", "scores")
"""What a file in fid/ says."""


class Result(NamedTuple):
    """A file in nll/ or fid/.

    Attributes:
        file: relative to the workdir.
        step: of the checkpoint, where the name tells.
        record: the file's content.
    """

    file: str
    step: int | None
    record: dict


class Found(NamedTuple):
    """All that the page says besides samples.

    Attributes:
        name: of the workdir.
        description: the config in a line.
        facts: (name, value) of the run as a whole.
        charts: by group: "curves", "bound", "importance"; a group that is not there is left out.
        notes: a line on each group.
        bound: the evaluation whose terms are drawn.
        likelihoods, scores: every one.
        missing: reason by group.
        version: what made the page.
    """

    name: str
    description: str
    facts: list[tuple[str, str]]
    charts: dict[str, list[Chart]]
    notes: dict[str, str]
    bound: Result | None
    likelihoods: list[Result]
    scores: list[Result]
    missing: dict[str, str]
    version: str


def collect(workdir: Path, run: Run) -> Found:
    """Read what is there; what is not gets a line that says how to get it.

    Args:
        workdir: of the run.
        run: opened.
    """
    name = workdir.resolve().name
    as_figures = results.Run(name, workdir, run.config)
    missing, charts, notes = {}, {}, {}
    likelihoods, broken = _results(workdir, "nll", LIKELIHOOD)
    scores, broken_too = _results(workdir, "fid", SCORES)
    drawn = None
    for group, read in (
        ("curves", lambda: _curves(as_figures)),
        ("bound", lambda: _bound(as_figures)),
        ("importance", lambda: _importance(as_figures, run)),
    ):
        try:
            charts[group], notes[group] = read()
        except results.Missing as why:
            missing[group] = str(why)
    if "bound" in charts:
        drawn = next((r for r in likelihoods if r.file == notes["bound"]), None)
        notes["bound"] = _bound_note(drawn)
    if not likelihoods:
        missing.pop("bound", None)  # that says no more
        missing["bits/dim"] = f"{workdir / 'nll'} holds none; measure them with --mode nll"
    if not scores:
        missing["scores"] = f"{workdir / 'fid'} holds none; measure them with --mode fid"
    for path in (*broken, *broken_too):
        missing[path.name] = "it is not whole, or of an older version; measure it again"
    description, version = captions.description(as_figures), captions.version()
    facts = _facts(run, likelihoods if drawn is None else [drawn], scores)
    return Found(
        name,
        description,
        facts,
        charts,
        notes,
        drawn,
        likelihoods,
        scores,
        missing,
        version,
    )


def _facts(run: Run, likelihoods: list[Result], scores: list[Result]) -> list[tuple[str, str]]:
    """What one asks first."""
    state, config = run.state, run.config
    count = sum(a.size for a in jax.tree.leaves(state.params))
    step = int(state.step)
    facts = [("training step", f"{step:,}"), ("images seen", f"{step * config.train.batch_size:,}")]
    facts.append(("parameters", f"{count:,}"))
    for found in likelihoods[-1:]:
        r = found.record
        facts.append(("bits/dim", f"{r['bits_per_dim']:.3f} ± {r['standard_error']:.3f}"))
    scores = [found for found in scores if found.record["scores"]]
    if scores:
        best = max(scores, key=lambda found: found.record["samples_count"] or 0)
        score = best.record["scores"][0]
        error = "" if score.get("error") is None else f" ± {score['error']:.2g}"
        facts.append((score["name"], f"{score['value']:.3g}{error}"))
    return [*facts, ("seed", str(config.seed))]


def _results(workdir: Path, folder: str, keys: tuple[str, ...]) -> tuple[list[Result], list[Path]]:
    """Every result of a folder that has these keys, by name, and the files that have not."""
    found, broken = [], []
    for path in sorted((workdir / folder).glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            lacking = not isinstance(record, dict) or any(key not in record for key in keys)
        except (OSError, ValueError):
            lacking = True
        if lacking:
            broken.append(path)
            continue
        match = re.match(r"step(\d+)_", path.name)
        found.append(Result(f"{folder}/{path.name}", match and int(match[1]), record))
    return found, broken


def _curves(run: results.Run) -> tuple[list[Chart], str]:
    """Learning curves of a run."""
    columns = results.curves(run)
    if "l_vlb" not in columns:
        raise results.Missing(
            f"{run.folder / 'metrics.jsonl'} holds no curves; train in this workdir"
        )
    step = columns["step"]

    def series(key: str, name: str, style: str = "line") -> Series:
        return line(name, *averaged(step, columns[key]), style)

    charts = []
    for key, title in (("l_simple", "L_simple"), ("l_vlb", "L_vlb, bits/dim")):
        shown = [series(key, "all t", "bold")]
        shown += [series(key + q, name) for q, name in QUARTERS.items() if key + q in columns]
        if key == "l_vlb":
            measured = (name for name in columns if name.endswith("_bits_per_dim"))
            shown += [
                line(
                    f"measured, {name.removesuffix('_bits_per_dim')} split",
                    step,
                    columns[name],
                    "dots",
                )
                for name in measured
            ]
        charts.append(Chart(key, title, "training step", "y", shown))
    if "gradient_norm" in columns:
        norm = [series("gradient_norm", "L2 norm", "bold")]
        charts.append(Chart("gradient_norm", "Gradient norm", "training step", "y", norm))
    if "images_per_second" in columns:
        speed = [series("images_per_second", "images/s", "bold")]
        charts.append(Chart("images_per_second", "Images/s", "training step", "", speed))
    return charts, (
        "L_simple and L_vlb are estimates over evenly drawn t on training batches, of all t and by "
        "quarter of t. L_vlb of a quarter is T times its mean term, so that the four average to "
        "the whole. Training never clips the predicted x_0, which evaluation does by default."
    )


def _bound(run: results.Run) -> tuple[list[Chart], str]:
    """The terms of the bound and their sums; as a note, the file they come from."""
    figure = bound.terms([run])
    numbers = figure.numbers
    t = numbers["t"] + 1
    names = {
        "mean": "the model's own variance",
        "fixed_large": "fixed, beta",
        "fixed_small": "fixed, beta_tilde",
    }
    terms, sums = [], []
    for key, name in names.items():
        if f"{key}_l_t" in numbers:
            style = "bold" if key == "mean" else "line"
            terms.append(line(name, *binned(t, numbers[f"{key}_l_t"]), style))
            sums.append(line(name, *last_of_bins(t, numbers[f"{key}_cumulated"]), style))
    charts = [
        Chart("terms", "Terms of the bound, bits/dim", "diffusion step t", "xy", terms),
        Chart("sums", "Their sum up to t, bits/dim", "diffusion step t", "x", sums),
    ]
    return charts, f"nll/{figure.files[0].with_suffix('.json').name}"


def _bound_note(found: Result | None) -> str:
    if found is None:
        return ""
    r = found.record
    some = "all" if r["terms"] == r["steps"] else f"{r['terms']:,} random ones of the"
    return (
        f"Means over {r['images']:,} images, {some} {r['steps']:,} terms of each. t counts from 1, "
        f"as in the paper.{_BINNED if r['steps'] > POINTS else ''}"
    )


def _importance(run: results.Run, opened: Run) -> tuple[list[Chart], str]:
    """The weights of the next draw, and how even they were on the way."""
    history = opened.state.history
    if history is None:
        raise results.Missing(
            "t was drawn evenly, without a history of losses; train with a config such as "
            "configs/digits.py:l_vlb, or --config.loss.timesteps=importance"
        )
    p = importance.probabilities(history, opened.config.loss.uniform_share)
    T, full = len(p), int(np.sum(importance.warmed_up(history)))
    share = float(importance.effective_sample_size(p))
    t, times = binned(np.arange(T) + 1, np.asarray(p, np.float64) * T)
    shown = [line("T p_t", t, times, "bold"), line("weight 1 / (T p_t)", t, 1 / times)]
    charts = [
        Chart("weights", "How often t is drawn; 1 is evenly", "diffusion step t", "xy", shown)
    ]
    columns = results.curves(run)
    named = {"effective_sample_size": "effective sample size", "warmed_up": "full histories"}
    on_the_way = [
        line(name, *averaged(columns["step"], columns[key]), style)
        for (key, name), style in zip(named.items(), ("bold", "line"), strict=True)
        if key in columns
    ]
    if on_the_way:
        title = "Effective sample size and full histories, shares"
        charts.append(Chart("sample_size", title, "training step", "", on_the_way))
    state = "" if full == T else "; t is drawn evenly until all are"
    return charts, (
        f"{full:,} of {T:,} steps have a full history of {opened.config.loss.history_size} "
        f"losses{state}. The effective sample size is {share:.1%} of the draws."
    )


POINTS = 400
"""Of a curve against t, at most."""

_BINNED = " Where steps are many, a point is the mean of its neighbours."


def _edges(count: int) -> np.ndarray:
    """Where bins begin that are about equally wide on a logarithmic axis, in order; the end too."""
    if count <= POINTS:
        return np.arange(count + 1)
    return np.unique(np.geomspace(1, count + 1, POINTS + 1).round().astype(int)) - 1


def binned(t: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of neighbours, few enough to draw.

    Args:
        t: ascending [K].
        value: at each [K]; NaN counts for nothing.

    Returns:
        (mean t, mean value) of each bin in which something is known.
    """
    edges = _edges(len(t))
    parts = [np.arange(*pair) for pair in zip(edges[:-1], edges[1:], strict=True)]
    known = [part[~np.isnan(value[part])] for part in parts]
    known = [part for part in known if part.size]
    return np.array([t[k].mean() for k in known]), np.array([value[k].mean() for k in known])


def last_of_bins(t: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same of sums, of which a bin's last one counts."""
    last = _edges(len(t))[1:] - 1
    return t[last], value[last]
