"""Contenders on the same work, each in a process of its own, in turns.

A process of its own keeps allocators and pools of threads apart, and its peak memory is its own.
Only one works at a time; the others wait for a line on their standard input.
"""

import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent
GIB = 2**30


class Workload(NamedTuple):
    """What all contenders do.

    Attributes:
        kind: "train", an optimizer step; "sample", a batch of images; "nll", a batch of pairs of
            image and t.
        config: a config as JSON; its model, diffusion, loss, train and sample parts are read.
        batch_size: images at a time, over all devices.
        weights: .npz of parameters under their official names. A peer of another shape draws its
            own.
    """

    kind: str
    config: str
    batch_size: int
    weights: str


Run = Callable[[int], None]
"""Does the work so many times, and returns when it is done."""

Builder = Callable[[Workload], Run]
"""Makes all that the work needs; the first run may compile."""


class Contender(NamedTuple):
    """A builder by name: "module:function", found beside this file or installed."""

    name: str
    builder: str
    environment: dict[str, str] = {}


class Result(NamedTuple):
    """What was found of a contender.

    Attributes:
        seconds: of each unit of work, round by round.
        first_s: seconds of building and of the first unit, compilation included.
        host_gib: peak resident memory of the process.
        device_gib: peak memory on the accelerator; None on a CPU.
        failed: the last line it said where it ended early, or "".
    """

    seconds: list[float]
    first_s: float
    host_gib: float
    device_gib: float | None
    failed: str = ""

    @property
    def median(self) -> float:
        """Seconds of a unit."""
        return statistics.median(self.seconds)


class _Process:
    """A contender at its starting line; see worker.py for what is said on the pipes."""

    def __init__(self, contender: Contender, workload: Workload):
        self._log = tempfile.TemporaryFile()
        path = os.pathsep.join([str(FOLDER), str(FOLDER.parent), os.environ.get("PYTHONPATH", "")])
        defaults = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "PYTHONPATH": path}
        self._process = subprocess.Popen(
            [sys.executable, str(FOLDER / "worker.py"), contender.builder, json.dumps(workload)],
            env={**os.environ, **defaults, **contender.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def say(self, line: str) -> None:
        """Say a line, to one that may have ended."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def answer(self) -> dict | None:
        """Wait for the next answer; None from one that has ended."""
        line = self._process.stdout.readline()
        return json.loads(line) if line else None

    def ask(self, line: str) -> dict | None:
        """Say a line and wait for the answer."""
        self.say(line)
        return self.answer()

    def last_words(self) -> str:
        """The last error on its standard error, or the last line."""
        self._process.wait()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
        return [f"exit code {self._process.returncode}", *lines[-1:], *errors[-1:]][-1][:300]

    def end(self) -> None:
        """Let it go."""
        with contextlib.suppress(BrokenPipeError):  # a line that one who has ended never read
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._log.close()


def contest(
    contenders: list[Contender],
    workload: Workload,
    rounds: int,
    least_seconds: float = 1.0,
    apart: bool = False,
    together: bool = False,
) -> dict[str, Result]:
    """Time all contenders.

    Args:
        contenders: who takes part.
        workload: what they do.
        rounds: timings of each that count; one more warms up.
        least_seconds: a timing repeats the work until it is likely to take so long.
        apart: one after the other, each with all memory to itself, instead of in turns.
        together: build all at once, for a machine with many cores; else one at a time.

    Returns:
        Result by name, in the order given.
    """
    if apart:
        return {
            name: result
            for contender in contenders
            for name, result in contest([contender], workload, rounds, least_seconds).items()
        }
    processes = {c.name: _Process(c, workload) for c in contenders}
    first = {}
    if together:
        for process in processes.values():
            process.say("build")
    for name, process in processes.items():
        _say(f"{workload.kind}: building {name} ...")
        first[name] = process.answer() if together else process.ask("build")
    repeats = {}
    for name, process in processes.items():
        once = first[name] and process.ask("run 1")
        if once:
            repeats[name] = max(1, round(least_seconds / once["seconds"]))
    seconds: dict[str, list[float]] = {name: [] for name in repeats}
    for round_ in range(rounds):
        _say(f"{workload.kind}: round {round_ + 1} of {rounds}")
        for name in list(seconds):
            timed = processes[name].ask(f"run {repeats[name]}")
            if timed is None:
                del seconds[name]
            else:
                seconds[name].append(timed["seconds"] / repeats[name])
    _say("")
    results = {}
    for name, process in processes.items():
        memory = process.ask("memory") if name in seconds else None
        if memory is None:
            results[name] = Result([float("nan")], float("nan"), 0.0, None, process.last_words())
        else:
            results[name] = Result(
                seconds[name],
                first[name]["seconds"],
                memory["host"] / GIB,
                memory["device"] and memory["device"] / GIB,
            )
        process.end()
    return results


def _say(line: str) -> None:
    end = "" if sys.stderr.isatty() else "\n"
    if line or end == "":
        print(f"\r\x1b[K{line}" if end == "" else line, end=end, file=sys.stderr, flush=True)


def ratio(results: dict[str, Result], name: str, to: str) -> tuple[float, float, float]:
    """Lowest, median and highest of how many times as fast `to` is as `name`, round by round."""
    pairs = zip(results[name].seconds, results[to].seconds, strict=True)
    ratios = sorted(a / b for a, b in pairs)
    return ratios[0], statistics.median(ratios), ratios[-1]
