"""How JAX is started: devices of a CPU, several processes, compiled programs kept between runs."""

import contextlib
import os
import socket
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from iddpm_jax import peers
from iddpm_jax.errors import InputError
from iddpm_jax.peers import Peers


def cpu_cores() -> int:
    """Cores this process may use, by its affinity and its control group."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):  # no control group, or no limit ("max")
        pass
    return cores


def cpu_devices(cores: int, batch_sizes: Iterable[int]) -> int:
    """The most virtual devices, one per core, that share every batch evenly.

    Args:
        cores: cores there are.
        batch_sizes: batches that will be shared.

    Returns:
        Number of devices, at least 1.
    """
    sizes = list(batch_sizes)
    return next(n for n in range(cores, 0, -1) if all(size % n == 0 for size in sizes))


class Cluster(NamedTuple):
    """The processes of one run; all None where JAX finds them itself (TPU pod, GKE, Slurm, MPI).

    Attributes:
        coordinator: "HOST:PORT" of process 0, on a port that is free there.
        num_processes: how many there are.
        process_id: which one this is, from 0.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None


def cluster_around(environment: Mapping[str, str]) -> Cluster | None:
    """The cluster that a process was plainly started in, or None.

    Args:
        environment: of the process.

    Returns:
        Cluster for JAX to find: a Slurm step of several tasks, or a TPU slice of several hosts.
    """
    in_step = "SLURM_STEP_NODELIST" in environment and "SLURM_PROCID" in environment
    several_tasks = in_step and int(environment.get("SLURM_NTASKS", 1)) > 1
    several_hosts = "," in environment.get("TPU_WORKER_HOSTNAMES", "")
    return Cluster() if several_tasks or several_hosts else None


def join(cluster: Cluster) -> contextlib.AbstractContextManager:
    """Meet the other processes of the run. Call after configure, before anything asks for devices.

    Every process but the first falls silent, errors excepted: all would say the same.

    Args:
        cluster: which processes.

    Returns:
        Context manager for the work: Peers, which end this process when another one dies.

    Raises:
        InputError: no cluster was found, or the coordinator cannot be reached.
    """
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    try:
        jax.distributed.initialize(
            *cluster,
            cluster_detection_method="deactivate" if cluster.coordinator else None,
            initialization_timeout=START_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"the processes of this run cannot meet ({reason}); check --coordinator, "
            "--num_processes and --process_id, or leave --distributed out for a single process"
        ) from None
    index, count = jax.process_index(), jax.process_count()
    listener = socket.create_server(("", 0)) if index == 0 else None
    host = cluster.coordinator.rpartition(":")[0] if cluster.coordinator else peers.own_address()
    port = listener.getsockname()[1] if listener else 0
    place = np.frombuffer(f"{host} {port}".encode().ljust(300), np.uint8)
    host, port = multihost_utils.broadcast_one_to_all(place).tobytes().decode().split()
    if index > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    try:
        return Peers(listener, (host, int(port)), index, count)
    except OSError as error:
        print(
            f"warning: process {index} cannot connect to process 0 at {host}:{port} ({error}); "
            f"that another process dies is noticed {HEARTBEAT_SECONDS} s later, by JAX",
            file=sys.stderr,
        )
        return contextlib.nullcontext()


START_SECONDS = 300
"""How long processes wait for each other at the start."""

HEARTBEAT_SECONDS = 30
"""A process that is silent for so long is taken for dead."""


def configure(devices: int, cache: Path) -> None:
    """Set up JAX. Call before anything asks for its devices.

    On a CPU, XLA's threads inside one operation lose to data parallelism, so every core becomes a
    device. Accelerators are not affected.

    Args:
        devices: virtual CPU devices.
        cache: folder for compiled programs; JAX_COMPILATION_CACHE_DIR goes before it.
    """
    import jax

    jax.config.update("jax_num_cpu_devices", devices)
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def cache_folder() -> Path:
    """Where this user's caches go: $XDG_CACHE_HOME/iddpm_jax, usually ~/.cache/iddpm_jax."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "iddpm_jax"
