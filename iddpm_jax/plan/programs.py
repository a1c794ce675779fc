"""The programs of a config, compiled for devices that need not be there; no array is allocated."""

import contextlib
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from iddpm_jax import build
from iddpm_jax.diffusion.respacing import padded
from iddpm_jax.evaluation import generate
from iddpm_jax.plan import waiting
from iddpm_jax.plan.chips import GIB, Topology
from iddpm_jax.plan.hlo import Module
from iddpm_jax.training import parallel, runs
from iddpm_jax.training.state import TrainState

NAMES = ("train", "sample")
"""The training step, and the sampler of one batch."""

# What libtpu reads where there is no machine to ask. A lock keeps two processes off one chip;
# here there is none.
_NO_MACHINE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


class Program(NamedTuple):
    """A jitted function and what it would be called with.

    Attributes:
        name: one of NAMES.
        function: jitted.
        arguments: abstract, with shardings.
        trips: how often the body of its loop runs in one call.
        images: over all devices, in one call.
        forward_passes: of the network, for each image and trip.
    """

    name: str
    function: Callable
    arguments: tuple
    trips: int
    images: int
    forward_passes: int = 1


def tpu_devices(topology: Topology) -> list[jax.Device]:
    """The devices of a slice that is not there, to compile for.

    Raises:
        ImportError: libtpu is not installed.
    """
    import libtpu  # noqa: F401
    from jax.experimental import topologies

    for key, value in _NO_MACHINE.items():
        os.environ.setdefault(key, value)
    # By default a host has four chips, which a slice of one has not.
    bounds = {"chips_per_host_bounds": (1, 1, 1)} if topology.chips == 1 else {}
    return topologies.get_topology_desc(topology.name, "tpu", **bounds).devices


def train_program(config: ConfigDict, model: build.Model, mesh: Mesh, state: TrainState) -> Program:
    """The training step on a batch; arguments as runs.abstract_state, and what that returns."""
    count = config.train.batch_size
    batch = {
        "image": _abstract((count, *model.image_shape), jnp.uint8, parallel.batch_sharding(mesh)),
        "label": _abstract((count,), jnp.int32, parallel.batch_sharding(mesh)),
    }
    function = runs.step_function(config, model, mesh)
    return Program("train", function, (state, batch), config.train.microbatches, count)


def sample_program(
    config: ConfigDict, model: build.Model, mesh: Mesh, state: TrainState
) -> Program:
    """The sampler of sample.batch_size images on each device; arguments as train_program."""
    settings, shared = config.sample, parallel.replicated(mesh)
    count, split = settings.batch_size * mesh.size, parallel.batch_sharding(mesh)
    process = model.respaced(settings.steps, "sample.steps", settings.skip)
    key = jax.eval_shape(lambda: jax.random.key(0))
    scalars = dict.fromkeys(("eta", "guidance", "low_res_noise"), np.float32(0))
    y = _abstract((count,), jnp.int32, split) if model.class_conditional else None
    small = model.low_res_shape and _abstract((count, *model.low_res_shape), jnp.uint8, split)
    tables = padded(process, model.process.T)
    values = (state.params, tables, np.int32(process.T), scalars)
    arguments = (
        (*_on(values, shared), _abstract(key.shape, key.dtype, shared)),
        (_abstract((count,), jnp.int32, split), y, small),
    )
    function = generate.sampling_function(
        model.network.apply,
        model.parametrization,
        model.image_shape,
        settings.sampler,
        settings.clip_x_0,
        model.num_classes if settings.guidance != 1 else None,
        mesh,
        variance=settings.variance or None,
    )
    passes = 2 if settings.guidance != 1 else 1
    return Program("sample", function, arguments, process.T, count, passes)


def _abstract(
    shape: tuple[int, ...], dtype: jnp.dtype, sharding: jax.sharding.Sharding
) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def _on(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    """A pytree of arrays, or of their shapes, as shapes with a sharding."""
    return jax.tree.map(lambda a: _abstract(np.shape(a), a.dtype, sharding), tree)


def bytes_per_device(tree: Any) -> int:
    """Bytes of a pytree of abstract arrays on each device."""
    return sum(
        math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize for a in jax.tree.leaves(tree)
    )


def measure(program: Program, message: str, expected: float) -> dict:
    """Compile a program and read off what it costs.

    Args:
        program: to compile.
        message: what the clock says.
        expected: seconds that it may take.

    Returns:
        Numbers for each device and call, ready for JSON: "flops", "bytes", "operation_bytes",
        "hbm_bytes", "memory" (bytes by use), "collectives", "seconds". Where the program does not
        fit: "needed" and "available", bytes, and "seconds" only.

    Raises:
        KeyboardInterrupt: at once, though the compiler is still at work in the background.
    """
    started = time.monotonic()
    with _uncached():
        try:
            compiled = waiting.with_clock(
                lambda: program.function.lower(*program.arguments).compile(), message, expected
            )
        except jax.errors.JaxRuntimeError as error:
            return {**_too_large(error), "seconds": time.monotonic() - started}
    seconds = time.monotonic() - started
    return {**_numbers(program, compiled), "seconds": seconds}


def _numbers(program: Program, compiled: jax.stages.Compiled) -> dict:
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    module = Module(compiled.as_text())
    trips = program.trips
    return {
        # XLA takes the loop's body once, and nearly all is in there: what is not, the optimizer
        # above all, has about 20 FLOPs per parameter, which this counts trips times.
        "flops": cost["flops"] * trips,
        "bytes": cost["bytes accessed"] * (1 + (trips - 1) * module.loop_share()),
        "operation_bytes": module.operation_bytes(trips),
        "hbm_bytes": module.hbm_bytes(trips),
        "memory": {
            "arguments": memory.argument_size_in_bytes,
            # What is written over an argument takes no room of its own.
            "results": memory.output_size_in_bytes - memory.alias_size_in_bytes,
            "temporaries": memory.temp_size_in_bytes,
            "code": memory.generated_code_size_in_bytes,
        },
        "collectives": [c._asdict() for c in module.collectives(trips)],
    }


def _too_large(error: jax.errors.JaxRuntimeError) -> dict:
    """What the TPU's compiler says where a program does not fit.

    It writes "Used 20.51G of 15.75G hbm", or "temporaries (48.00G) exceeds available HBM (15.75G)".
    """
    text = str(error)
    found = re.search(r"Used ([\d.]+)([KMG]) of ([\d.]+)([KMG]) hbm", text) or re.search(
        r"\(([\d.]+)([KMG])\) exceeds available HBM \(([\d.]+)([KMG])\)", text
    )
    if "RESOURCE_EXHAUSTED" not in text or not found:
        raise error
    unit = {"K": 2**10, "M": 2**20, "G": GIB}
    needed, needed_unit, available, available_unit = found.groups()
    return {
        "needed": float(needed) * unit[needed_unit],
        "available": float(available) * unit[available_unit],
    }


@contextlib.contextmanager
def _uncached() -> Iterator[None]:
    """Without JAX's cache of programs: it cannot read those for absent devices back."""
    from jax.experimental.compilation_cache import compilation_cache

    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # it looks at the setting once
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()
