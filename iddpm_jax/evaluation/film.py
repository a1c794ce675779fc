"""A film of samples that form out of noise, beside the images predicted on the way."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from PIL import Image, ImageDraw, ImageFont

from iddpm_jax import build
from iddpm_jax.evaluation.generate import asked, base_of, draw
from iddpm_jax.evaluation.samples import columns_of, images_of
from iddpm_jax.images import enlarge, grid
from iddpm_jax.training.parallel import is_main_process
from iddpm_jax.training.state import Params

FRAMES = 40
"""Moments between the noise and the samples, or as many as there are steps."""

SHOWN, PIXELS = 25, 12 * 32 * 32
"""Samples, at most, and pixels of them all: noise hardly compresses, and a film is mostly noise."""

PICTURE = 64
"""Small pictures grow to about this size, pixels."""

FORMING_MS, HELD_MS = 3200, 2000
"""How long the film shows samples form, and then the finished ones, before it starts again."""

TITLE, GAP = 18, 2
"""Height of the line above pictures, and width of the black around each, pixels."""


def make(
    samples: Path,
    config: ConfigDict,
    model: build.Model,
    params: Params,
    mesh: Mesh,
    progress: bool = True,
) -> Path:
    """Draw the first samples of a file again, watch them form, and write that beside the file.

    Same seed, numbers, classes and small images, hence the same samples. All processes must call
    this together.

    Args:
        samples: .npz that samples.ensure wrote with the same arguments; the last frame shows what
            it holds.
        config: its sample part is read.
        model: the model.
        params: its parameters, or an average of them.
        mesh: devices.
        progress: show a bar.

    Returns:
        The film, an animated PNG.

    Raises:
        InputError, DivergedError: see generate.draw.
    """
    base = base_of(config, model)
    count, classes = asked(config, model, base)
    shown, columns = layout(count, model.image_shape, classes)
    few = config.copy_and_resolve_references()
    few.sample.count = shown
    # As many at a time as samples.ensure, for the same bits, unless that takes memory for nothing.
    few.sample.batch_size = min(config.sample.batch_size, shown)
    base = base and base.first(shown)
    process = model.respaced(config.sample.steps, "sample.steps", config.sample.skip)
    frames = min(FRAMES, process.T)
    drawn = draw(few, model, params, mesh, base, progress=progress, frames=frames)
    ways = np.concatenate(list(drawn))
    path = samples.parent / "film.png"
    if is_main_process():
        ways[:, :-1] = np.rint(ways[:, :-1] / 17) * 17  # 16 levels: half the bytes
        # Another machine's arithmetic may have drawn those on disk: a level more or less.
        ways[:, -1, 0] = list(itertools.islice(images_of(samples), shown))
        small = None if base is None else enlarge(base.images, *model.image_shape[:2])
        times = times_of(np.asarray(process.timesteps), frames)
        pairs = zip(times, ways.transpose(1, 2, 0, 3, 4, 5), strict=True)
        write(path, [picture(x, x_0, t, columns, small) for t, (x, x_0) in pairs])
    return path


def layout(count: int, shape: Sequence[int], classes: np.ndarray | None) -> tuple[int, int]:
    """How many samples to show, in how many columns.

    Args:
        count: how many there are.
        shape: of one (H, W, C).
        classes: int32 [N] or None; each gets a column of its own where they come in turn.
    """
    shown = min(count, SHOWN, max(1, PIXELS // (shape[0] * shape[1])))
    columns = None if classes is None else columns_of(classes[:shown])
    if columns is None:
        return shown, int(np.ceil(np.sqrt(shown)))
    return shown - shown % columns, columns


def times_of(timesteps: np.ndarray, frames: int) -> list[int]:
    """The paper's t of x_t in each frame, from T to 0.

    Args:
        timesteps: index of each step in the process the network was trained on [steps].
        frames: as for generate.draw.

    Returns:
        frames + 1 numbers.
    """
    steps = len(timesteps)
    done = [-(-frame * steps // frames) for frame in range(frames + 1)]
    return [int(timesteps[steps - 1 - i]) + 1 if i < steps else 0 for i in done]


def picture(
    x: np.ndarray, x_0: np.ndarray, t: int, columns: int, small: np.ndarray | None
) -> np.ndarray:
    """One frame.

    Args:
        x: x_t, uint8 [N, H, W, C].
        x_0: predicted images like it.
        t: the paper's t.
        columns: of pictures.
        small: what super-resolution starts from, enlarged, or None.

    Returns:
        uint8 [height, width, C].
    """
    panels = [(f"x_t, t = {t}", x), ("x_0 predicted", x_0)]
    if small is not None:
        panels.insert(0, ("small image", small))
    drawn = [_titled(title, images, columns) for title, images in panels]
    # Wide ones below each other, high ones beside each other.
    height, width = drawn[0].shape[:2]
    return np.concatenate(drawn, axis=0 if width > 2 * height else 1)


def _titled(title: str, images: np.ndarray, columns: int) -> np.ndarray:
    """Pictures in a grid, enlarged, with a line of words above."""
    scale = max(1, PICTURE // max(images.shape[1:3]))
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    # Or the noise of one would run into the next.
    pixels = grid(np.pad(images, ((0, 0), (GAP, GAP), (GAP, GAP), (0, 0))), columns, scale=1)
    line = Image.new("L", (pixels.shape[1], TITLE))
    font = ImageFont.load_default(TITLE * 2 // 3)
    ImageDraw.Draw(line).text((GAP, TITLE // 2), title, fill=200, font=font, anchor="lm")
    channels = pixels.shape[-1]
    return np.concatenate([np.asarray(line)[..., None].repeat(channels, -1), pixels])


def read(path: Path, shape: Sequence[int], panels: int) -> np.ndarray:
    """The pictures of a film that make wrote.

    Args:
        path: of the animated PNG.
        shape: of a sample (H, W, C).
        panels: 2, or 3 with the small images.

    Returns:
        uint8 [frames, panels, rows, columns, H, W, C], as they were before they were enlarged;
        places without a picture are black.

    Raises:
        ValueError: it is no film of such samples.
    """
    height, width, channels = shape
    scale = max(1, PICTURE // max(height, width))
    cell = np.array([height, width]) * scale + 2 * GAP + 1
    found = []
    with Image.open(path) as opened:
        for i in range(1, getattr(opened, "n_frames", 1)):  # the first is the still
            opened.seek(i)
            found.append(np.asarray(opened.convert("L" if channels == 1 else "RGB")))
    for axis in (1, 2):  # panels below each other, or beside
        size = list(found[0].shape[:2]) if found else [0, 0]
        size[axis - 1] //= panels
        (rows, rest), (columns, rest_too) = (
            divmod(size[0] - TITLE, cell[0]),
            divmod(size[1], cell[1]),
        )
        if rows > 0 and columns > 0 and not rest and not rest_too:
            break
    else:
        raise ValueError(f"{path} is no film of pictures of {height}x{width}")
    frames = np.stack(found).reshape(len(found), *found[0].shape[:2], channels)
    pictures = np.stack(np.split(frames, panels, axis), axis=1)[:, :, TITLE:]
    pictures = pictures.reshape(*pictures.shape[:2], rows, cell[0], columns, cell[1], channels)
    inner = [slice(GAP, GAP + length * scale, scale) for length in (height, width)]
    return pictures[:, :, :, inner[0], :, inner[1]].swapaxes(3, 4)


def write(path: Path, pictures: Sequence[np.ndarray]) -> None:
    """Write a film that rests at its end and repeats for ever.

    Args:
        path: of the animated PNG. What cannot play it shows the last picture.
        pictures: uint8 [H, W, 1 or 3], one or more.
    """
    frames = [Image.fromarray(p[..., 0] if p.shape[-1] == 1 else p) for p in pictures]
    frames[-1].save(
        path,
        save_all=True,
        default_image=True,
        append_images=frames,
        duration=[FORMING_MS // len(frames)] * (len(frames) - 1) + [HELD_MS],
        loop=0,
    )
