"""When a run is asked to stop: by Ctrl-C, by SIGTERM, or by notice that its machine goes away."""

import signal

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """What the loop asks between dispatches whether to save and stop. A context manager.

    One process: Ctrl-C and SIGTERM become a flag. Several processes: JAX takes SIGTERM, of any of
    them, for a notice, and lets all of them stop after the same one; Ctrl-C is turned into it.
    """

    def __init__(self):
        self.signal: str | None = None
        self._alone = jax.process_count() == 1

    def __enter__(self) -> "StopRequest":
        # A handler for SIGTERM would displace JAX's own.
        signals = (signal.SIGINT, signal.SIGTERM) if self._alone else (signal.SIGINT,)
        self._before = {s: signal.signal(s, self._note) for s in signals}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            # None stands for a handler that was not installed from Python and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def after(self, dispatch: int) -> str | None:
        """Why to stop after this dispatch, or None.

        In several processes ask after every one, by its number: JAX waits for the next number after
        the highest that any process has reached, and would never see one that is left out.
        """
        if self._alone:
            return self.signal
        return "notice to stop" if multihost_utils.reached_preemption_sync_point(dispatch) else None

    def _note(self, number: int, _: object) -> None:
        if self.signal:
            # Asked twice: stop at once.
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.signal = signal.Signals(number).name
        if not self._alone:
            signal.raise_signal(signal.SIGTERM)
