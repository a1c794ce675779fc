"""Devices and processes: the mesh, where arrays live on it, and the data-parallel gradient."""

import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from iddpm_jax.errors import InputError

AXES = ("data", "fsdp")
BATCH = PartitionSpec(AXES)

LEAST_SHARDED = 2**14
"""Arrays with fewer elements than this are whole on every device: cutting them saves nothing."""


def make_mesh(devices: list[jax.Device] | None = None, fsdp: int = 1) -> Mesh:
    """All devices: axes ("data", "fsdp"); every device of both axes has its share of a batch.

    Args:
        devices: those of all processes by default.
        fsdp: devices that hold one copy of the train state between them.

    Returns:
        Mesh with automatic axes. The devices of a process are neighbours, so that its share of a
        batch is one block.

    Raises:
        InputError: the number of devices is not divisible by fsdp.
    """
    devices = jax.devices() if devices is None else devices
    if len(devices) % fsdp:
        raise InputError(
            f"train.fsdp is {fsdp}, which does not divide the {len(devices)} devices there are; "
            "change it, or the number of devices"
        )
    by_process = sorted(devices, key=lambda d: (d.process_index, d.id))
    return Mesh(np.array(by_process).reshape(-1, fsdp), AXES, axis_types=(AxisType.Auto,) * 2)


def check_batch(
    mesh: Mesh, batch_size: int, microbatches: int = 1, name: str = "batch_size"
) -> None:
    """Refuse a batch that the devices cannot share evenly.

    Args:
        mesh: from make_mesh.
        batch_size: examples over all devices.
        microbatches: parts in which each device takes its share.
        name: what to call the batch size.

    Raises:
        InputError: says which numbers do not divide.
    """
    devices = mesh.size
    if batch_size % (devices * microbatches):
        parts = f"{devices} devices" + (
            f" x {microbatches} microbatches" if microbatches > 1 else ""
        )
        raise InputError(
            f"{name} {batch_size} is not divisible by {parts}; change the batch size, or the "
            "number of devices with --devices"
        )


def check_processes(settings: str) -> None:
    """Refuse processes that were started with different settings, before they wait for each other.

    Args:
        settings: all that must be equal, as text.

    Raises:
        InputError: another process has other settings.
    """
    if jax.process_count() == 1:
        return
    found = multihost_utils.process_allgather(np.uint32(zlib.crc32(settings.encode())))
    if len(set(found.tolist())) > 1:
        raise InputError(
            f"process {jax.process_index()} was started with another config than some other "
            "process; give all of them the same flags"
        )


def check_shared(file: Path) -> None:
    """Refuse processes that do not see the same files.

    Args:
        file: one that the main process has written.

    Raises:
        InputError: this process does not see it.
    """
    if jax.process_count() == 1:
        return
    multihost_utils.sync_global_devices(f"written {file}")
    if not file.exists():
        raise InputError(
            f"process {jax.process_index()} does not see {file}; --workdir must be on a file "
            "system that all processes share"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def fsdp_sharding(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """The rule by which parameters, averages and the optimizer's arrays are cut over "fsdp".

    Along the longest axis that the devices divide; small arrays, and those without such an axis,
    are whole on every device. As in ZeRO (Rajbhandari et al. 2020) the state is cut at
    rest, and a step gathers the parameters.

    Args:
        mesh: from make_mesh.
        shape: of the array.

    Returns:
        Sharding of the array at rest.
    """
    parts = mesh.shape["fsdp"]
    axes = [axis for axis, size in enumerate(shape) if size % parts == 0]
    if parts == 1 or not axes or math.prod(shape) < LEAST_SHARDED:
        return replicated(mesh)
    longest = max(axes, key=lambda axis: shape[axis])
    return NamedSharding(mesh, PartitionSpec(*[None] * longest, "fsdp"))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Every device holds its share of the first axis."""
    return NamedSharding(mesh, BATCH)


def batches_sharding(mesh: Mesh) -> NamedSharding:
    """Every device holds its share of the second axis; the first counts batches."""
    return NamedSharding(mesh, PartitionSpec(None, *BATCH))


def to_devices(mesh: Mesh, batch: Any) -> Any:
    """Put host arrays [B, ...] on the devices, each with its share of B.

    Args:
        mesh: from make_mesh.
        batch: pytree of arrays, the same in every process.

    Returns:
        The same pytree on the devices.
    """
    return place(batch, jax.tree.map(lambda _: batch_sharding(mesh), batch))


def place(values: Any, shardings: Any) -> Any:
    """Put host arrays on the devices.

    Args:
        values: pytree of arrays, the same in every process.
        shardings: pytree like it, of where each array shall live.

    Returns:
        The same pytree on the devices.
    """
    return jax.tree.map(
        lambda a, sharding: jax.make_array_from_callback(a.shape, sharding, lambda i: a[i]),
        values,
        shardings,
    )


def share_to_devices(mesh: Mesh, share: Any, sharding: NamedSharding | None = None) -> Any:
    """Put a batch on the devices of which each process has its own share.

    Args:
        mesh: from make_mesh.
        share: pytree of host arrays [B / processes, ...], the rows that fall to this process.
        sharding: batches_sharding for several batches [K, B / processes, ...]; None for one.

    Returns:
        Pytree of arrays [B, ...], or [K, B, ...], on the devices.
    """
    sharding = sharding or batch_sharding(mesh)
    return jax.tree.map(
        lambda a: jax.make_array_from_process_local_data(sharding, np.ascontiguousarray(a)), share
    )


def to_host(values: Any) -> Any:
    """Pytree of arrays on the devices -> whole numpy arrays, in every process."""
    if jax.process_count() == 1:
        return jax.device_get(values)
    return multihost_utils.process_allgather(values, tiled=True)


def is_main_process() -> bool:
    """Whether this process is the one that writes files and speaks."""
    return jax.process_index() == 0


def mean_gradient(
    loss: Callable[[Any, Any], tuple[jax.Array, Any]], mesh: Mesh, microbatches: int
) -> Callable[[Any, Any], tuple[Any, Any]]:
    """The gradient of a mean over the batch, computed where the examples are.

    One all-reduce, after the microbatches are added up.

    Args:
        loss: (params, examples with leading axis b) -> (mean loss, per-example results [b, ...]).
        mesh: from make_mesh.
        microbatches: parts in which each device takes its share, one after the other.

    Returns:
        Function (params, examples with leading axis B) -> (gradient, per-example results [B, ...]).
    """
    gradient = jax.grad(loss, has_aux=True)

    def local(params: Any, examples: Any) -> tuple[Any, Any]:
        # Marked as varying, the parameters get local gradients; else each would be summed at once.
        params = jax.tree.map(lambda p: jax.lax.pcast(p, AXES, to="varying"), params)
        if microbatches == 1:
            total, results = gradient(params, examples)
        else:
            parts = jax.tree.map(lambda e: e.reshape(microbatches, -1, *e.shape[1:]), examples)

            def add(total: Any, part: Any) -> tuple[Any, Any]:
                new, results = gradient(params, part)
                return jax.tree.map(jnp.add, total, new), results

            total, results = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), parts)
            total = jax.tree.map(lambda g: g / microbatches, total)
            results = jax.tree.map(lambda r: r.reshape(-1, *r.shape[2:]), results)
        return jax.lax.pmean(total, AXES), results

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(PartitionSpec(), BATCH),
        out_specs=(PartitionSpec(), BATCH),
        axis_names=set(AXES),
    )


def map_batch(function: Callable, mesh: Mesh) -> Callable:
    """Run a function on each device's share of a batch, without any communication.

    Args:
        function: (shared pytree, batch pytree [b, ...]) -> pytree [b, ...].
        mesh: from make_mesh.

    Returns:
        Compiled function (shared pytree, batch pytree [B, ...]) -> pytree [B, ...].
    """
    mapped = jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(PartitionSpec(), BATCH),
        out_specs=BATCH,
        axis_names=set(AXES),
        # Nothing is summed over devices and no gradient is taken, so there is nothing to check.
        check_vma=False,
    )
    return jax.jit(mapped)
