"""When a run is asked to stop."""

import signal


class StopRequest:
    """Turns Ctrl-C and SIGTERM into a flag that the loop looks at between steps."""

    def __init__(self):
        self.signal: str | None = None

    def __enter__(self) -> "StopRequest":
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            # None stands for a handler that was not installed from Python and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, _: object) -> None:
        if self.signal:
            # Asked twice: stop at once.
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.signal = signal.Signals(number).name
