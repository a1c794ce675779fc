"""How long a save of the CIFAR-10 model's state blocks the loop, as a share of its full write time.

python benchmarks/checkpoint.py [--saves 5] [--folder FOLDER]
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import jax
from harness import load_config, report

from iddpm_jax import build, runtime
from iddpm_jax.training import runs
from iddpm_jax.training.checkpoint import Checkpoints
from iddpm_jax.training.checksum import checksums
from iddpm_jax.training.parallel import make_mesh


def main() -> None:
    """Save random values again and again; the first two saves also compile and find memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--saves", type=int, default=5, help="that are counted")
    parser.add_argument("--folder", help="on the disk in question")
    args = parser.parse_args()
    runtime.configure(runtime.cpu_devices(runtime.cpu_cores(), [2]), runtime.cache_folder())
    config = load_config("configs/cifar10.py")
    config.train.steps, config.train.ema_rates = 1, (0.999, 0.9999)
    config.data.image_shape, config.data.num_classes = (32, 32, 3), 10

    model, mesh = build.model(config), make_mesh()
    state = runs.new_state(config, model, mesh)()
    keys = iter(jax.random.split(jax.random.key(0), len(jax.tree.leaves(state))))
    # Moments of zeros and averages that equal the parameters would be written in no time.
    noise = jax.jit(lambda key, a: (a + jax.random.normal(key, a.shape)).astype(a.dtype))
    state = jax.tree.map(lambda a: noise(next(keys), a), state)

    blocked, whole = [], []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        with Checkpoints(Path(folder), 1) as checkpoints:
            for step in range(2 + args.saves):
                begin = time.perf_counter()
                checkpoints.save(step, state, None, config.to_dict())
                blocked.append(time.perf_counter() - begin)
                checkpoints.wait()
                whole.append(time.perf_counter() - begin)
    begin = time.perf_counter()
    checksums(state)
    summed = time.perf_counter() - begin
    shares = sorted(b / w for b, w in zip(blocked[2:], whole[2:], strict=True))
    report(
        "checkpoint",
        {
            "gib": round(sum(a.nbytes for a in jax.tree.leaves(state)) / 2**30, 3),
            "blocked_s": round(statistics.median(blocked[2:]), 3),
            "written_s": round(statistics.median(whole[2:]), 2),
            "share": {"min": shares[0], "median": statistics.median(shares), "max": shares[-1]},
            "first_two_shares": [b / w for b, w in zip(blocked[:2], whole[:2], strict=True)],
            "checksums_s": round(summed, 2),
        },
    )


if __name__ == "__main__":
    main()
