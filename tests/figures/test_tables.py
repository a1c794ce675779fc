"""Tables 1 and 2: what stands in them, and where it comes from."""

import json

import numpy as np
import pytest
from synthetic import add_likelihood, add_scores, stored_run

from iddpm_jax.figures import tables
from iddpm_jax.figures.results import Missing


def grid(tmp_path):
    """Linear with three seeds, and an L_vlb run, which has more samples as well."""
    linear = {"diffusion__T": 30, "diffusion__schedule": "linear"}
    vlb = {
        "diffusion__T": 30,
        "loss__name": "l_vlb",
        "loss__timesteps": "importance",
        "train__steps": 9,
    }
    runs = [stored_run(tmp_path / f"linear_seed{seed}", seed=seed, **linear) for seed in range(3)]
    runs.append(stored_run(tmp_path / "vlb", **vlb))
    found = []
    for i, run in enumerate(runs):
        found.append(add_likelihood(run, 30, seed=i))
        add_likelihood(run, 10, seed=9)  # no bound of all steps
        add_scores(run, "ancestral", "5", {"FD-digits": 1.0 + i**2, "IS-digits": 9.0 - i}, 0.25)
        add_scores(run, "ancestral", "5", {"FD-digits": 77.0}, 0.25, sample__skip=0.5)
        add_scores(run, "ddim", "5", {"FD-digits": 66.0}, 0.25)
    add_scores(runs[3], "ancestral", "5", {"FD-digits": 0.1}, 0.25, count=5000)
    return runs, found


def rows_of(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_rows_are_entries_and_cells_mean_and_spread(tmp_path):
    runs, found = grid(tmp_path)
    path = tables.write(tmp_path, runs)
    text = path.read_text(encoding="utf-8")
    head, ruler, linear, vlb = rows_of(text)
    assert head[:5] == ["training steps", "T", "schedule", "objective", "seeds"]
    assert head[5:] == ["NLL (bits/dim) ↓", "FD-digits ↓", "IS-digits ↑"]
    assert ruler == [":---"] * 5 + ["---:"] * 3
    assert linear[:5] == ["4", "30", "linear", "l_hybrid", "3"]
    assert vlb[:5] == ["4 of 9", "30", "cosine", "l_vlb (importance sampling)", "1"]
    fd = [1.0, 2.0, 5.0]
    assert linear[6] == f"**{np.mean(fd):.1f}** ± {np.std(fd, ddof=1):.1f}"
    assert linear[7] == "**8.0** ± 1.0" and vlb[6:] == ["10.00 [0.25]", "6.00 [0.25]"]
    record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    nll = record["rows"][0]["measured"][tables.NLL]
    expected = [each.adjusted.mean if each.adjusted else each.bits_per_dim for each in found[:3]]
    np.testing.assert_allclose(nll["values"], expected, rtol=1e-12)
    assert nll["spread"] == pytest.approx(np.std(expected, ddof=1))
    assert record["rows"][0]["seeds"] == [0, 1, 2] and len(nll["files"]) == 3
    assert "digits_test" in text and "200 samples" in text and "5,000" not in text
    assert str(runs[3].folder) in text and "sampling steps: 5" in text


def test_what_a_run_lacks_and_what_fewer_seeds_have_is_said(tmp_path):
    runs, _ = grid(tmp_path)
    for path in (runs[0].folder / "fid").iterdir():
        path.unlink()
    for path in (runs[3].folder / "nll").iterdir():
        path.unlink()
    text = tables.write(tmp_path, runs).read_text(encoding="utf-8")
    _, _, linear, vlb = rows_of(text)
    assert linear[6] == "**3.5** ± 2.1 (of 2)" and vlb[5] == "-"
    assert "*" not in linear[5]  # alone, and so not the best


def test_where_no_run_has_its_default_steps_the_commonest_number_is_taken(tmp_path):
    runs = [stored_run(tmp_path / f"w{width}", model__width=width) for width in (32, 64)]
    for run in runs:
        add_scores(run, "ancestral", "10", {"FD-digits": 2.0 + run.config.model.width}, 0.1)
    add_scores(runs[0], "ancestral", "20", {"FD-digits": 1.0}, 0.1)
    text = tables.write(tmp_path, runs).read_text(encoding="utf-8")
    assert [row[-1] for row in rows_of(text)[2:]] == ["**34.00** [0.10]", "66.00 [0.10]"]
    assert "ancestral, ema0.9" in text and "10 steps" in text and "sampling steps: 10," in text


def test_other_settings_that_differ_have_columns(tmp_path):
    runs = [stored_run(tmp_path / f"w{width}", model__width=width) for width in (32, 64)]
    add_likelihood(runs[0], 20)
    head, _, *rows = rows_of(tables.write(tmp_path, runs).read_text(encoding="utf-8"))
    assert head[:3] == ["T", "schedule", "model.width"]
    assert [row[2] for row in rows] == ["32", "64"]


def test_a_single_entry_and_nothing_measured_are_no_table(tmp_path):
    runs = [stored_run(tmp_path / f"a{seed}", seed=seed) for seed in range(2)]
    with pytest.raises(Missing, match="--with"):
        tables.write(tmp_path, runs)
    runs.append(stored_run(tmp_path / "b", train__steps=9))
    with pytest.raises(Missing, match="no run has"):
        tables.write(tmp_path, runs)
    assert not (tmp_path / "tables.md").exists()


def test_bar_in_a_setting_ends_no_cell(tmp_path):
    names = ("folder:a|b", "folder:c")
    runs = [stored_run(tmp_path / f"run{i}", data__name=name) for i, name in enumerate(names)]
    for run in runs:
        add_scores(run, "ancestral", "5", {"FD-digits": 2.0}, 0.1)
    text = tables.write(tmp_path, runs).read_text(encoding="utf-8")
    head, first, second = (
        line for line in text.splitlines() if line.startswith("|") and ":-" not in line
    )
    assert "data.name" in head and r"folder:a\|b" in first and "folder:c" in second
    assert first.replace(r"\|", "").count("|") == head.count("|") == second.count("|")
