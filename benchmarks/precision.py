"""How far half precision moves the predicted eps of a trained run, from t to t.

python benchmarks/precision.py runs/digits

Relative L2 difference from float32, on test images and the same noise, on this device.
"""

import argparse
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from iddpm_jax import build
from iddpm_jax.diffusion.process import q_sample
from iddpm_jax.images import area_average, to_float
from iddpm_jax.models.unet import make_network
from iddpm_jax.training.runs import open_run

DTYPES = ("float32", "bfloat16", "float16")


def main() -> None:
    """Print a row for each t, and one for t drawn evenly."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--images", type=int, default=100)
    given = parser.parse_args()
    run = open_run(given.workdir)
    model, params = run.model, run.state.weights(run.config.sample.ema_rate)
    source = build.load_data(run.config, model, "test")
    examples = [source[i] for i in range(min(given.images, len(source)))]
    x_0 = to_float(np.stack([example["image"] for example in examples]))
    y = jnp.array([example["label"] for example in examples])
    low_res = area_average(x_0, *model.low_res_shape[:2]) if model.low_res_shape else None
    networks = [
        jax.jit(make_network(dataclasses.replace(model.spec, dtype=dtype)).apply)
        for dtype in DTYPES
    ]

    T = model.process.T
    rows = {str(t): jnp.full(len(x_0), t) for t in (0, T // 100, T // 10, T // 2, T - 1)}
    rows["even"] = jax.random.randint(jax.random.key(0), (len(x_0),), 0, T)
    print("t        " + "".join(f"{dtype:>12}" for dtype in DTYPES[1:]))
    for name, t in rows.items():
        x_t = q_sample(model.process, x_0, t, jax.random.normal(jax.random.key(1), x_0.shape))
        model_t = jnp.asarray(model.process.model_t)[t]
        labels = y if model.class_conditional else None
        outputs = [network(params, x_t, model_t, labels, None, low_res) for network in networks]
        exact, *coarse = (model.parametrization.split(output)[0] for output in outputs)
        errors = [jnp.linalg.norm(eps - exact) / jnp.linalg.norm(exact) for eps in coarse]
        print(f"{name:9}" + "".join(f"{float(error):12.5f}" for error in errors))


if __name__ == "__main__":
    main()
