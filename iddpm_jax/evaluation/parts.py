"""Long results on disk as they come: a killed program goes on after the last whole part."""

import hashlib
import json
import shutil
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from iddpm_jax.data import Source
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
        # Those on disk are not kept in memory too, where all of them may not fit.
        self._parts: list[dict[str, np.ndarray] | Path] = []
        found = self._find() if folder is not None and is_main_process() else 0
        self.done = from_main(found)
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
            self._parts.append(self._file(self.done))
        else:
            self._parts.append(arrays)
        self.done += _rows(arrays)

    def extend(self, rows: Iterable[dict[str, np.ndarray]], seconds: float) -> None:
        """Append rows as they come: to disk after so many seconds, at the end, and on Ctrl-C.

        Where they go to disk, other processes than the main one only ask for them.
        """
        fresh: list[dict[str, np.ndarray]] = []
        written = time.monotonic()

        def append() -> None:
            if fresh:
                self.append({n: np.concatenate([part[n] for part in fresh]) for n in fresh[0]})
            fresh.clear()

        try:
            for part in rows:
                if self._folder is None or is_main_process():
                    fresh.append(part)
                if time.monotonic() - written >= seconds:
                    append()
                    written = time.monotonic()
        except KeyboardInterrupt:
            append()
            raise
        append()

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """The parts, one after the other; in other processes than the main one, as read."""
        for part in self._parts:
            if isinstance(part, Path):
                part = _read(part)
                del part["made_by"]
            yield part

    def read(self) -> dict[str, np.ndarray]:
        """All rows, by name; in other processes than the main one, those appended there."""
        parts = list(self)
        names = parts[0] if parts else ()
        return {name: np.concatenate([part[name] for part in parts]) for name in names}

    def remove(self) -> None:
        """Delete the files, once their content has its place."""
        if self._folder is not None and is_main_process():
            shutil.rmtree(self._folder, ignore_errors=True)

    def _file(self, first: int) -> Path:
        return self._folder / f"rows_from_{first:08d}.npz"

    def _find(self) -> int:
        """Rows of the parts without a gap from 0 on; a part that is not whole counts as a gap."""
        done = 0
        while self._file(done).exists():
            try:
                part = _read(self._file(done))
            except (OSError, ValueError, EOFError, zipfile.BadZipFile):
                break
            if str(part.pop("made_by", "")) != json.dumps(self._made_by, sort_keys=True):
                self.remove()
                self._parts.clear()
                return 0
            self._parts.append(self._file(done))
            done += _rows(part)
        return done


def from_main(number: int) -> int:
    """The main process's number, in every process; all wait for it."""
    if jax.process_count() == 1:
        return int(number)
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def hashed(*arrays: np.ndarray) -> str:
    """A word for the bytes of arrays, to be among what decides rows."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.asarray(array).tobytes())
    return found.hexdigest()[:16]


def told_apart(source: Source) -> list[int]:
    """What tells data apart, to be among what decides rows: the size, and a few of the images."""
    few = np.linspace(0, len(source) - 1, min(16, len(source))).astype(int)
    crc = 0
    for index in few.tolist():
        crc = zlib.crc32(np.ascontiguousarray(source[index]["image"]), crc)
    return [len(source), crc]


def _read(file: Path) -> dict[str, np.ndarray]:
    # Opened here, as numpy leaves a damaged file open.
    with file.open("rb") as opened, np.load(opened) as arrays:
        return dict(arrays)


def _rows(part: dict[str, np.ndarray]) -> int:
    return len(next(iter(part.values())))
