"""Stand-ins for gcloud, sbatch, srun, git and python, which record how they were called."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"

# -S -E: nothing of the environment's packages, so that a stand-in starts in a few milliseconds.
_HEAD = f"""#!{sys.executable} -SE
import json, os, signal, subprocess, sys, time

def record(**what):
    line = json.dumps({{"name": os.path.basename(sys.argv[0]), **what}}) + chr(10)
    with open(os.environ["RECORD"], "a") as file:
        file.write(line)
"""

RECORDER = _HEAD + "record(args=sys.argv[1:])\n"

# Stands for `python -m iddpm_jax.main`. ACT, or ACT_1 for process 1, says what it does: "obey"
# ends on SIGTERM, "ignore" does not, "child" ignores it and has a child that does, a number is the
# exit code of a process that fails soon. A `ready` in the record says that it listens.
WORKER = (
    _HEAD
    + """
words = sys.argv[1:]
number = words[words.index("--process_id") + 1] if "--process_id" in words else ""
act = os.environ.get("ACT_" + number) or os.environ.get("ACT", "obey")
about = dict(args=words, pid=os.getpid(), gpus=os.environ.get("CUDA_VISIBLE_DEVICES"))
about |= dict(xla_flags=os.environ.get("XLA_FLAGS"))
about |= dict(libtpu_flags=os.environ.get("LIBTPU_INIT_ARGS"))

def asked(*_):
    record(event="SIGTERM", **about)
    if act == "obey":
        sys.exit(0)

signal.signal(signal.SIGTERM, asked)
if act == "child":
    about["child"] = subprocess.Popen(["sh", "-c", "trap '' TERM; sleep 60 & wait; wait"]).pid
print("a line of process", number, flush=True)
record(event="ready", **about)
if act.isdigit():
    sys.exit(int(act))
while True:
    time.sleep(0.02)
"""
)


class StandIns:
    """A folder of stand-ins, first in PATH, and the record of their calls.

    Attributes:
        folder: where the stand-ins lie.
        environment: for processes that shall meet them.
        started: what `start` started.
    """

    def __init__(self, folder: Path):
        self.folder = folder / "bin"
        self.folder.mkdir()
        self._record = folder / "record.jsonl"
        self.started: list[subprocess.Popen] = []
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "ACT"))},
            "PATH": f"{self.folder}{os.pathsep}{os.environ['PATH']}",
            "RECORD": str(self._record),
        }

    def add(self, name: str, text: str = RECORDER) -> Path:
        """Make a stand-in of this name: its path."""
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def entries(self, **wanted: str) -> list[dict]:
        """What was recorded, in order: entries that hold all that is wanted."""
        text = self._record.read_text() if self._record.exists() else ""
        lines = [json.loads(line) for line in text.splitlines()]
        return [e for e in lines if all(e.get(k) == v for k, v in wanted.items())]

    def calls(self) -> list[list[str]]:
        """Every call so far: name and arguments."""
        return [[entry["name"], *entry["args"]] for entry in self.entries()]

    def run(self, script: str, *words: str, **environment: str) -> subprocess.CompletedProcess:
        """Run a script of launch/ to its end."""
        return subprocess.run(
            [str(LAUNCH / script), *words],
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=30,
        )

    def start(self, script: str, *words: str, **environment: str) -> subprocess.Popen:
        """Start a script of launch/, with a process group of its own, as a terminal would."""
        process = subprocess.Popen(
            [str(LAUNCH / script), *words],
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        self.started.append(process)
        return process


def running(pid: int) -> bool:
    """Whether a process still runs; one that has ended and waits to be noticed does not."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return bool(state.stdout.strip()) and not state.stdout.startswith("Z")


def eventually(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Whether a condition comes true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
