"""How JAX is started: a device per CPU core, and compiled programs kept between runs."""

import os
from collections.abc import Iterable
from pathlib import Path


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
