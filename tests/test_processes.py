"""Several processes from the command line, two devices each, against one process of four."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from iddpm_jax.evaluation.parts import Parts
from iddpm_jax.training import runs

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
CONFIG = (
    "--config",
    "tests/tiny_config.py",
    # With 32 channels some gradients are zero but for rounding, of which Adam makes whole steps.
    "--config.model.width=64",
    "--config.train.warmup_steps=20",
    "--config.model.dropout=0.1",
    "--config.data.random_flip=true",
    "--config.loss.timesteps=importance",
    "--config.loss.history_size=2",
    "--config.train.checkpoint_every_steps=10",
    "--config.train.sample_every_steps=15",
)
ENVIRONMENT = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": str(ROOT),
    "PYTHON": sys.executable,
    "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
}
PATIENCE = 240  # s, for machines that are busy


class Processes:
    """The processes of one run, started by its constructor. Leaving the context kills the rest.

    Args:
        workdir: of the run; output goes to files beside it.
        count: how many processes.
        flags: of all of them.
    """

    def __init__(self, workdir, count, *flags):
        with socket.create_server(("localhost", 0)) as free:
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "iddpm_jax.main", "--workdir", str(workdir), *flags]
        self._workdir, self._logs, self._children = workdir, [], []
        for i in range(count):
            cluster = ["--coordinator", f"localhost:{port}", "--num_processes", str(count)]
            cluster = [*cluster, "--process_id", str(i)] if count > 1 else []
            self._logs.append(workdir.with_name(f"{workdir.name}.{len(cluster)}.{i}.{port}"))
            with self._logs[-1].open("w") as log:
                child = subprocess.Popen(
                    [*command, *cluster], cwd=ROOT, env=ENVIRONMENT, stdout=log, stderr=log
                )
            self._children.append(child)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for child in self._children:
            child.kill()
            child.wait()

    def wait(self):
        """Exit code and output of each."""
        codes = [child.wait(PATIENCE) for child in self._children]
        return list(zip(codes, (log.read_text() for log in self._logs), strict=True))

    def wait_for_step(self, step):
        """Until a row of this step or a later one is written."""
        end = time.monotonic() + PATIENCE
        while newest_step(self._workdir) < step:
            assert time.monotonic() < end, self._logs[0].read_text()
            assert self._children[0].poll() is None, self._logs[0].read_text()
            time.sleep(0.1)

    def send(self, process, number):
        self._children[process].send_signal(number)


def rows_of(workdir):
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def newest_step(workdir):
    return max((row["step"] for row in rows_of(workdir)), default=0)


def norm(tree):
    return np.sqrt(sum(np.sum(np.square(a, dtype=np.float64)) for a in jax.tree.leaves(tree)))


def relative_difference(a, b):
    return norm(jax.tree.map(lambda x, y: np.asarray(x) - np.asarray(y), a, b)) / norm(b)


def run_alone(workdir, *flags):
    """Output of a run of one process."""
    with Processes(workdir, 1, *flags) as processes:
        [(code, output)] = processes.wait()
    assert code == 0, output
    return output


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Workdirs of the same 20 steps by one process of four devices, and by two of two."""
    folder, steps = tmp_path_factory.mktemp("processes"), "--config.train.steps=20"
    run_alone(folder / "one", *CONFIG, steps, "--devices=4")
    launcher = [ROOT / "launch" / "local.sh", "--processes=2", f"--logs={folder}", "--"]
    flags = [f"--workdir={folder / 'two'}", *CONFIG, steps, "--devices=2"]
    subprocess.run([*launcher, *flags], cwd=ROOT, env=ENVIRONMENT, check=True, timeout=PATIENCE)
    outputs = [(folder / f"process_{i}.log").read_text() for i in range(2)]
    assert "Trained to step 20" in outputs[0]
    assert "Trained" not in outputs[1] and "step/s" not in outputs[1]
    return folder / "one", folder / "two"


def test_two_processes_equal_one_after_20_steps(folders):
    states = [jax.device_get(runs.open_run(workdir).state) for workdir in folders]
    for part in ("params", "ema", "opt_state"):
        one, two = (getattr(state, part) for state in states)
        assert relative_difference(two, one) < 1e-6, part
    np.testing.assert_array_equal(states[1].history.seen, states[0].history.seen)
    np.testing.assert_allclose(states[1].history.losses, states[0].history.losses, rtol=1e-4)
    rows = [rows_of(workdir) for workdir in folders]
    assert [row["step"] for row in rows[1]] == list(range(2, 21, 2))
    for name in ("loss", "l_simple", "l_vlb", "gradient_norm", "warmed_up"):
        one, two = ([row[name] for row in part] for part in rows)
        np.testing.assert_allclose(two, one, rtol=1e-6, err_msg=name)


def test_two_processes_draw_and_measure_as_one(folders):
    drawn, measured = (
        [np.load(next(workdir.glob(pattern))) for workdir in folders]
        for pattern in ("samples/*/*.npz", "nll/*.npz")
    )
    difference = drawn[1]["arr_0"].astype(int) - drawn[0]["arr_0"].astype(int)
    assert abs(difference).max() <= 1
    np.testing.assert_array_equal(drawn[1]["arr_1"], drawn[0]["arr_1"])
    np.testing.assert_allclose(measured[1]["total"], measured[0]["total"], rtol=1e-4)
    names = [sorted(p.relative_to(w) for p in w.rglob("*.png")) for w in folders]
    assert names[1] == names[0]


def test_death_and_notice_lose_no_step(tmp_path):
    workdir = tmp_path / "run"
    long = (*CONFIG, "--devices=2", "--config.train.fsdp=2", "--config.train.steps=100000")
    with Processes(workdir, 2, *long) as processes:
        processes.wait_for_step(14)
        processes.send(1, signal.SIGKILL)
        begin = time.monotonic()
        (code, output), _ = processes.wait()
        assert time.monotonic() - begin < 60
    assert code == 1
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "process 1 of this run has ended" in errors[0], output
    assert "Traceback" not in output and "Check failure" not in output

    with Processes(workdir, 2, *long) as processes:
        before = newest_step(workdir)
        processes.wait_for_step(before + 6)
        processes.send(1, signal.SIGTERM)
        results = processes.wait()
    assert [code for code, _ in results] == [0, 0], results
    saved = int(re.search(r"saved at step (\d+)", results[0][1])[1])
    assert re.search(r"continuing from step [1-9]\d*0\b", results[0][1])

    # One process of four devices goes on, at the same place in the data.
    output = run_alone(workdir, f"--config.train.steps={saved + 2}", "--devices=4")
    assert f"continuing from step {saved}" in output
    rows = rows_of(workdir)
    assert len(rows) == len({row["step"] for row in rows})
    assert newest_step(workdir) == saved + 2


def test_processes_with_different_flags_are_refused(tmp_path):
    with socket.create_server(("localhost", 0)) as free:
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "iddpm_jax.main", "--workdir", str(tmp_path / "run"), *CONFIG]
    command += ["--coordinator", address, "--num_processes=2", "--devices=1"]
    children = [
        subprocess.Popen(
            [*command, f"--process_id={i}", f"--config.seed={i}"],
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    for child in children:
        _, error = child.communicate(timeout=PATIENCE)
        assert child.returncode in (1, 2)
        assert re.search(r"^error: process \d .*(another config|has ended)", error, re.MULTILINE)
        assert "Traceback" not in error
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_two_processes_go_on_with_the_samples_of_one(folders, tmp_path):
    workdirs = [tmp_path / "one", tmp_path / "both"]
    for workdir in workdirs:
        shutil.copytree(folders[0], workdir, ignore=shutil.ignore_patterns("samples"))
    flags = ["--mode=sample", "--config.sample.count=43", "--config.sample.batch_size=4"]
    run_alone(workdirs[0], *flags, "--devices=4")
    # Half of them are there, as if one process had been killed.
    (path,) = workdirs[0].glob("samples/*/samples_43x*.npz")
    with np.load(path) as arrays:
        folder = workdirs[1] / "samples" / path.parent.name
        made_by = json.loads(str(arrays["made_by"]))
        Parts(folder / "parts", made_by).append({"images": arrays["arr_0"][:22]})
    with Processes(workdirs[1], 2, *flags, "--devices=2") as processes:
        results = processes.wait()
    assert [code for code, _ in results] == [0, 0], results
    assert "22 of 43 samples are there" in results[0][1]
    assert (folder / path.name).read_bytes() == path.read_bytes()
    assert not (folder / "parts").exists()
