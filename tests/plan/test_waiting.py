"""The clock beside long work."""

import time

import pytest

from iddpm_jax.plan import waiting


def test_clock_counts_in_lines_where_there_is_no_terminal(monkeypatch, capsys):
    monkeypatch.setattr(waiting, "LINE_SECONDS", 0.05)
    assert waiting.with_clock(lambda: time.sleep(0.12) or 7, "compiling", 65) == 7
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines()[0] == "compiling: 0:00 (about 1:05 on two free cores)"
    assert len(printed.err.splitlines()) > 1


def test_failures_come_through(capsys):
    def fail():
        raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match="mine"):
        waiting.with_clock(fail, "compiling", 1)


def test_interrupts_are_heard_at_once(monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(waiting.concurrent.futures, "wait", interrupt)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        waiting.with_clock(lambda: time.sleep(0.5), "compiling", 1)
    assert time.monotonic() - started < 0.4
