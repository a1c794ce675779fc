"""What the page's script draws: charts as numbers, and JSON that is safe inside a page."""

import json
import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

QUARTERS = {
    "_q0": "1st quarter of t (least noise)",
    "_q1": "2nd",
    "_q2": "3rd",
    "_q3": "4th (most noise)",
}


class Series(NamedTuple):
    """A line of a chart.

    Attributes:
        name: for the legend.
        x, y: points; y is None where there is no value.
        style: "bold", "line" or "dots".
    """

    name: str
    x: list[float]
    y: list[float | None]
    style: str


class Chart(NamedTuple):
    """A chart.

    Attributes:
        name: unique on the page.
        title: what the y axis shows.
        x: what the x axis shows.
        log: which axes are logarithmic: "", "x", "y" or "xy".
        series: lines, drawn in this order.
    """

    name: str
    title: str
    x: str
    log: str
    series: list[Series]


def line(name: str, x: Iterable[float], y: Iterable[float], style: str = "line") -> Series:
    """A series of arrays, to five digits."""
    x, y = (np.asarray(values, np.float64) for values in (x, y))
    # Rows before the first value and after the last say nothing.
    known = np.flatnonzero(np.isfinite(y)) if style == "dots" else np.arange(len(y))
    return Series(name, *([_short(v) for v in values[known]] for values in (x, y)), style)


def _short(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    rounded = float(f"{value:.5g}") if abs(value) < 1e5 else float(round(value))
    return int(rounded) if rounded.is_integer() else rounded


def as_json(charts: Iterable[Chart], times: list[int]) -> str:
    """JSON for the inside of a script element: nothing in it can end the element.

    Args:
        charts: all of the page.
        times: t of each frame of the film.

    Raises:
        ValueError: a number is not finite, which JSON cannot say.
    """
    content = {
        "times": times,
        "charts": {
            chart.name: {**chart._asdict(), "series": [s._asdict() for s in chart.series]}
            for chart in charts
        },
    }
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
