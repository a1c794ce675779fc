"""Figures on disk: pictures that open, numbers and captions; the same bytes every time."""

import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from iddpm_jax.errors import InputError
from iddpm_jax.figures import drawing
from iddpm_jax.figures.drawing import (
    Figure,
    line_style,
    logarithmic,
    require_matplotlib,
    shared_legend,
    step_ticks,
    write,
)

SUFFIXES = (".png", ".svg", ".npz", ".txt")


def simple(height: float = 2.0) -> Figure:
    def draw(canvas):
        axes = canvas.subplots()
        axes.plot([1, 2, 3], [1, 4, 9], label=r"$\bar{\alpha}_t$")
        axes.legend()

    return Figure({"x": np.arange(3)}, "Squares. " * 20, (4.0, height), draw)


def test_four_files_are_written_and_open(tmp_path):
    path = write(tmp_path / "squares", simple(), "from nowhere")
    assert path == tmp_path / "squares.png"
    with Image.open(path) as image:
        assert image.size == (800, 400)
        assert len(np.unique(np.asarray(image))) > 2
    assert ET.parse(tmp_path / "squares.svg").getroot().tag.endswith("svg")
    with np.load(tmp_path / "squares.npz") as numbers:
        np.testing.assert_array_equal(numbers["x"], [0, 1, 2])
    lines = (tmp_path / "squares.txt").read_text().splitlines()
    assert lines[0].startswith("Squares. Squares.") and lines[-1] == "from nowhere"
    assert max(map(len, lines)) <= 100


def test_files_are_the_same_bytes_every_time(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "squares", simple(), "")
    for suffix in SUFFIXES:
        one, other = ((tmp_path / f / f"squares{suffix}").read_bytes() for f in "ab")
        assert one == other, suffix


def test_style_of_the_user_changes_nothing(tmp_path):
    import matplotlib

    write(tmp_path / "plain", simple(), "")
    with matplotlib.rc_context({"lines.linewidth": 9, "axes.facecolor": "red"}):
        write(tmp_path / "red", simple(), "")
        assert matplotlib.rcParams["lines.linewidth"] == 9
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "red.png").read_bytes()


def test_pictures_of_noise_stay_small(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (500, 900, 3), np.uint8)

    def draw(canvas):
        canvas.subplots().imshow(noise, aspect="auto")

    path = write(tmp_path / "noise", Figure({}, "", (6.75, 3.0), draw), "")
    assert path.stat().st_size < 300_000
    with Image.open(path) as image:
        assert image.width < 1350  # which a plain figure has


def test_large_figures_of_lines_keep_their_size_with_fewer_colours(tmp_path, monkeypatch):
    values = np.random.default_rng(0).random((40, 3))

    def draw(canvas):
        canvas.subplots().plot(values)

    def size_and_mode():
        path = write(tmp_path / "lines", Figure({}, "", (4.0, 3.0), draw), "")
        with Image.open(path) as image:
            return path.stat().st_size, image.size, image.mode, np.asarray(image.convert("L"))

    plain = size_and_mode()
    monkeypatch.setattr(drawing, "LARGEST_PNG", plain[0] * 2 // 3)
    few = size_and_mode()
    assert few[0] < plain[0] * 2 // 3
    assert (plain[1:3], few[1:3]) == (((800, 600), "RGBA"), ((800, 600), "P"))
    assert np.abs(few[3].astype(int) - plain[3]).mean() < 3


def test_figure_grows_with_the_rows_of_its_legend():
    from matplotlib.figure import Figure as Canvas

    for count, rows in ((1, 1), (5, 1), (6, 2), (11, 3)):
        canvas = Canvas(figsize=(6.75, 2.0))
        axes = canvas.subplots()
        for i in range(count):
            axes.plot([0, 1], label=f"line {i}")
        shared_legend(canvas, [axes])
        assert canvas.get_figheight() == pytest.approx(2.0 + 0.17 * (rows - 1))


def test_lines_look_different_beyond_the_colours():
    looks = [repr(line_style(i, True)) for i in range(21)]
    assert len(set(looks)) == 21


def test_labels_of_steps_do_not_overlap():
    from matplotlib.figure import Figure as Canvas

    axes = Canvas().subplots()
    step_ticks(axes, np.array([10, 1000, 950, 25, 10, 12, 100]))
    assert sorted(axes.get_xticks()) == [12, 25, 100, 1000]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1,000", "100", "25", "12"]


@pytest.mark.parametrize(("top", "plain"), [(50, True), (5e4, False)])
def test_short_logarithmic_axes_have_plain_numbers(top, plain):
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas()
    axes = canvas.subplots()
    axes.plot([0, 1], [1, top])
    logarithmic(axes)
    canvas.draw_without_rendering()
    texts = [label.get_text() for label in axes.get_yticklabels()]
    assert ("5" in texts and "20" in texts) == plain


def test_missing_matplotlib_is_said_with_the_command(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install 'iddpm_jax\[figures\]'"):
        require_matplotlib()


def test_colours_dashes_and_markers_go_together():
    assert len(drawing.COLOURS) == len(drawing.DASHES) == len(drawing.MARKERS) == 7
    assert len(set(drawing.COLOURS)) == len(set(drawing.MARKERS)) == 7
