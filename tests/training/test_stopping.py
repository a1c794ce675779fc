"""Signals become an answer to be read between steps."""

import os
import signal

import jax
import pytest

from iddpm_jax.training import stopping
from iddpm_jax.training.stopping import StopRequest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_one_process_after_the_step(number):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.after(1) is None
        os.kill(os.getpid(), number)
        assert stop.after(2) == number.name
    assert signal.getsignal(number) is before


def test_several_processes_leave_sigterm_to_jax_and_ask_it(monkeypatch):
    asked = []

    def reached(step):
        asked.append(step)
        return step == 2

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(stopping.multihost_utils, "reached_preemption_sync_point", reached)
    caught = []
    before = signal.signal(signal.SIGTERM, lambda *_: caught.append("SIGTERM"))
    try:
        with StopRequest() as stop:
            assert stop.after(1) is None
            os.kill(os.getpid(), signal.SIGINT)  # is turned into the signal that JAX waits for
            assert stop.after(2)
        assert caught == ["SIGTERM"]
    finally:
        signal.signal(signal.SIGTERM, before)
    assert asked == [1, 2]
