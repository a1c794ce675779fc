"""Stand-ins for each test of a launcher, and an end to whatever it left running."""

import os
import signal

import pytest
from stand_ins import StandIns, running


@pytest.fixture
def stand_ins(tmp_path):
    made = StandIns(tmp_path)
    yield made
    pids = {e[key] for e in made.entries() for key in ("pid", "child") if e.get(key)}
    pids |= {process.pid for process in made.started}
    left = [pid for pid in pids if running(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    for process in made.started:
        process.communicate()
    assert left == []
