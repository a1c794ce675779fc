"""Peak memory of training steps on CPU devices: the process's resident memory, and XLA's plan.

python benchmarks/memory.py [--config configs/cifar10.py] [--batch 128] [--remat none,blocks]
    [--microbatches 1] [--devices 2] [--steps 1]

Each setting trains in a process of its own, on random images. Steps 0 only compiles.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import jax
import numpy as np
from harness import load_config, report

from iddpm_jax import allocator, build, runtime
from iddpm_jax.training import parallel, runs

GIB = 2**30


def measure(args: argparse.Namespace, remat: str, microbatches: int) -> dict:
    """Train in this process, which has done nothing else.

    Args:
        args: of the command line.
        remat: model.remat.
        microbatches: train.microbatches.

    Returns:
        Peak resident memory of the process and XLA's numbers for the program, GiB over all devices;
        seconds of each step.
    """
    runtime.configure(args.devices, runtime.cache_folder())
    config = load_config(args.config)
    config.model.remat = remat
    config.train.update(batch_size=args.batch, microbatches=microbatches, steps=max(1, args.steps))
    model, mesh = build.model(config), parallel.make_mesh()
    batch = {
        "image": np.zeros((args.batch, *model.image_shape), np.uint8),
        "label": np.zeros(args.batch, np.int32),
    }
    step = runs.step_function(config, model, mesh)
    batch = parallel.to_devices(mesh, batch)
    compiled = step.lower(runs.abstract_state(config, model, mesh), batch).compile()
    planned = compiled.memory_analysis()
    seconds = []
    if args.steps:
        state = runs.new_state(config, model, mesh)()
        for _ in range(args.steps):
            begin = time.perf_counter()
            state, metrics = jax.block_until_ready(compiled(state, batch))
            seconds.append(round(time.perf_counter() - begin, 1))
        assert np.isfinite(metrics["loss"])
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # Linux counts in KiB
    return {
        "remat": remat,
        "microbatches": microbatches,
        "peak_resident_gib": round(peak / GIB, 2) if args.steps else None,
        "arguments_gib": round(args.devices * planned.argument_size_in_bytes / GIB, 2),
        "temporaries_gib": round(args.devices * planned.temp_size_in_bytes / GIB, 2),
        "seconds": seconds,
    }


def main() -> None:
    """Every setting in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/cifar10.py")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--remat", default="none,elementwise,blocks")
    parser.add_argument("--microbatches", default="1")
    parser.add_argument("--devices", type=int, default=runtime.cpu_cores())
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args, args.remat, int(args.microbatches))))
        return
    rows = []
    for remat in args.remat.split(","):
        for parts in args.microbatches.split(","):
            command = [sys.executable, *sys.argv, "--child"]
            command += [f"--remat={remat}", f"--microbatches={parts}"]
            child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            rows.append(json.loads(child.stdout.splitlines()[-1]))
            print(rows[-1], flush=True)
    settings = {name: getattr(args, name) for name in ("config", "batch", "devices")}
    report("memory", {**settings, "settings": rows})


if __name__ == "__main__":
    allocator.restart()
    main()
