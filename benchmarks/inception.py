"""Images a second through Inception-v3, beside pytorch-fid's network, with the same weights.

pip install pytorch-fid torch-fidelity, then: python benchmarks/inception.py

Images are 32x32, and resized by both. On a CPU ours runs a device to a core, as --mode fid does,
and PyTorch as many threads. Seconds of processor time are counted too, which other programs on the
machine disturb less.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import harness
import jax
import numpy as np

from iddpm_jax import runtime
from iddpm_jax.evaluation import inception, inception_network
from iddpm_jax.training.parallel import make_mesh, map_batch, replicated, to_devices

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import golden_inception as golden  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    cores = runtime.cpu_cores()
    jax.config.update("jax_num_cpu_devices", cores)
    images = np.random.default_rng(0).integers(0, 256, (args.batch_size, 32, 32, 3), dtype=np.uint8)
    functions = {"ours": ours(images), "pytorch-fid": peer(images, cores)}
    processor: dict[str, list[float]] = {name: [] for name in functions}

    def timed(name: str) -> Callable[[], None]:
        def run() -> None:
            begin = time.process_time()
            functions[name]()
            processor[name].append(time.process_time() - begin)

        return run

    seconds = harness.in_turns({name: timed(name) for name in functions}, args.rounds)
    low, median, high = harness.ratio(seconds, "pytorch-fid", to="ours")
    harness.report(
        "inception",
        {
            "batch_size": args.batch_size,
            "rounds": args.rounds,
            "images_per_second": {n: _rate(s, args.batch_size) for n, s in seconds.items()},
            "images_per_processor_second": {
                n: _rate(s[1:], args.batch_size) for n, s in processor.items()
            },
            "ours_times_as_fast": {"median": median, "lowest": low, "highest": high},
        },
    )


def _rate(seconds: list[float], count: int) -> float:
    return round(count / statistics.median(seconds), 2)


def ours(images: np.ndarray) -> Callable[[], object]:
    """Pool features of the images, on all devices."""
    state = {name: tensor.numpy() for name, tensor in golden.pytorch_state().items()}
    mesh = make_mesh()
    params = jax.device_put(inception.from_pytorch(state), replicated(mesh))

    def apply(params, images):
        prepared = inception_network.prepare(images.astype("float32"), "pytorch_fid")
        return inception_network.features(params, prepared)

    mapped = map_batch(apply, mesh)
    return lambda: jax.block_until_ready(mapped(params, to_devices(mesh, images)))


def peer(images: np.ndarray, threads: int) -> Callable[[], object]:
    """The same by pytorch-fid."""
    import torch

    torch.set_num_threads(threads)
    function = golden.peers(golden.pytorch_state())["pytorch_fid"]
    return lambda: function(images)


if __name__ == "__main__":
    main()
