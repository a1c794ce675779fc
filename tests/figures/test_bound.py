"""Figure 2: terms of the bound and their sums."""

import numpy as np
import pytest
from synthetic import add_likelihood, stored_run

from iddpm_jax.figures import bound
from iddpm_jax.figures.results import Missing


def test_terms_and_their_sums_are_those_of_the_evaluation(tmp_path):
    run = stored_run(tmp_path / "run")
    found = add_likelihood(run, 20)
    figure = bound.terms([run])
    mean = found.l_t.astype(np.float64).mean(axis=0)
    np.testing.assert_array_equal(figure.numbers["t"], np.arange(20))
    np.testing.assert_allclose(figure.numbers["mean_l_t"], mean, rtol=1e-12)
    np.testing.assert_allclose(figure.numbers["mean_cumulated"], np.cumsum(mean), rtol=1e-12)
    np.testing.assert_allclose(
        figure.numbers["fixed_small_cumulated"], 30 * np.cumsum(mean), rtol=1e-6
    )
    assert f"{mean.sum():.3f} +- " in figure.caption and "7 images of digits_test" in figure.caption


def test_whole_process_newest_checkpoint_and_most_terms_are_chosen(tmp_path):
    run = stored_run(tmp_path / "run")
    for steps, terms, step in ((20, 0, 3), (10, 0, 9), (20, 2, 4), (20, 10, 4), (20, 4, 4)):
        add_likelihood(run, steps, terms=terms, step=step)
    [path] = bound.terms([run]).files
    assert path.name.startswith("step00000004_digits_test_20steps_10terms_")


def test_what_no_image_measured_lies_between_its_neighbours(tmp_path):
    run = stored_run(tmp_path / "run")
    found = add_likelihood(run, 20, images=1, terms=5)
    numbers = bound.terms([run]).numbers
    known = ~np.isnan(found.l_t[0])
    assert known.sum() == 5
    filled = np.interp(np.arange(20), np.arange(20)[known], found.l_t[0][known].astype(float))
    np.testing.assert_allclose(numbers["mean_cumulated"], np.cumsum(filled), rtol=1e-12)


def test_several_runs_are_side_by_side(tmp_path):
    runs = [stored_run(tmp_path / name) for name in ("one", "other")]
    for seed, run in enumerate(runs):
        add_likelihood(run, 20, seed=seed)
    figure = bound.terms([*runs, stored_run(tmp_path / "empty")])
    assert {"0_mean_l_t", "1_mean_l_t"} <= set(figure.numbers)
    assert "one: 7 images" in figure.caption and "other: 7 images" in figure.caption
    assert len(figure.files) == 2


def test_no_evaluation_of_all_steps_is_said_with_the_command(tmp_path):
    run = stored_run(tmp_path / "run")
    add_likelihood(run, 10)
    with pytest.raises(
        Missing, match="nll holds no bits/dim of all steps; measure them with --mode nll"
    ):
        bound.terms([run])


def test_broken_table_is_named(tmp_path):
    run = stored_run(tmp_path / "run")
    add_likelihood(run, 20)
    [path] = (run.folder / "nll").glob("*.npz")
    path.write_bytes(path.read_bytes()[:99])
    with pytest.raises(Missing, match=f"{path.name} is not whole"):
        bound.terms([run])
