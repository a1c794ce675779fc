"""This project, as its programs run it."""

from pathlib import Path

import jax
import numpy as np
from contest import Run, Workload

from iddpm_jax import build, runtime
from iddpm_jax import config as configs
from iddpm_jax.evaluation import generate
from iddpm_jax.evaluation.terms import terms_function
from iddpm_jax.interop.openai import from_state_dict
from iddpm_jax.training import parallel, runs, state


def default(workload: Workload) -> Run:
    """With the devices that the programs would choose."""
    return _build(workload, runtime.cpu_devices(runtime.cpu_cores(), [workload.batch_size]))


def one_device(workload: Workload) -> Run:
    """On a CPU: all cores as one device, whose threads share each operation."""
    return _build(workload, 1)


def _build(workload: Workload, devices: int) -> Run:
    runtime.configure(devices, runtime.cache_folder())
    config = configs.loads(workload.config, Path("workload"))
    model, mesh = build.model(config), parallel.make_mesh()
    with np.load(workload.weights) as arrays:
        params = from_state_dict(model.spec, dict(arrays))
    make = {"train": _train, "sample": _sample, "nll": _nll}[workload.kind]
    return make(config, model, mesh, params, workload.batch_size)


def _images(model: build.Model, count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *model.image_shape), np.uint8)


def _labels(model: build.Model, count: int) -> np.ndarray:
    return np.arange(count, dtype=np.int32) % max(1, model.num_classes)


def _train(config, model: build.Model, mesh, params: state.Params, batch_size: int) -> Run:
    step = runs.step_function(config, model, mesh)
    current = runs.new_state(config, model, mesh)()
    current = jax.tree.map(jax.numpy.array, current)
    batch = {"image": _images(model, batch_size), "label": _labels(model, batch_size)}
    batch = parallel.to_devices(mesh, batch)

    def run(times: int) -> None:
        nonlocal current
        for _ in range(times):
            current, metrics = step(current, batch)
        jax.block_until_ready((current, metrics))

    return run


def _sample(config, model: build.Model, mesh, params: state.Params, batch_size: int) -> Run:
    config.sample.batch_size = batch_size // mesh.size
    config.sample.count = batch_size
    params = jax.device_put(params, parallel.replicated(mesh))

    def run(times: int) -> None:
        for _ in range(times):
            generate.generate(config, model, params, mesh, progress=False)

    return run


def _nll(config, model: build.Model, mesh, params: state.Params, batch_size: int) -> Run:
    function = terms_function(
        model.network.apply, model.parametrization, config.nll.clip_x_0, None, mesh
    )
    shared = (jax.device_put(params, parallel.replicated(mesh)), model.process, jax.random.key(0))
    images, index = _images(model, batch_size), np.arange(batch_size, dtype=np.int32)
    y = _labels(model, batch_size) if model.class_conditional else None

    def run(times: int) -> None:
        for i in range(times):
            t = np.full(batch_size, i % model.process.T, np.int32)
            batch = parallel.to_devices(mesh, (images, y, index, t, None))
            parallel.to_host(function(shared, batch))

    return run
