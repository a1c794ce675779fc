"""The paper's ablations on data at hand: every run, measurement, figure and table by one command.

    python -m iddpm_jax.reproduce --data digits --workdir runs/paper

It runs commands that anyone could type, one after the other, and shows each. After an interruption
the same command goes on: what is done is in done.txt, and what was begun goes on by itself.
"""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax

from iddpm_jax import allocator, main, runtime
from iddpm_jax.errors import InputError

ROWS = {
    "short_linear_simple": "short,linear,l_simple",
    "linear_simple": "linear,l_simple",
    "linear_hybrid": "linear,l_hybrid",
    "cosine_simple": "cosine,l_simple",
    "cosine_hybrid": "cosine,l_hybrid",
    "cosine_vlb": "cosine,l_vlb",
    "cosine_vlb_uniform": "cosine,l_vlb,uniform",
}
"""Rows of the paper's Tables 1 and 2, and L_vlb without importance sampling: name -> variants."""

STEPS = {"digits": (5, 10, 25, 100, 200), "emoji": (10, 25, 50, 100, 1000)}
"""Of sampling and of the bound, beside the config's own; the paper goes from 25 to 4000."""

SKIPPED = (0.1, 0.2, 0.4)
"""Shares of the reverse process that are left out at its beginning."""

SHARED = 64
"""Every batch that devices share is this many, or a multiple of it."""

WIDTHS = (32, 64, 96)
"""Of the scaling study; the paper's are 64, 96, 128 and 192."""


def commands(data: str, folder: Path, seeds: int) -> Iterator[list[str]]:
    """Arguments of iddpm_jax.main, in order.

    Args:
        data: "digits" or "emoji".
        folder: where the runs are put.
        seeds: trainings of each row, by seeds from 0.

    Yields:
        A list for each command.
    """
    for seed in range(seeds):
        runs = {row: ["--workdir", str(folder / f"{row}_seed{seed}")] for row in ROWS}
        for row, variants in ROWS.items():
            config = f"configs/paper.py:{data},{variants}"
            yield ["--config", config, *runs[row], f"--config.seed={seed}"]
            yield [*runs[row], "--mode", "fid"]
        yield from _fewer_steps(runs["cosine_hybrid"], runs["cosine_simple"], STEPS[data])
        for row in ("linear_hybrid", "cosine_hybrid"):
            for share in SKIPPED:
                yield [*runs[row], "--mode", "fid", f"--config.sample.skip={share}"]
        yield [*runs["cosine_vlb"], "--mode", "gradients"]
    for width in WIDTHS:
        config = f"configs/paper.py:{data},scaling"
        run = ["--workdir", str(folder / f"width{width}")]
        yield ["--config", config, *run, f"--config.model.width={width}"]
        yield [*run, "--mode", "fid"]


def figures(folder: Path, seeds: int) -> Iterator[list[str]]:
    """Arguments of iddpm_jax.main for every figure and table, out of what commands leave.

    Args:
        folder, seeds: see commands.

    Yields:
        A list for each command.
    """
    of_rows = {
        "tables,skipped_steps,scores_by_steps": tuple(ROWS),
        "bound_terms,learning_curves": ("cosine_hybrid", "cosine_vlb", "cosine_vlb_uniform"),
        "bits_per_dim_by_steps,beta_tilde,forward_process,alpha_bar": ("cosine_hybrid",),
        "gradient_noise": ("cosine_vlb",),
    }
    runs = {
        names: [f"{row}_seed{seed}" for row in rows for seed in range(seeds)]
        for names, rows in of_rows.items()
    }
    runs["scaling"] = [f"width{width}" for width in WIDTHS]
    for names, (first, *others) in runs.items():
        beside = ["--with", ",".join(str(folder / name) for name in others)] if others else []
        target = ["--only", names, "--target", str(folder / "figures")]
        yield ["--workdir", str(folder / first), "--mode", "figures", *beside, *target]


def _fewer_steps(
    hybrid: list[str], simple: list[str], numbers: tuple[int, ...]
) -> Iterator[list[str]]:
    """Learned variances; fixed beta, fixed beta_tilde and DDIM from the run without them."""
    for steps in numbers:
        yield [*hybrid, "--mode", "nll", f"--config.nll.steps={steps}", "--config.nll.terms=0"]
        yield [*hybrid, "--mode", "fid", f"--config.sample.steps={steps}"]
        yield [*simple, "--mode", "fid", f"--config.sample.steps={steps}"]
    fixed_small, ddim = "--config.sample.variance=fixed_small", "--config.sample.sampler=ddim"
    for change in (fixed_small, ddim):
        yield [*simple, "--mode", "fid", change]
        for steps in numbers:
            yield [*simple, "--mode", "fid", change, f"--config.sample.steps={steps}"]


def run(data: str, folder: Path, seeds: int) -> int:
    """Run the commands that are not done yet.

    Args:
        data, folder, seeds: see commands.

    Returns:
        Exit code of the command that failed, 130 if stopped, else 0.

    Raises:
        InputError: a folder that cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--workdir {folder} cannot be written ({error.strerror})") from None
    log = folder / "done.txt"
    done = set(log.read_text(encoding="utf-8").splitlines()) if log.exists() else set()
    plan = [*commands(data, folder, seeds), *figures(folder, seeds)]
    # JAX starts once for all of them: a device per core, as far as every batch can be shared.
    os.environ.setdefault("DEVICES", str(runtime.cpu_devices(runtime.cpu_cores(), [SHARED])))
    for number, arguments in enumerate(plan, 1):
        line = shlex.join(["python", "-m", "iddpm_jax.main", *arguments])
        if line in done:
            continue
        print(f"\n[{number}/{len(plan)}, {time.strftime('%H:%M')}] {line}", flush=True)
        if "--config" in arguments:  # a new training
            jax.clear_caches()  # or the compiled programs of all runs would fill the memory
        code = main.main(["iddpm_jax.main", *arguments])
        if code:
            return code
        if "--config" in arguments and not _finished(arguments):
            return 130  # training saves and ends well when it is asked to stop
        if "figures" not in arguments:  # always drawn anew, as more may have been measured
            with log.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
    return 0


def _finished(arguments: list[str]) -> bool:
    """Whether a training came to its end, which is to measure bits/dim."""
    workdir = Path(arguments[arguments.index("--workdir") + 1])
    return any((workdir / "nll").glob("*.json"))


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 1 up")
    return int(text)


if __name__ == "__main__":
    allocator.restart()
    parser = argparse.ArgumentParser(
        prog="python -m iddpm_jax.reproduce",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data",
        choices=("digits", "emoji"),
        default="digits",
        help="digits (8x8, default): 75 minutes on two CPU cores; emoji (32x32): hours on a GPU",
    )
    parser.add_argument("--workdir", type=Path, required=True, help="folder for all runs")
    parser.add_argument("--seeds", type=_whole, default=3, help="trainings of each row (default 3)")
    given = parser.parse_args()
    try:
        sys.exit(run(given.data, given.workdir, given.seeds))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
