"""The command line as a user has it: a fresh process for every command, real pictures."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

# Nearly all of it compiles a training step, a sampler or a likelihood.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
TINY = [
    "--config.diffusion.T=50",
    "--config.model.channel_mult=(1,)",
    "--config.model.attention_resolutions=()",
    "--config.train.batch_size=32",
    "--config.train.learning_rate_decay=constant",
    "--config.train.log_every_steps=2",
    "--config.train.checkpoint_every_steps=3",
    "--config.train.sample_every_steps=4",
    "--config.sample.count=10",
    "--config.sample.steps=5",
    "--config.sample.batch_size=10",
    "--config.nll.terms=1",
]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "iddpm_jax.main", *arguments]


def environment(cache: Path) -> dict[str, str]:
    return {**os.environ, "XDG_CACHE_HOME": str(cache), "JAX_PLATFORMS": "cpu", "DEVICES": "2"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of six steps: (workdir, cache folder, its printed output)."""
    folder = tmp_path_factory.mktemp("run")
    arguments = ["--config", "configs/digits.py", "--workdir", str(folder / "w"), *TINY]
    result = subprocess.run(
        command(*arguments, "--config.train.steps=6"),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(folder / "cache"),
        check=True,
    )
    return folder / "w", folder / "cache", result.stdout


def use(trained, *arguments: str) -> subprocess.CompletedProcess:
    workdir, cache, _ = trained
    return subprocess.run(
        command("--workdir", str(workdir), *arguments),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(cache),
        check=False,
    )


def test_training_announces_compiling_and_ends_with_a_summary(trained):
    workdir, _, output = trained
    assert "compiling, about" in output
    assert "bits/dim" in output and "359 images" in output
    for line in ("samples", "curves", "checkpoints"):
        assert line in output
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert (workdir / "samples" / "training_00000004.png").exists()
    assert sorted(path.name for path in (workdir / "checkpoints").glob("*[0-9]")) == ["3", "6"]


def test_sample_mode_needs_the_workdir_alone(trained):
    result = use(trained, "--mode", "sample", "--config.sample.classes=(3,8)")
    assert result.returncode == 0, result.stderr
    npz = next(line.split()[1] for line in result.stdout.splitlines() if line.startswith("npz"))
    with np.load(npz) as arrays:
        assert arrays["arr_0"].shape == (10, 8, 8, 1) and arrays["arr_0"].dtype == np.uint8
        assert arrays["arr_1"].tolist() == [3, 8] * 5


def test_nll_mode_takes_overrides(trained):
    result = use(trained, "--mode", "nll", "--config.nll.terms=0", "--config.nll.steps=3")
    assert result.returncode == 0, result.stderr
    assert "3 of 3 terms each" in result.stdout
    npz = next(line.split()[1] for line in result.stdout.splitlines() if line.startswith("terms"))
    with np.load(npz) as arrays:
        assert arrays["l_t"].shape == (359, 3) and arrays["t"].tolist() == [0, 24, 49]


def test_report_mode_draws_a_film_of_the_samples_that_are_there(trained):
    result = use(trained, "--mode", "report")
    assert result.returncode == 0, result.stderr
    page = (trained[0] / "report.html").read_text(encoding="utf-8")
    lines = [line.split()[0] for line in result.stdout.splitlines()]
    assert lines == ["importance", "scores", "report"]
    assert page.count("data:image/png;base64,") == 3 and '"times":[50,' in page
    assert "<dt>training step</dt><dd>6</dd>" in page
    assert len(list((trained[0] / "samples").glob("step00000006_*/film.png"))) == 1


def test_second_process_finds_compiled_programs(trained):
    _, cache, _ = trained
    before = {path.name for path in cache.rglob("*-cache")}
    assert before
    result = use(trained, "--mode", "train", "--config.train.steps=7")
    assert result.returncode == 0, result.stderr
    assert "continuing from step 6" in result.stdout
    new = {path.name for path in cache.rglob("*-cache")} - before
    assert not [name for name in new if "train_step" in name]


def test_truncated_checkpoints_cost_a_line_each(trained, tmp_path):
    workdir, _, _ = trained
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(workdir), str(copy)], check=True)

    def truncate(step: str) -> subprocess.CompletedProcess:
        files = (f for f in (copy / "checkpoints" / step).rglob("*") if f.is_file())
        largest = max(files, key=lambda f: f.stat().st_size)
        largest.write_bytes(largest.read_bytes()[:100])
        return use((copy, *trained[1:]), "--mode", "sample")

    before, newest = sorted(int(path.name) for path in (copy / "checkpoints").iterdir())
    result = truncate(str(newest))
    assert result.returncode == 0 and f"step{before:08d}" in result.stdout
    assert result.stderr.startswith("warning: checkpoint")
    assert "Traceback" not in result.stderr and "Exception" not in result.stderr.split("\n", 1)[1]
    result = truncate(str(before))
    assert result.returncode == 2
    assert "\nerror: checkpoint" in result.stderr and result.stderr.count("\n") == 2


def test_killed_run_goes_on_from_its_last_checkpoint(trained, tmp_path):
    _, cache, _ = trained
    arguments = ["--config", "configs/digits.py", "--workdir", str(tmp_path / "w"), *TINY]
    run = subprocess.Popen(
        command(*arguments, "--config.train.steps=100000"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        env=environment(cache),
    )
    checkpoints = tmp_path / "w" / "checkpoints"
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("[0-9]")) and time.monotonic() < deadline:
        assert run.poll() is None
        time.sleep(0.1)
    run.kill()
    run.wait()
    last = max(int(path.name) for path in checkpoints.iterdir() if path.name.isdigit())
    result = use((tmp_path / "w", cache, ""), f"--config.train.steps={last + 1}")
    assert result.returncode == 0, result.stderr
    assert f"continuing from step {last}" in result.stdout


def test_runs_killed_at_random_moments_end_as_if_never_killed(tmp_path):
    result = subprocess.run(
        [sys.executable, "benchmarks/kills.py", "--kills", "3", "--only-check"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(tmp_path) | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "'kills': 3" in result.stdout
