"""Devices: the mesh, where arrays live on it, and the data-parallel gradient."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from iddpm_jax.errors import InputError

BATCH = PartitionSpec("data")


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """All devices in a row: axes ("data", "fsdp"), the second of size 1.

    Args:
        devices: all there are by default.

    Returns:
        Mesh with automatic axes.
    """
    devices = jax.devices() if devices is None else devices
    return Mesh(np.array(devices).reshape(-1, 1), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


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
    devices = mesh.shape["data"]
    if batch_size % (devices * microbatches):
        parts = f"{devices} devices" + (
            f" x {microbatches} microbatches" if microbatches > 1 else ""
        )
        raise InputError(
            f"{name} {batch_size} is not divisible by {parts}; change the batch size, or the "
            "number of devices with --devices"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Every device holds its share of the first axis."""
    return NamedSharding(mesh, BATCH)


def to_devices(mesh: Mesh, batch: Any) -> Any:
    """Put a pytree of host arrays [B, ...] on the devices, each with its share of B."""
    return jax.device_put(batch, batch_sharding(mesh))


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
        params = jax.tree.map(lambda p: jax.lax.pcast(p, "data", to="varying"), params)
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
        return jax.lax.pmean(total, "data"), results

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(PartitionSpec(), BATCH),
        out_specs=(PartitionSpec(), BATCH),
        axis_names={"data"},
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
        axis_names={"data"},
        # Nothing is summed over devices and no gradient is taken, so there is nothing to check.
        check_vma=False,
    )
    return jax.jit(mapped)
