"""Samples for the page: how the first ones form out of noise, and a grid, as PNG in text."""

import base64
import io
import itertools
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from iddpm_jax.errors import DivergedError, InputError
from iddpm_jax.evaluation import film, names, samples
from iddpm_jax.evaluation.generate import asked, base_of
from iddpm_jax.images import grid
from iddpm_jax.training.runs import Run

FRAMES = 31
"""Moments of a film that are shown, at most."""

FILM_PIXELS, GRID_PIXELS = 31 * 12 * 32 * 32, 100 * 32 * 32
"""Of one panel of all frames, and of the grid, at most: noise hardly compresses."""

GRID_SAMPLES = 100
"""In the grid, at most: more of them would be a tower."""

PANELS = ("small image", "x_t", "x_0 predicted")
"""What a film shows; the first of super-resolution alone."""


class Panel(NamedTuple):
    """Frames below each other in one picture.

    Attributes:
        name: what they show.
        source: the picture as a data: address.
        width, height: of one frame, pixels.
    """

    name: str
    source: str
    width: int
    height: int


class Shown(NamedTuple):
    """What the page shows of samples; a part that is not there is empty, and missing says why.

    Attributes:
        folder: where the samples lie, relative to the workdir.
        times: the paper's t of each frame.
        panels: of the film.
        grid: of samples, one frame.
        caption: how many samples, and how they were drawn.
        missing: reason by part.
    """

    folder: str
    times: list[int]
    panels: list[Panel]
    grid: Panel | None
    caption: str
    missing: dict[str, str]


def draw(workdir: Path, run: Run, progress: bool = True) -> Shown:
    """The samples that the run's sample part describes; what a film needs is drawn if missing.

    All processes must call this together.

    Args:
        workdir: of the run.
        run: opened.
        progress: show a bar.
    """
    try:
        folder = names.sample_folder(workdir, run)
    except OSError as error:
        why = f"sample.base {run.config.sample.base} cannot be read ({error.strerror})"
        return Shown("samples", [], [], None, "", {"samples": why})
    path = folder / "film.png"
    missing, times, panels = {}, [], []
    try:
        if not path.exists():
            _draw_film(folder, run, progress)
        pictures = film.read(path, run.model.image_shape, 2 + (run.model.low_res_shape is not None))
        times, panels = _panels(pictures, run)
    except (InputError, DivergedError) as error:
        missing["film"] = str(error)
    except (ValueError, OSError, EOFError, SyntaxError, zipfile.BadZipFile) as error:
        # Pillow's word for a PNG that is cut off is SyntaxError.
        missing["film"] = f"{path} cannot be read or drawn ({error}); delete it and try again"
    npz = _largest(folder, run.config.sample.count)
    shown = None
    if npz is None:
        missing["samples"] = f"{folder} holds none; draw them with --mode sample"
    else:
        try:
            shown = _grid(npz, run)
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            missing["samples"] = f"{npz} cannot be read ({error}); delete it and draw them again"
    words = folder.relative_to(workdir).as_posix()
    return Shown(words, times, panels, shown, _caption(run), missing)


def _draw_film(folder: Path, run: Run, progress: bool) -> None:
    """The film, and the samples that it ends with where there are none at all."""
    config, model = run.config, run.model
    weights = run.state.weights(config.sample.ema_rate)
    npz = _largest(folder, config.sample.count)
    base = base_of(config, model)
    count, classes = asked(config, model, base)
    shown, _ = film.layout(count, model.image_shape, classes)
    if npz is None or _count(npz) < shown:
        few = config.copy_and_resolve_references()
        few.sample.count = shown
        npz = samples.ensure(folder, few, model, weights, run.mesh, progress)["npz"]
    film.make(npz, config, model, weights, run.mesh, progress)


def _count(npz: Path) -> int:
    """How many samples a file holds, by its name: samples_NxHxWxC.npz."""
    return int(npz.stem.removeprefix("samples_").partition("x")[0])


def _largest(folder: Path, count: int) -> Path | None:
    """The file with as many samples as the run asks for, else the one with most, else None."""
    found = sorted(folder.glob("samples_*x*.npz"), key=_count)
    return next((path for path in found if _count(path) == count), found[-1] if found else None)


def _panels(pictures: np.ndarray, run: Run) -> tuple[list[int], list[Panel]]:
    """Times and panels of a film.

    Args:
        pictures: as film.read gives them [frames, panels, rows, columns, H, W, C].
        run: opened.
    """
    total, count, rows, columns, *shape = pictures.shape
    settings = run.config.sample
    process = run.model.respaced(settings.steps, "sample.steps", settings.skip)
    times = film.times_of(np.asarray(process.timesteps), total - 1)
    pixels = rows * columns * shape[0] * shape[1]
    kept = min(total, FRAMES, max(8, FILM_PIXELS // pixels))
    chosen = np.unique(np.linspace(0, total - 1, kept).round().astype(int))
    panels = []
    for name, frames in zip(PANELS[-count:], pictures.swapaxes(0, 1), strict=True):
        grids = [grid(frame.reshape(-1, *shape), columns, scale=1) for frame in frames[chosen]]
        height, width = grids[0].shape[:2]
        panels.append(Panel(name, _address(np.concatenate(grids)), width, height))
    return [times[i] for i in chosen], panels


def _grid(npz: Path, run: Run) -> Panel:
    """A grid of the first samples of a file, a class a column where they come in turn."""
    height, width = run.model.image_shape[:2]
    some = min(_count(npz), GRID_SAMPLES, max(4, GRID_PIXELS // (height * width)))
    images = np.stack(list(itertools.islice(samples.images_of(npz), some)))
    columns = None
    with np.load(npz) as arrays:
        if "arr_1" in arrays.files:
            columns = samples.columns_of(arrays["arr_1"][:some])
    if columns:
        images = images[: len(images) - len(images) % columns]
    pixels = grid(images, columns, scale=1)
    per_class = "; a class a column" if columns else ""
    name = f"The first {len(images):,} of {_count(npz):,} samples{per_class}"
    return Panel(name, _address(pixels), pixels.shape[1], pixels.shape[0])


def _caption(run: Run) -> str:
    s = run.config.sample
    words = [
        {"ancestral": "Ancestral sampling", "ddim": "DDIM"}[s.sampler],
        f"{s.steps or run.config.diffusion.T} steps",
        *([f"the first {100 * s.skip:g}% skipped"] if s.skip else []),
        *([f"variance {s.variance}"] if s.variance else []),
        *([f"eta {s.eta:g}"] if s.sampler == "ddim" and s.eta else []),
        f"running average {s.ema_rate:g}" if s.ema_rate else "the parameters themselves",
        f"seed {s.seed}",
    ]
    words += [f"guidance {s.guidance:g}"] if s.guidance != 1 else []
    return ", ".join(words)


def _address(pixels: np.ndarray) -> str:
    """A picture, uint8 [H, W, 1 or 3], as PNG in a data: address."""
    stream = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(
        stream, "PNG", optimize=True
    )
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
