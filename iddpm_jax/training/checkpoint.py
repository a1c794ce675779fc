"""Checkpoints: the train state with the position in the data and the config, by orbax."""

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
        keep: number of newest checkpoints kept.
    """

    def __init__(self, folder: Path, keep: int):
        self._folder = folder
        policies = ocp.training.preservation_policies
        self._checkpointer = ocp.training.Checkpointer(
            folder.absolute(),
            preservation_policy=policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._checkpointer.close()

    @property
    def latest(self) -> int | None:
        """Step of the newest whole checkpoint, or None."""
        newest = self._checkpointer.latest
        return None if newest is None else newest.step

    def path(self, step: int) -> Path:
        """Folder of a checkpoint."""
        return self._folder / str(step)

    def save(self, step: int, state: TrainState, position: dict, config: dict) -> None:
        """Start writing in the background; the state may be donated as soon as this returns.

        Args:
            step: optimizer steps taken.
            state: to save.
            position: of the data iterator, as its get_state gives.
            config: as a plain dict.
        """
        # On a CPU the writer may read the very buffers that the next step overwrites: hand it
        # copies.
        state = _copy(state)
        meta = {"position": position, "config": config}
        self._checkpointer.save_async(step, state, force=True, custom_metadata=meta)

    def wait(self) -> None:
        """Return once everything is on disk."""
        self._checkpointer.wait()

    def restore(self, like: TrainState) -> tuple[TrainState, dict]:
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
        try:
            state = self._checkpointer.load(step, like)
            meta = self._checkpointer.metadata(step).custom_metadata
            _check_same_shapes(state, like)
            return state, meta["position"]
        except Exception as error:  # orbax, tensorstore and the file system each raise their own
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"checkpoint {self.path(step)} cannot be read ({reason}); move it away to "
                "go on from the one before, or start again in another --workdir"
            ) from None


_copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))


def _check_same_shapes(state: Any, like: Any) -> None:
    found = jax.tree.map(lambda a: (a.shape, a.dtype), state)
    wanted = jax.tree.map(lambda a: (a.shape, a.dtype), like)
    if found != wanted:
        raise ValueError("its arrays have other shapes or types than this config's")
