"""What a figure is, how all of them look, and writing one: PNG, SVG, numbers, caption."""

import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from iddpm_jax.errors import InputError

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, which colour-blind readers tell apart."""

DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (8, 1.5)), "-", "--")
"""So that lines can be told apart without colour."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")


WIDTH = 6.75
"""Of a figure of several panels, inches: both columns of a page."""

NARROW = 4.2
"""Of a figure of one panel, inches."""

LARGEST_PNG = 300_000
"""Bytes."""

STYLE = {
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8.5,
    "legend.fontsize": 7.5,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "mathtext.fontset": "cm",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "errorbar.capsize": 2,
    "legend.frameon": False,
    # Names inside the file follow from its content alone.
    "svg.hashsalt": "iddpm_jax",
}


class Figure(NamedTuple):
    """A figure before it is drawn.

    Attributes:
        numbers: all that is drawn, by name.
        caption: what it shows, a paragraph.
        size: (width, height), inches.
        draw: puts the numbers onto a canvas, a matplotlib.figure.Figure.
        files: results that the numbers come from.
    """

    numbers: dict[str, np.ndarray]
    caption: str
    size: tuple[float, float]
    draw: Callable[[Any], None]
    files: tuple[Path, ...] = ()


def line_style(i: int, markers: bool = False) -> dict[str, Any]:
    """Colour, dashes and, if asked for, marker of line i; after seven, colours go other ways."""
    around = i + i // len(COLOURS)
    marker = {"marker": MARKERS[around % len(MARKERS)]} if markers else {}
    return {"color": COLOURS[i % len(COLOURS)], "ls": DASHES[around % len(DASHES)], **marker}


def require_matplotlib() -> None:
    """Object in one line where matplotlib is missing.

    Raises:
        InputError: it is.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise InputError(
            "figures need matplotlib, which is not installed; pip install 'iddpm_jax[figures]'"
        ) from None


def write(stem: Path, figure: Figure, about: str) -> Path:
    """Write STEM.png, .svg, .npz (the numbers) and .txt (the caption); the same bytes every time.

    Args:
        stem: path without a suffix; its folder exists.
        figure: what to draw.
        about: where it comes from, put below the caption.

    Returns:
        Path of the PNG.
    """
    from matplotlib import style
    from matplotlib.figure import Figure as Canvas

    with style.context(["default", STYLE]):
        canvas = Canvas(figsize=figure.size, layout="constrained")
        figure.draw(canvas)
        canvas.savefig(stem.with_suffix(".svg"), metadata={"Date": None})
        png = stem.with_suffix(".png")
        # Noise does not compress: pictures of it take fewer dots.
        for dots in (200, 140, 100, 70):
            _save(canvas, png, dots)
            if png.stat().st_size < LARGEST_PNG:
                break
    np.savez_compressed(stem.with_suffix(".npz"), **figure.numbers)
    caption = textwrap.fill(figure.caption, 100)
    stem.with_suffix(".txt").write_text(f"{caption}\n\n{about}\n", encoding="utf-8")
    return png


def _save(canvas: Any, path: Path, dots: int) -> None:
    """Save a PNG; lines and words, which need few colours, with 256 of them if it is large."""
    canvas.savefig(path, dpi=dots, metadata={"Software": None})
    if path.stat().st_size >= LARGEST_PNG and not any(axes.images for axes in canvas.axes):
        with Image.open(path) as image:
            few = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        few.save(path, dpi=(dots, dots), optimize=True)


def step_ticks(axes: Any, steps: np.ndarray) -> None:
    """A logarithmic axis of numbers of steps, labelled at those that were measured.

    Args:
        axes: matplotlib's, whose x axis it is.
        steps: that were measured, repeats allowed; the larger of two neighbours too close to label.
    """
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    ticks = np.unique(steps)
    room = 0.13 * np.log(ticks[-1] / ticks[0])
    labelled = [ticks[-1]]
    for tick in ticks[-2::-1]:
        if np.log(labelled[-1] / tick) >= room:
            labelled.append(tick)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(labelled))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{n:,}" for n in labelled]))
    axes.xaxis.set_minor_locator(NullLocator())


def logarithmic(axes: Any) -> None:
    """Make the y axis of what is drawn already logarithmic, with plain numbers if it is short."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high / low < 300:
        subs = (1, 1.5, 2, 3, 5, 7) if high / low < 10 else (1, 2, 5)
        axes.yaxis.set_major_locator(LogLocator(subs=subs))
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.yaxis.set_minor_locator(NullLocator())


LEGEND_LINE = 0.17
"""Height of a row of a legend, inches."""


def shared_legend(canvas: Any, panels: Sequence[Any]) -> None:
    """One legend above all panels, where it hides nothing; a label of several panels once."""
    found = [axes.get_legend_handles_labels() for axes in panels]
    legend_above(canvas, {label: line for pair in found for line, label in zip(*pair, strict=True)})


def legend_above(canvas: Any, lines: dict[str, Any]) -> None:
    """A legend above all panels; the figure grows by each row beyond the first.

    Args:
        canvas: a matplotlib.figure.Figure.
        lines: artists by their labels.
    """
    width = canvas.get_figwidth()
    longest = max(len(re.sub(r"\$[^$]*\$", "xx", label)) for label in lines)
    room = max(1, min(5, int(width / (0.055 * longest + 0.5))))
    rows = -(-len(lines) // room)
    canvas.set_figheight(canvas.get_figheight() + LEGEND_LINE * (rows - 1))
    columns = -(-len(lines) // rows)  # evenly filled
    canvas.legend(lines.values(), lines, loc="outside upper center", ncols=columns)
