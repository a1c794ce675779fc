"""Bits/dim and scores against the number of steps."""

import numpy as np
import pytest
from synthetic import add_likelihood, add_scores, stored_run

from iddpm_jax.figures import fewer_steps
from iddpm_jax.figures.results import Missing


def test_bound_by_steps_is_each_evaluations_own(tmp_path):
    run = stored_run(tmp_path / "run")
    found = [add_likelihood(run, steps, seed=steps) for steps in (20, 5, 10)]
    figure = fewer_steps.bits_per_dim([run])
    numbers = figure.numbers
    assert numbers["curves"].tolist() == [
        "learned variance",
        r"fixed $\beta_t$",
        r"fixed $\tilde{\beta}_t$",
    ]
    totals = [each.draws[:, 0] for each in (found[1], found[2], found[0])]
    for i, factor in enumerate((1, 1.5, 30)):
        np.testing.assert_array_equal(numbers[f"bits_per_dim_{i}_steps"], [5, 10, 20])
        value = [factor * total.mean() for total in totals]
        np.testing.assert_allclose(numbers[f"bits_per_dim_{i}_value"], value, rtol=1e-12)
        error = [factor * np.sqrt(total.var(ddof=1) / 7) for total in totals]
        np.testing.assert_allclose(numbers[f"bits_per_dim_{i}_error"], error, rtol=1e-12)
    assert len(figure.files) == 3


def test_of_two_evaluations_the_more_certain_one_is_drawn(tmp_path):
    run = stored_run(tmp_path / "run")
    add_likelihood(run, 5)
    found = [add_likelihood(run, 20, terms=terms, images=20) for terms in (2, 0, 4)]
    errors = [each.standard_error for each in found]
    assert errors[1] < min(errors[0], errors[2])
    numbers = fewer_steps.bits_per_dim([run]).numbers
    assert numbers["bits_per_dim_0_value"][1] == pytest.approx(found[1].bits_per_dim)


def test_checkpoints_and_runs_are_curves_of_their_own(tmp_path):
    runs = [stored_run(tmp_path / name) for name in ("one", "other")]
    for run in runs:
        for steps in (5, 10):
            add_likelihood(run, steps)
    add_likelihood(runs[0], 20, step=9)  # alone, so no curve
    curves = fewer_steps.bits_per_dim(runs).numbers["curves"].tolist()
    assert curves == ["one", "other"]


def test_scores_by_steps_are_the_files(tmp_path):
    run = stored_run(tmp_path / "run")
    for steps, value in (("10", 2.0), ("5", 3.0), ("20", 1.0)):
        add_scores(run, "ancestral", steps, {"FD-digits": value, "KD-digits": -value}, 0.25)
    for steps, value in (("5", 1.5), ("10", 1.25)):
        add_scores(run, "ddim", steps, {"FD-digits": value}, None)
    add_scores(run, "ancestral", "15", {"FD-digits": 0.5}, 0.1, count=1000)
    figure = fewer_steps.scores([run])
    numbers = figure.numbers
    assert numbers["curves"].tolist() == ["ancestral, learned variance", "DDIM"]
    np.testing.assert_array_equal(numbers["FD-digits_0_steps"], [5, 10, 20])
    np.testing.assert_array_equal(numbers["FD-digits_0_value"], [3, 2, 1])
    np.testing.assert_array_equal(numbers["FD-digits_0_error"], [0.25] * 3)
    np.testing.assert_array_equal(numbers["KD-digits_0_value"], [-3, -2, -1])
    np.testing.assert_array_equal(numbers["FD-digits_1_value"], [1.5, 1.25])
    np.testing.assert_array_equal(numbers["FD-digits_1_error"], [np.nan, np.nan])
    assert "KD-digits_1_value" not in numbers
    assert "200 samples" in figure.caption
    assert len(figure.files) == 5  # not the 1,000 samples, which are alone


@pytest.mark.parametrize("other", [0, 3])
def test_seeds_are_one_curve_of_means(tmp_path, other):
    """Also where each run was measured and sampled with a seed of its own."""
    runs = [stored_run(tmp_path / f"run{seed}", seed=seed) for seed in range(2)]
    totals = []
    for run, seed in zip(runs, (0, other), strict=True):
        run.config.nll.seed = seed
        for steps in (5, 10):
            found = add_likelihood(run, steps, seed=steps + run.config.seed)
            totals.append(found.draws.mean())
            value = {"FD-digits": steps + run.config.seed}
            add_scores(run, "ddim", str(steps), value, 0.1, sample__seed=seed)
    figure = fewer_steps.bits_per_dim(runs)
    expected = np.reshape(totals, (2, 2))
    np.testing.assert_allclose(figure.numbers["bits_per_dim_0_value"], expected.mean(axis=0))
    np.testing.assert_allclose(figure.numbers["bits_per_dim_0_error"], expected.std(0, ddof=1))
    assert "run (2 seeds)" in figure.caption and "deviations over seeds" in figure.caption
    numbers = fewer_steps.scores(runs).numbers
    np.testing.assert_array_equal(numbers["FD-digits_0_value"], [5.5, 10.5])
    np.testing.assert_array_equal(numbers["FD-digits_0_seeds"], [2, 2])


def test_variances_and_ddim_are_curves_of_one_run(tmp_path):
    run = stored_run(tmp_path / "run")
    for steps in ("5", "10"):
        add_scores(run, "ddim", steps, {"FD-digits": 1.0}, 0.1)
        for variance in ("", "fixed_large", "fixed_small"):
            add_scores(run, "ancestral", steps, {"FD-digits": 1.0}, 0.1, sample__variance=variance)
    assert set(fewer_steps.scores([run]).numbers["curves"]) == {
        "DDIM",
        "ancestral, learned variance",
        r"ancestral, fixed $\beta_t$",
        r"ancestral, fixed $\tilde{\beta}_t$",
    }


@pytest.mark.parametrize("kind", ["bits_per_dim", "scores"])
def test_single_points_are_no_curve(tmp_path, kind):
    run = stored_run(tmp_path / "run")
    add_likelihood(run, 20)
    add_scores(run, "ddim", "5", {"FD-digits": 1.0}, 0.1)
    add_scores(run, "ancestral", "10", {"FD-digits": 1.0}, 0.1)
    with pytest.raises(Missing, match="two numbers of steps"):
        getattr(fewer_steps, kind)([run])
