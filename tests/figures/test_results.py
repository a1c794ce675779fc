"""Results as they are found in a workdir."""

import numpy as np
import pytest
from synthetic import add_curves, add_likelihood, add_scores, curve_row, stored_run

from iddpm_jax.figures import results
from iddpm_jax.figures.results import Missing


def test_likelihoods_are_told_apart_from_their_steps(tmp_path):
    run = stored_run(tmp_path / "a_run")
    for steps, terms in ((20, 0), (10, 0), (20, 2)):
        add_likelihood(run, steps, terms=terms)
    found = results.likelihoods(run)
    assert sorted((each.steps, each.record["terms"]) for each in found) == [
        (10, 10),
        (20, 2),
        (20, 20),
    ]
    assert {each.training_step for each in found} == {4}
    assert {each.words for each in found} == {
        ("a_run", "training step 4", "digits_test", "ema0.9", "seed0")
    }


def test_other_checkpoints_are_other_words(tmp_path):
    run = stored_run(tmp_path / "run")
    add_likelihood(run, 10, step=4)
    add_likelihood(run, 10, step=4000)
    assert len({each.words for each in results.likelihoods(run)}) == 2


def test_scores_are_told_apart_from_sampler_and_steps(tmp_path):
    run = stored_run(tmp_path / "run")
    for sampler, steps in (("ancestral", ""), ("ddim", "5"), ("ddim", "ddim10"), ("ddim", "3,4")):
        add_scores(run, sampler, steps, {"FD-digits": 1.0}, 0.1)
    found = {(each.words[0], each.steps): each.words for each in results.scores(run)}
    assert set(found) == {("ancestral", 20), ("DDIM", 5), ("DDIM", 10), ("DDIM", 7)}
    assert len(set(found.values())) == 4  # steps chosen in other ways make other curves


def test_scores_are_told_apart_from_variance_and_skip(tmp_path):
    run = stored_run(tmp_path / "run", diffusion__variance="fixed_large", loss__name="l_simple")
    for changes in (
        {},
        {"sample__variance": "fixed_large"},  # the model's own
        {"sample__variance": "fixed_small"},
        {"sample__skip": 0.125},
        {"sample__skip": 0.5, "sample__variance": "fixed_small"},
    ):
        add_scores(run, "ancestral", "5", {"FD-digits": 1.0}, 0.1, **changes)
    add_scores(run, "ddim", "5", {"FD-digits": 1.0}, 0.1, sample__skip=0.5, sample__eta=0.25)
    found = results.scores(run)
    large, small = r"fixed $\beta_t$", r"fixed $\tilde{\beta}_t$"
    assert {(each.sampler, each.skip, each.steps) for each in found} == {
        (("ancestral", large), 0.0, 5),
        (("ancestral", small), 0.0, 5),
        (("ancestral", large, "first 12.5% skipped"), 0.125, 5),
        (("ancestral", small, "first 50% skipped"), 0.5, 5),
        (("DDIM", "eta 0.25", "first 50% skipped"), 0.5, 5),
    }
    assert all("seed0" in each.words and "ema0.9" in each.words for each in found)


def test_commonest_kind_has_most_runs_then_most_samples(tmp_path):
    runs = [stored_run(tmp_path / name) for name in ("one", "two")]
    for run in runs:
        add_scores(run, "ddim", "5", {"FD-digits": 1.0}, 0.1, count=200)
        add_scores(run, "ddim", "5", {"FD-digits": 1.0}, 0.1, count=900)
    add_scores(runs[0], "ddim", "5", {"FD-digits": 1.0}, 0.1, count=5000)
    found = [(run, each) for run in runs for each in results.scores(run)]
    chosen, words = results.commonest(found, results.kind)
    assert [(run.name, each.record["samples_count"]) for run, each in chosen] == [
        ("one", 900),
        ("two", 900),
    ]
    assert "900 samples" in words and not {"one", "two", "training step 4"} & set(words)


def test_samples_from_elsewhere_are_passed_over(tmp_path):
    run = stored_run(tmp_path / "run")
    add_scores(run, "ddim", "5", {"FD-digits": 1.0}, 0.1)
    [path] = (run.folder / "fid").glob("*.json")
    path.write_text(path.read_text().replace("step00000004_ddim", "mine_ddim"))
    assert results.scores(run) == []


@pytest.mark.parametrize(
    ("text", "steps"), [("250", 250), ("ddim50", 50), ("10-15-20", 45), ("4000", 4000)]
)
def test_steps_are_counted(text, steps):
    assert results.count_steps(text) == steps


def test_labels_are_what_differs():
    words = [("a", "x", "1"), ("b", "x", "1"), ("b", "x", "2")]
    assert results.labels(words) == ["a, 1", "b, 1", "b, 2"]
    assert results.labels([("a", "x", "1")]) == ["a"]
    assert results.labels([("a", "x"), ("a", "x", "y")]) == ["a", "y"]


def test_curves_have_a_column_per_name_and_forgive_a_cut_off_line(tmp_path):
    run = stored_run(tmp_path / "run")
    assert results.curves(run) == {}
    add_curves(run, [curve_row(2), curve_row(4, test_bits_per_dim=3.5), curve_row(6, l_vlb=None)])
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "l_v')
    columns = results.curves(run)
    np.testing.assert_array_equal(columns["step"], [2, 4, 6])
    np.testing.assert_array_equal(columns["l_vlb"], [4, 4, np.nan])
    np.testing.assert_array_equal(columns["test_bits_per_dim"], [np.nan, 3.5, np.nan])


@pytest.mark.parametrize("text", ["", '{"bits_per_dim": 1'])
def test_results_that_are_cut_off_are_named(tmp_path, text):
    run = stored_run(tmp_path / "run")
    add_likelihood(run, 10)
    [path] = (run.folder / "nll").glob("*.json")
    path.write_text(text)
    with pytest.raises(Missing, match=f"{path.name} is not whole"):
        results.likelihoods(run)


def test_results_of_an_older_version_are_named(tmp_path):
    run = stored_run(tmp_path / "run")
    add_likelihood(run, 10)
    [path] = (run.folder / "nll").glob("*.json")
    path.write_text(path.read_text().replace('"others"', '"another"'))
    with pytest.raises(Missing, match="has no 'others'"):
        results.likelihoods(run)


@pytest.mark.parametrize("key", ["samples_count", "reference", "network"])
def test_scores_of_an_older_version_are_named(tmp_path, key):
    run = stored_run(tmp_path / "run")
    add_scores(run, "ddim", "10", {"FD": 1.0}, None)
    [path] = (run.folder / "fid").glob("*.json")
    path.write_text(path.read_text().replace(f'"{key}"', '"another"'))
    with pytest.raises(Missing, match=f"has no '{key}'"):
        results.scores(run)
