"""What the host adds to a training step: the loop with data, logging and bar against the bare step.

python benchmarks/loop_overhead.py [--config configs/digits.py] [--steps 40] [--rounds 7]
                                   [--dispatch 1 10]

Four things take turns: the compiled step alone, always on one batch; the loop on that batch, so
without reading; the loop as it is; and the loop with a step that does nothing, which shows all that
the host does, whether or not it falls into the time of a step. --dispatch: how many steps a call
has (train.steps_per_dispatch). All ratios are to the first bare call's; CPUs are slow at several.
"""

import argparse
import functools
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from harness import in_turns, load_config, ratio, report
from jax.sharding import Mesh
from ml_collections import ConfigDict

from iddpm_jax import build, runtime
from iddpm_jax.training import loop, runs
from iddpm_jax.training.checkpoint import Checkpoints
from iddpm_jax.training.metrics import Reporter
from iddpm_jax.training.parallel import batches_sharding, make_mesh, share_to_devices
from iddpm_jax.training.state import TrainState
from iddpm_jax.training.stopping import StopRequest
from iddpm_jax.training.watchdog import Watchdog


def main() -> None:
    """Time all in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/digits.py", help="FILE or FILE:VARIANT")
    parser.add_argument("--steps", type=int, default=40, help="steps per timing")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dispatch", type=int, nargs="+", default=[1], help="steps in a call")
    args = parser.parse_args()
    if any(args.steps % k for k in args.dispatch):
        parser.error("--steps must be a multiple of each --dispatch")
    config = load_config(args.config)
    batch_sizes = [config.train.batch_size]
    runtime.configure(runtime.cpu_devices(runtime.cpu_cores(), batch_sizes), runtime.cache_folder())
    # Neither saving nor sampling is part of a step.
    config.train.checkpoint_every_steps, config.train.sample_every_steps = 10**9, 0
    config.train.learning_rate_decay = "constant"
    model, mesh = build.model(config), make_mesh()
    source = build.load_data(config, model, "train")
    batch = next(build.training_batches(config, source))

    functions: dict[str, Callable] = {}
    with tempfile.TemporaryDirectory() as folder, StopRequest() as stop:
        for k in args.dispatch:
            settings = config.copy_and_resolve_references()
            settings.train.steps_per_dispatch = k
            timed = Timed(settings, model, mesh, batch, args.steps, Path(folder), stop)
            functions[f"step {k}"] = timed.bare
            functions[f"loop {k}, one batch"] = functools.partial(timed.loop, Again(batch))
            reading = build.training_batches(settings, source)
            functions[f"loop {k}"] = functools.partial(timed.loop, reading)
            functions[f"host {k}"] = functools.partial(timed.loop, reading, timed.idle)
        seconds = in_turns(functions, args.rounds)
    base = f"step {args.dispatch[0]}"
    numbers = {"step_ms": round(1e3 * statistics.median(seconds[base]) / args.steps, 2)}
    for name in functions:
        low, median, high = (round(r, 4) for r in ratio(seconds, name, base))
        numbers[name] = {"min": low, "median": median, "max": high}
    name = Path(args.config.partition(":")[0]).stem
    report(
        f"loop_overhead_{name}",
        {"config": args.config, "steps": args.steps, "rounds": args.rounds, **numbers},
    )


class Timed:
    """The bare step and the loop on a state of their own, `steps` at a time."""

    def __init__(
        self,
        config: ConfigDict,
        model: build.Model,
        mesh: Mesh,
        batch: dict[str, np.ndarray],
        steps: int,
        folder: Path,
        stop: StopRequest,
    ):
        self._config, self._mesh, self._steps, self._stop = config, mesh, steps, stop
        self._folder = folder
        k = config.train.steps_per_dispatch
        sharding = batches_sharding(mesh) if k > 1 else None
        if k > 1:
            batch = jax.tree.map(lambda a: np.stack([a] * k), batch)
        self._batch = share_to_devices(mesh, batch, sharding)
        self._state = runs.new_state(config, model, mesh)()
        step = runs.dispatch_function(config, model, mesh)
        self._call = step.lower(self._state, self._batch).compile()
        self._state, self._metrics = self._call(self._state, self._batch)
        self._copied = jax.jit(lambda metrics: jax.tree.map(lambda a: a + 0, metrics))

    def bare(self) -> jax.Array:
        """The compiled program alone, on one batch."""
        for _ in range(self._steps // self._config.train.steps_per_dispatch):
            self._state, metrics = self._call(self._state, self._batch)
        return metrics["loss"]

    def idle(self, state: TrainState, _: dict) -> tuple[TrainState, dict]:
        """In place of the compiled program: no step, but metrics that have to be fetched."""
        return state, self._copied(self._metrics)

    def loop(self, batches: object, call: Callable | None = None) -> jax.Array:
        """The loop, on batches from an iterator with a position."""
        train, start = self._config.train, int(self._state.step)
        train.steps = start + self._steps
        report_as = (start, train.steps, train.batch_size, train.log_every_steps)
        with Reporter(self._folder, *report_as) as reporter:
            self._state = loop.run_steps(
                self._config,
                self._mesh,
                call or self._call,
                self._state,
                batches,
                NoCheckpoints(),
                reporter,
                None,
                self._stop,
                Watchdog(0),
            )
        return self._state.step


class Again:
    """One batch for ever, with the position of an iterator of grain."""

    def __init__(self, batch: dict[str, np.ndarray]):
        self._batch = batch

    def __next__(self) -> dict[str, np.ndarray]:
        return self._batch

    def get_state(self) -> dict:
        """No position."""
        return {}


class NoCheckpoints(Checkpoints):
    """Saves nothing: the run's final checkpoint is not part of a step."""

    def __init__(self):
        pass

    def save(self, *_: object, metric: float | None = None) -> None:
        """Do nothing."""


if __name__ == "__main__":
    main()
