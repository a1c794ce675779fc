"""kill -9 at random moments: the run that goes on each time ends as the uninterrupted one, exactly.

python benchmarks/kills.py [--kills 100] [--seed 0] [--only-check]

A small network on the digits, with all that a run has to remember: importance sampling, dropout,
flips, two averages. It saves every few steps. A run that was killed goes on by the same command;
when one reaches its end before the kills are used up, it is compared and another one begins.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from harness import report
from orbax.checkpoint import v1 as ocp

ROOT = Path(__file__).resolve().parent.parent
TIMES = ("images_per_second", "data_wait")
STEPS = 60
COMMAND = [
    *(sys.executable, "-m", "iddpm_jax.main", "--config", "configs/digits.py:l_vlb"),
    *(f"--config.train.steps={STEPS}", "--config.train.learning_rate_decay=constant"),
    *("--config.diffusion.T=50", "--config.loss.history_size=3"),
    *("--config.model.width=32", "--config.model.channel_mult=(1,)"),
    *("--config.model.attention_resolutions=()", "--config.model.num_res_blocks=1"),
    *("--config.model.dropout=0.1", "--config.data.random_flip=true"),
    *("--config.train.batch_size=16", "--config.train.ema_rates=(0.9,0.99)"),
    *("--config.train.checkpoint_every_steps=2", "--config.train.log_every_steps=2"),
    *("--config.train.sample_every_steps=0", "--config.sample.ema_rate=0.9"),
    *("--config.sample.count=1", "--config.sample.steps=1", "--config.sample.batch_size=1"),
    *("--config.nll.ema_rate=0.9", "--config.nll.terms=1", "--config.nll.steps=1"),
]


def start(workdir: Path) -> subprocess.Popen:
    """The command as a user gives it, in the background."""
    log = (workdir.parent / f"{workdir.name}.log").open("w")
    return subprocess.Popen(
        [*COMMAND, "--workdir", str(workdir)],
        stdout=log,
        stderr=subprocess.STDOUT,
        cwd=ROOT,
        env={**os.environ, "DEVICES": "1"},
    )


def newest(workdir: Path) -> int:
    """Step of the newest checkpoint; 0 for none."""
    folder = workdir / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    return max((int(name) for name in names if name.isdigit()), default=0)


def finish(workdir: Path) -> tuple[float, float]:
    """Run to the end: (seconds until the first new checkpoint, seconds until the last)."""
    begin, before, first, last = time.monotonic(), newest(workdir), 0.0, 0.0
    run = start(workdir)
    while run.poll() is None:
        now = newest(workdir)
        if now > before and not first:
            first = time.monotonic() - begin
        if now == STEPS and not last:
            last = time.monotonic() - begin
        time.sleep(0.02)
    if run.returncode:
        raise SystemExit((workdir.parent / f"{workdir.name}.log").read_text())
    return first, last


def outcome(workdir: Path) -> dict:
    """All that has to be equal: arrays of the last checkpoint, data position, rows of metrics."""
    with ocp.training.Checkpointer((workdir / "checkpoints").absolute()) as checkpointer:
        tree = checkpointer.load(STEPS)
        position = checkpointer.metadata(STEPS).custom_metadata["position"]
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    rows = [{k: v for k, v in json.loads(r).items() if k not in TIMES} for r in lines]
    return {"arrays": tree, "position": position, "rows": rows}


def equal(a: dict, b: dict) -> bool:
    """Whether two outcomes are the same, to the last bit."""
    import jax

    one, other = (jax.tree_util.tree_leaves_with_path(x["arrays"]) for x in (a, b))
    return (
        len(one) == len(other)
        and all(
            p == q and np.asarray(x).tobytes() == np.asarray(y).tobytes()
            for (p, x), (q, y) in zip(one, other, strict=True)
        )
        and a["position"] == b["position"]
        and a["rows"] == b["rows"]
    )


def main() -> int:
    """Kill, go on, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--only-check", action="store_true", help="leave the results alone")
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        finish(Path(folder) / "compile")
        first, last = finish(Path(folder) / "whole")
        expected = outcome(Path(folder) / "whole")
        print(f"uninterrupted: saves from {first:.1f} to {last:.1f} s", flush=True)
        kills = started = saves = runs = same = 0
        while kills < args.kills:
            workdir = Path(folder) / f"run{runs}"
            ended = False
            while kills < args.kills:
                # One in five while it starts, the others while it trains and saves.
                early = rng.uniform() < 0.2
                part = (0, first) if early else (first, (first + last) / 2)
                wait = rng.uniform(*part)
                run = start(workdir)
                try:
                    run.wait(wait)
                    ended = True  # before the moment came
                    break
                except subprocess.TimeoutExpired:
                    before = newest(workdir)
                    saves += any((workdir / "checkpoints").glob("*tmp*"))
                    run.kill()
                    run.wait()
                    kills += 1
                    started += before > 0
                    print(f"kill {kills} after {wait:.2f} s, step {before}", flush=True)
            if not ended:
                finish(workdir)
            runs += 1
            same += equal(expected, outcome(workdir))
            print(f"run {runs} at its end; {same} equal the uninterrupted one", flush=True)
    numbers = {
        "kills": kills,
        "kills_after_a_first_checkpoint": started,
        "kills_while_saving": saves,
        "runs": runs,
        "runs_equal_to_the_last_bit": same,
    }
    print(numbers)
    if not args.only_check:
        report("kills", numbers)
    return int(same < runs)


if __name__ == "__main__":
    raise SystemExit(main())
