"""Runs whose step hangs are ended, and others are left alone."""

import threading
import time

from iddpm_jax.training.watchdog import Watchdog


class End:
    """Takes the line instead of ending the process."""

    def __init__(self):
        self.line, self.called = None, threading.Event()

    def __call__(self, line):
        self.line = line
        self.called.set()


def test_step_that_hangs_ends_the_process():
    end = End()
    with Watchdog(0.05, end) as watchdog:
        watchdog.beat()
        assert end.called.wait(5)
    assert "no step has ended for 0.05 s (train.hang_seconds)" in end.line
    assert "\n" not in end.line


def test_steps_that_end_keep_it_quiet():
    end = End()
    with Watchdog(0.4, end) as watchdog:
        for _ in range(8):
            watchdog.beat()
            time.sleep(0.1)
    assert end.line is None


def test_nothing_is_watched_before_the_first_step_or_while_paused():
    end = End()
    with Watchdog(0.02, end) as watchdog:
        time.sleep(0.1)
        watchdog.beat()
        watchdog.pause()
        time.sleep(0.1)
    assert end.line is None


def test_zero_seconds_wait_for_ever():
    end = End()
    with Watchdog(0, end) as watchdog:
        watchdog.beat()
        time.sleep(0.05)
    assert end.line is None
