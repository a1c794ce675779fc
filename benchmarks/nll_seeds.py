"""Are the errors of bits/dim honest? The same model measured with ten seeds.

python benchmarks/nll_seeds.py runs/digits [--seeds 10]

A seed decides which terms of the bound are evaluated and their noise; the images stay. With a
subset of the terms, each seed's distance from the sum of all of them, and the spread of the seeds,
are set against the two errors that an evaluation reports. With every term of a process of 100
steps, where the noise alone is left, the spread is set against the second.
"""

import argparse
from pathlib import Path

import numpy as np
from harness import report

from iddpm_jax import runtime
from iddpm_jax.evaluation import nll
from iddpm_jax.training import runs


def measured(run: runs.Run, seed: int, steps: str, terms: int) -> dict[str, float]:
    """Bits/dim and its errors."""
    config = run.config
    config.nll.update(seed=seed, steps=steps, terms=terms, draws=1)
    weights = run.state.weights(config.nll.ema_rate)
    likelihood = nll.evaluate(config, run.model, weights, run.mesh)
    names = ("bits_per_dim", "standard_error", "monte_carlo_error")
    found = {name: round(getattr(likelihood, name), 6) for name in names}
    print(f"seed {seed}, {steps or 'all'} steps, {terms or 'all'} terms: {found}", flush=True)
    return found


def compared(found: list[dict], truth: float | None = None) -> dict:
    """Spread of the seeds against what they report; with the truth, how many lie how near."""
    values = np.array([each["bits_per_dim"] for each in found])
    error = np.sqrt(np.mean([each["monte_carlo_error"] ** 2 for each in found]))
    numbers = {"seeds": found, "spread_of_seeds": values.std(ddof=1), "reported": error}
    for name in ("standard_error", "monte_carlo_error") if truth is not None else ():
        away = abs(values - truth) / [each[name] for each in found]
        numbers[f"within_{name}"] = [int((away < k).sum()) for k in (1, 2)]
    return numbers


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--seeds", type=int, default=10)
    args = parser.parse_args()
    runtime.configure(runtime.cpu_cores(), runtime.cache_folder())
    run = runs.open_run(args.workdir)
    subset = [measured(run, seed, "", 100) for seed in range(args.seeds)]
    whole = measured(run, args.seeds, "", 0)
    respaced = [measured(run, seed, "100", 0) for seed in range(args.seeds)]
    numbers = {
        "step": int(run.state.step),
        "every_term": whole,
        "100_terms": compared(subset, whole["bits_per_dim"]),
        "100_steps": compared(respaced),
    }
    print(numbers)
    report("nll_seeds", numbers)


if __name__ == "__main__":
    main()
