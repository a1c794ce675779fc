"""--mode figures from a workdir to the files, as a user reaches it."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from synthetic import add_curves, add_likelihood, add_scores, curve_row, stored_run

from iddpm_jax import figures, main, runtime
from iddpm_jax.figures import captions

NAMES = (
    "beta_tilde",
    "bound_terms",
    "forward_process",
    "alpha_bar",
    "learning_curves",
    "bits_per_dim_by_steps",
    "scores_by_steps",
    "skipped_steps",
)
OF_SEVERAL = ("scaling", "tables")


@pytest.fixture(name="cli")
def make_cli(monkeypatch, capsys):
    """Function (arguments) -> (exit code, stdout, stderr), in this process."""
    monkeypatch.setattr(runtime, "configure", lambda *_: None)

    def call(*arguments):
        capsys.readouterr()
        code = main.main(["iddpm_jax.main", "--mode", "figures", *map(str, arguments)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def with_results(folder, **changes):
    """A workdir from which every figure of one run can be drawn."""
    run = stored_run(folder, **changes)
    for steps in (20, 10):
        add_likelihood(run, steps)
        add_scores(run, "ddim", str(steps), {"FD-digits": 1.0 + steps}, 0.1)
    add_scores(run, "ddim", "20", {"FD-digits": 22.0}, 0.1, sample__skip=0.2)
    state = {"effective_sample_size": 0.5, "warmed_up": 1.0}
    add_curves(run, [curve_row(n, **state, test_bits_per_dim=5.0) for n in (2, 4)])
    return run


@pytest.mark.slow
def test_every_figure_is_drawn_and_says_where_it_comes_from(cli, tmp_path):
    run = with_results(tmp_path / "run")
    code, out, err = cli("--workdir", run.folder)
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == [*NAMES, *OF_SEVERAL]
    assert [line.split()[0] for line in out.splitlines() if "left out" in line] == [*OF_SEVERAL]
    for name in NAMES:
        stem = run.folder / "figures" / name
        with Image.open(stem.with_suffix(".png")) as image:
            assert image.width > 300
        assert stem.with_suffix(".png").stat().st_size < 300_000
        assert stem.with_suffix(".svg").stat().st_size > 1000
        with np.load(stem.with_suffix(".npz")) as numbers:
            assert numbers.files
        text = stem.with_suffix(".txt").read_text(encoding="utf-8")
        assert "run: digits 8x8x1, cosine schedule, T = 20" in text and "seed 0" in text
        assert "drawn by iddpm_jax 0.1.0" in text
    text = (run.folder / "figures" / "bound_terms.txt").read_text(encoding="utf-8")
    assert f"from {run.folder / 'nll'}/step00000004_digits_test_20steps" in text


@pytest.mark.slow
def test_runs_are_drawn_beside_each_other(cli, tmp_path):
    one = with_results(tmp_path / "one")
    other = with_results(tmp_path / "other", model__width=64)
    code, out, err = cli("--workdir", one.folder, "--with", other.folder)
    assert (code, err) == (0, "")
    assert "left out" not in out
    assert not (other.folder / "figures").exists()
    with np.load(one.folder / "figures" / "learning_curves.npz") as numbers:
        assert {"one_l_vlb", "other_l_vlb"} <= set(numbers.files)
    text = (one.folder / "figures" / "scores_by_steps.txt").read_text(encoding="utf-8")
    assert "one: digits" in text and "other: digits" in text
    with np.load(one.folder / "figures" / "scaling.npz") as numbers:
        assert "FD_digits_end_width_64_value" in numbers.files
    assert "| 64 |" in (one.folder / "figures" / "tables.md").read_text(encoding="utf-8")


def test_what_is_not_there_is_left_out_with_the_reason(cli, tmp_path):
    run = stored_run(tmp_path / "run")
    code, out, err = cli("--workdir", run.folder, "--config.data.name=folder:/nowhere")
    assert (code, err) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    left_out = {name for name in lines if lines[name].startswith("left out: ")}
    assert left_out == {*NAMES, *OF_SEVERAL} - {"beta_tilde", "alpha_bar"}
    assert "/nowhere" in lines["forward_process"]
    for name, word in (
        ("bound_terms", "--mode nll"),
        ("learning_curves", "metrics.jsonl"),
        ("bits_per_dim_by_steps", "--config.nll.steps"),
        ("scores_by_steps", "--mode fid"),
        ("skipped_steps", "--config.sample.skip"),
        ("scaling", "--with"),
        ("tables", "--with"),
    ):
        assert word in lines[name]
    written = {path.stem for path in (run.folder / "figures").iterdir()}
    assert written == {"beta_tilde", "alpha_bar"}


@pytest.mark.parametrize("others", ["{run}/none", "{run},{run}", "{run}"])
def test_other_runs_that_cannot_be_are_refused(cli, tmp_path, others):
    run = stored_run(tmp_path / "run")
    code, out, err = cli("--workdir", run.folder, "--with", others.format(run=run.folder))
    assert (code, out) == (2, "")
    assert err.startswith("error: --with") and err.count("\n") == 1


def test_with_is_for_figures_alone(capsys, tmp_path):
    run = stored_run(tmp_path / "run")
    assert main.main(["main", "--workdir", str(run.folder), "--with", str(run.folder)]) == 2
    assert "--with is for --mode figures" in capsys.readouterr().err


def test_without_matplotlib_nothing_is_written(cli, tmp_path, monkeypatch):
    run = stored_run(tmp_path / "run")
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, err = cli("--workdir", run.folder)
    assert (code, out) == (2, "")
    assert "pip install 'iddpm_jax[figures]'" in err and err.count("\n") == 1
    assert not (run.folder / "figures").exists()


def test_folder_that_cannot_be_written_is_refused(cli, tmp_path):
    run = stored_run(tmp_path / "run")
    (run.folder / "figures").write_text("a file")
    code, out, err = cli("--workdir", run.folder)
    assert (code, out) == (2, "")
    assert "figures cannot be written" in err


def test_commit_is_named_only_by_git_in_a_clone(monkeypatch, tmp_path):
    done = subprocess.CompletedProcess([], 0, "abc1234\n", "")
    monkeypatch.setattr(captions.subprocess, "run", lambda *_, **__: done)
    monkeypatch.setattr(captions.iddpm_jax, "__file__", str(tmp_path / "iddpm_jax/__init__.py"))
    assert captions.version() == "iddpm_jax 0.1.0"
    (tmp_path / ".git").mkdir()
    assert captions.version() == "iddpm_jax 0.1.0, commit abc1234"

    def no_git(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(captions.subprocess, "run", no_git)
    assert captions.version() == "iddpm_jax 0.1.0"


def test_names_of_runs_are_short_where_they_can_be(tmp_path):
    config = stored_run(tmp_path / "a" / "run").config
    stored_run(tmp_path / "b" / "run")
    runs = figures._runs(config, tmp_path / "a" / "run", (tmp_path / "b" / "run",))
    assert [run.name for run in runs] == ["a/run", "b/run"]
