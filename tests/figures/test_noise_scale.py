"""Gradient noise scales against the training step."""

import json

import numpy as np
import pytest
from synthetic import add_gradients, stored_run

from iddpm_jax.figures import noise_scale
from iddpm_jax.figures.results import Missing

EVENLY, IMPORTANCE = ("l_vlb", "uniform"), ("l_vlb", "importance")


def test_scales_are_those_of_the_checkpoints_in_order(tmp_path):
    run = stored_run(tmp_path / "run")
    for step, scale in ((300, 70.0), (20, 50.0)):
        add_gradients(run, step, {EVENLY: scale, IMPORTANCE: scale / 2})
    numbers = noise_scale.noise_scales([run]).numbers
    np.testing.assert_array_equal(numbers["l_vlb_uniform_step"], [20, 300])
    np.testing.assert_array_equal(numbers["l_vlb_uniform_scale"], [50, 70])
    np.testing.assert_array_equal(numbers["l_vlb_uniform_error"], [5, 7])
    np.testing.assert_array_equal(numbers["l_vlb_importance_scale"], [25, 35])
    assert "l_hybrid_uniform_step" not in numbers


def test_scale_lost_in_noise_is_a_lower_bound(tmp_path):
    run = stored_run(tmp_path / "run")
    add_gradients(run, 20, {EVENLY: 50.0})
    add_gradients(run, 40, {EVENLY: None})
    numbers = noise_scale.noise_scales([run]).numbers
    np.testing.assert_array_equal(numbers["l_vlb_uniform_scale"], [50, np.nan])
    np.testing.assert_array_equal(numbers["l_vlb_uniform_at_least"], [np.nan, 5000])


def test_gradient_known_by_importance_serves_even_draws(tmp_path):
    run = stored_run(tmp_path / "run")
    add_gradients(run, 20, {EVENLY: None, IMPORTANCE: 30.0}, evenly=800.0)
    add_gradients(run, 40, {EVENLY: 700.0, IMPORTANCE: None}, evenly=800.0)
    numbers = noise_scale.noise_scales([run]).numbers
    np.testing.assert_array_equal(numbers["l_vlb_uniform_scale"], [800, 700])
    np.testing.assert_array_equal(numbers["l_vlb_uniform_error"], [400, 70])
    np.testing.assert_array_equal(numbers["l_vlb_importance_at_least"], [np.nan, 5000])


def test_measurement_of_most_images_counts(tmp_path):
    run = stored_run(tmp_path / "run")
    for batches, scale in ((100, 50.0), (400, 60.0), (200, 70.0)):
        add_gradients(run, 20, {EVENLY: scale}, gradients__batches=batches)
    figure = noise_scale.noise_scales([run])
    np.testing.assert_array_equal(figure.numbers["l_vlb_uniform_scale"], [60])
    assert [path.name for path in figure.files] == ["step00000020_digits_400x64images_seed0.json"]


def test_seeds_are_joined_and_other_runs_are_not(tmp_path):
    runs = [stored_run(tmp_path / f"run{seed}", seed=seed) for seed in range(3)]
    runs.append(stored_run(tmp_path / "other", loss__vlb_weight=0.01))
    for run, scale in zip(runs, (10.0, 20.0, 60.0, 5.0), strict=True):
        add_gradients(run, 20, {EVENLY: scale})
    figure = noise_scale.noise_scales(runs)
    joined = "run (3 seeds)_l_vlb_uniform"
    np.testing.assert_array_equal(figure.numbers[f"{joined}_scale"], [30])
    np.testing.assert_allclose(figure.numbers[f"{joined}_error"], np.sqrt((400 + 100 + 900) / 2))
    np.testing.assert_array_equal(figure.numbers["other_l_vlb_uniform_scale"], [5])
    assert "between them" in figure.caption


def test_seed_without_a_scale_leaves_the_lowest_bound(tmp_path):
    runs = [stored_run(tmp_path / f"run{seed}", seed=seed) for seed in range(2)]
    for run, scale in zip(runs, (100.0, None), strict=True):
        add_gradients(run, 20, {EVENLY: scale})
    numbers = noise_scale.noise_scales(runs).numbers
    np.testing.assert_array_equal(numbers["l_vlb_uniform_scale"], [np.nan])
    np.testing.assert_array_equal(numbers["l_vlb_uniform_at_least"], [100])


def test_seeds_of_which_not_even_a_bound_is_known_are_left_blank(tmp_path):
    runs = [stored_run(tmp_path / f"run{seed}", seed=seed) for seed in range(2)]
    for run in runs:
        add_gradients(run, 20, {EVENLY: None})
    [path] = (runs[1].folder / "gradients").glob("*.json")
    record = json.loads(path.read_text())
    for row in record["rows"]:
        row["noise_scale_at_least"] = None
    path.write_text(json.dumps(record))
    assert noise_scale.noise_scales(runs).numbers["l_vlb_uniform_at_least"] == pytest.approx(
        [np.nan], nan_ok=True
    )


def test_what_is_missing_or_broken_is_said(tmp_path):
    run = stored_run(tmp_path / "run")
    with pytest.raises(Missing, match="--mode gradients"):
        noise_scale.noise_scales([run])
    add_gradients(run, 20, {EVENLY: 50.0})
    [path] = (run.folder / "gradients").glob("*.json")
    path.write_text("{")
    with pytest.raises(Missing, match="measure it again"):
        noise_scale.noise_scales([run])
