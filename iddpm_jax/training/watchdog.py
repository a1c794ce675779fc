"""What ends a run whose step hangs."""

import threading
import time
from collections.abc import Callable

from iddpm_jax.peers import end_process


class Watchdog:
    """Ends the process when no step has ended for too long. A context manager.

    Args:
        seconds: that a step may take; 0 to wait for ever.
        end: told a line; never returns, but in tests.
    """

    def __init__(self, seconds: float, end: Callable[[str], None] = end_process):
        self._seconds = seconds
        self._end = end
        self._beat: float | None = None  # None while nothing is watched
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watchdog":
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()

    def beat(self) -> None:
        """A step has ended: count from here."""
        self._beat = time.monotonic()

    def pause(self) -> None:
        """Do not watch until the next beat, for what may take any time."""
        self._beat = None

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._seconds / 4)):
            beat = self._beat
            if beat is not None and time.monotonic() - beat > self._seconds:
                self._end(
                    f"no step has ended for {self._seconds:g} s (train.hang_seconds): a device, "
                    "the data or another process hangs; the same command goes on from the newest "
                    "checkpoint"
                )
                return
