"""Ahead-of-time compile for a TPU slice that is not there: memory, FLOPs, bytes, step time.

docs/plan.md says what each number means, and its limits.
"""

import dataclasses
from pathlib import Path

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from iddpm_jax import build
from iddpm_jax.errors import InputError
from iddpm_jax.models.flops import flops_per_image, training_flops_per_image
from iddpm_jax.models.layout import layout
from iddpm_jax.models.unet import make_network
from iddpm_jax.plan import programs, report, results
from iddpm_jax.plan.chips import Topology, topology
from iddpm_jax.plan.traffic import training_bytes
from iddpm_jax.training import parallel, runs

__all__ = ["plan", "report", "topology"]

CHIP_DTYPE = "bfloat16"
"""What model.dtype "auto" means on a TPU."""

STAND_INS = 2
"""CPU devices that stand in for a slice where libtpu is missing: the fewest with collectives."""

# Of a training step on two free CPU cores: the TPU's after a prototype of the CIFAR-10 step (5:20),
# the CPU's a rough guess from configs/digits.py.
SECONDS_PER_LAYER = {"tpu": 6.0, "cpu": 1.5}


def plan(config: ConfigDict, slice_: Topology, part: str, cache: Path) -> dict:
    """What the programs of a config cost on a slice, and whether they fit.

    Args:
        config: checked; the data need not be at hand where it has image_shape and num_classes.
        slice_: the slice.
        part: "train", "sample" or "all".
        cache: folder of numbers measured before.

    Returns:
        Report, ready for JSON; report.text makes a table of it.

    Raises:
        InputError: the slice cannot share the batch.
    """
    config = config.copy_and_resolve_references()
    if config.model.dtype == "auto":
        config.model.dtype = CHIP_DTYPE
    names = programs.NAMES if part == "all" else (part,)
    if "train" in names:
        _check_share(config, slice_)
    compiled, mesh, scale = _compile_for(config, slice_)
    source = _source(mesh)
    model = _for_chip(build.model(compiled))
    state = runs.abstract_state(compiled, model, mesh)
    found = {}
    for name in names:
        make = {"train": programs.train_program, "sample": programs.sample_program}[name]
        key = results.key(config, name, slice_.name, source)
        program = make(compiled, model, mesh, state)
        found[name] = _costs(program, slice_, cache, key, model, scale)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    if "train" in found:
        step, averages = found["train"], len(config.train.ema_rates)
        images = step["images"] // slice_.devices
        by_hand = training_bytes(model.spec, model.image_shape, images, parameters, averages)
        step["hand_bytes"] = by_hand
    whole = programs.bytes_per_device(state)
    params = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.params))
    needed = report.needed(found["train"]) if "train" in found else 0
    return {
        "name": f"{config.data.name} {'x'.join(map(str, model.image_shape))}",
        "topology": slice_.name,
        "parameters": parameters,
        "dtype": config.model.dtype,
        "state_bytes": whole,
        "source": source,
        "origin": _origin(source),
        "programs": found,
        "advice": report.advice(config, slice_, needed, params, whole),
        "config": config.to_dict(),
    }


def _for_chip(model: build.Model) -> build.Model:
    """A model without the forms chosen for this machine's CPU."""
    spec = dataclasses.replace(model.spec, attention="plain", convolution="plain")
    return dataclasses.replace(model, spec=spec, network=make_network(spec))


def _check_share(config: ConfigDict, topology: Topology) -> None:
    """Refuse a training batch that the slice's devices cannot share evenly."""
    size, parts = config.train.batch_size, config.train.microbatches
    if size % (topology.devices * parts):
        micro = f" x {parts} microbatches" if parts > 1 else ""
        raise InputError(
            f"train.batch_size {size} is not divisible by the {topology.devices} devices of "
            f"{topology.name}{micro}; change --config.train.batch_size or the slice"
        )


def _compile_for(config: ConfigDict, topology: Topology) -> tuple[ConfigDict, Mesh, int]:
    """(config, mesh, devices of the slice that each of the mesh stands for)."""
    if results.libtpu_version():
        return config, parallel.make_mesh(programs.tpu_devices(topology), config.train.fsdp), 1
    # A device has the same share of the batch as on the slice.
    stand_ins = min(STAND_INS, topology.devices)
    if len(jax.devices()) < stand_ins:
        raise InputError(f"without libtpu, a plan needs {stand_ins} devices; use --devices=2")
    config = config.copy_and_resolve_references()
    fsdp = config.train.fsdp = min(config.train.fsdp, stand_ins)
    share = config.train.batch_size // topology.devices
    config.train.batch_size = max(1, share) * stand_ins
    return (
        config,
        parallel.make_mesh(jax.devices()[:stand_ins], fsdp),
        topology.devices // stand_ins,
    )


def _source(mesh: Mesh) -> str:
    """Which compiler the numbers come from."""
    device = mesh.devices.flat[0]
    if device.platform == "tpu":
        return f"libtpu {results.libtpu_version()}"
    return f"XLA on {device.platform}"


def _origin(source: str) -> str:
    """The source, said so that an estimate cannot be taken for more."""
    if source.startswith("libtpu"):
        return f"compiled for the TPU by {source}, jax {jax.__version__}"
    return (
        f"ESTIMATE from {source}, jax {jax.__version__}, not from the TPU's compiler; for that: "
        "pip install 'iddpm_jax[tpu-plan]'"
    )


def _costs(
    program: programs.Program,
    topology: Topology,
    cache: Path,
    key: dict,
    model: build.Model,
    scale: int,
) -> dict:
    """Numbers of a program, from the cache or by compiling it, and what follows from them."""
    numbers = results.load(cache, key)
    remembered = numbers is not None
    if numbers is None:
        what = f"compiling the {report.TITLES[program.name]} for {topology.name}"
        numbers = programs.measure(program, what, _expected_seconds(model, program, key["source"]))
        results.save(cache, key, numbers)
    images = program.images * scale
    spec, shape = model.spec, model.image_shape
    if program.name == "train":
        hand = training_flops_per_image(spec, shape)
    else:
        hand = flops_per_image(spec, shape) * program.trips * program.forward_passes
    costs = {
        **numbers,
        "name": program.name,
        "images": images,
        "trips": program.trips,
        "remembered": remembered,
        "hand_flops": hand * images / topology.devices,
        "fits": report.fits(numbers, topology),
    }
    if "needed" in numbers:
        return costs
    if scale > 1:  # the groups are those of the stand-ins
        costs["collectives"] = [{**c, "group": 0} for c in numbers["collectives"]]
    limits = report.roofline(costs, topology)
    slowest = max(limits.values())
    return {
        **costs,
        "roofline": limits,
        "seconds_at_least": slowest,
        "images_per_second": images / slowest,
    }


def _expected_seconds(model: build.Model, program: programs.Program, source: str) -> float:
    plan = layout(model.spec)
    layers = sum(map(len, [*plan.encoder, plan.middle, *plan.decoder]))
    # A step has the backward pass too, about twice the forward pass.
    passes = 3 if program.name == "train" else 1
    per_layer = SECONDS_PER_LAYER["tpu" if source.startswith("libtpu") else "cpu"]
    return layers * per_layer * passes / 3
