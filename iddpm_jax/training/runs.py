"""A run's state and step from its config, and a workdir opened for use."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from iddpm_jax import build
from iddpm_jax import config as configs
from iddpm_jax.diffusion import importance
from iddpm_jax.errors import InputError
from iddpm_jax.training import loss_scale
from iddpm_jax.training.checkpoint import Checkpoints
from iddpm_jax.training.feed import drawing
from iddpm_jax.training.parallel import fsdp_sharding, make_mesh, replicated
from iddpm_jax.training.state import TrainState, init_state
from iddpm_jax.training.step import (
    StepSettings,
    make_train_step,
    several_steps,
    steps_on_split,
)


def _init(config: ConfigDict, model: build.Model) -> Callable[[], TrainState]:
    """A function that makes the state before the first step."""
    loss = config.loss

    def init() -> TrainState:
        history = None
        if loss.timesteps == "importance":
            history = importance.init(model.process.T, loss.history_size)
        return init_state(
            jax.random.key(config.seed),
            model.network,
            model.image_shape,
            build.optimizer(config),
            config.train.ema_rates,
            history,
            new_loss_scale(config),
        )

    return init


def state_shardings(config: ConfigDict, model: build.Model, mesh: Mesh) -> TrainState:
    """Where each array of the train state lives: a TrainState of shardings.

    Parameters, averages and optimizer state are cut over the mesh's "fsdp" axis; the little else
    there is lies on every device.
    """
    shapes = jax.eval_shape(_init(config, model))
    whole = jax.tree.map(lambda _: replicated(mesh), shapes)
    cut = jax.tree.map(lambda a: fsdp_sharding(mesh, a.shape), shapes)
    return dataclasses.replace(whole, params=cut.params, ema=cut.ema, opt_state=cut.opt_state)


def new_state(config: ConfigDict, model: build.Model, mesh: Mesh) -> Callable[[], TrainState]:
    """A compiled function that makes the state before the first step, on the devices."""
    return jax.jit(_init(config, model), out_shardings=state_shardings(config, model, mesh))


def abstract_state(config: ConfigDict, model: build.Model, mesh: Mesh) -> TrainState:
    """The train state without its values: shapes, types and shardings."""
    return jax.tree.map(
        lambda a, sharding: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding),
        jax.eval_shape(_init(config, model)),
        state_shardings(config, model, mesh),
    )


def new_loss_scale(config: ConfigDict) -> loss_scale.LossScale | None:
    """The loss scale before the first step; None but for float16."""
    return loss_scale.init() if config.model.dtype == "float16" else None


class Run(NamedTuple):
    """A trained workdir, ready for use."""

    config: ConfigDict
    model: build.Model
    mesh: Mesh
    state: TrainState


def saved_steps(workdir: Path) -> list[int]:
    """Steps of all whole checkpoints of a workdir, ascending.

    Raises:
        InputError: there is none.
    """
    folder = workdir / "checkpoints"
    if folder.is_dir():
        with Checkpoints(folder, None) as checkpoints:
            if checkpoints.steps:
                return checkpoints.steps
    raise InputError(f"{workdir} holds no checkpoints; train first with --mode train")


def open_run(workdir: Path, config: ConfigDict | None = None, checkpoint: str | None = None) -> Run:
    """Read a checkpoint of a workdir, on all devices.

    Args:
        workdir: of a run that has saved.
        config: the run's, perhaps with other sample and nll parts; by default as it is stored.
        checkpoint: "best", or a step; None for the newest that is whole.

    Returns:
        Run.

    Raises:
        InputError: no checkpoint, or a damaged one.
    """
    folder, file = workdir / "checkpoints", workdir / "config.json"
    config = configs.load(file) if config is None else config
    model, mesh = build.model(config), make_mesh()
    if not folder.is_dir():
        raise InputError(f"{workdir} holds no checkpoints; train first with --mode train")
    with Checkpoints(folder, None) as checkpoints:
        # The arrays are those of the run as it was trained.
        step = None
        if checkpoint == "best":
            step = checkpoints.best
            if step is None:
                raise InputError(
                    f"no checkpoint in {folder} was evaluated, so none is the best; leave out "
                    "--checkpoint, or train with train.evaluate_every_steps"
                )
        elif checkpoint is not None:
            step = int(checkpoint)
        state, _ = restore(configs.load(file), model, mesh, checkpoints, step)
    return Run(config, model, mesh, state)


def restore(
    config: ConfigDict,
    model: build.Model,
    mesh: Mesh,
    checkpoints: Checkpoints,
    step: int | None = None,
) -> tuple[TrainState, dict | None]:
    """A saved state and data position.

    Args:
        config: of the run.
        model: built from it.
        mesh: devices to put the state on; any number of them.
        checkpoints: of the run.
        step: which one; None for the newest that is whole.

    Returns:
        (state, position of the data iterator; None for converted weights).

    Raises:
        InputError: no checkpoint, or a damaged one.
    """
    return checkpoints.restore(abstract_state(config, model, mesh), step)


def step_settings(config: ConfigDict, model: build.Model) -> StepSettings:
    """What a step of a config needs besides the model."""
    return StepSettings(
        seed=config.seed,
        microbatches=config.train.microbatches,
        ema_rates=tuple(config.train.ema_rates),
        uniform_share=config.loss.uniform_share,
        num_classes=model.spec.num_classes,
        label_dropout=config.model.label_dropout,
        dropout=config.model.dropout > 0,
        low_res_shape=model.low_res_shape,
        low_res_noise=config.train.low_res_noise,
    )


def step_function(config: ConfigDict, model: build.Model, mesh: Mesh) -> Callable:
    """The jitted training step of a config; see step.make_train_step."""
    return make_train_step(
        model.network,
        model.process,
        model.parametrization,
        model.objective,
        build.optimizer(config),
        build.learning_rate(config),
        step_settings(config, model),
        mesh,
        state_shardings(config, model, mesh),
    )


def dispatch_function(config: ConfigDict, model: build.Model, mesh: Mesh) -> Callable:
    """What the loop calls: the training step or, with train.steps_per_dispatch, several in one.

    Its second argument is what the feed of the config gives (feed.open_feed).
    """
    step, count = step_function(config, model, mesh), config.train.steps_per_dispatch
    shardings = state_shardings(config, model, mesh)
    if config.data.resident:
        flip = config.data.random_flip
        draw = drawing(config.seed, config.train.batch_size, flip, mesh)
        return steps_on_split(step, draw, count, shardings, mesh)
    return step if count == 1 else several_steps(step, shardings, mesh)
