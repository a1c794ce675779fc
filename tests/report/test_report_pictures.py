"""Samples on the page: the pixels of the film and of the grid, and what is drawn for them."""

import base64
import io

import numpy as np
import pytest
from made_up import add_samples, full, opened
from PIL import Image
from synthetic import stored_run

from iddpm_jax.evaluation import film, names
from iddpm_jax.report import pictures


def pixels(panel, frames=1):
    """A panel's picture: uint8 [frames, height, width]."""
    assert panel.source.startswith("data:image/png;base64,")
    with Image.open(io.BytesIO(base64.b64decode(panel.source.partition(",")[2]))) as image:
        found = np.asarray(image)
    assert found.shape == (frames * panel.height, panel.width)
    return found.reshape(frames, panel.height, panel.width)


def cells(frame, rows=2, columns=10):
    """Pictures of 8x8 with a pixel between: [N, 8, 8, 1]."""
    grid = frame.reshape(rows, 9, columns, 9)[:, :8, :, :8].swapaxes(1, 2)
    return grid.reshape(-1, 8, 8, 1)


def test_frames_below_each_other_are_those_of_the_film(tmp_path):
    run = opened(stored_run(tmp_path / "run", sample__count=20).config)
    ways = add_samples(tmp_path / "run", run)
    shown = pictures.draw(tmp_path / "run", run, False)
    assert shown.missing == {} and shown.times == [20, 15, 11, 6, 1, 0]
    assert [panel.name for panel in shown.panels] == ["x_t", "x_0 predicted"]
    for i, panel in enumerate(shown.panels):
        for frame, expected in zip(pixels(panel, 6), ways[:, i], strict=True):
            np.testing.assert_array_equal(cells(frame), expected)
    np.testing.assert_array_equal(cells(pixels(shown.grid)[0]), ways[-1, 0])
    assert shown.grid.name == "The first 20 of 20 samples; a class a column"
    assert shown.folder == "samples/step00000004_ancestral_5_ema0.9_seed0"


def test_long_films_and_large_pictures_have_fewer_moments(tmp_path):
    run = opened(stored_run(tmp_path / "run", sample__steps="").config)
    run.config.diffusion.T = 100
    run = opened(run.config)
    many = np.zeros((41, 2, 1, 2, 8, 8, 1), np.uint8)
    run.config.sample.steps = "100"
    times, panels = pictures._panels(many, run)
    assert len(times) == pictures.FRAMES and (times[0], times[-1]) == (100, 0)
    assert times == sorted(times, reverse=True)
    large = np.zeros((41, 2, 1, 1, 256, 256, 3), np.uint8)
    times, panels = pictures._panels(large, run)
    assert len(times) == 8 and (times[0], times[-1]) == (100, 0)
    assert panels[0].width == 257


def test_a_skipped_beginning_is_no_part_of_the_times(tmp_path):
    run = opened(stored_run(tmp_path / "run", sample__steps="10", sample__skip=0.5).config)
    run.config.sample.variance = "fixed_small"
    # Of the steps 0, 2.1, ... 19 of 20 the first five stay: 0, 2, 4, 6, 8.
    times, _ = pictures._panels(np.zeros((6, 2, 1, 2, 8, 8, 1), np.uint8), run)
    assert times == [9, 7, 5, 3, 1, 0]
    assert "10 steps, the first 50% skipped, variance fixed_small, " in pictures._caption(run)


def test_broken_films_are_named_and_the_grid_stays(tmp_path):
    run = opened(stored_run(tmp_path / "run", sample__count=20).config)
    add_samples(tmp_path / "run", run)
    path = names.sample_folder(tmp_path / "run", run) / "film.png"
    for content in (path.read_bytes()[:2000], b"nothing"):
        path.write_bytes(content)
        shown = pictures.draw(tmp_path / "run", run, False)
        assert shown.panels == [] and shown.grid is not None
        assert "film.png cannot be read or drawn (" in shown.missing["film"]


def test_broken_samples_are_named_and_the_film_stays(tmp_path):
    run = opened(stored_run(tmp_path / "run", sample__count=20).config)
    add_samples(tmp_path / "run", run)
    path = names.sample_folder(tmp_path / "run", run) / "samples_20x8x8x1.npz"
    for content in (path.read_bytes()[:1000], b"nothing", b""):
        path.write_bytes(content)
        shown = pictures.draw(tmp_path / "run", run, False)
        assert shown.grid is None and len(shown.panels) == 2
        assert "samples_20x8x8x1.npz cannot be read (" in shown.missing["samples"]


@pytest.mark.slow
@pytest.mark.parametrize("small", [0, 4])
def test_what_a_film_needs_is_drawn_once(tmp_path, monkeypatch, small):
    run = opened(stored_run(tmp_path / "run", sample__count=30, model__low_res_size=small).config)
    shown = pictures.draw(tmp_path / "run", run, False)
    folder = names.sample_folder(tmp_path / "run", run)
    found = {path.name for path in folder.iterdir()}
    # In columns of classes, but test images come as they come.
    count, shape = (25, (5, 5)) if small else (20, (2, 10))
    assert found == {"film.png", "grid.png", f"samples_{count}x8x8x1.npz"}
    assert shown.missing == {} and len(shown.times) == 6
    expected = ["small image"] * bool(small) + ["x_t", "x_0 predicted"]
    assert [panel.name for panel in shown.panels] == expected
    last = cells(pixels(shown.panels[-2], 6)[-1], *shape)
    np.testing.assert_array_equal(last, cells(pixels(shown.grid)[0], *shape))
    monkeypatch.setattr(film, "make", None)
    assert pictures.draw(tmp_path / "run", run, False) == shown


def test_samples_that_cannot_be_drawn_are_left_out_with_the_reason(tmp_path):
    run = full(tmp_path / "run")
    run.config.sample.steps = "3"
    run.config.sample.classes = (77,)
    shown = pictures.draw(tmp_path / "run", run, False)
    assert "classes 0 to 9" in shown.missing["film"]
    assert "--mode sample" in shown.missing["samples"]
    assert shown.grid is None and shown.panels == []
    run.config.sample.base = "/nowhere.npz"
    missing = pictures.draw(tmp_path / "run", run, False).missing
    assert missing == {
        "samples": "sample.base /nowhere.npz cannot be read (No such file or directory)"
    }
