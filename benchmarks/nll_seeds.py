"""Are the errors of bits/dim honest? The same model measured with ten seeds.

python benchmarks/nll_seeds.py runs/digits [--seeds 10]

A seed decides which terms of the bound are evaluated and their noise; the images stay. The spread
of the seeds and their distances from the best known value, the mean of the seeds that evaluated
every term, are set against the errors that an evaluation reports.
"""

import argparse
from pathlib import Path

import numpy as np
from harness import report

from iddpm_jax import runtime
from iddpm_jax.evaluation import nll
from iddpm_jax.training import runs


def measured(run: runs.Run, seed: int, terms: int) -> dict[str, float]:
    """Bits/dim and its errors; 0 terms are all there are."""
    config = run.config
    config.nll.update(seed=seed, steps="", terms=terms, draws=1)
    weights = run.state.weights(config.nll.ema_rate)
    likelihood = nll.evaluate(config, run.model, weights, run.mesh, progress=False)
    names = ("bits_per_dim", "standard_error", "monte_carlo_error")
    found = {name: getattr(likelihood, name) for name in names}
    found |= {f"adjusted_{name}": value for name, value in likelihood.adjusted._asdict().items()}
    print(f"seed {seed}, {terms or 'all'} terms: {found}", flush=True)
    return found


def compared(found: list[dict], truth: float) -> dict:
    """Spread of the seeds against the errors they report, and how many lie how near the truth."""
    numbers: dict = {"seeds": found}
    for value, error in (
        ("bits_per_dim", "monte_carlo_error"),
        ("bits_per_dim", "standard_error"),
        ("adjusted_mean", "adjusted_standard_error"),
    ):
        values, errors = (np.array([each[name] for each in found]) for name in (value, error))
        numbers[error] = {
            "spread_of_seeds": round(float(values.std(ddof=1)), 6),
            "reported": round(float(np.sqrt((errors**2).mean())), 6),
            "within_1_and_2": [int((abs(values - truth) < k * errors).sum()) for k in (1, 2)],
        }
    return numbers


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--seeds", type=int, default=10)
    args = parser.parse_args()
    runtime.configure(runtime.cpu_cores(), runtime.cache_folder())
    run = runs.open_run(args.workdir)
    every = [measured(run, seed, 0) for seed in range(args.seeds)]
    again = measured(run, 0, 0)
    subset = [measured(run, seed, 100) for seed in range(args.seeds)]
    truth = float(np.mean([each["bits_per_dim"] for each in every]))
    numbers = {
        "step": int(run.state.step),
        "best_known": round(truth, 6),
        "seed_0_again_is_equal": again == every[0],
        "every_term": compared(every, truth),
        "100_terms": compared(subset, truth),
    }
    print(numbers)
    report("nll_seeds", numbers)


if __name__ == "__main__":
    main()
