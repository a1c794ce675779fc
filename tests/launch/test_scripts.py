"""What all files of launch/ have in common: shellcheck, help, and a task file that parses."""

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
import yaml
from stand_ins import LAUNCH, ROOT

SCRIPTS = sorted(path.name for path in LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch"))


def shellcheck(*words: str, text: str | None = None) -> str:
    """What shellcheck has to say."""
    # Beside the interpreter, for a test run without the environment being active.
    beside = str(Path(sysconfig.get_path("scripts")))
    program = shutil.which("shellcheck") or shutil.which("shellcheck", path=beside)
    assert program, "shellcheck is missing: pip install -e '.[test]'"
    done = subprocess.run([program, *words], input=text, capture_output=True, text=True)
    return done.stdout + done.stderr


def test_there_are_scripts():
    assert SCRIPTS == ["host.sh", "local.sh", "slurm.sbatch", "slurm.sh", "tpu_pod.sh"]


@pytest.mark.parametrize("script", [*SCRIPTS, "env/gpu.sh", "env/tpu.sh"])
def test_shellcheck_is_content(script):
    assert shellcheck(str(LAUNCH / script)) == ""


@pytest.mark.parametrize("script", [name for name in SCRIPTS if name.endswith(".sh")])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_teaches(script, flag):
    done = subprocess.run([LAUNCH / script, flag], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"launch/{script} " in done.stdout
    for word in ("Flags", "Example", "--dry_run"):
        assert word in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


@pytest.mark.parametrize("script", ["local.sh", "slurm.sh", "tpu_pod.sh"])
def test_every_flag_of_a_launcher_is_in_its_help(script):
    text = (LAUNCH / script).read_text()
    known = re.findall(r"^ +(--\w+(?: \| --\w+)*)\)", text, flags=re.MULTILINE)
    flags = {flag for line in known for flag in line.split(" | ")}
    assert len(flags) > 5
    explained = text.split("\nFlags\n")[1].split("\nExample")[0]
    assert [flag for flag in flags if f" {flag} " not in explained.replace(",", " ")] == []


COMMANDS = [
    (page, line)
    for page in ("README.md", "docs/tpu.md")
    for line in (ROOT / page).read_text(encoding="utf-8").splitlines()
    if line.startswith("launch/tpu_pod.sh ")
]


def test_pages_show_every_verb():
    assert {line.split()[1] for _, line in COMMANDS} == {
        *("create", "status", "install", "run", "logs", "stop", "delete")
    }


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_commands_in_the_pages_are_understood(page, line):
    script, verb, rest = line.split(maxsplit=2)
    text = f"pod=(--name iddpm --zone us-west4-a)\n{script} {verb} --dry_run {rest}"
    done = subprocess.run(["bash", "-c", text], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.fixture(scope="module")
def task():
    return yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())


def test_task_file_has_fields_that_skypilot_knows(task):
    # By the schema of SkyPilot 0.14.1.
    assert set(task) <= {"name", "workdir", "num_nodes", "resources", "envs", "setup", "run"}
    resources = task["resources"]
    assert set(resources) <= {"infra", "accelerators", "accelerator_args", "use_spot"}
    assert set(resources["accelerator_args"]) <= {"runtime_version", "gcp_queued_resource"}


def test_scripts_in_the_task_file_are_clean(task):
    for part in ("setup", "run"):
        assert shellcheck("--shell=bash", "-", text=task[part]) == ""


def test_task_runs_the_program_with_the_arguments(task, tmp_path):
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    environment = {"ARGUMENTS": "--config.sample.classes='(3, 8)' --workdir w"}
    done = subprocess.run(
        ["bash", "-c", task["run"]], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    expected = ["-m", "iddpm_jax.main", "--distributed", "--config.sample.classes=(3, 8)"]
    assert done.stdout.splitlines() == [*expected, "--workdir", "w"]
