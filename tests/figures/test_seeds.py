"""Which runs are one entry, and what it is called."""

import numpy as np
import pytest
from synthetic import stored_run

from iddpm_jax.figures.seeds import by_seed, mean_and_spread


def names(found):
    return [(group.name, [run.folder.name for run in group.runs]) for group in found]


def test_runs_that_differ_only_in_their_seed_are_one_entry(tmp_path):
    runs = [
        stored_run(tmp_path / f"{schedule}_seed{seed}", seed=seed, diffusion__schedule=schedule)
        for seed in range(2)
        for schedule in ("cosine", "linear")
    ]
    runs.append(stored_run(tmp_path / "other", train__steps=5))
    found = by_seed(runs)
    assert names(found) == [
        ("cosine", ["cosine_seed0", "cosine_seed1"]),
        ("linear", ["linear_seed0", "linear_seed1"]),
        ("other", ["other"]),
    ]
    labels = [run.name for group in found for run in group.runs]
    assert labels == ["cosine (2 seeds)"] * 2 + ["linear (2 seeds)"] * 2 + ["other"]
    assert [group.label for group in found] == ["cosine (2 seeds)", "linear (2 seeds)", "other"]


def test_settings_that_make_no_other_run_do_not_part_seeds(tmp_path):
    other = {"sample__steps": "7", "train__log_every_steps": 9, "nll__seed": 3, "train__fsdp": 2}
    runs = [stored_run(tmp_path / "a1"), stored_run(tmp_path / "a2", seed=1, **other)]
    assert names(by_seed(runs)) == [("a", ["a1", "a2"])]


def test_a_second_run_of_the_same_seed_is_an_entry_of_its_own(tmp_path):
    runs = [stored_run(tmp_path / name) for name in ("one", "again")]
    assert names(by_seed(runs)) == [("one", ["one"]), ("again", ["again"])]


@pytest.mark.parametrize(
    "given, expected",
    [
        (["linear_seed0", "linear_seed1"], "linear"),
        (["T1000-s1", "T1000-s2"], "T1000"),
        (["cosines1", "cosines2"], "cosines"),
        (["run11", "run12"], "run"),
        (["T4000_1", "T4000_2"], "T4000"),
        (["digits", "digits_2"], "digits"),
        (["runs/vlb/seed0", "runs/vlb/seed1"], "vlb"),
        (["one", "two"], "one"),
    ],
)
def test_entry_is_called_what_its_names_begin_with(tmp_path, given, expected):
    run = stored_run(tmp_path / "run")
    runs = []
    for seed, name in enumerate(given):
        config = run.config.copy_and_resolve_references()
        config.seed = seed
        runs.append(run._replace(name=name, folder=tmp_path / str(seed), config=config))
    assert [group.name for group in by_seed(runs)] == [expected]


def test_entries_of_one_name_are_called_after_their_first_runs(tmp_path):
    runs = [stored_run(tmp_path / f"a{i}", seed=i % 2, train__steps=4 + i // 2) for i in range(4)]
    assert [group.name for group in by_seed(runs)] == ["a0", "a2"]


def test_spread_is_that_of_a_sample():
    mean, spread = mean_and_spread([1.0, 2.0, 6.0])
    assert (mean, spread) == (3, pytest.approx(np.sqrt((4 + 1 + 9) / 2)))
    mean, spread = mean_and_spread([2.0])
    assert mean == 2 and np.isnan(spread)
