"""Checkpoints: the train state with the position in the data and the config, by orbax."""

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from iddpm_jax.errors import InputError
from iddpm_jax.training.state import TrainState


class Checkpoints:
    """The checkpoints of one run. A context manager: leaving it waits for all writing to end.

    Args:
        folder: holds one folder per saved step; made if missing.
        keep: number of newest checkpoints kept; None to read only, beside a run that may be saving.
    """

    def __init__(self, folder: Path, keep: int | None):
        self._folder = folder
        self._unnoted: list[int] = []
        policies = ocp.training.preservation_policies
        self._checkpointer = ocp.training.Checkpointer(
            folder.absolute(),
            preservation_policy=policies.LatestN(keep),
            cleanup_tmp_directories=keep is not None,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        # Reads that are in flight when another fails print tracebacks of their own.
        with contextlib.redirect_stderr(io.StringIO()) if kind else contextlib.nullcontext():
            self._checkpointer.close()
        self._note_files()

    @property
    def latest(self) -> int | None:
        """Step of the newest whole checkpoint, or None."""
        newest = self._checkpointer.latest
        return None if newest is None else newest.step

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
    ) -> None:
        """Start writing in the background; the state may be donated as soon as this returns.

        Args:
            step: optimizer steps taken.
            state: to save.
            position: of the data iterator, as its get_state gives; None before any data.
            config: as a plain dict.
            donated: False if the state outlives the writing, which saves the memory of a copy.
        """
        self.wait()
        # On a CPU the writer may read the very buffers that the next step overwrites: hand it
        # copies.
        if donated:
            state = _copy(state)
        meta = {"position": position, "config": config}
        self._checkpointer.save_async(step, state, force=True, custom_metadata=meta)
        self._unnoted.append(step)

    def wait(self) -> None:
        """Return once everything is on disk."""
        self._checkpointer.wait()
        self._note_files()

    def restore(self, like: TrainState) -> tuple[TrainState, dict | None]:
        """Read the newest checkpoint.

        Args:
            like: abstract state, with the sharding each array shall have.

        Returns:
            (state, position of the data iterator).

        Raises:
            InputError: there is none, or it is damaged or of another shape.
        """
        step = self.latest
        if step is None:
            raise InputError(f"{self._folder} holds no checkpoint; train first with --mode train")
        self._check_files(step)
        noise = io.StringIO()
        try:
            with contextlib.redirect_stderr(noise):
                state = self._checkpointer.load(step, like)
            sys.stderr.write(noise.getvalue())
            meta = self._checkpointer.metadata(step).custom_metadata
            _check_same_shapes(state, like)
            return state, meta["position"]
        except Exception as error:  # orbax, tensorstore and the file system each raise their own
            root = _root(error)
            reason = f"{type(root).__name__}: {' '.join(str(root).split())[:200]}"
            raise self._unreadable(step, reason) from None

    def _unreadable(self, step: int, reason: str) -> InputError:
        return InputError(
            f"checkpoint {self.path(step)} cannot be read ({reason}); move it away to go on from "
            "the one before, or start again in another --workdir"
        )

    def _sizes_path(self, step: int) -> Path:
        return self._folder / f"{step}.sizes.json"

    def _note_files(self) -> None:
        """Write the sizes of the files of each finished save beside its folder."""
        if not self._unnoted:
            return
        for step in self._unnoted:
            if self.path(step).is_dir():
                self._sizes_path(step).write_text(json.dumps(_sizes(self.path(step)), indent=1))
        self._unnoted = []
        for path in self._folder.glob("*.sizes.json"):
            if not self.path(int(path.name.split(".")[0])).is_dir():
                path.unlink()

    def _check_files(self, step: int) -> None:
        """Refuse a checkpoint with missing or truncated files, where their sizes are known."""
        if not self._sizes_path(step).exists():  # killed between the save and the note
            return
        found = _sizes(self.path(step))
        for name, size in json.loads(self._sizes_path(step).read_text()).items():
            if found.get(name) != size:
                state = f"has {found[name]} bytes of {size}" if name in found else "is missing"
                raise self._unreadable(step, f"its file {name} {state}")


def _sizes(folder: Path) -> dict[str, int]:
    """Size in bytes of every file below a folder, by relative path."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}


def _root(error: BaseException) -> BaseException:
    """The exception that others were raised from."""
    cause = error.__cause__ or error.__context__
    return error if cause is None else _root(cause)


_copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))


def _check_same_shapes(state: Any, like: Any) -> None:
    found = jax.tree.map(lambda a: (a.shape, a.dtype), state)
    wanted = jax.tree.map(lambda a: (a.shape, a.dtype), like)
    if found != wanted:
        raise ValueError("its arrays have other shapes or types than this config's")
