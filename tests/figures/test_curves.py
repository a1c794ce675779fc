"""Learning curves."""

import numpy as np
import pytest
from synthetic import add_curves, curve_row, stored_run

from iddpm_jax.figures import curves
from iddpm_jax.figures.results import Missing


def test_numbers_are_the_rows_of_the_run(tmp_path):
    run = stored_run(tmp_path / "run")
    add_curves(run, [curve_row(n, l_vlb=10.0 / n, gradient_norm=1.0) for n in (2, 4, 6)])
    numbers = curves.learning_curves([run]).numbers
    np.testing.assert_array_equal(numbers["step"], [2, 4, 6])
    np.testing.assert_allclose(numbers["l_vlb"], [5, 2.5, 10 / 6], rtol=1e-15)
    np.testing.assert_allclose(numbers["l_vlb_q3"], 0.4)
    assert "gradient_norm" not in numbers


def test_state_of_importance_sampling_and_measurements_are_kept(tmp_path):
    run = stored_run(tmp_path / "run")
    state = {"effective_sample_size": 0.25, "warmed_up": 0.5}
    add_curves(run, [curve_row(2, **state), curve_row(4, **state, test_bits_per_dim=3.0)])
    figure = curves.learning_curves([run])
    np.testing.assert_array_equal(figure.numbers["effective_sample_size"], [0.25, 0.25])
    np.testing.assert_array_equal(figure.numbers["warmed_up"], [0.5, 0.5])
    np.testing.assert_array_equal(figure.numbers["test_bits_per_dim"], [np.nan, 3])
    assert "importance weights" in figure.caption


def test_runs_keep_their_names(tmp_path):
    runs = [stored_run(tmp_path / name) for name in ("one", "other", "empty")]
    for run, value in zip(runs, (3.0, 5.0), strict=False):
        add_curves(run, [curve_row(2, l_vlb=value)])
    numbers = curves.learning_curves(runs).numbers
    assert (numbers["one_l_vlb"][0], numbers["other_l_vlb"][0]) == (3, 5)
    assert not any(key.startswith("empty") for key in numbers)


def test_seeds_are_means_and_spreads_by_step(tmp_path):
    """The second seed was stopped early, and logged at another step."""
    runs = [stored_run(tmp_path / f"run{seed}", seed=seed) for seed in range(2)]
    add_curves(runs[0], [curve_row(n, l_vlb=float(n)) for n in (2, 4, 6)])
    add_curves(runs[1], [curve_row(n, l_vlb=n + 2.0) for n in (2, 3, 4)])
    figure = curves.learning_curves(runs)
    numbers = figure.numbers
    np.testing.assert_array_equal(numbers["step"], [2, 3, 4, 6])
    np.testing.assert_allclose(numbers["l_vlb"], [3, 5, 5, 6])
    root = np.sqrt(2)
    np.testing.assert_allclose(numbers["l_vlb_spread"], [root, np.nan, root, np.nan])
    assert "over seeds" in figure.caption and len(figure.files) == 2


def test_short_curves_are_drawn_as_they_are():
    step, value = np.arange(1, 300), np.random.default_rng(0).random(299)
    for got, expected in zip(curves.averaged(step, value), (step, value), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_long_curves_are_means_of_neighbours_without_what_is_missing():
    step, value = np.arange(1, 1201), np.arange(1200.0)
    value[6:12] = np.nan
    value[12] = np.nan
    got_step, got = curves.averaged(step, value)
    np.testing.assert_array_equal(got_step, np.arange(6, 1201, 6))
    expected = np.arange(2.5, 1200, 6)
    expected[1], expected[2] = np.nan, 15.0
    np.testing.assert_allclose(got, expected)


def test_run_that_was_not_trained_here_is_said(tmp_path):
    with pytest.raises(Missing, match="holds no metrics.jsonl"):
        curves.learning_curves([stored_run(tmp_path / "run")])
