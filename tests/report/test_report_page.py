"""--mode report as a user reaches it: the page, and one line for what cannot be."""

import pytest
from made_up import full
from synthetic import stored_run

from iddpm_jax import main, runtime
from iddpm_jax.training import runs


@pytest.fixture(name="cli")
def make_cli(monkeypatch, capsys):
    """Function (arguments) -> (exit code, stdout, stderr), in this process."""
    monkeypatch.setattr(runtime, "configure", lambda *_: None)

    def call(*arguments):
        code = main.main(["iddpm_jax.main", "--mode", "report", *map(str, arguments)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def test_page_is_written_into_the_workdir(cli, tmp_path, monkeypatch):
    run, asked = full(tmp_path / "run"), []

    def open_run(workdir, config, checkpoint):
        asked.append((workdir, config.sample.count, checkpoint))
        return run

    monkeypatch.setattr(runs, "open_run", open_run)
    code, out, err = cli("--workdir", tmp_path / "run", "--checkpoint", "best")
    assert (code, err) == (0, "")
    assert out.startswith(f"report       {tmp_path / 'run' / 'report.html'} (0.")
    assert asked == [(tmp_path / "run", 20, "best")]
    assert (tmp_path / "run" / "report.html").read_text().startswith("<!doctype html>")


def test_workdir_without_a_run_is_refused(cli, tmp_path):
    code, out, err = cli("--workdir", tmp_path / "none")
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert "none holds no run" in err
    code, out, err = cli("--workdir", stored_run(tmp_path / "run").folder)
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert "run holds no checkpoints; train first" in err


def test_page_that_cannot_be_written_is_refused_before_anything_is_drawn(
    cli, tmp_path, monkeypatch
):
    run = full(tmp_path / "run")
    monkeypatch.setattr(runs, "open_run", lambda *_: run)
    monkeypatch.setattr("iddpm_jax.report.draw", None)
    for name in ("report.html", "report.unfinished"):
        (tmp_path / "run" / name).mkdir()
        (tmp_path / "run" / name / "file").touch()
        code, out, err = cli("--workdir", tmp_path / "run")
        assert (code, out) == (2, "") and err.count("\n") == 1
        assert "report.html cannot be written (" in err
        (tmp_path / "run" / name / "file").unlink()
        (tmp_path / "run" / name).rmdir()
    assert not (tmp_path / "run" / "report.unfinished").exists()
