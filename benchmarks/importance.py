"""What importance sampling costs: draw and update of the history against a whole training step.

python benchmarks/importance.py [--T 4000] [--batch 128] [--rounds 30]
"""

import argparse

import jax
import numpy as np
from harness import in_turns, load_config, ratio, report

from iddpm_jax import allocator, build, data, runtime
from iddpm_jax.diffusion import importance
from iddpm_jax.training import runs
from iddpm_jax.training.parallel import make_mesh, replicated, to_devices


def main() -> None:
    """Time the sampler alone, with the state it has in a step, and the step of the digits model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--T", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    config = load_config("configs/digits.py")
    config.diffusion.T = args.T
    config.loss.name, config.loss.timesteps = "l_vlb", "importance"
    batch_size = config.train.batch_size
    runtime.configure(
        runtime.cpu_devices(runtime.cpu_cores(), [batch_size]), runtime.cache_folder()
    )

    model, mesh = build.model(config), make_mesh()
    source = data.load(config.data.name, "train")
    batch = to_devices(mesh, next(data.training_batches(source, batch_size, 0, False)))
    step = runs.step_function(config, model, mesh)
    state = runs.new_state(config, model, mesh)()
    rows = np.random.default_rng(0).uniform(1, 9, (args.T, 10)).astype(np.float32)
    full = importance.History(rows, np.full(args.T, 10, np.int32))
    history = jax.device_put(full, replicated(mesh))
    losses = to_devices(mesh, np.ones(batch_size, np.float32))

    def draw_and_update(history, key, losses):
        t, weights = importance.draw(history, key, batch_size)
        return importance.update(history, t, losses * weights)

    sampler = jax.jit(draw_and_update, donate_argnums=0)
    repeats = 20  # one call is too short to time

    def steps() -> jax.Array:
        nonlocal state
        state, metrics = step(state, batch)
        return metrics["loss"]

    def sampling() -> jax.Array:
        nonlocal history
        for i in range(repeats):
            history = sampler(history, jax.random.key(i), losses)
        return history.seen

    seconds = in_turns({"step": steps, "sampler": sampling}, args.rounds)
    low, median, high = (r / repeats for r in ratio(seconds, "sampler", "step"))
    report(
        "importance",
        {
            "T": args.T,
            "batch_size": batch_size,
            "step_ms": round(1e3 * sorted(seconds["step"])[args.rounds // 2], 2),
            "draw_and_update_ms": round(
                1e3 * sorted(seconds["sampler"])[args.rounds // 2] / repeats, 3
            ),
            "share_of_step": {"min": low, "median": median, "max": high},
        },
    )


if __name__ == "__main__":
    allocator.restart()
    main()
