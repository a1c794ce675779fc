"""--mode gradients: the noise of every objective's gradient, checkpoint by checkpoint, in files."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from iddpm_jax import build
from iddpm_jax.diffusion import importance
from iddpm_jax.errors import InputError
from iddpm_jax.evaluation.gradient_measurement import Measurement, Row
from iddpm_jax.evaluation.gradient_noise import Value, compare
from iddpm_jax.evaluation.names import gradients_file
from iddpm_jax.evaluation.parts import from_main, told_apart
from iddpm_jax.training.checksum import digest
from iddpm_jax.training.parallel import is_main_process
from iddpm_jax.training.runs import Run, open_run, saved_steps

DRAWN = {"uniform": "evenly", "importance": "by importance"}

EXPLANATION = """\
noise scale  images in a batch whose noise is as large as the gradient itself: tr(Sigma) / |G|^2.
             Smaller batches spend images well, much larger ones hardly train faster per step
|G|^2        squared length of the gradient without noise; tr(Sigma): variance of one image's
|g|          length of a batch's gradient, and its standard deviation between batches
loss         mean, and the standard deviation of one image's
">": |G|^2 is lost in the noise, so the scale has a lower bound only; more gradients.batches help.
What the numbers mean: docs/metrics.md"""


def measure(config: ConfigDict, workdir: Path, checkpoint: str | None) -> Iterator[str]:
    """Measure one checkpoint or every one, and write gradients/ of the workdir.

    Each checkpoint has files of its own, .json and .npz, written when all of it is measured; what
    is there already with the same settings is shown again.

    Args:
        config: of the run; its gradients part is read.
        workdir: of the run.
        checkpoint: "best" or a step; None for all that are kept.

    Yields:
        Lines for people.

    Raises:
        InputError: see open_run and Measurement.
    """
    wanted = [checkpoint] if checkpoint else [str(step) for step in saved_steps(workdir)]
    measurement = None
    for number, name in enumerate(wanted, 1):
        run = open_run(workdir, config, name)
        if measurement is None:
            measurement = Measurement(config, run.model, run.mesh)
            yield from _left_out(run.model)
        path = gradients_file(workdir, run)
        _make_folder(path.parent)
        made_by = _made_by(run, measurement)
        if not from_main(_is_there(path, made_by)):
            describe = f"step {int(run.state.step):,} ({number} of {len(wanted)})"
            rows = list(measurement.rows(run.state, describe))
            if is_main_process():
                _save(path, rows, made_by, run)
        if is_main_process():
            yield from [*table(json.loads(path.read_text())), f"as JSON: {path} (and .npz)", ""]
    yield EXPLANATION


def _left_out(model: build.Model) -> Iterator[str]:
    variance = model.parametrization.variance
    if not model.parametrization.learns_variance:
        yield f"L_hybrid is left out: it trains a learned variance, and this model's is {variance}"


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)  # or it might be measured for nothing
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror})") from None


def _made_by(run: Run, measurement: Measurement) -> dict:
    """All that decides the rows of a checkpoint but rounding, of JSON's types."""
    c = run.config
    return {
        "gradients": c.gradients.to_dict(),
        "weights": digest(run.state.params),
        "data": [c.data.name, *told_apart(measurement.source), c.data.random_flip]
        + [c.data.random_crop],
        "diffusion": c.diffusion.to_dict(),
        "loss": c.loss.to_dict(),
        "model": {**c.model.to_dict(), "dtype": run.model.spec.dtype},
    }


def _is_there(path: Path, made_by: dict) -> bool:
    try:
        record = json.loads(path.read_text())
        return record["made_by"] == json.loads(json.dumps(made_by))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _save(path: Path, rows: list[Row], made_by: dict, run: Run) -> None:
    """The .json with the estimates and, before it, the .npz with what they are made of."""
    sums = {(row.objective, row.timesteps): row.sums for row in rows}
    by_importance = [objective for objective, timesteps in sums if timesteps == "importance"]
    compared = {o: compare(sums[o, "importance"], sums[o, "uniform"]) for o in by_importance}
    record = {
        "step": int(run.state.step),
        "rows": [_row(row) for row in rows],
        "importance": {name: _numbers(found._asdict()) for name, found in compared.items()},
        "made_by": made_by,
        "settings": run.config.to_dict(),
    }
    arrays = {}
    for row in rows:
        prefix = f"{row.objective}_{row.timesteps}_"
        arrays |= {prefix + name: value for name, value in row.sums._asdict().items()}
        if row.timesteps == "importance":
            arrays[prefix + "p"] = row.p
    np.savez_compressed(path.with_suffix(".npz"), **arrays)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(record, indent=1) + "\n")
    unfinished.replace(path)


def _row(row: Row) -> dict:
    """A row of JSON's types: null for what is not known."""
    found = {"objective": row.objective, "timesteps": row.timesteps, "history": row.history}
    found["effective_sample_size"] = float(importance.effective_sample_size(row.p))
    noise = row.noise._asdict().items()
    return found | _numbers({f"noise_{n}" if n.startswith("scale") else n: v for n, v in noise})


def _numbers(values: dict[str, Value | float | bool]) -> dict:
    """Values and NAME_error of JSON's types."""
    found = {}
    for name, value in values.items():
        if isinstance(value, Value):
            found |= {name: _finite(value.value), f"{name}_error": _finite(value.error)}
        else:
            found[name] = _finite(value)
    return found


def _finite(value: float | bool) -> float | bool | None:
    return value if math.isfinite(value) else None


def table(record: dict) -> Iterator[str]:
    """Lines of one checkpoint for people, from what its .json holds."""
    size = record["made_by"]["gradients"]
    yield (
        f"step {record['step']:,}: gradients of {size['batches']} batches of {size['batch_size']} "
        f"training images"
    )
    yield (
        f"{'loss':10}{'t drawn':14}{'noise scale':>20}{'|G|^2':>22}{'tr(Sigma)':>20}"
        f"{'|g|':>19}{'loss':>19}"
    )
    for row in record["rows"]:
        yield (
            f"{_name(row['objective']):10}{DRAWN[row['timesteps']]:14}{_scale(row):>20}"
            f"{_with_error(row, 'squared_gradient'):>22}{_with_error(row, 'variance'):>20}"
            f"{_spread(row, 'norm'):>19}{_spread(row, 'loss'):>19}"
        )
    for name, found in record["importance"].items():
        line = (
            f"{_name(name)}: drawing t by importance multiplies tr(Sigma) by "
            f"{found['factor']:.3g} +- {found['factor_error']:.1g}"
        )
        if found["scale_evenly"] is not None:
            scale, error = _count(found["scale_evenly"]), _count(found["scale_evenly_error"])
            line += f"; with its |G|^2 the noise scale drawn evenly is {scale} +- {error}"
        yield line


def _name(objective: str) -> str:
    """The paper's way of writing a loss: l_vlb -> L_vlb."""
    return objective.capitalize()


def _scale(row: dict) -> str:
    if not row["resolved"]:
        least = row["noise_scale_at_least"]
        return "unknown" if least is None else f"> {_count(least)}"
    return f"{_count(row['noise_scale'])} +- {_count(row['noise_scale_error'])}"


def _count(value: float) -> str:
    """A number of images: three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _with_error(row: dict, name: str) -> str:
    return f"{row[name]:.3g} +- {row[f'{name}_error']:.1g}"


def _spread(row: dict, name: str) -> str:
    return f"{row[name]:.3g} ({math.sqrt(row[f'{name}_variance']):.2g})"
