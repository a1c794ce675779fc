"""Curves of points: seeds pooled, looks of many curves."""

from pathlib import Path

import numpy as np
import pytest
from synthetic import stored_run

from iddpm_jax.figures import points
from iddpm_jax.figures.points import Found, Point, pooled
from iddpm_jax.figures.seeds import by_seed


def found(run, words, x, value, error=0.5):
    return Found(words, x, run, Point(value, error, (Path(f"{run.folder}/{x}"),)))


def two_seeds(tmp_path):
    return [stored_run(tmp_path / f"run{seed}", seed=seed) for seed in range(2)]


def test_points_of_seeds_become_mean_and_spread(tmp_path):
    a, b = two_seeds(tmp_path)
    curves = pooled([found(a, ("w",), 2, 5.0), found(b, ("w",), 2, 7.0), found(a, ("w",), 1, 3.0)])
    assert list(curves[("w",)]) == [1, 2]
    lonely, both = curves[("w",)].values()
    assert both[:2] == (6, pytest.approx(np.sqrt(2))) and both.seeds == 2 and len(both.paths) == 2
    # Its standard error beside others' spread would mislead.
    assert lonely.value == 3 and np.isnan(lonely.error) and lonely.seeds == 1


def test_points_of_one_run_keep_their_errors_and_the_last_of_two_stays(tmp_path):
    a, b = two_seeds(tmp_path)
    curves = pooled(
        [
            found(a, ("a",), 1, 9.0),
            found(a, ("a",), 1, 3.0, 0.25),
            found(a, ("a",), 2, 4.0),
            found(b, ("b",), 1, 5.0),
        ]
    )
    assert {k: [p[:2] for p in c.values()] for k, c in curves.items()} == {
        ("a",): [(3.0, 0.25), (4.0, 0.5)]
    }
    assert list(pooled([found(b, ("b",), 1, 5.0)], least=1)) == [("b",)]


def test_bars_are_said_for_what_they_are():
    one, two = ({("w",): {1: Point(1, 1, (), seeds)}} for seeds in (1, 2))
    assert points.bars({"a": one}, "errors") == "Bars are errors."
    assert "deviations over seeds" in points.bars({"a": two}, "errors")
    assert points.bars({"a": one, "b": two}, "errors").endswith("Other bars are errors.")


def looks_of(tmp_path, keys):
    runs = [
        stored_run(tmp_path / name, train__steps=4 + i) for i, name in enumerate(("one", "two"))
    ]
    curves = {key: {1: Point(1, 1, ()), 2: Point(1, 1, ())} for key in keys}
    return points.looks({"FD": curves}, by_seed(runs))


def test_curves_of_several_samplers_and_runs_have_colours_by_run(tmp_path):
    keys = [(how, run) for run in ("one", "two") for how in ("DDIM", "ancestral")]
    found = looks_of(tmp_path, keys)
    colours, dashes = ([found.styles[key][part] for key in keys] for part in ("color", "ls"))
    assert colours[0] == colours[1] != colours[2] == colours[3]
    assert dashes[0] == dashes[2] != dashes[1] == dashes[3]
    assert list(found.legend) == ["one", "two", "DDIM", "ancestral"]
    assert list(found.names.values()) == [", ".join(key) for key in keys]


def test_one_curve_of_each_run_is_called_after_it(tmp_path):
    found = looks_of(tmp_path, [("learned", "one"), ("fixed", "two")])
    assert list(found.legend) == list(found.names.values()) == ["one", "two"]


def test_curves_of_one_run_are_called_after_what_differs(tmp_path):
    found = looks_of(tmp_path, [("learned", "one"), ("fixed", "one")])
    assert list(found.legend) == ["learned", "fixed"]
