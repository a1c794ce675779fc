"""What a run reports: a progress bar, and means between two rows to JSONL, CSV and TensorBoard."""

import csv
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from iddpm_jax.training.step import QUARTILES

PER_QUARTILE = ("l_simple", "l_vlb")


class Means:
    """Running means of step metrics since the last report."""

    def __init__(self):
        self._rows: list[dict[str, np.ndarray]] = []

    def add(self, metrics: dict[str, np.ndarray]) -> None:
        """Take in the metrics of one step, as host arrays."""
        self._rows.append(metrics)

    def take(self) -> dict[str, float]:
        """Means of what was added, by name, and start again.

        Quartile q of the steps t is named _q0 (least noise) to _q3; NaN where no example fell in
        it. Steps that were skipped for their overflow count in "skipped" alone, unless all were.
        """
        taken = [row for row in self._rows if not row.get("skipped")] or self._rows
        sums = {k: np.mean([row[k] for row in taken], axis=0) for k in taken[0]}
        if "skipped" in sums:
            sums["skipped"] = np.mean([row["skipped"] for row in self._rows])
        self._rows = []
        weight = sums.pop("quartile_weight")
        result = {k: float(v) for k, v in sums.items() if not k.endswith("_quartile_sum")}
        for name in PER_QUARTILE:
            for q in range(QUARTILES):
                total = sums[f"{name}_quartile_sum"][q]
                result[f"{name}_q{q}"] = float(total / weight[q]) if weight[q] else math.nan
        return result


class Writer:
    """metrics.jsonl, progress.csv and TensorBoard events of one run.

    Rows beyond the step a run continues from are dropped first, so that a killed and continued run
    has every step once.

    Args:
        workdir: folder of the run.
        step: the step that the run continues from.
    """

    def __init__(self, workdir: Path, step: int):
        self._jsonl = workdir / "metrics.jsonl"
        self._csv = workdir / "progress.csv"
        self._columns: list[str] = []
        rows = []
        if self._jsonl.exists():
            lines = self._jsonl.read_text().splitlines()
            rows = [row for row in map(_parsed, lines) if row is not None and row["step"] <= step]
        # At no time is there less on disk than what is kept.
        unfinished = self._jsonl.with_suffix(".tmp")
        unfinished.write_text("".join(json.dumps(row) + "\n" for row in rows))
        unfinished.replace(self._jsonl)
        self._csv.unlink(missing_ok=True)
        for row in rows:
            self._append_csv(row)
        self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self._events.close()

    def write(self, row: dict[str, float]) -> None:
        """Append one row; it has a "step". Not-finite numbers become null, nothing in the CSV."""
        row = {
            k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()
        }
        with self._jsonl.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self._append_csv(row)
        for name, value in row.items():
            if name != "step" and value is not None:
                self._events.add_scalar(name, value, row["step"])

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Show a picture, uint8 [H, W, 1 or 3], in TensorBoard."""
        self._events.add_image(name, pixels, step, dataformats="HWC")

    def _append_csv(self, row: dict) -> None:
        new = [name for name in row if name not in self._columns]
        rows = [row]
        if new:  # the file starts again, with more columns
            if self._columns:
                with self._csv.open(newline="") as file:
                    rows = [*csv.DictReader(file), row]
            self._columns += new
        with self._csv.open("w" if new else "a", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            if new:
                writer.writeheader()
            writer.writerows(rows)


def _parsed(line: str) -> dict | None:
    """A row, or None for a line that was cut off while it was written."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


class Reporter:
    """Progress bar and rows of a run. Use as a context manager.

    Args:
        workdir: folder of the run; None in a process that shall be silent.
        start: the step that the run continues from.
        steps: the step at which it ends.
        batch_size: images per step.
        every: steps between two rows.
    """

    def __init__(self, workdir: Path | None, start: int, steps: int, batch_size: int, every: int):
        self._writer = Writer(workdir, start) if workdir else None
        self._steps, self._batch_size, self._every = steps, batch_size, every
        self._means = Means()
        self._evaluation: dict[str, float] = {}
        self._evaluated: int | None = None
        self._counted, self._seconds, self._clock = 0, 0.0, time.monotonic()
        self._waited = 0.0
        self._bar = tqdm(
            total=steps,
            initial=start,
            desc="training",
            unit="step",
            dynamic_ncols=True,
            disable=workdir is None,
            # A file wants few lines, a terminal a live one.
            mininterval=0.2 if sys.stderr.isatty() else 15.0,
        )

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if self._writer:
            self._writer.__exit__()

    def step(self, now: int, metrics: dict[str, np.ndarray]) -> None:
        """Count one finished step; write a row when it is time.

        Args:
            now: number of the step, from 1.
            metrics: of the step, on the host.
        """
        self._means.add(metrics)
        self._counted += 1
        self._bar.update()
        if now % self._every and now not in (self._steps, self._evaluated):
            return
        self._seconds += time.monotonic() - self._clock
        rate = self._counted * self._batch_size / self._seconds
        waited = self._waited / self._seconds
        self._counted, self._seconds, self._clock = 0, 0.0, time.monotonic()
        self._waited = 0.0
        row = {
            "step": now,
            "images": now * self._batch_size,
            "images_per_second": round(rate, 1),
            "data_wait": round(waited, 4),
            **self._means.take(),
            **self._evaluation,
        }
        self._evaluation = {}
        if self._writer:
            self._writer.write(row)
        slow = f", {waited:.0%} waiting for data" if waited >= 0.02 else ""
        self._bar.set_postfix_str(
            f"{rate:,.0f} images/s, L_simple {row['l_simple']:.4f}, "
            f"L_vlb {row['l_vlb']:.3f} bits/dim{slow}"
        )

    def waited(self, seconds: float) -> None:
        """Take in time in which the devices had nothing to do because there was no batch yet."""
        self._waited += seconds

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Show a picture, uint8 [H, W, 1 or 3], in TensorBoard."""
        if self._writer:
            self._writer.image(step, name, pixels)

    def evaluated(self, step: int, name: str, value: float) -> None:
        """Take in a measurement of a step in flight, which then has a row."""
        self._evaluated, self._evaluation = step, {name: value}

    def pause(self) -> None:
        """Stop the clock of images per second, for saving or sampling."""
        self._seconds += time.monotonic() - self._clock

    def resume(self) -> None:
        """Start the clock again."""
        self._clock = time.monotonic()
