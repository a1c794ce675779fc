"""--mode figures: the paper's figures and tables from the results of one run or several."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from ml_collections import ConfigDict

from iddpm_jax import build
from iddpm_jax import config as configs
from iddpm_jax.errors import InputError
from iddpm_jax.figures import (
    bound,
    curves,
    fewer_steps,
    noise,
    noise_scale,
    scaling,
    skipped,
    tables,
)
from iddpm_jax.figures.captions import about
from iddpm_jax.figures.drawing import Figure, require_matplotlib, write
from iddpm_jax.figures.results import Missing, Run

__all__ = ["draw"]


def draw(
    config: ConfigDict,
    workdir: Path,
    others: tuple[Path, ...] = (),
    only: tuple[str, ...] = (),
    folder: Path | None = None,
) -> Iterator[str]:
    """Draw every figure whose inputs are there.

    Args:
        config: of the workdir.
        workdir: whose results are drawn; it need not hold any.
        others: workdirs of other runs, whose results are drawn beside them.
        only: names of figures; () for all.
        folder: where they go; None for the workdir's figures/.

    Yields:
        A line for people per figure: where it is, or why it is left out.

    Raises:
        InputError: no matplotlib, a folder that cannot be written, another run without config, or
            a figure that does not exist.
    """
    require_matplotlib()
    runs = _runs(config, workdir, others)
    figures = _figures(config, runs)
    unknown = [name for name in only if name not in (*figures, TABLES)]
    if unknown:
        known = ", ".join((*figures, TABLES))
        raise InputError(f"--only {unknown[0]} is not a figure; use {known}")
    folder = folder or workdir / "figures"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror})") from None
    for name in only or (*figures, TABLES):
        try:
            if name == TABLES:
                yield f"{name:22} {tables.write(folder, runs)} (.json)"
                continue
            figure = figures[name]()
        except Missing as why:
            yield f"{name:22} left out: {why}"
            continue
        path = write(folder / name, figure, about(runs, figure.files))
        yield f"{name:22} {path} (.svg, .npz, .txt)"


TABLES = "tables"
"""What is written and not drawn."""


def _figures(config: ConfigDict, runs: list[Run]) -> dict[str, Callable[[], Figure]]:
    """Every figure by its name."""
    T = config.diffusion.T
    return {
        "beta_tilde": lambda: noise.beta_tilde(T),
        "bound_terms": lambda: bound.terms(runs),
        "forward_process": lambda: noise.forward_process(config, build.model(config)),
        "alpha_bar": lambda: noise.alpha_bar(T),
        "learning_curves": lambda: curves.learning_curves(runs),
        "gradient_noise": lambda: noise_scale.noise_scales(runs),
        "bits_per_dim_by_steps": lambda: fewer_steps.bits_per_dim(runs),
        "scores_by_steps": lambda: fewer_steps.scores(runs),
        "skipped_steps": lambda: skipped.skipped_steps(runs),
        "scaling": lambda: scaling.scaling(runs),
    }


def _runs(config: ConfigDict, workdir: Path, others: tuple[Path, ...]) -> list[Run]:
    """The runs by short names, each name once."""
    folders = [workdir, *others]
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        shared = os.path.commonpath([folder.resolve().parent for folder in folders])
        names = [str(folder.resolve().relative_to(shared)) for folder in folders]
    if len(set(names)) < len(names):
        raise InputError("--with names a workdir twice; name each once")
    loaded = [config, *(configs.load(folder / "config.json") for folder in others)]
    return [Run(*each) for each in zip(names, folders, loaded, strict=True)]
