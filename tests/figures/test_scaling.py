"""The scaling study: compute, its frontier, and power laws that are known."""

import numpy as np
import pytest
from synthetic import add_curves, add_likelihood, add_scores, curve_row, stored_run

from iddpm_jax import build
from iddpm_jax.figures import scaling
from iddpm_jax.figures.points import Point
from iddpm_jax.figures.results import Missing
from iddpm_jax.models.flops import multiply_adds


def law(compute):
    return 3.0 + (compute / 4e11) ** -0.4


def family(tmp_path):
    """Two widths, one of them with two seeds; bits/dim at three steps by a known law."""
    runs = [
        stored_run(tmp_path / f"w{width}_seed{seed}", model__width=width, seed=seed)
        for width, seed in ((64, 0), (32, 0), (32, 1))
    ]
    for run in runs:
        flops = scaling.flops_per_step(run)
        shift = 0.01 * (2 * run.config.seed - 1) * (run.config.model.width == 32)
        rows = [curve_row(n, test_bits_per_dim=law(n * flops) + shift) for n in (100, 400, 1600)]
        add_curves(run, [curve_row(50), *rows])
    return runs


def test_compute_is_three_forward_passes_of_every_image(tmp_path):
    run = stored_run(tmp_path / "run", train__batch_size=48)
    model = build.model(run.config)
    adds = sum(multiply_adds(model.spec, (8, 8, 1)).values())
    assert scaling.flops_per_step(run) == 48 * 3 * 2 * adds


def test_curves_of_widths_are_what_was_measured_on_the_way(tmp_path):
    runs = family(tmp_path)
    for run in runs:
        add_likelihood(run, 20, step=1600, seed=run.config.model.width)
        for step in (100, 1600):
            add_scores(run, "ancestral", "5", {"FD-digits": 500 / step, "x": 1.0}, 0.1, step=step)
    runs.append(stored_run(tmp_path / "another", model__width=96, train__steps=7))
    figure = scaling.scaling(runs)
    numbers = figure.numbers
    for width, run, seeds in ((32, runs[1], 2), (64, runs[0], 1)):
        stem = f"bits_dim_test_split_width_{width}"
        compute = np.array([100, 400, 1600]) * scaling.flops_per_step(run)
        np.testing.assert_allclose(numbers[f"{stem}_flops"], compute, rtol=1e-12)
        np.testing.assert_allclose(numbers[f"{stem}_value"], law(compute), rtol=1e-12)
        assert numbers[f"{stem}_seeds"].tolist() == [seeds] * 3
    np.testing.assert_allclose(
        numbers["bits_dim_test_split_width_32_error"], 0.01 * np.sqrt(2), rtol=1e-9
    )
    assert numbers["bits_dim_test_split_end_width_64_width"].tolist() == [64]
    np.testing.assert_allclose(numbers["FD_digits_end_width_64_value"], [500 / 1600])
    assert not any("96" in name for name in numbers)
    # Six points of the law itself, of which the seeds' mean is exact.
    np.testing.assert_allclose(numbers["bits_dim_test_split_fit"], [3, 4e11, 0.4], rtol=0.02)
    assert "bits/dim, test split = 3 + (C / " in figure.caption


def test_power_law_is_found_again_with_and_without_a_floor():
    compute = np.geomspace(1e10, 1e13, 8)
    found = scaling.power_law(compute, law(compute))
    np.testing.assert_allclose(found, [3.0, 4e11, 0.4], rtol=1e-3)
    np.testing.assert_allclose(found(compute), law(compute), rtol=1e-6)
    plain = (compute / 1e12) ** -0.3
    for few in (8, 4, 3):
        found = scaling.power_law(compute[:few], plain[:few])
        np.testing.assert_allclose(found, [0, 1e12, 0.3], rtol=1e-6)
    # Three points with a floor do not tell it.
    assert scaling.power_law(compute[:3], law(compute[:3])).floor == 0


@pytest.mark.parametrize("loss", [[2.0, 1.0], [1.0, 1.5, 2.0], [2.0, 1.0, -0.1]])
def test_no_power_law_through_too_few_or_no_fall(loss):
    assert scaling.power_law(np.geomspace(1, 10, len(loss)), np.array(loss)) is None


def test_no_power_law_through_a_fall_too_small_for_one():
    compute = np.geomspace(1e9, 1e12, 6)
    assert scaling.power_law(compute, 5 - 1e-9 * np.arange(6)) is None
    found = scaling.power_law(compute, 4.5 * (compute / 1e9) ** -0.01)
    np.testing.assert_allclose([found(1e9), found.exponent], [4.5, 0.01], rtol=1e-6)


def test_frontier_leaves_out_what_is_dearer_and_no_better():
    curves = {
        ("a",): {1.0: Point(5, 0, ()), 3.0: Point(2, 0, ())},
        ("b",): {2.0: Point(6, 0, ()), 4.0: Point(2, 0, ()), 8.0: Point(1, 0, ())},
    }
    compute, value = scaling.frontier(curves)
    assert (compute.tolist(), value.tolist()) == ([1, 3, 8], [5, 2, 1])


def test_one_width_and_widths_without_numbers_are_missing(tmp_path):
    runs = [stored_run(tmp_path / "a"), stored_run(tmp_path / "b", diffusion__T=30)]
    with pytest.raises(Missing, match="model.width alone"):
        scaling.scaling(runs)
    runs.append(stored_run(tmp_path / "c", model__width=64))
    with pytest.raises(Missing, match="train.evaluate_every_steps"):
        scaling.scaling(runs)
