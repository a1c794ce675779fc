"""kill -9 at random moments of sampling: the file is the uninterrupted one's, byte for byte.

python benchmarks/sample_kills.py runs/digits [--kills 20] [--seed 0] [--only-check]

1,000 samples of a trained workdir. Drawing that was killed goes on by the same command, each time
with another number of devices, of 1, 2 and 4; when it reaches its end before the kills are used up,
it is compared with what one device drew at once, and another one begins.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from harness import report

ROOT = Path(__file__).resolve().parent.parent
COUNT = 1000


def start(workdir: Path, devices: int) -> subprocess.Popen:
    """The command as a user gives it, in the background."""
    log = workdir.with_suffix(".log").open("a")
    command = [sys.executable, "-m", "iddpm_jax.main", "--workdir", str(workdir)]
    command += ["--mode", "sample", f"--config.sample.count={COUNT}", "--config.sample.steps=50"]
    command += ["--config.sample.batch_size=25"]
    environment = {**os.environ, "DEVICES": str(devices)}
    return subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, env=environment)


def finish(workdir: Path, devices: int) -> float:
    """Run to the end: seconds."""
    begin, run = time.monotonic(), start(workdir, devices)
    if run.wait():
        raise SystemExit(workdir.with_suffix(".log").read_text())
    return time.monotonic() - begin


def parts(workdir: Path) -> int:
    """Parts on disk."""
    return len(list(workdir.glob("samples/*/parts/rows_from_*")))


def drawn(workdir: Path) -> bytes:
    """The file of samples."""
    (path,) = workdir.glob(f"samples/*/samples_{COUNT}x*.npz")
    return path.read_bytes()


def main() -> int:
    """Kill, go on with other devices, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workdir", type=Path, help="of a trained run")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments and devices")
    parser.add_argument("--only-check", action="store_true", help="leave the results alone")
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    with tempfile.TemporaryDirectory() as folder:

        def copy(name: str) -> Path:
            ignored = shutil.ignore_patterns("samples")
            return Path(shutil.copytree(args.workdir, Path(folder) / name, ignore=ignored))

        for devices in (1, 2, 4):
            finish(copy(f"compile{devices}"), devices)
        seconds = finish(copy("whole"), 1)
        expected = drawn(Path(folder) / "whole")
        print(f"uninterrupted on one device: {seconds:.1f} s", flush=True)
        kills = after_parts = runs = same = 0
        while kills < args.kills:
            workdir, ended = copy(f"run{runs}"), False
            while kills < args.kills and not ended:
                devices, wait = int(rng.choice([1, 2, 4])), rng.uniform(0.3, 1) * seconds
                run = start(workdir, devices)
                try:
                    run.wait(wait)
                    ended = True  # before the moment came
                except subprocess.TimeoutExpired:
                    run.kill()
                    run.wait()
                    kills += 1
                    after_parts += parts(workdir) > 0
                    text = f"kill {kills} on {devices} devices after {wait:.1f} s"
                    print(f"{text}: {parts(workdir)} parts", flush=True)
            finish(workdir, int(rng.choice([1, 2, 4])))
            runs += 1
            same += drawn(workdir) == expected
            print(f"run {runs} at its end; {same} equal the uninterrupted one", flush=True)
    numbers = {
        "samples": COUNT,
        "kills": kills,
        "kills_after_a_first_part": after_parts,
        "runs": runs,
        "runs_equal_byte_for_byte": same,
    }
    print(numbers)
    if not args.only_check:
        report("sample_kills", numbers)
    return int(same < runs)


if __name__ == "__main__":
    raise SystemExit(main())
