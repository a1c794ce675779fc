"""How many devices a CPU becomes, and where caches go."""

import os
from pathlib import Path

import jax
import pytest

from iddpm_jax import runtime


@pytest.mark.parametrize(
    "cores, batch_sizes, devices",
    [
        (8, [64, 100], 4),
        (3, [128], 2),
        (6, [12, 18], 6),
        (7, [13], 1),
        (16, [8], 8),
        (1, [128, 256], 1),
        (4, [], 4),
    ],
)
def test_cpu_devices_are_the_most_that_share_every_batch(cores, batch_sizes, devices):
    assert runtime.cpu_devices(cores, batch_sizes) == devices


def test_cpu_devices_reads_its_batches_once():
    assert runtime.cpu_devices(8, iter([12, 20])) == 4


def test_cpu_cores_are_at_least_one_and_no_more_than_there_are():
    assert 1 <= runtime.cpu_cores() <= os.cpu_count()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity on this system")
@pytest.mark.parametrize(
    "limit, cores",
    [
        ("max 100000\n", 6),
        ("200000 100000\n", 2),
        ("250000 100000\n", 2),
        ("50000 100000\n", 1),
        ("3200000 100000\n", 6),
        ("nonsense", 6),
        (None, 6),
    ],
)
def test_cpu_cores_obey_affinity_and_control_group(monkeypatch, limit, cores):
    def read_text(path):
        assert str(path) == "/sys/fs/cgroup/cpu.max"
        if limit is None:
            raise FileNotFoundError(path)
        return limit

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    monkeypatch.setattr(Path, "read_text", read_text)
    assert runtime.cpu_cores() == cores


def test_cache_folder_follows_xdg_cache_home(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert runtime.cache_folder() == tmp_path / "iddpm_jax"


@pytest.mark.parametrize("value", [None, ""])
def test_cache_folder_is_below_home_by_default(monkeypatch, tmp_path, value):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if value is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert runtime.cache_folder() == tmp_path / ".cache" / "iddpm_jax"


@pytest.mark.parametrize("chosen", [None, "elsewhere"])
def test_configure_sets_devices_and_cache_unless_the_cache_is_chosen(monkeypatch, tmp_path, chosen):
    updates = {}
    monkeypatch.setattr(jax.config, "update", updates.__setitem__)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    if chosen:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", chosen)
    runtime.configure(3, tmp_path)
    assert updates["jax_num_cpu_devices"] == 3
    assert updates.get("jax_compilation_cache_dir") == (None if chosen else str(tmp_path))


SLURM = {"SLURM_STEP_NODELIST": "node[1-2]", "SLURM_PROCID": "0", "SLURM_NTASKS": "2"}


@pytest.mark.parametrize(
    "environment, found",
    [
        ({}, False),
        (SLURM, True),
        ({**SLURM, "SLURM_NTASKS": "1"}, False),
        ({"SLURM_NTASKS": "2", "SLURM_JOB_ID": "7"}, False),  # sbatch without srun
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
    ],
)
def test_cluster_is_found_where_several_processes_were_started(environment, found):
    assert (runtime.cluster_around(environment) == runtime.Cluster()) is found
