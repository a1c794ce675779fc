"""Checkpoints: the train state with the position in the data and the config, by orbax."""

import contextlib
import errno
import functools
import itertools
import json
import logging
import math
import os
import re
import sys
import traceback
import warnings
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from iddpm_jax.errors import InputError
from iddpm_jax.training.checksum import checksums
from iddpm_jax.training.state import TrainState

METRIC = "bits_per_dim"
"""What decides which checkpoint is the best: less is better."""


class Checkpoints:
    """The checkpoints of one run. A context manager: leaving it waits for all writing to end.

    In several processes, all of them call every method together.

    Args:
        folder: holds one folder per saved step; made if missing.
        keep: number of newest checkpoints kept; None to read only, beside a run that may be saving.
        keep_best: number kept of those that have a metric.
        keep_every: those at multiples of so many steps are kept for good; 0: none.
    """

    def __init__(self, folder: Path, keep: int | None, keep_best: int = 0, keep_every: int = 0):
        self._folder = folder
        self._reads_only = keep is None
        _quieten_orbax()
        for file in folder.glob("*/metrics/metrics"):
            _check_metric(file)
        self._checkpointer = ocp.training.Checkpointer(
            folder.absolute(),
            preservation_policy=_preservation(keep, keep_best, keep_every),
            cleanup_tmp_directories=not self._reads_only,
        )
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._started: Future | None = None
        self._saving: int | None = None
        self._snapshot: TrainState | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            self.wait()
        except InputError:
            if kind is None:  # else there is a failure to tell of already
                raise
        finally:
            self._thread.shutdown()
            with contextlib.suppress(OSError, ValueError):  # once more of what wait has told
                self._checkpointer.close()

    @property
    def steps(self) -> list[int]:
        """Steps of all whole checkpoints, ascending."""
        self.wait()
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

    @property
    def latest(self) -> int | None:
        """Step of the newest whole checkpoint, or None."""
        return max(self.steps, default=None)

    @property
    def best(self) -> int | None:
        """Step of the checkpoint with the lowest metric, or None where none has a metric."""
        self.wait()
        known = [c for c in self._checkpointer.checkpoints if c.metrics]
        return min(known, key=_metric_of).step if known else None

    def path(self, step: int) -> Path:
        """Folder of a checkpoint."""
        return self._folder / str(step)

    def save(
        self,
        step: int,
        state: TrainState,
        position: dict | None,
        config: dict,
        donated: bool = True,
        metric: float | None = None,
    ) -> None:
        """Start writing in the background; the state may be donated as soon as this returns.

        Args:
            step: optimizer steps taken.
            state: to save.
            position: of the data iterator, as its get_state gives; None before any data.
            config: as a plain dict.
            donated: False if the state outlives the writing, which saves the memory of a copy.
            metric: bits/dim, where they were measured.

        Raises:
            InputError: this save or the one before could not be written.
        """
        self.wait()
        leaves = jax.tree.leaves(state)
        alone = jax.process_count() == 1 and all(a.is_fully_replicated for a in leaves)
        if alone:  # what one device holds is enough
            state = jax.tree.map(lambda a: a.addressable_data(0), state)
        if donated:
            state = self._snapshot = _copy(state, self._snapshot)
        metrics = {METRIC: metric} if metric is not None and math.isfinite(metric) else None
        meta = {"position": position, "config": config}
        self._saving = step
        if alone:
            self._started = self._thread.submit(self._write, step, state, meta, metrics)
        else:
            # Shards are cut by programs of JAX, and several processes meet in collectives: from
            # another thread, those of the next step and these would wait for each other.
            try:
                self._write(step, state, meta, metrics)
            except Exception as error:  # as in wait
                raise self._unwritten(step, error) from None

    def _write(self, step: int, state: TrainState, meta: dict, metrics: dict | None) -> None:
        meta = {**meta, "checksums": checksums(state)}
        meta["crc32"] = _crc(meta)
        self._checkpointer.save_async(
            step, state, force=True, metrics=metrics, custom_metadata=meta
        )

    def wait(self) -> None:
        """Return once everything is on disk.

        Raises:
            InputError: the save could not be written; those before are as they were.
        """
        step, started = self._saving, self._started
        self._saving = self._started = None
        try:
            if started is not None:
                started.result()
            self._checkpointer.wait()
        except Exception as error:  # orbax, tensorstore and the file system each raise their own
            raise self._unwritten(step, error) from None

    def _unwritten(self, step: int | None, error: Exception) -> InputError:
        self._checkpointer.reload()
        last = self._checkpointer.latest
        whole = f"that of step {last.step} is whole" if last else "there is none before it"
        return InputError(
            f"the checkpoint of step {step} could not be written ({_reason(error)}); {whole}; "
            "once that is mended, the same command goes on from there"
        )

    def restore(self, like: TrainState, step: int | None = None) -> tuple[TrainState, dict | None]:
        """Read a checkpoint: every array, compared with the checksum it was saved with.

        Where the newest one is damaged, a warning says so and the one before is read. Unless this
        only reads, the damaged one is renamed, so that its step can be saved anew.

        Args:
            like: abstract state, with the sharding each array shall have.
            step: the one to read and no other; None for the newest whole one.

        Returns:
            (state, position of the data iterator).

        Raises:
            InputError: there is none, or none that can be read into such a state.
        """
        steps = self.steps
        if not steps:
            raise InputError(f"{self._folder} holds no checkpoint; train first with --mode train")
        if step is not None and step not in steps:
            there = ", ".join(map(str, steps))
            raise InputError(f"{self._folder} has no checkpoint of step {step}; it has {there}")
        tried = [step] if step is not None else steps[::-1]
        for count, candidate in enumerate(tried):
            found = self._read(candidate, like)
            if not isinstance(found, str):
                self._set_aside(tried[:count])
                return found
            problem = f"checkpoint {self.path(candidate)} cannot be read ({found})"
            if candidate != tried[-1] and jax.process_index() == 0:
                print(f"warning: {problem}; going back to the one before", file=sys.stderr)
        cure = "choose another --checkpoint" if step is not None else "there is none before it"
        raise InputError(f"{problem}; {cure}, or start again in another --workdir")

    def _read(self, step: int, like: TrainState) -> tuple[TrainState, dict | None] | str:
        """(state, position), or what is wrong with the checkpoint."""
        problem = None
        try:
            state = self._checkpointer.load(step, like)
            meta = self._checkpointer.metadata(step).custom_metadata
            if not meta:
                problem = "its metadata are gone"
        except (MemoryError, jax.errors.JaxRuntimeError):
            raise  # the machine's trouble
        except Exception as error:  # as in wait
            problem = _reason(error)
        if _anywhere(problem is not None):
            return problem or "another process failed to read it"
        crc = meta.pop("crc32", None)
        if crc is None:  # saved before there were checksums
            return state, meta["position"]
        if crc != _crc(meta):
            return "its data position, config or checksums have changed"
        found = checksums(state)
        changed = [name for name, known in meta["checksums"].items() if found.get(name) != known]
        if changed:
            more = f" and {len(changed) - 1} more arrays" if changed[1:] else ""
            return f"array {changed[0]}{more} changed after saving"
        return state, meta["position"]

    def _set_aside(self, steps: list[int]) -> None:
        """Rename damaged checkpoints, so that orbax takes them for none."""
        if self._reads_only or not steps:
            return
        if jax.process_index() == 0:
            for step in steps:
                names = (f"{step}.damaged{number or ''}" for number in itertools.count())
                free = (path for path in map(self._folder.joinpath, names) if not path.exists())
                self.path(step).rename(next(free))
        _anywhere(False)  # nobody goes on before the folder has changed
        self._checkpointer.reload()


def _preservation(keep: int | None, keep_best: int, keep_every: int) -> object:
    policies = ocp.training.preservation_policies
    best = policies.BestN(
        n=keep_best,
        get_metric_fn=lambda metrics: metrics[METRIC],
        reverse=True,
        keep_checkpoints_without_metrics=False,
    )
    every = [policies.EveryNSteps(keep_every)] if keep_every else []
    return policies.AnyPreservationPolicy([policies.LatestN(keep), best, *every])


def _check_metric(file: Path) -> None:
    """Orbax reads these before all else, and without one that is broken it would not start."""
    try:
        float(json.loads(file.read_text())[METRIC])
    except FileNotFoundError:  # just removed by the run that saves here
        return
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{file} is damaged; remove it, which loses that metric alone") from None


def _metric_of(checkpoint: ocp.training.CheckpointMetadata) -> float:
    return checkpoint.metrics[METRIC]


def _copy(state: TrainState, spare: TrainState | None) -> TrainState:
    """A copy, whose buffers no later step overwrites.

    Args:
        state: to copy.
        spare: the copy before, if there is one; it is donated. Memory that a CPU has to find anew
            takes several times as long to fill, and the peak is the same either way.

    Returns:
        The copy.
    """
    # Array by array: one program for all would take seconds to compile.
    if spare is None:
        return jax.tree.map(_copy_array, state)
    return jax.tree.map(_copy_into, spare, state)


_copy_array = jax.jit(jnp.copy)
_copy_into = jax.jit(lambda _, array: jnp.copy(array), donate_argnums=0, keep_unused=True)


def _anywhere(flag: bool) -> bool:
    """Whether it is true in any process."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def _crc(meta: dict) -> int:
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())


@functools.cache
def _quieten_orbax() -> None:
    """Let a failure be told once, in one line, by who catches it here.

    Orbax also logs it from each of its threads, and reads in flight when another fails end, now or
    later, in exceptions and coroutines that nobody waits for.
    """
    warnings.filterwarnings("ignore", "coroutine '.*' was never awaited", RuntimeWarning)
    logging.getLogger("absl").addFilter(lambda record: "/orbax/" not in record.pathname)
    logging.getLogger("asyncio").addFilter(
        lambda record: "exception was never retrieved" not in record.getMessage()
    )
    others = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        frames = traceback.extract_tb(unraisable.exc_traceback)
        late = any("/orbax/" in frame.filename for frame in frames)
        if not (late or "Event loop is closed" in str(unraisable.exc_value)):
            others(unraisable)

    sys.unraisablehook = hook


def _reason(error: BaseException) -> str:
    """The exception that others were raised from, in a few words."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    text = " ".join(str(error).split())
    # Tensorstore's text runs over several lines before it comes to the point.
    number = re.search(r"os_error_code='(\d+)'", text)
    if number and int(number[1]) in errno.errorcode:
        return os.strerror(int(number[1]))
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {text[:200]}"
