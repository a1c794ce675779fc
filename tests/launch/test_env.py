"""launch/env/: flags that XLA knows, a reason for each, and launchers that hand them on."""

import os
import re
import subprocess
import sys

import pytest
from stand_ins import LAUNCH, WORKER, eventually, running

GPU, TPU = (LAUNCH / "env" / f"{device}.sh" for device in ("gpu", "tpu"))
VARIABLES = {GPU: "XLA_FLAGS", TPU: "LIBTPU_INIT_ARGS"}
CPU_ONLY = {**{k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}, "JAX_PLATFORMS": "cpu"}

# A program for a slice that is not there, as libtpu reads its flags when it starts.
COMPILE_FOR_TPU = """
import jax, numpy as np
from iddpm_jax.plan import programs
from iddpm_jax.plan.chips import topology
from jax.sharding import Mesh, NamedSharding, PartitionSpec
mesh = Mesh(np.array(programs.tpu_devices(topology("v5e:2x2"))), ("d",))
x = jax.ShapeDtypeStruct((8,), np.float32, sharding=NamedSharding(mesh, PartitionSpec("d")))
jax.jit(lambda x: x + 1).lower(x).compile()
"""


def flags(file, **environment: str) -> list[str]:
    """The flags after sourcing a file."""
    command = f'set -euo pipefail; source "{file}"; printf %s "${VARIABLES[file]}"'
    found = subprocess.run(
        ["bash", "-c", command],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stderr == ""
    return found.stdout.split()


def python(text: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", text],
        env={**CPU_ONLY, **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("file", VARIABLES, ids=lambda file: file.name)
def test_what_the_user_has_set_comes_last_and_so_wins(file):
    own = "--xla_own=1 --xla_other=2"
    assert flags(file, **{VARIABLES[file]: own}) == [*flags(file), *own.split()]
    assert len(flags(file)) > 2


@pytest.mark.parametrize("file", VARIABLES, ids=lambda file: file.name)
def test_flags_come_with_reasons(file):
    block = re.search(r"^flags=\(\n(.*?)^\)", file.read_text(), re.DOTALL | re.MULTILINE)[1]
    assert block.startswith("  # ")
    assert sorted(re.findall(r"^  (--\S+)$", block, re.MULTILINE)) == sorted(flags(file))


def test_memory_is_the_users_to_choose():
    command = f'source "{GPU}"; printf %s "$XLA_PYTHON_CLIENT_MEM_FRACTION"'
    for given, expected in (({}, "0.92"), ({"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}, "0.5")):
        assert subprocess.check_output(["bash", "-c", command], env=given, text=True) == expected


@pytest.mark.slow
def test_xla_knows_the_flags_for_gpus():
    start = "import jax; jax.devices()"
    given = flags(GPU)
    done = python(start, XLA_FLAGS=" ".join(given))
    assert done.returncode == 0, done.stderr
    # And would say so if it did not.
    done = python(start, XLA_FLAGS=" ".join([*given, "--xla_gpu_no_such_flag=true"]))
    assert done.returncode and "xla_gpu_no_such_flag" in done.stderr


@pytest.mark.slow
def test_libtpu_knows_the_flags_for_tpus():
    pytest.importorskip("libtpu")
    given = flags(TPU)
    done = python(COMPILE_FOR_TPU, LIBTPU_INIT_ARGS=" ".join(given))
    assert done.returncode == 0, done.stderr
    done = python(COMPILE_FOR_TPU, LIBTPU_INIT_ARGS=" ".join([*given, "--xla_tpu_no_such_flag=1"]))
    assert done.returncode and "xla_tpu_no_such_flag" in done.stderr


@pytest.mark.parametrize("words, handed_on", [([], False), (["--gpus=2"], True)])
def test_local_processes_get_the_flags_where_they_have_gpus(stand_ins, words, handed_on):
    stand_ins.environment.pop("XLA_FLAGS", None)
    stand_ins.add("python", WORKER)
    stand_ins.run("local.sh", *words, "--", "--workdir", "w", ACT="0")
    found = [entry["xla_flags"] for entry in stand_ins.entries(event="ready")]
    assert found == [" ".join(flags(GPU)) if handed_on else None] * 2


@pytest.mark.parametrize("gpus", [False, True])
def test_slurm_job_gets_the_flags_where_there_are_gpus(stand_ins, gpus):
    stand_ins.environment.pop("XLA_FLAGS", None)
    stand_ins.add("srun", WORKER)
    if gpus:
        stand_ins.add("nvidia-smi")
    script = stand_ins.folder / "spooled"  # as Slurm runs it: a copy, in the folder of the checkout
    script.write_bytes((LAUNCH / "slurm.sbatch").read_bytes())
    script.chmod(0o755)
    job = stand_ins.start(str(script), "--workdir", "w", SLURM_JOB_ID="1", ACT="0")
    assert job.wait(timeout=20) == 0
    (found,) = (entry["xla_flags"] for entry in stand_ins.entries(event="ready"))
    assert found == (" ".join(flags(GPU)) if gpus else None)


@pytest.mark.parametrize("gpus", [False, True])
def test_host_gets_the_flags_of_its_device(stand_ins, tmp_path, gpus):
    stand_ins.environment.pop("XLA_FLAGS", None)
    if gpus:
        stand_ins.add("nvidia-smi")
    (tmp_path / "launch" / "env").mkdir(parents=True)
    for file in (LAUNCH / "host.sh", GPU, TPU):
        copy = tmp_path / "launch" / file.relative_to(LAUNCH)
        copy.write_bytes(file.read_bytes())
        copy.chmod(0o755)
    worker = str(stand_ins.add("python", WORKER))
    script = str(tmp_path / "launch" / "host.sh")
    done = stand_ins.run(script, "start", "--workdir", "w", PYTHON=worker, ACT="0")
    assert (done.returncode, done.stderr) == (0, "")
    assert eventually(lambda: stand_ins.entries(event="ready") != [])
    (entry,) = stand_ins.entries(event="ready")
    assert entry["xla_flags"] == (" ".join(flags(GPU)) if gpus else None)
    assert entry["libtpu_flags"] == (None if gpus else " ".join(flags(TPU)))
    assert eventually(lambda: not running(entry["pid"]))
