"""Fine-tuning: the parameters of another run, or of a file, as the start of a new one."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from iddpm_jax import build
from iddpm_jax.errors import InputError
from iddpm_jax.interop import openai, weights
from iddpm_jax.training.parallel import place
from iddpm_jax.training.runs import open_run
from iddpm_jax.training.state import Params, TrainState

CLASSES = "class_embedding"


def read(config: ConfigDict, model: build.Model) -> Params | None:
    """Parameters to start from; the class embedding is left out where the classes are others.

    Args:
        config: init_from names a workdir, of which the average that it samples with is taken, or a
            file of weights under OpenAI's names; "" for none.
        model: the model they shall fit, but for its classes.

    Returns:
        Nested dict of numpy arrays, or None.

    Raises:
        InputError: nothing there, unreadable, or another network's.
    """
    if not config.init_from:
        return None
    source = Path(config.init_from)
    if not source.exists():
        raise InputError(
            f"init_from {source} does not exist; name a workdir, or a file of weights (.pt, "
            ".safetensors)"
        )
    try:
        params = _of_workdir(source) if source.is_dir() else _of_file(source, model)
        wanted = openai.shapes(model.spec)
        if _rows(params) != _rows(wanted):
            params = {name: part for name, part in params.items() if name != CLASSES}
            wanted = {name: part for name, part in wanted.items() if name != CLASSES}
        _check_same(params, wanted)
    except ValueError as error:
        raise InputError(f"init_from {source} does not fit this config: {error}") from None
    return params


def _of_workdir(workdir: Path) -> Params:
    run = open_run(workdir)
    return jax.device_get(run.state.weights(run.config.sample.ema_rate))


def _of_file(path: Path, model: build.Model) -> Params:
    arrays, _ = weights.read(path)
    rows = np.shape(arrays["label_emb.weight"])[0] if "label_emb.weight" in arrays else 0
    spec = dataclasses.replace(model.spec, num_classes=rows, null_class=False)
    return openai.from_state_dict(spec, arrays)


def _rows(params: Params) -> int:
    """Rows of the class embedding, 0 without one."""
    return next((leaf.shape[0] for leaf in jax.tree.leaves(params.get(CLASSES))), 0)


def _check_same(params: Params, wanted: Params) -> None:
    found, expected = (
        {jax.tree_util.keystr(path): leaf.shape for path, leaf in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, (params, wanted))
    )
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise ValueError(
                f"{name} is {found.get(name, 'missing')} there and "
                f"{expected.get(name, 'missing')} here; set the model part of the config as that "
                "run has it"
            )


def start_from(state: TrainState, params: Params) -> TrainState:
    """The state before the first step of fine-tuning: nothing but the parameters is carried over.

    Args:
        state: a new one. A class embedding that params lacks is taken from it.
        params: from read.

    Returns:
        TrainState with new averages, which start as copies, on the devices of the one given.
    """
    params = {
        name: place(params[name], jax.tree.map(lambda a: a.sharding, part))
        if name in params
        else part
        for name, part in state.params.items()
    }
    ema = {rate: jax.tree.map(jnp.copy, params) for rate in state.ema}
    return dataclasses.replace(state, params=params, ema=ema)
