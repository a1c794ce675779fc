"""What the host adds to a training step: the loop with data, logging and bar against the bare step.

python benchmarks/loop_overhead.py [--config configs/digits.py] [--steps 40] [--rounds 7]
"""

import argparse
import tempfile
from pathlib import Path

import jax
from harness import in_turns, load_config, ratio, report

from iddpm_jax import build, data, runtime
from iddpm_jax.training import loop, runs
from iddpm_jax.training.checkpoint import Checkpoints
from iddpm_jax.training.metrics import Reporter
from iddpm_jax.training.parallel import make_mesh, to_devices
from iddpm_jax.training.stopping import StopRequest
from iddpm_jax.training.watchdog import Watchdog


def main() -> None:
    """Time both in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/digits.py")
    parser.add_argument("--steps", type=int, default=40, help="steps per timing")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    config = load_config(args.config)
    runtime.configure(
        runtime.cpu_devices(runtime.cpu_cores(), [config.train.batch_size]), runtime.cache_folder()
    )
    # Neither saving nor sampling is part of a step.
    config.train.checkpoint_every_steps = config.train.sample_every_steps = 10**9
    config.train.learning_rate_decay = "constant"

    model, mesh = build.model(config), make_mesh()
    source = data.load(config.data.name, "train")
    batches = data.training_batches(source, config.train.batch_size, 0, config.data.random_flip)
    step = runs.step_function(config, model, mesh)
    batch = to_devices(mesh, next(batches))
    state = runs.new_state(config, model, mesh)()

    def bare() -> jax.Array:
        nonlocal state
        for _ in range(args.steps):
            state, metrics = step(state, batch)
        return metrics["loss"]

    def with_loop() -> jax.Array:
        nonlocal state
        start = int(state.step)
        config.train.steps = start + args.steps
        report_every = config.train.log_every_steps
        with Reporter(
            workdir, start, config.train.steps, config.train.batch_size, report_every
        ) as r:
            state = loop.run_steps(
                config, mesh, step, state, batches, NoCheckpoints(), r, None, stop, Watchdog(0)
            )
        return state.step

    with tempfile.TemporaryDirectory() as folder, StopRequest() as stop:
        workdir = Path(folder)
        seconds = in_turns({"step": bare, "loop": with_loop}, args.rounds)
    low, median, high = ratio(seconds, "loop", "step")
    report(
        "loop_overhead",
        {
            "config": args.config,
            "step_ms": round(1e3 * sorted(seconds["step"])[args.rounds // 2] / args.steps, 2),
            "loop_over_step": {"min": low, "median": median, "max": high},
        },
    )


class NoCheckpoints(Checkpoints):
    """Saves nothing: the run's final checkpoint is not part of a step."""

    def __init__(self):
        pass

    def save(self, *_: object, metric: float | None = None) -> None:
        """Do nothing."""


if __name__ == "__main__":
    main()
