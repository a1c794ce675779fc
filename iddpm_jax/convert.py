"""Weights in files <-> a workdir: OpenAI's releases come in, and what is trained here goes out."""

import hashlib
import json
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
from iddpm_jax.training import runs
from iddpm_jax.training.checkpoint import Checkpoints
from iddpm_jax.training.parallel import replicated
from iddpm_jax.training.state import Params, TrainState


class Sources(NamedTuple):
    """Which file is what: the parameters, each average by its rate, and the training step."""

    model: Path
    ema: dict[float, Path]
    step: int


def find_sources(source: Path, ema_rates: tuple[float, ...], main_rate: float) -> Sources:
    """Files to read.

    Args:
        source: a file, used for the parameters and every average, or a folder: OpenAI's
            (model500000.pt, ema_0.9999_500000.pt; the newest step is taken) or one written by
            to_files (model.pt, ema.pt, ema_0.999.pt).
        ema_rates: the averages that the run has.
        main_rate: the one that a file named plain "ema" holds.

    Returns:
        Sources; step 0 where no name tells it.

    Raises:
        InputError: nothing there, or an average is missing.
    """
    if not source.is_dir():
        return Sources(source, dict.fromkeys(ema_rates, source), openai.step_of(source.name))
    model = openai.newest_model(source)
    if model is None:
        raise InputError(
            f"--source {source} holds no model*.pt or model*.safetensors; name the file itself"
        )
    step = openai.step_of(model.name)
    ema = {}
    for rate in ema_rates:
        names = [f"ema_{rate}_{step:06d}", f"ema_{rate}", *(["ema"] if rate == main_rate else [])]
        paths = [source / f"{name}{model.suffix}" for name in names]
        found = next((path for path in paths if path.exists()), None)
        if found is None:
            raise InputError(
                f"--source {source} has no {' or '.join(path.name for path in paths)} beside "
                f"{model.name}; set train.ema_rates to the averages there are, or name one file to "
                "use it for all"
            )
        ema[rate] = found
    return Sources(model, ema, step)


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
    sources = find_sources(source, tuple(config.train.ema_rates), _main_rate(config))
    state, step, read = _new_state(config, model, mesh, sources)
    build.settle(config, model)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with Checkpoints(workdir / "checkpoints", config.train.keep_checkpoints) as checkpoints:
            if checkpoints.latest is not None:
                raise InputError(
                    f"{workdir} already holds checkpoints; convert into another --workdir"
                )
            configs.save(config, workdir / "config.json")
            origin = {path.name: _sha256(path) for path in read}
            record = json.dumps({"step": step, "sha256": origin}, indent=2)
            (workdir / configs.CONVERTED).write_text(record + "\n")
            checkpoints.save(step, state, None, config.to_dict(), donated=False)
    except OSError as error:
        raise InputError(f"--workdir {workdir} cannot be written ({error.strerror})") from None
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    command = f"python -m iddpm_jax.main --workdir {workdir}"
    return [
        f"{count:,} parameters from {', '.join(origin)}, step {step:,}, are now in {workdir}",
        f"samples:     {command} --mode sample",
        f"bits/dim:    {command} --mode nll",
        f"fine-tuning: {command} --config.train.steps={step + 10000}",
    ]


def _new_state(
    config: ConfigDict, model: build.Model, mesh: Mesh, sources: Sources
) -> tuple[TrainState, int, list[Path]]:
    """A train state with the weights in the files, its step, and the files read."""
    params, metadata = _read(model, sources.model)
    written = metadata.get("step", "")
    step = sources.step or (int(written) if written.isdecimal() else 0)
    read = {sources.model: params}
    for path in sources.ema.values():
        if path not in read:
            read[path], _ = _read(model, path)
    ema = {str(rate): read[path] for rate, path in sources.ema.items()}
    empty = jax.eval_shape(runs.new_state(config, model, mesh))
    opt_state, history = jax.tree.map(
        lambda a: np.zeros(a.shape, a.dtype), (empty.opt_state, empty.history)
    )
    scale = runs.new_loss_scale(config)
    state = TrainState(np.int32(step), params, ema, opt_state, history, scale)
    return jax.device_put(state, replicated(mesh)), step, list(read)


def _main_rate(config: ConfigDict) -> float:
    """The average that samples use: a file named plain "ema" holds it."""
    rates = config.train.ema_rates
    return config.sample.ema_rate or (rates[0] if rates else 0.0)


def to_files(
    config: ConfigDict, model: build.Model, state: TrainState, target: Path, form: str
) -> list[Path]:
    """Write parameters and averages under OpenAI's names and shapes.

    Args:
        config: of the run; stored in safetensors files, so that they convert back without one.
        model: built from it.
        state: what to write.
        target: folder, made if missing.
        form: suffix of the files, "pt" or "safetensors".

    Returns:
        Files written: model, then the average that samples use as ema, then ema_RATE for others.

    Raises:
        InputError: the folder cannot be written.
    """
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--target {target} cannot be written ({error.strerror})") from None
    main = _main_rate(config)
    named: dict[str, Params] = {"model": state.params}
    for rate in sorted(config.train.ema_rates, key=lambda rate: rate != main):
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
