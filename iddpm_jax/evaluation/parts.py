"""Long results on disk as they come: a killed program goes on after the last whole part."""

import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from iddpm_jax.training.parallel import is_main_process


class Parts:
    """Rows of results in the order 0, 1, 2, ..., kept in files of consecutive rows.

    Only the main process writes; all processes must make and append together.
    """

    def __init__(self, folder: Path | None, made_by: dict):
        """Find what is there.

        Args:
            folder: of the files, made when the first is written; None keeps rows in memory.
            made_by: all that decides a row, of JSON's types. What other settings left is removed.
        """
        self._folder, self._made_by = folder, made_by
        self._parts: list[dict[str, np.ndarray]] = []
        if folder is not None and is_main_process():
            self._parts = self._found()
        self.done = int(self._agreed(sum(map(_rows, self._parts))))
        """Number of rows there are: the next is this one."""

    def append(self, arrays: dict[str, np.ndarray]) -> None:
        """Add the next rows: arrays [n, ...] by name. They are on disk when this returns.

        The first counts the rows; others may have another length, such as sums over the rows.
        """
        if self._folder is not None and is_main_process():
            self._folder.mkdir(parents=True, exist_ok=True)
            unfinished = self._folder / "unfinished.npz"
            np.savez(unfinished, made_by=json.dumps(self._made_by, sort_keys=True), **arrays)
            unfinished.replace(self._file(self.done))
        self._parts.append(arrays)
        self.done += _rows(arrays)

    def read(self) -> dict[str, np.ndarray]:
        """All rows, by name; in other processes than the main one, those appended there."""
        names = self._parts[0] if self._parts else ()
        return {name: np.concatenate([part[name] for part in self._parts]) for name in names}

    def take(self) -> Iterator[dict[str, np.ndarray]]:
        """The parts in order, each let go of as it is handed out: for rows that fill memory."""
        while self._parts:
            yield self._parts.pop(0)

    def remove(self) -> None:
        """Delete the files, once their content has its place."""
        if self._folder is not None and is_main_process():
            shutil.rmtree(self._folder, ignore_errors=True)

    def _file(self, first: int) -> Path:
        return self._folder / f"rows_from_{first:08d}.npz"

    def _found(self) -> list[dict[str, np.ndarray]]:
        """The parts without a gap from row 0 on; a part that is not whole counts as a gap."""
        parts, first = [], 0
        while self._file(first).exists():
            try:
                # Opened here, as numpy leaves a damaged file open.
                with self._file(first).open("rb") as opened, np.load(opened) as file:
                    part = dict(file)
            except (OSError, ValueError, EOFError, zipfile.BadZipFile):
                break
            if str(part.pop("made_by", "")) != json.dumps(self._made_by, sort_keys=True):
                self.remove()
                return []
            parts.append(part)
            first += _rows(part)
        return parts

    @staticmethod
    def _agreed(done: int) -> int:
        if jax.process_count() == 1:
            return done
        return multihost_utils.broadcast_one_to_all(np.int32(done))


def _rows(part: dict[str, np.ndarray]) -> int:
    return len(next(iter(part.values())))
