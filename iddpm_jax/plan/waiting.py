"""A clock beside work that takes minutes and says nothing."""

import concurrent.futures
import sys
import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")
LINE_SECONDS = 15


def with_clock(work: Callable[[], Result], message: str, expected: float) -> Result:
    """Run something long beside a clock on stderr: live on a terminal, else a line every 15 s.

    Args:
        work: what to run, in a thread, so that Ctrl-C is heard meanwhile.
        message: what is being done.
        expected: seconds that it takes on two free cores.

    Returns:
        What work returns.

    Raises:
        KeyboardInterrupt: at once, though the work may go on until the program ends.
    """
    live = sys.stderr.isatty()
    started = time.monotonic()
    pool = concurrent.futures.ThreadPoolExecutor(1)
    future = pool.submit(work)
    # Not "with pool": leaving that on Ctrl-C would wait for the work to end.
    pool.shutdown(wait=False)
    start, end = ("\r", "") if live else ("", "\n")
    try:
        while True:
            passed = clock(time.monotonic() - started)
            line = f"{message}: {passed} (about {clock(expected)} on two free cores)"
            print(start + line, end=end, file=sys.stderr, flush=True)
            done, _ = concurrent.futures.wait([future], 1 if live else LINE_SECONDS)
            if done:
                return future.result()
    finally:
        if live:
            print(file=sys.stderr)


def clock(seconds: float) -> str:
    """Minutes and seconds, such as 5:07."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
