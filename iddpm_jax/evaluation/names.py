"""Where the results of a run lie: names that tell all that decides them."""

import re
import zlib
from pathlib import Path

from ml_collections import ConfigDict

from iddpm_jax.training.runs import Run


def sample_folder(workdir: Path, run: Run) -> Path:
    """A folder named after all that decides the samples, so that other choices keep theirs."""
    s, T = run.config.sample, run.config.diffusion.T
    parts = [f"step{int(run.state.step):08d}", s.sampler, s.steps or str(T)]
    parts += [f"eta{s.eta:g}"] if s.sampler == "ddim" else []
    parts += [f"skip{s.skip:g}"] if s.skip else []
    parts += [s.variance.replace("_", "-")] if s.variance else []  # "_" separates words
    if s.classes:
        classes = "-".join(map(str, s.classes))
        # File systems have no room for long names.
        short = classes if len(classes) <= 40 else f"{zlib.crc32(classes.encode()):08x}"
        parts.append(f"classes{short}")
    parts += ["random"] if s.class_choice == "random" else []
    parts += [f"guidance{s.guidance:g}"] if s.guidance != 1 else []
    if s.base:
        parts.append(f"base{zlib.crc32(Path(s.base).read_bytes()):08x}")
    elif run.model.low_res_shape:
        parts.append(f"small-{data_word(run)}")
    parts += [f"noise{s.low_res_noise:g}"] if s.low_res_noise else []
    return workdir / "samples" / _joined([*parts, *_end(s, run)])


def likelihood_file(workdir: Path, run: Run, ema_rate: float) -> Path:
    """The .npz of bits/dim under one average, named likewise."""
    n, T = run.config.nll.copy_and_resolve_references(), run.config.diffusion.T
    n.ema_rate = ema_rate
    parts = [f"step{int(run.state.step):08d}", data_word(run), n.split, f"{n.steps or T}steps"]
    parts += [f"{n.terms}terms"] if n.terms else []
    parts += [f"{n.draws}draws"] if n.draws > 1 else []
    return workdir / "nll" / (_joined([*parts, *_end(n, run)]) + ".npz")


def gradients_file(workdir: Path, run: Run) -> Path:
    """The .json of gradient noise at one checkpoint, named likewise."""
    g, dtype = run.config.gradients, run.model.spec.dtype
    parts = [f"step{int(run.state.step):08d}", data_word(run), f"{g.batches}x{g.batch_size}images"]
    parts += [] if dtype == "float32" else [dtype]
    return workdir / "gradients" / (_joined([*parts, f"seed{g.seed}"]) + ".json")


def _end(settings: ConfigDict, run: Run) -> list[str]:
    """What names of samples and of likelihoods share."""
    clipped = [] if settings.clip_x_0 else ["unclipped"]
    dtype = [] if run.model.spec.dtype == "float32" else [run.model.spec.dtype]
    return [f"ema{settings.ema_rate:g}", *clipped, *dtype, f"seed{settings.seed}"]


def data_word(run: Run) -> str:
    """The data's name as part of a file's."""
    name = run.config.data.name
    word = re.sub(r"\W+", "-", name)
    # A path may be longer than a file's name can be.
    return word if len(word) <= 60 else f"{word[:50]}-{zlib.crc32(name.encode()):08x}"


def _joined(parts: list[str]) -> str:
    return "_".join(parts).replace(",", "-")
