"""The run: next batch, step, log the step before, save, sample, stop. Nothing numerical.

A dispatch is one call of the compiled program: a step, or train.steps_per_dispatch of them. What a
run does between steps it does between dispatches, which begin at multiples of that number: so a run
that was killed makes the same calls.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from iddpm_jax import allocator, build
from iddpm_jax.errors import DivergedError, InputError
from iddpm_jax.models.layout import layout
from iddpm_jax.training import loss_scale
from iddpm_jax.training.checkpoint import Checkpoints
from iddpm_jax.training.feed import Feed, open_feed
from iddpm_jax.training.finetune import start_from
from iddpm_jax.training.metrics import Reporter
from iddpm_jax.training.parallel import check_batch, check_processes, is_main_process
from iddpm_jax.training.runs import dispatch_function, new_state, restore
from iddpm_jax.training.state import Params, TrainState
from iddpm_jax.training.stopping import StopRequest
from iddpm_jax.training.watchdog import Watchdog

# Measured on two CPU cores with the models of configs/digits.py and configs/cifar10.py.
COMPILE_SECONDS_PER_LAYER = 0.6


class Hooks(NamedTuple):
    """What a run asks of the rooms above it, in all processes at once.

    Attributes:
        preview: (parameters, step) -> grid of samples, uint8 [H, W, C], written to disk as well;
            every train.sample_every_steps.
        evaluate: state -> bits/dim on a few images of a split; every train.evaluate_every_steps.
    """

    preview: Callable[[Params, int], np.ndarray]
    evaluate: Callable[[TrainState], float]


def train(
    config: ConfigDict,
    model: build.Model,
    mesh: Mesh,
    workdir: Path,
    hooks: Hooks,
    initial: Params | None = None,
) -> TrainState | None:
    """Train to config.train.steps, from the newest checkpoint in workdir if there is one.

    Args:
        config: checked and, where the workdir has one, equal to the run's.
        model: built from it.
        mesh: devices that share each batch.
        workdir: checkpoints/, metrics.jsonl, progress.csv and tensorboard/ are written here.
        hooks: samples and bits/dim on the way.
        initial: parameters that a new run starts from, of finetune.read; None for random ones.

    Returns:
        The final state, or None if the run was asked to stop early (it is saved).

    Raises:
        InputError: no checkpoint that is whole, one that cannot be written, or a batch
            that the devices cannot share.
        DivergedError: the loss is not finite.
    """
    settings = config.train
    check_batch(mesh, settings.batch_size, settings.microbatches)
    check_processes(config.to_json())
    feed = open_feed(config, model, mesh)
    kept = (settings.keep_checkpoints, settings.keep_best, settings.keep_every_steps)
    with Checkpoints(workdir / "checkpoints", *kept) as checkpoints:
        if checkpoints.latest is None:
            state = new_state(config, model, mesh)()
            if initial is not None:
                state = start_from(state, initial)
                print(f"starting from {config.init_from}")
        else:
            state, position = restore(config, model, mesh, checkpoints)
            if position is not None:  # converted weights have seen no data here
                feed.set_state(position)
            print(f"continuing from step {checkpoints.latest}")
        start = int(state.step)
        if start >= settings.steps:
            print(f"already trained to step {start}; raise train.steps to go on")
            return state
        if start % settings.steps_per_dispatch:
            raise InputError(
                f"train.steps_per_dispatch is {settings.steps_per_dispatch}, which does not divide "
                f"the {start} steps that were taken; change it"
            )
        _describe(config, model, mesh, state)
        step = _compiled(dispatch_function(config, model, mesh), state, feed, model)
        report = (start, settings.steps, settings.batch_size, settings.log_every_steps)
        with (
            Reporter(workdir if is_main_process() else None, *report) as reporter,
            StopRequest() as stop,
            Watchdog(settings.hang_seconds) as watchdog,
        ):
            return run_steps(
                config, step, state, feed, checkpoints, reporter, hooks, stop, watchdog
            )


def run_steps(
    config: ConfigDict,
    step: Callable,
    state: TrainState,
    feed: Feed,
    checkpoints: Checkpoints,
    reporter: Reporter,
    hooks: Hooks,
    stop: StopRequest,
    watchdog: Watchdog,
) -> TrainState | None:
    """Take all steps that are left.

    Args:
        config: of the run; train.steps says where to end.
        step: compiled, of runs.dispatch_function.
        state: donated to the first step.
        feed: at the position of the state.
        checkpoints: to save to.
        reporter: is told of every step.
        hooks: samples and bits/dim on the way.
        stop: asked after every dispatch.
        watchdog: is told of every dispatch that has ended.

    Returns:
        The final state, or None if asked to stop early.
    """
    settings, at_once = config.train, config.train.steps_per_dispatch
    in_flight: deque[tuple[int, dict[str, jax.Array]]] = deque()  # by the last step of each

    def report_down_to(left: int) -> None:
        while len(in_flight) > left:
            now, metrics = in_flight.popleft()
            metrics = jax.device_get(metrics)
            watchdog.beat()
            for step, of_step in _by_step(now, metrics, at_once):
                _check_finite(step, of_step, checkpoints)
                reporter.step(step, of_step)

    def save(step: int, position: dict, metric: float | None = None) -> None:
        checkpoints.save(step, state, position, config.to_dict(), metric=metric)

    def next_share(step: int) -> dict[str, jax.Array]:
        begin, position = time.monotonic(), feed.get_state()
        try:
            share = next(feed)
        except InputError:
            if jax.process_count() == 1 and in_flight:  # the others would not save with this one
                report_down_to(0)
                save(step - at_once, position)
            raise
        if not in_flight or in_flight[-1][1]["loss"].is_ready():
            reporter.waited(time.monotonic() - begin)  # with no step left to work on
        return share

    @contextlib.contextmanager
    def aside() -> Iterator[None]:
        """Around what is not a step: it may take its time, and is not counted as training."""
        reporter.pause()
        watchdog.pause()
        yield
        reporter.resume()
        watchdog.beat()

    watchdog.beat()
    for now in range(int(state.step) + at_once, settings.steps + 1, at_once):
        # The devices are at work on a dispatch while the host reads the one before and brings the
        # batches of the next.
        state, metrics = step(state, next_share(now))
        in_flight.append((now, metrics))
        report_down_to(1)

        stopping = stop.after(now // at_once)
        ends = now == settings.steps or stopping is not None
        bits_per_dim = None
        if stopping is None and _due(now, settings.evaluate_every_steps):
            jax.block_until_ready(metrics)
            with aside():
                bits_per_dim = hooks.evaluate(state)
            reporter.evaluated(now, f"{config.nll.split}_bits_per_dim", bits_per_dim)
        store = ends or bits_per_dim is not None or _due(now, settings.checkpoint_every_steps)
        show = _due(now, settings.sample_every_steps)
        if not (store or show):
            continue
        report_down_to(0)
        with aside():
            if store:
                save(now, feed.get_state(), bits_per_dim)
            if show and stopping is None:
                weights = state.weights(config.sample.ema_rate)
                reporter.image(now, "samples", hooks.preview(weights, now))
        if stopping is not None and now < settings.steps:
            checkpoints.wait()
            tqdm.write(f"{stopping}: saved at step {now}; the same command continues from there")
            return None
    return state


def _due(now: int, every: int) -> bool:
    """Whether something done every so many steps, or never for 0, is to be done now."""
    return every > 0 and now % every == 0


def _by_step(
    now: int, metrics: dict[str, np.ndarray], count: int
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """(step, its metrics) of a dispatch of so many steps, of which `now` is the last."""
    if count == 1:
        yield now, metrics
        return
    for i in range(count):
        yield now - count + 1 + i, {name: values[i] for name, values in metrics.items()}


def _check_finite(now: int, metrics: dict[str, np.ndarray], checkpoints: Checkpoints) -> None:
    if np.isfinite(metrics["loss"]) and np.isfinite(metrics["gradient_norm"]):
        return
    if metrics.get("skipped") and metrics["log2_loss_scale"] > loss_scale.FLOOR:
        return  # float16 ran over; the step was not taken, and the next has a smaller scale
    good = checkpoints.latest
    where = "there is no checkpoint yet"
    if good is not None:
        where = f"the last good checkpoint is {checkpoints.path(good)}"
    cure = "a lower train.learning_rate or train.gradient_clip=1"
    if "skipped" in metrics:
        cure = f"model.dtype=bfloat16 or float32, {cure}"
    raise DivergedError(
        f"the loss is not finite at step {now}; {where}; try {cure} in a new --workdir"
    )


def _describe(config: ConfigDict, model: build.Model, mesh: Mesh, state: TrainState) -> None:
    parameters = sum(p.size for p in jax.tree.leaves(state.params))
    height, width, channels = model.image_shape
    keeper = allocator.name()
    print(
        f"{config.data.name} {height}x{width}x{channels}"
        f"{', class-conditional' if model.class_conditional else ''}; "
        f"{parameters:,} parameters, {model.spec.dtype}; {config.loss.name}, "
        f"{config.diffusion.schedule} schedule, T = {model.process.T}; "
        f"{mesh.size} {mesh.devices.flat[0].platform} device{'s' if mesh.size > 1 else ''}"
        f"{f', memory kept by {keeper}' if keeper else ''}"
    )


def _compiled(step: Callable, state: TrainState, feed: Feed, model: build.Model) -> Callable:
    """Compile for the shapes at hand, saying so."""
    plan = layout(model.spec)
    layers = sum(len(block) for block in [*plan.encoder, plan.middle, *plan.decoder])
    seconds = COMPILE_SECONDS_PER_LAYER * layers
    print(f"compiling, about {seconds:.0f} s, less from the cache ...", end=" ", flush=True)
    begin = time.monotonic()
    compiled = step.lower(state, feed.like).compile()
    print(f"done in {time.monotonic() - begin:.0f} s")
    return compiled
