"""Figure 4: scores when the beginning of the reverse process is skipped."""

import numpy as np
import pytest
from synthetic import add_scores, stored_run

from iddpm_jax.figures.results import Missing
from iddpm_jax.figures.skipped import skipped_steps


def test_a_curve_for_each_schedule_over_seeds(tmp_path):
    runs = [
        stored_run(tmp_path / f"{schedule}{seed}", diffusion__schedule=schedule, seed=seed)
        for schedule in ("linear", "cosine")
        for seed in range(2)
    ]
    for i, run in enumerate(runs):
        for skip in (0.4, 0.0, 0.2):
            value = {"FD-digits": i + skip, "IS-digits": 1.0}
            add_scores(run, "ancestral", "10", value, 0.1, sample__skip=skip)
        add_scores(run, "ancestral", "5", {"FD-digits": 9.0}, 0.1)  # no other skip: no curve
    figure = skipped_steps(runs)
    numbers = figure.numbers
    assert numbers["curves"].tolist() == ["linear (2 seeds)", "cosine (2 seeds)"]
    for i, first in enumerate((0, 2)):
        np.testing.assert_array_equal(numbers[f"FD-digits_{i}_skip"], [0, 0.2, 0.4])
        expected = np.array([0, 0.2, 0.4]) + first + 0.5
        np.testing.assert_allclose(numbers[f"FD-digits_{i}_value"], expected, rtol=1e-12)
        np.testing.assert_allclose(numbers[f"FD-digits_{i}_error"], np.sqrt(0.5), rtol=1e-12)
        assert numbers[f"FD-digits_{i}_seeds"].tolist() == [2, 2, 2]
    assert "10 steps if none is skipped" in figure.caption
    assert len(figure.files) == 12


def test_one_share_alone_is_no_curve(tmp_path):
    run = stored_run(tmp_path / "run")
    add_scores(run, "ancestral", "10", {"FD-digits": 1.0}, 0.1, sample__skip=0.2)
    add_scores(run, "ancestral", "5", {"FD-digits": 1.0}, 0.1)
    with pytest.raises(Missing, match=r"--config.sample.skip=0.2"):
        skipped_steps([run])
