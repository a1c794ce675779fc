"""Contests between contenders that cost nothing: turns, repeats, failures, ratios."""

import json

import pytest
from contest import Contender, Result, Workload, contest, ratio

# A unit takes 0.25 s on a clock of its own.
TOYS = """
import json, os, time

LOG = os.environ["TOY_LOG"]
now = 0.0

def make(name):
    def build(workload):
        global now
        time.perf_counter = lambda: now

        def run(times):
            global now
            now += 0.25 * times
            print("a library's words"), os.system("echo and those of its children")
            said(times)

        def said(what):
            with open(LOG, "a") as file:
                file.write(json.dumps([name, what, workload.kind]) + "\\n")

        said("built")
        return run
    return build

first, second = make("first"), make("second")

def broken(workload):
    raise ValueError("out of paint")

def tires(workload):
    left = 3
    def run(times):
        nonlocal left
        left -= 1
        if not left:
            raise RuntimeError("tired")
    return run

def victim(workload):
    with open(LOG + ".pid", "w") as file:
        file.write(str(os.getpid()))
    return lambda times: None

def killer(workload):
    def run(times):
        with open(LOG + ".pid") as file:
            victim = int(file.read())
        os.kill(victim, 9)
        while "Z (" not in open(f"/proc/{victim}/status").read():
            time.sleep(0.01)
    return run

def silent(workload):
    os._exit(3)
"""
WORK = Workload("train", "{}", 1, "")


@pytest.fixture
def held(tmp_path, monkeypatch):
    """A contest of toys by name -> its results, and what they logged."""
    (tmp_path / "toys.py").write_text(TOYS)
    (tmp_path / "log").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("TOY_LOG", str(tmp_path / "log"))

    def hold(names, rounds=2, **settings):
        results = contest([Contender(n, f"toys:{n}") for n in names], WORK, rounds, **settings)
        lines = (tmp_path / "log").read_text().splitlines()
        return results, [json.loads(line) for line in lines]

    return hold


def test_contenders_build_one_by_one_and_then_take_turns(held):
    _, log = held(["first", "second"], least_seconds=0.0)
    units = [[name, what] for name in ("first", "second") for what in ("built", 1)]
    units += [["first", 1], ["second", 1]] * 3  # the first of them is not counted
    assert log == [[*unit, "train"] for unit in units]


def test_contenders_apart_end_before_the_next_begins(held):
    results, log = held(["first", "second"], least_seconds=0.0, apart=True)
    assert [name for name, *_ in log] == ["first"] * 5 + ["second"] * 5
    assert list(results) == ["first", "second"]


def test_short_work_is_repeated_and_seconds_are_those_of_a_unit(held):
    results, log = held(["first"], least_seconds=1.0)
    assert [what for _, what, _ in log] == ["built", 1, 1, 4, 4]
    assert results["first"].seconds == [0.25, 0.25]
    assert results["first"].median == 0.25


def test_memory_is_that_of_the_process_and_none_of_the_one_that_started_it(held):
    large = b"x" * 2**28  # and on every page
    results, _ = held(["first"])
    assert 0.005 < results["first"].host_gib < 0.2 < len(large) / 2**30
    assert results["first"].device_gib is None


@pytest.mark.parametrize(
    "name, words",
    [
        ("broken", "ValueError: out of paint"),
        ("tires", "RuntimeError: tired"),
        ("silent", "exit code 3"),
        ("unknown", "AttributeError: module 'toys' has no attribute 'unknown'"),
    ],
)
def test_contender_that_fails_says_why_and_stops_no_other(held, name, words):
    results, log = held(["first", name, "second"], least_seconds=0.0)
    assert list(results) == ["first", name, "second"]
    assert results[name].failed == words
    for other in ("first", "second"):
        assert results[other].failed == ""
        assert len(results[other].seconds) == 2


def test_contender_that_is_killed_between_its_turns_stops_no_other(held):
    results, _ = held(["victim", "first", "killer"], least_seconds=0.0)
    assert results["victim"].failed == "exit code -9"
    assert results["first"].seconds == [0.25, 0.25]


def test_ratio_is_of_rounds_not_of_medians():
    slow = Result([4.0, 9.0, 20.0], 1.0, 1.0, None)
    fast = Result([2.0, 3.0, 4.0], 1.0, 1.0, None)
    assert ratio({"slow": slow, "fast": fast}, "slow", to="fast") == (2.0, 3.0, 5.0)
