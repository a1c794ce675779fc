"""Weights in files <-> a workdir: OpenAI's releases come in, and what is trained here goes out."""

import hashlib
import json
import re
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from iddpm_jax import build
from iddpm_jax import config as configs
from iddpm_jax.errors import InputError
from iddpm_jax.interop import openai, weights
from iddpm_jax.training import loop
from iddpm_jax.training.checkpoint import Checkpoints
from iddpm_jax.training.parallel import replicated
from iddpm_jax.training.state import Params, TrainState

FORMATS = ("pt", "safetensors")


class Sources(NamedTuple):
    """Which file is what: the parameters, each average by its rate, and the training step."""

    model: Path
    ema: dict[float, Path]
    step: int


def find_sources(source: Path, ema_rates: tuple[float, ...]) -> Sources:
    """Files to read.

    Args:
        source: a file, used for the parameters and every average, or a folder: OpenAI's
            (model500000.pt, ema_0.9999_500000.pt; the newest step is taken) or one written by
            to_files (model.pt, ema.pt).
        ema_rates: the averages that the run has.

    Returns:
        Sources; step 0 where no name tells it.

    Raises:
        InputError: nothing there, or an average is missing.
    """
    if not source.is_dir():
        return Sources(source, dict.fromkeys(ema_rates, source), step_of(source.name))
    models = [p for p in source.iterdir() if re.fullmatch(r"model\d*\.(pt|safetensors)", p.name)]
    if not models:
        raise InputError(
            f"--source {source} holds no model*.pt or model*.safetensors; name the file itself"
        )
    model = max(models, key=lambda path: (step_of(path.name), path.name))
    step = step_of(model.name)
    ema = {}
    for rate in ema_rates:
        names = [f"ema_{rate}_{step:06d}", f"ema_{rate}", *(["ema"] if len(ema_rates) == 1 else [])]
        paths = [source / f"{name}{model.suffix}" for name in names]
        found = next((path for path in paths if path.exists()), None)
        if found is None:
            raise InputError(
                f"--source {source} has no {names[0]}{model.suffix} beside {model.name}; set "
                "train.ema_rates to the averages there are, or name one file to use it for all"
            )
        ema[rate] = found
    return Sources(model, ema, step)


def step_of(name: str) -> int:
    """Training step in a file's name: model123456.pt, ema_0.9999_123456.pt, ..._500K.pt; else 0."""
    average = re.fullmatch(r"ema_[\d.]+_(\d+)\.pt", name)
    thousands = re.search(r"_(\d+)K[_.]", name)
    if average:
        return int(average.group(1))
    return int(thousands.group(1)) * 1000 if thousands else openai.step_from_filename(name)


def from_files(
    config: ConfigDict, model: build.Model, mesh: Mesh, source: Path, workdir: Path
) -> list[str]:
    """Make a workdir from files of weights; the optimizer starts anew.

    Args:
        config: of the network in the files, and for what shall follow.
        model: built from it.
        mesh: one device is enough.
        source: see find_sources.
        workdir: must hold no checkpoints.

    Returns:
        Lines that say what was done.

    Raises:
        InputError: unreadable files, another network's, or a workdir in use.
    """
    folder = workdir / "checkpoints"
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{workdir} already holds checkpoints; convert into another --workdir")
    sources = find_sources(source, tuple(config.train.ema_rates))
    params, metadata = _read(model, sources.model)
    step = sources.step or int(metadata.get("step", "0"))
    read = {sources.model: params}
    for path in sources.ema.values():
        if path not in read:
            read[path], _ = _read(model, path)
    ema = {str(rate): read[path] for rate, path in sources.ema.items()}
    empty = jax.eval_shape(loop.new_state(config, model, mesh))
    rest = {
        key: jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), getattr(empty, key))
        for key in ("opt_state", "history")
    }
    state = jax.device_put(
        TrainState(np.int32(step), params, ema, **rest, loss_scale=loop.new_loss_scale(config)),
        replicated(mesh),
    )

    build.settle(config, model)
    workdir.mkdir(parents=True, exist_ok=True)
    configs.save(config, workdir / "config.json")
    with Checkpoints(folder, config.train.keep_checkpoints) as checkpoints:
        checkpoints.save(step, state, None, config.to_dict())
    origin = {path.name: _sha256(path) for path in read}
    record = {"step": step, "sha256": origin}
    (workdir / configs.CONVERTED).write_text(json.dumps(record, indent=2) + "\n")
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    return [
        f"{count:,} parameters from {', '.join(origin)}, step {step:,}, are now in {workdir}",
        f"samples:     python -m iddpm_jax.main --workdir {workdir} --mode sample",
        f"bits/dim:    python -m iddpm_jax.main --workdir {workdir} --mode nll",
        f"fine-tuning: python -m iddpm_jax.main --workdir {workdir} "
        f"--config.train.steps={max(step, config.train.steps) + 10000}",
    ]


def to_files(
    config: ConfigDict, model: build.Model, state: TrainState, target: Path, form: str
) -> list[Path]:
    """Write parameters and averages under OpenAI's names and shapes.

    Args:
        config: of the run; stored in safetensors files, so that they convert back without one.
        model: built from it.
        state: what to write.
        target: folder, made if missing.
        form: one of FORMATS.

    Returns:
        Files written: model, then the average that samples use as ema, then ema_RATE for others.

    Raises:
        InputError: the folder cannot be written.
    """
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--target {target} cannot be written ({error.strerror})") from None
    rates = list(config.train.ema_rates)
    main = config.sample.ema_rate or (rates[0] if rates else 0)
    named: dict[str, Params] = {"model": state.params}
    for rate in sorted(rates, key=lambda rate: rate != main):
        named["ema" if rate == main else f"ema_{rate}"] = state.weights(rate)
    metadata = {"step": str(int(state.step)), "config": json.dumps(config.to_dict())}
    written = []
    for name, params in tqdm(named.items(), desc="writing", unit="file", leave=False):
        path = target / f"{name}.{form}"
        weights.write(path, openai.to_state_dict(model.spec, params), metadata)
        written.append(path)
    return written


def _read(model: build.Model, path: Path) -> tuple[Params, dict[str, str]]:
    """Parameters in a file, and its metadata."""
    arrays, metadata = weights.read(path)
    try:
        return openai.from_state_dict(model.spec, arrays), metadata
    except ValueError as error:
        raise InputError(f"{path} does not fit the config: {error}") from None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
