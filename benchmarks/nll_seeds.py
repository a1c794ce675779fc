"""Are the errors of bits/dim honest? The same model measured with ten seeds.

python benchmarks/nll_seeds.py runs/digits [--seeds 10]

A seed decides which terms of the bound are evaluated and their noise; the images stay. The spread
of the seeds and their distances from the mean of their adjusted estimates, the best known value,
are set against the errors that an evaluation reports: for 100 of the terms, and for every term of a
process of 20 steps, where the noise alone is left.
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
    likelihood = nll.evaluate(config, run.model, weights, run.mesh, progress=False)
    names = ("bits_per_dim", "standard_error", "monte_carlo_error")
    found = {name: getattr(likelihood, name) for name in names}
    found |= {f"adjusted_{name}": value for name, value in likelihood.adjusted._asdict().items()}
    found = {name: round(value, 6) for name, value in found.items()}
    print(f"seed {seed}, {steps or 'all'} steps, {terms or 'all'} terms: {found}", flush=True)
    return found


def compared(found: list[dict]) -> dict:
    """Spread of the seeds against the errors they report, and how many lie how near the truth."""
    truth = float(np.mean([each["adjusted_mean"] for each in found]))
    numbers: dict = {"seeds": found, "best_known": round(truth, 6)}
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
    subset = [measured(run, seed, "", 100) for seed in range(args.seeds)]
    respaced = [measured(run, seed, "20", 0) for seed in range(args.seeds)]
    numbers = {
        "step": int(run.state.step),
        "100_terms": compared(subset),
        "20_steps": compared(respaced),
    }
    print(numbers)
    report("nll_seeds", numbers)


if __name__ == "__main__":
    main()
