"""Timing several functions in turns, so that a machine's moods fall on all of them alike."""

import datetime
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import jax
from ml_collections import ConfigDict

from iddpm_jax import allocator, runtime


def load_config(name: str) -> ConfigDict:
    """The config of FILE or FILE:VARIANTS."""
    path, _, variants = name.partition(":")
    namespace: dict = {}
    exec(compile(Path(path).read_text(), path, "exec"), namespace)
    return namespace["get_config"](variants)


def commit() -> str:
    """The checkout's commit, short."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def in_turns(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, one round after the other; the first round is not counted.

    Args:
        functions: what to time by name; each result is waited for.
        rounds: calls of each that are counted.

    Returns:
        Seconds by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for round_ in range(rounds + 1):
        for name, function in functions.items():
            begin = time.perf_counter()
            jax.block_until_ready(function())
            if round_:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def ratio(seconds: dict[str, list[float]], name: str, to: str) -> tuple[float, float, float]:
    """Lowest, median and highest ratio of two entries of in_turns, round by round."""
    ratios = sorted(a / b for a, b in zip(seconds[name], seconds[to], strict=True))
    return ratios[0], statistics.median(ratios), ratios[-1]


def report(name: str, numbers: dict) -> None:
    """Print numbers and keep them in benchmarks/results/NAME.json with date, machine and commit."""
    device = jax.devices()[0]
    cores = f" of {runtime.cpu_cores()} cores" if device.platform == "cpu" else ""
    record = {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "jax": jax.__version__,
        "device": f"{device.device_kind} {platform.machine()}{cores}",
        "allocator": allocator.name(),
        **numbers,
    }
    print(json.dumps(record, indent=2))
    path = Path(__file__).parent / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")
