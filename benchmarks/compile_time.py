"""Seconds of tracing, lowering and compiling a config's programs, and until its first step.

python benchmarks/compile_time.py [--config configs/cifar10.py] [--batch 4] [--rounds 1]

Each round begins with an empty cache; what follows finds in it what the first left. Without
--no-command, the whole command is also run until the first row of its metrics.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from harness import load_config, report
from ml_collections import ConfigDict

from iddpm_jax import allocator, runtime

PROGRAMS = ("init", "step")
"""The state before the first step, and the training step."""


def changed(path: str, batch: int) -> ConfigDict:
    """A config with another batch, and built-in data where its own would have to be fetched."""
    config = load_config(path)
    config.train.batch_size = batch or config.train.batch_size
    if config.data.name.startswith("tfds:") and tuple(config.data.image_shape) == (32, 32, 3):
        config.data.name, config.data.num_classes = "emoji", 0
    return config


def flags(path: str, batch: int) -> Iterator[str]:
    """The same changes for the command line."""
    before, after = load_config(path), changed(path, batch)
    for key in ("data.name", "data.num_classes", "train.batch_size"):
        part, name = key.split(".")
        if before[part][name] != after[part][name]:
            yield f"--config.{key}={after[part][name]}"


def stages(config: ConfigDict, cache: Path) -> dict[str, float]:
    """Make the programs of PROGRAMS in this process: seconds by program and stage."""
    runtime.configure(
        runtime.cpu_devices(runtime.cpu_cores(), [config.train.batch_size]), cache / "iddpm_jax"
    )
    import jax
    import jax.numpy as jnp

    from iddpm_jax import build
    from iddpm_jax.training import parallel, runs

    seconds = {}
    model = build.model(config)
    mesh = parallel.make_mesh(fsdp=config.train.fsdp)
    state = runs.abstract_state(config, model, mesh)
    split, count = parallel.batch_sharding(mesh), config.train.batch_size
    batch = {
        "image": jax.ShapeDtypeStruct((count, *model.image_shape), jnp.uint8, sharding=split),
        "label": jax.ShapeDtypeStruct((count,), jnp.int32, sharding=split),
    }
    functions = {
        "init": (runs.new_state(config, model, mesh), ()),
        "step": (runs.step_function(config, model, mesh), (state, batch)),
    }
    for name in PROGRAMS:
        function, arguments = functions[name]
        times = [time.perf_counter()]
        traced = function.trace(*arguments)
        times.append(time.perf_counter())
        lowered = traced.lower()
        times.append(time.perf_counter())
        lowered.compile()
        times.append(time.perf_counter())
        for stage, a, b in zip(("trace", "lower", "compile"), times, times[1:], strict=False):
            seconds[f"{name}_{stage}"] = b - a
        seconds[name] = times[-1] - times[0]
    return seconds


def stages_elsewhere(args: argparse.Namespace, cache: str) -> dict[str, float]:
    """`stages` in a process of its own, which has compiled nothing yet."""
    command = [sys.executable, __file__, "--config", args.config, "--batch", str(args.batch)]
    begin = time.perf_counter()
    found = subprocess.run([*command, "--cache", cache], capture_output=True, text=True, check=True)
    seconds = json.loads(found.stdout.splitlines()[-1])
    # Beyond both programs: imports, and tracing for shapes alone.
    return {**seconds, "process": time.perf_counter() - begin}


def seconds_to_first_step(args: argparse.Namespace, cache: str) -> float:
    """Start a run, wait for its first row of metrics, end it."""
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, "-m", "iddpm_jax.main", "--config", args.config]
        command += ["--workdir", workdir, "--config.train.log_every_steps=1"]
        command += flags(args.config, args.batch)
        environment = {**os.environ, "XDG_CACHE_HOME": cache}
        begin = time.perf_counter()
        quiet = subprocess.DEVNULL
        run = subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet)
        rows = Path(workdir) / "metrics.jsonl"
        while not (rows.exists() and rows.stat().st_size):
            if run.poll() is not None:
                raise SystemExit(f"the run ended early with exit code {run.returncode}")
            time.sleep(0.02)
        seconds = time.perf_counter() - begin
        run.kill()
        run.wait()
        return seconds


def medians(rows: list[dict[str, float]]) -> dict[str, float]:
    """Median of each number over the rounds."""
    return {name: round(statistics.median(row[name] for row in rows), 2) for name in rows[0]}


def main() -> None:
    """Afresh and from the cache in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/cifar10.py")
    parser.add_argument("--batch", type=int, default=0, help="images a step; 0: the config's")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--no-command", action="store_true", help="only the stages")
    parser.add_argument("--cache", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cache:
        print(json.dumps(stages(changed(args.config, args.batch), Path(args.cache))))
        return
    rows: dict[str, list[dict[str, float]]] = {"afresh": [], "cached": []}
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
            for found in rows.values():
                row = stages_elsewhere(args, one)
                if not args.no_command:
                    row["first_step"] = seconds_to_first_step(args, other)
                found.append(row)
    report(
        f"compile_time_{Path(args.config).stem}",
        {
            "config": args.config,
            "batch": args.batch or load_config(args.config).train.batch_size,
            "rounds": args.rounds,
            **{f"{name}_s": medians(found) for name, found in rows.items()},
        },
    )


if __name__ == "__main__":
    allocator.restart()
    main()
