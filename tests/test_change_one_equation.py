"""docs/change_one_equation.md does what it says: its changes are made in a copy, and trained."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # each test is a process of its own that compiles

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "change_one_equation.md").read_text(encoding="utf-8")


def changes() -> list[tuple[str, str]]:
    """(file, diff) of every block of the page that changes a file."""
    return re.findall(r'^```diff title="(\S+)"\n(.*?)^```', PAGE, re.MULTILINE | re.DOTALL)


def changed(text: str, diff: str) -> str:
    """The text with the one place that a diff speaks of replaced."""
    lines = diff.splitlines(keepends=True)
    before = "".join(line[1:] for line in lines if line[0] in " -")
    after = "".join(line[1:] for line in lines if line[0] in " +")
    assert text.count(before) == 1, f"the page changes this, which is not there:\n{before}"
    return text.replace(before, after)


@pytest.fixture(name="copy", scope="module")
def make_copy(tmp_path_factory) -> Path:
    """The repository's code with the page's changes."""
    folder = tmp_path_factory.mktemp("copy")
    ignored = shutil.ignore_patterns("__pycache__", "golden")
    shutil.copy(ROOT / "pyproject.toml", folder)
    for name in ("iddpm_jax", "configs", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    (folder / "tests" / "golden").symlink_to(ROOT / "tests" / "golden")
    for name, diff in changes():
        file = folder / name
        file.write_text(changed(file.read_text(encoding="utf-8"), diff), encoding="utf-8")
    return folder


def run(copy: Path, *command: str) -> None:
    cache = ROOT / ".pytest_cache" / "jax"
    environment = {
        **os.environ,
        "PYTHONPATH": str(copy),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "DEVICES": "2",
    }
    result = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_changes_are_fifteen_lines_in_two_files():
    code = [(name, diff) for name, diff in changes() if name.startswith("iddpm_jax/")]
    assert {Path(name).name for name, _ in code} == {"schedules.py", "losses.py"}
    added = [line for _, diff in code for line in diff.splitlines() if line.startswith("+")]
    assert len(added) == 15


def test_tests_of_the_page_pass_in_the_changed_copy(copy):
    files = [f"tests/diffusion/test_{name}.py" for name in ("schedules", "losses")]
    chosen = ("-n", "0", "-p", "no:cacheprovider", "-k", "objective or schedule or sigmoid")
    run(copy, sys.executable, "-m", "pytest", *files, *chosen)
    run(copy, sys.executable, "-m", "ruff", "check", "iddpm_jax", *files)
    run(copy, sys.executable, "-m", "ruff", "format", "--check", "iddpm_jax", *files)


def test_command_of_the_page_trains_digits(copy):
    page = PAGE.replace("\\\n", " ")
    [command] = re.findall(r"^python (-m iddpm_jax.main --config .*)", page, re.MULTILINE)
    small = ["model.channel_mult=(1,)", "model.attention_resolutions=()", "diffusion.T=50"]
    short = ["train.steps=4", "train.log_every_steps=1", "train.sample_every_steps=0"]
    samples = ["sample.steps=5", "sample.count=4"]
    overrides = (f"--config.{override}" for override in [*small, *short, *samples])
    run(copy, sys.executable, *shlex.split(command), *overrides)
    workdir = copy / "runs" / "changed"
    config = json.loads((workdir / "config.json").read_text())
    assert (config["diffusion"]["schedule"], config["loss"]["name"]) == ("sigmoid", "l_min_snr")
    rows = [json.loads(row) for row in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    # Steps of little noise count for less than they do in L_simple.
    assert all(0 < row["loss"] < row["l_simple"] + 0.001 * row["l_vlb"] for row in rows)
