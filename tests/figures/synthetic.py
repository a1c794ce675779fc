"""Workdirs with made-up results, under the names and in the form that the package writes."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from tiny_config import tiny

from iddpm_jax import config as configs
from iddpm_jax.evaluation import names
from iddpm_jax.evaluation.likelihood import Bound, Likelihood
from iddpm_jax.figures.results import Run


def stored_run(folder: Path, **changes: object) -> Run:
    """A workdir that holds a config alone."""
    config = tiny(data__image_shape=(8, 8, 1), data__num_classes=10, **changes)
    folder.mkdir(parents=True)
    configs.save(config, folder / "config.json")
    return Run(folder.name, folder, config)


def with_state(run: Run, step: int, **changes: object) -> SimpleNamespace:
    """What names.py reads of an opened run."""
    config = run.config.copy_and_resolve_references()
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    model = SimpleNamespace(spec=SimpleNamespace(dtype="float32"), low_res_shape=None)
    return SimpleNamespace(config=config, model=model, state=SimpleNamespace(step=step))


def add_likelihood(
    run: Run, steps: int, images: int = 7, terms: int = 0, step: int = 4, seed: int = 0
) -> Likelihood:
    """An evaluation in nll/ with random terms."""
    rng = np.random.default_rng(seed)
    t = np.arange(steps) * run.config.diffusion.T // steps
    l_t = rng.gamma(2.0, 1.0, (images, steps)).astype(np.float32) / (1 + t)
    weight = np.ones(steps, int)
    if terms:
        weight *= steps // terms
        for row in l_t:
            row[rng.permutation(steps)[terms:]] = np.nan
    total = np.nansum(l_t * weight, axis=1, dtype=np.float64)
    known = ~np.isnan(l_t)
    mean = np.where(known.any(axis=0), np.nansum(l_t, axis=0) / known.sum(axis=0).clip(1), np.nan)
    others = {
        name: Bound(total * factor, mean * factor)
        for name, factor in (("fixed_large", 1.5), ("fixed_small", 30.0), ("unclipped", 2.0))
    }
    found = Likelihood(
        t, weight, l_t, l_t, l_t, np.zeros(images, np.float32), total[:, None], others
    )
    opened = with_state(run, step, nll__steps=str(steps), nll__terms=terms)
    path = names.likelihood_file(run.folder, opened, run.config.nll.ema_rate)
    found.save(path, json.loads(json.dumps(opened.config.to_dict())), {})
    return found


def add_scores(
    run: Run,
    sampler: str,
    steps: str,
    values: dict[str, float],
    error: float | None,
    count: int = 200,
    step: int = 4,
    **changes: object,
) -> None:
    """A comparison in fid/, as quality.measure writes it."""
    opened = with_state(run, step, sample__sampler=sampler, sample__steps=steps, **changes)
    folder = names.sample_folder(run.folder, opened)
    record = {
        "samples": str(folder / f"samples_{count}x8x8x1.npz"),
        "samples_count": count,
        "reference": "the train split of digits",
        "network": "digits",
        "preprocessing": "",
        "settings": {"neighbours": 3},
        "scores": [
            {"name": name, "value": value, "error": error, "better": _better(name)}
            for name, value in values.items()
        ],
    }
    (run.folder / "fid").mkdir(exist_ok=True)
    path = run.folder / "fid" / f"{folder.name}_samples_{count}x8x8x1_vs_digits_train.json"
    path.write_text(json.dumps(record))


def _better(name: str) -> str:
    return "higher" if name.startswith(("IS", "precision", "recall")) else "lower"


def add_curves(run: Run, rows: list[dict]) -> None:
    """metrics.jsonl."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (run.folder / "metrics.jsonl").write_text(text)


def curve_row(step: int, l_vlb: float = 4.0, **more: float) -> dict:
    """A row of metrics.jsonl."""
    quarters = {f"{name}_q{q}": 0.1 * (q + 1) for name in ("l_simple", "l_vlb") for q in range(4)}
    return {"step": step, "l_simple": 0.5 / step, "l_vlb": l_vlb, **quarters, **more}
