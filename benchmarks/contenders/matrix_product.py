"""How fast the machine multiplies matrices: what a network's speed is measured against."""

from pathlib import Path

import jax
import jax.numpy as jnp
from contest import Run, Workload

from iddpm_jax import config as configs
from iddpm_jax import runtime


def product(workload: Workload) -> Run:
    """A product of two 4096 x 4096 matrices in the workload's precision, as one device."""
    runtime.configure(1, runtime.cache_folder())
    dtype = configs.loads(workload.config, Path("workload")).model.dtype
    precision = "highest" if dtype == "float32" else None
    keys = jax.random.split(jax.random.key(0))
    a, b = (jax.random.normal(key, (4096, 4096), dtype) for key in keys)
    multiply = jax.jit(lambda a, b: jnp.matmul(a, b, precision=precision))

    def run(times: int) -> None:
        for _ in range(times):
            c = multiply(a, b)
        jax.block_until_ready(c)

    return run
