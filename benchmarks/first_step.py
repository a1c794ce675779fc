"""Seconds from the command to the end of the first training step, compiled afresh and cached.

python benchmarks/first_step.py [--config configs/digits.py] [--rounds 3]
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import report


def seconds_to_first_step(config: str, cache: str) -> float:
    """Start a run, wait for its first row of metrics, end it."""
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, "-m", "iddpm_jax.main", "--config", config]
        command += ["--workdir", workdir, "--config.train.log_every_steps=1"]
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


def main() -> None:
    """Cold and warm in turns, each cold start in an empty cache that the warm one then finds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/digits.py")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    cold, warm = [], []
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as cache:
            cold.append(seconds_to_first_step(args.config, cache))
            warm.append(seconds_to_first_step(args.config, cache))
    ratios = [w / c for w, c in zip(warm, cold, strict=True)]
    report(
        "first_step",
        {
            "config": args.config,
            "compiled_afresh_s": round(statistics.median(cold), 1),
            "from_the_cache_s": round(statistics.median(warm), 1),
            "cached_over_afresh": {
                "min": min(ratios),
                "median": statistics.median(ratios),
                "max": max(ratios),
            },
        },
    )


if __name__ == "__main__":
    main()
