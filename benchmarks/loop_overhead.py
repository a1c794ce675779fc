"""What the host adds to a training step: the loop with data, logging and bar against the bare step.

python benchmarks/loop_overhead.py [--config configs/digits.py] [--steps 40] [--rounds 7]
                                   [--dispatch 1 10] [--resident]

Four things take turns: the compiled step alone, always on one batch; the loop on that batch, so
without reading; the loop as it is; and the loop with a step that does nothing, which shows all that
the host does, whether or not it falls into the time of a step. --dispatch: how many steps a call
has (train.steps_per_dispatch). --resident: the same again with the split kept on the devices
(data.resident). All ratios are to the first bare call's.
"""

import argparse
import functools
import itertools
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
from harness import in_turns, load_config, ratio, report
from jax.sharding import Mesh
from ml_collections import ConfigDict

from iddpm_jax import allocator, build, runtime
from iddpm_jax.training import loop, runs
from iddpm_jax.training.checkpoint import Checkpoints
from iddpm_jax.training.feed import Feed, open_feed
from iddpm_jax.training.metrics import Reporter
from iddpm_jax.training.parallel import make_mesh
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
    parser.add_argument("--resident", action="store_true", help="also with data.resident")
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
    functions: dict[str, Callable] = {}
    with tempfile.TemporaryDirectory() as folder, StopRequest() as stop:
        for k, resident in itertools.product(args.dispatch, [False, True][: 1 + args.resident]):
            settings = config.copy_and_resolve_references()
            settings.train.steps_per_dispatch, settings.data.resident = k, resident
            feed = open_feed(settings, model, mesh)
            timed = Timed(settings, model, mesh, feed, args.steps, Path(folder), stop)
            what = f"{k}, resident" if resident else str(k)
            functions[f"step {what}"] = timed.bare
            functions[f"loop {what}"] = functools.partial(timed.loop, feed)
            functions[f"host {what}"] = functools.partial(timed.loop, feed, timed.idle)
            if not resident:
                functions[f"loop {k}, one batch"] = functools.partial(timed.loop, timed.again)
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
        feed: Feed,
        steps: int,
        folder: Path,
        stop: StopRequest,
    ):
        self._config, self._steps, self._stop, self._folder = config, steps, stop, folder
        self.again = Again(next(feed))
        self._state = runs.new_state(config, model, mesh)()
        step = runs.dispatch_function(config, model, mesh)
        self._call = step.lower(self._state, feed.like).compile()
        self._state, self._metrics = self._call(self._state, next(self.again))
        self._copied = jax.jit(lambda metrics: jax.tree.map(lambda a: a + 0, metrics))

    def bare(self) -> jax.Array:
        """The compiled program alone, on one batch."""
        for _ in range(self._steps // self._config.train.steps_per_dispatch):
            self._state, metrics = self._call(self._state, next(self.again))
        return metrics["loss"]

    def idle(self, state: TrainState, _: dict) -> tuple[TrainState, dict]:
        """In place of the compiled program: no step, but metrics that have to be fetched."""
        return state, self._copied(self._metrics)

    def loop(self, feed: Feed, call: Callable | None = None) -> jax.Array:
        """The loop, on what a feed gives."""
        train, start = self._config.train, int(self._state.step)
        train.steps = start + self._steps
        report_as = (start, train.steps, train.batch_size, train.log_every_steps)
        with Reporter(self._folder, *report_as) as reporter:
            self._state = loop.run_steps(
                self._config,
                call or self._call,
                self._state,
                feed,
                NoCheckpoints(),
                reporter,
                None,
                self._stop,
                Watchdog(0),
            )
        return self._state.step


class Again:
    """One batch, already on the devices, for ever."""

    def __init__(self, batch: dict[str, jax.Array]):
        self._batch = batch

    def __next__(self) -> dict[str, jax.Array]:
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
    allocator.restart()
    main()
