"""Where a figure comes from: configs, seeds, files, and the version and commit that drew it."""

import subprocess
from pathlib import Path

import iddpm_jax
from iddpm_jax.figures.results import Run


def about(runs: list[Run], files: tuple[Path, ...]) -> str:
    """Lines for below a caption.

    Args:
        runs: whose workdirs are drawn.
        files: results that the figure shows.

    Returns:
        A line per run, a line per file, and the version.
    """
    lines = [f"{run.name}: {description(run)}" for run in runs]
    return "\n".join([*lines, *(f"from {path}" for path in files), f"drawn by {version()}"])


def description(run: Run) -> str:
    """A run's config in a line."""
    c = run.config
    size = "x".join(map(str, c.data.image_shape))
    words = [
        f"{c.data.name} {size}".strip(),
        f"{c.diffusion.schedule} schedule, T = {c.diffusion.T}",
        f"predicts {c.diffusion.mean}",
        f"variance {c.diffusion.variance}",
        f"{c.loss.name}, timesteps {c.loss.timesteps}",
        f"width {c.model.width}",
        f"{c.train.steps} steps of {c.train.batch_size} images",
        f"seed {c.seed}",
    ]
    return ", ".join(words)


def version() -> str:
    """The package's version, and its commit where it runs from a clone with git at hand."""
    text = f"iddpm_jax {iddpm_jax.__version__}"
    root = Path(iddpm_jax.__file__).resolve().parent.parent
    if not (root / ".git").exists():  # installed, perhaps inside a clone of something else
        return text
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return text
    return text if found.returncode else f"{text}, commit {found.stdout.strip()}"
