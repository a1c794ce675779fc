"""Images/s of the input pipeline alone: 32x32 PNG files in a folder, and arrays, by threads.

python benchmarks/input.py [--batches 60] [--rounds 5] [--threads 1 2 4]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from harness import in_turns, report
from PIL import Image
from tqdm import tqdm

from iddpm_jax import data

BATCH_SIZE = 128


def main() -> None:
    """Time all in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=60, help=f"of {BATCH_SIZE}, per timing")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_emoji(Path(folder))
        sources = {
            "png": data.load(f"folder:{folder}", "train"),
            "png, random crop": data.load(f"folder:{folder}", "train"),
            "arrays": data.load("emoji", "train"),
        }
        functions, cpu = {}, {}
        for threads in args.threads:
            for source, loaded in sources.items():
                name = f"{source}, threads: {threads}"
                cpu[name] = []
                crop = 0.8 if "crop" in source else 0.0
                functions[name] = reader(loaded, args.batches, threads, crop, cpu[name])
        seconds = in_turns(functions, args.rounds)
    images = BATCH_SIZE * args.batches
    report(
        "input",
        {
            name: {
                "images_per_second": spread(images, seconds[name]),
                "images_per_cpu_second": spread(images, cpu[name][1:]),
            }
            for name in functions
        },
    )


def spread(images: int, seconds: list[float]) -> dict[str, int]:
    """Lowest, median and highest rate."""
    rates = sorted(images / s for s in seconds)
    named = {"min": rates[0], "median": statistics.median(rates), "max": rates[-1]}
    return {key: round(value) for key, value in named.items()}


def reader(
    source: data.Source, batches: int, threads: int, crop: float, cpu: list[float]
) -> Callable[[], None]:
    """A function that starts the pipeline afresh, so that nothing has been read ahead."""

    def read() -> None:
        begin = time.process_time()  # of all threads; others at work on the machine do not count
        iterator = data.training_batches(
            source, BATCH_SIZE, 0, True, random_crop=crop, num_threads=threads
        )
        for _ in range(batches):
            next(iterator)
        cpu.append(time.process_time() - begin)

    return read


def write_emoji(folder: Path) -> None:
    """All emoji as PNG files, a folder for each class."""
    source = data.load("emoji", "train")
    for i in tqdm(range(len(source)), desc="writing PNG files", leave=False):
        example = source[i]
        path = folder / f"{example['label']}" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(example["image"]).save(path)


if __name__ == "__main__":
    main()
