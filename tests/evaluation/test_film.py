"""The film: from noise to the samples on disk, its frames worked out again by other means."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny_config import tiny

from iddpm_jax import build, data, main
from iddpm_jax.evaluation import film, samples
from iddpm_jax.evaluation.generate import draw
from iddpm_jax.models.unet import Network
from iddpm_jax.training.parallel import make_mesh

ROUNDING = 10
"""Frames on the way have every 17th level only; and a level for arithmetic."""

STEPS = 5


def formula(config, apply=None):
    """(model, parameters): eps is half of x_t, and darker from class to class."""

    def darker(params, x, t, y, dropout_keys, low_res):
        eps = 0.5 * x + params["strength"] * 0.1 * y[:, None, None, None]
        return jnp.concatenate([eps, jnp.zeros_like(x)], axis=-1)

    network = Network(lambda *_: None, apply or darker)
    model = dataclasses.replace(build.model(config), network=network)
    return model, {"strength": jnp.ones(())}


def filmed(folder, config, apply=None, devices=2):
    """(samples on disk, frames of the film: uint8 [frames, H, W, C], the still, seconds each)."""
    model, params = formula(config, apply)
    mesh = make_mesh(jax.devices()[:devices])
    npz = samples.ensure(folder, config, model, params, mesh, False)["npz"]
    path = film.make(npz, config, model, params, mesh, False)
    assert path == folder / "film.png"
    return data.read_npz(npz)[0], *read(path)


def read(path):
    frames, lengths = [], []
    with Image.open(path) as opened:
        assert opened.format == "PNG" and opened.info["loop"] == 0
        for i in range(opened.n_frames):
            opened.seek(i)
            lengths.append(opened.info.get("duration", 0) / 1000)
            pixels = np.asarray(opened)
            frames.append(pixels if pixels.ndim == 3 else pixels[..., None])
    return np.stack(frames[1:]), frames[0], lengths[1:]


def cells(frame, panel, panels, columns, shape, across):
    """The pictures of a panel, one pixel for each of theirs."""
    height, width, channels = shape
    axis = 1 if across else 0
    pixels = np.split(frame, panels, axis)[panel][film.TITLE :]
    scale = max(1, film.PICTURE // max(height, width))
    cell = np.array([height, width]) * scale + 2 * film.GAP + 1
    rows = pixels.shape[0] // cell[0]
    grid = pixels.reshape(rows, cell[0], columns, cell[1], channels).transpose(0, 2, 1, 3, 4)
    inner = grid.reshape(-1, *cell, channels)[:, film.GAP : -film.GAP - 1, film.GAP : -film.GAP - 1]
    # Every pixel is a square of one colour.
    blocks = inner.reshape(-1, height, scale, width, scale, channels)
    np.testing.assert_array_equal(blocks, np.broadcast_to(blocks[:, :, :1, :, :1], blocks.shape))
    return blocks[:, :, 0, :, 0]


def assert_close(a, b, levels):
    assert a.shape == b.shape
    assert np.abs(a.astype(np.float64) - b).max() <= levels


def by_hand(model, classes, seed=0, steps=STEPS):
    """x_t and x_0 of the last steps of DDIM in float64: two lists of [N, 8, 8, 1], x_T first."""
    key = jax.random.key(seed)
    keys = [jax.random.fold_in(jax.random.fold_in(key, i), steps) for i in range(len(classes))]
    x = np.stack([np.asarray(jax.random.normal(k, (8, 8, 1)), np.float64) for k in keys])
    bar = np.asarray(model.respaced(str(STEPS), "").alpha_bar, np.float64)
    found, predicted = [x], []
    for t in reversed(range(steps)):
        eps = 0.5 * x + 0.1 * np.asarray(classes)[:, None, None, None]
        x_0 = np.clip((x - np.sqrt(1 - bar[t]) * eps) / np.sqrt(bar[t]), -1, 1)
        eps = (x - np.sqrt(bar[t]) * x_0) / np.sqrt(1 - bar[t])
        before = bar[t - 1] if t else 1.0
        x = np.sqrt(before) * x_0 + np.sqrt(1 - before) * eps
        found.append(x)
        predicted.append(x_0)
    return found, predicted


@pytest.mark.slow
def test_frames_lead_from_noise_to_the_samples_on_disk(tmp_path):
    config = tiny(sample__count=9, sample__classes=(2, 7), sample__sampler="ddim")
    images, frames, still, lengths = filmed(tmp_path, config)
    # Rows that are full: four of two classes.
    x_t, x_0 = (
        [cells(frame, panel, 2, 2, (8, 8, 1), across=True) for frame in frames] for panel in (0, 1)
    )
    assert len(frames) == STEPS + 1
    np.testing.assert_array_equal(x_t[-1], images[:8])
    expected = by_hand(build.model(config), [2, 7] * 4)
    for found, x in zip(x_t, expected[0], strict=True):
        assert_close(found, np.clip(127.5 * (x + 1), 0, 255), ROUNDING)
    assert not x_0[0].any()
    for found, x in zip(x_0[1:], expected[1], strict=True):
        assert_close(found, 127.5 * (x + 1), ROUNDING)
    assert_close(x_0[-1], images[:8], 1)
    np.testing.assert_array_equal(still, frames[-1])
    assert lengths[-1] >= 1.0 and len(set(lengths[:-1])) == 1
    assert sum(lengths[:-1]) == pytest.approx(film.FORMING_MS / 1000, rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sample__sampler": "ddim", "sample__eta": 0.5},
        {"sample__guidance": 2.0, "model__label_dropout": 0.1},
        {"sample__steps": "", "sample__clip_x_0": False},
        {"sample__variance": "fixed_large"},
    ],
)
def test_film_ends_at_the_samples_by_its_own_arithmetic(changes):
    """The frames in a loop change no sample; what is on disk is not even needed."""
    config = tiny(**changes)
    (model, params), mesh = formula(config), make_mesh(jax.devices()[:2])
    images = np.concatenate(list(draw(config, model, params, mesh, progress=False)))
    ways = list(draw(config, model, params, mesh, progress=False, frames=STEPS))
    ways = np.concatenate(ways)
    assert ways.shape == (8, STEPS + 1, 2, 8, 8, 1) and ways.dtype == np.uint8
    assert_close(ways[:, -1, 0], images, 1)
    assert (ways[:, 0, 0] != images).mean() > 0.5


@pytest.mark.slow
def test_film_of_a_skipped_beginning_starts_from_noise_at_the_step_reached():
    config = tiny(sample__skip=0.4, sample__sampler="ddim", sample__count=2)
    (model, params), mesh = formula(config), make_mesh(jax.devices()[:2])
    [way] = draw(config, model, params, mesh, progress=False, frames=3)
    x_t, x_0 = by_hand(model, [0, 1], steps=3)
    assert_close(way[:, :, 0], np.clip(127.5 * (np.stack(x_t, 1) + 1), 0, 255), 1)
    assert_close(way[:, 1:, 1], 127.5 * (np.stack(x_0, 1) + 1), 1)
    process = model.respaced("5", "sample.steps", 0.4)
    assert film.times_of(np.asarray(process.timesteps), 3) == [11, 6, 1, 0]


@pytest.mark.slow
def test_film_of_super_resolution_in_colour_shows_the_small_images(tmp_path):
    small = np.random.default_rng(0).integers(0, 256, (30, 4, 4, 3)).astype(np.uint8)
    pictures = np.random.default_rng(1).integers(0, 256, (20, 8, 8, 3)).astype(np.uint8)
    samples.write(tmp_path / "small.npz", [small], 30)
    samples.write(tmp_path / "data.npz", [pictures], 20)
    config = tiny(
        data__name=f"npz:{tmp_path / 'data.npz'}",
        model__low_res_size=4,
        model__class_conditional=False,
        diffusion__mean="x_0",
        sample__base=str(tmp_path / "small.npz"),
    )

    def apply(params, x, t, y, dropout_keys, low_res):
        x_0 = low_res.repeat(2, axis=1).repeat(2, axis=2)
        return jnp.concatenate([x_0 * params["strength"], jnp.zeros_like(x)], axis=-1)

    images, frames, _, _ = filmed(tmp_path / "run", config, apply)
    assert len(images) == 30
    enlarged = small[:25].repeat(2, axis=1).repeat(2, axis=2)
    for frame in frames:
        shown = cells(frame, 0, 3, 5, (8, 8, 3), across=True)
        np.testing.assert_array_equal(shown, enlarged)
    np.testing.assert_array_equal(cells(frames[-1], 1, 3, 5, (8, 8, 3), True), images[:25])
    assert_close(cells(frames[-1], 2, 3, 5, (8, 8, 3), True), enlarged, 1)


def test_pictures_of_many_classes_stand_below_each_other():
    x, x_0 = np.random.default_rng(0).integers(0, 256, (2, 20, 8, 8, 1)).astype(np.uint8)
    frame = film.picture(x, x_0, 417, 10, None)
    np.testing.assert_array_equal(cells(frame, 0, 2, 10, (8, 8, 1), across=False), x)
    np.testing.assert_array_equal(cells(frame, 1, 2, 10, (8, 8, 1), across=False), x_0)
    other = film.picture(x, x_0, 418, 10, None)
    assert (frame[: film.TITLE] != other[: film.TITLE]).any(), "t is not told"
    np.testing.assert_array_equal(frame[film.TITLE :], other[film.TITLE :])


def test_times_are_those_of_the_network_and_end_at_0():
    assert film.times_of(np.arange(4000), 40) == [*range(4000, -1, -100)]
    assert film.times_of(np.array([0, 5, 10, 15, 19]), 5) == [20, 16, 11, 6, 1, 0]
    # Seven steps in three frames: after 3, 5 and 7 of them.
    assert film.times_of(np.arange(7), 3) == [7, 4, 2, 0]


def test_layout_has_a_column_for_each_class_and_few_large_pictures():
    in_turn = np.resize(np.arange(10), 100)
    assert film.layout(100, (8, 8, 1), in_turn) == (20, 10)
    assert film.layout(100, (32, 32, 3), np.resize(np.arange(9), 100)) == (9, 9)
    assert film.layout(7, (8, 8, 1), in_turn[:7]) == (7, 3)
    assert film.layout(100, (8, 8, 1), None) == (25, 5)
    assert film.layout(100, (8, 8, 1), np.arange(100)) == (25, 5)  # as of ImageNet
    assert film.layout(100, (32, 32, 3), None) == (12, 4)
    assert film.layout(100, (256, 256, 3), None) == (1, 1)


@pytest.mark.parametrize(
    ("count", "columns", "shape", "small"),
    [(20, 10, (8, 8, 1), False), (7, 3, (8, 8, 1), False), (9, 9, (32, 32, 3), True)],
)
def test_film_that_is_read_has_the_pictures_that_were_written(
    tmp_path, count, columns, shape, small
):
    rng = np.random.default_rng(0)
    x, x_0 = rng.integers(0, 256, (2, 3, count, *shape)).astype(np.uint8)
    base = rng.integers(0, 256, (count, *shape)).astype(np.uint8) if small else None
    frames = [
        film.picture(*pair, t, columns, base) for t, pair in enumerate(zip(x, x_0, strict=True))
    ]
    film.write(tmp_path / "film.png", frames)
    found = film.read(tmp_path / "film.png", shape, 3 if small else 2)
    rows = -(-count // columns)
    assert found.shape == (3, 3 if small else 2, rows, columns, *shape)
    shown = found.reshape(3, -1, rows * columns, *shape)
    np.testing.assert_array_equal(shown[:, -2, :count], x)
    np.testing.assert_array_equal(shown[:, -1, :count], x_0)
    assert not shown[:, :, count:].any()
    if small:
        np.testing.assert_array_equal(shown[:, 0], np.stack([base] * 3))


def test_pictures_that_are_no_film_are_refused(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (2, 100, 90, 1)).astype(np.uint8)
    film.write(tmp_path / "other.png", list(pictures))
    Image.fromarray(pictures[0, ..., 0]).save(tmp_path / "still.png")
    for name in ("other.png", "still.png"):
        with pytest.raises(ValueError, match=f"{name} is no film"):
            film.read(tmp_path / name, (8, 8, 1), 2)


def run_of(config):
    """A run as main has it, by the formula."""
    model, params = formula(config)
    state = SimpleNamespace(step=4, weights=lambda rate: params)
    return SimpleNamespace(config=config, model=model, mesh=make_mesh(), state=state)


@pytest.mark.slow
def test_film_comes_when_asked_for_and_changes_nothing_else(tmp_path, monkeypatch, capsys):
    config = tiny(sample__film=True)
    with_film = main._draw(tmp_path / "a", run_of(config))
    without = main._draw(tmp_path / "b", run_of(tiny()))
    assert with_film["film"] == with_film["npz"].parent / "film.png"
    assert "film" not in without
    for kind in ("npz", "grid"):
        assert with_film[kind].read_bytes() == without[kind].read_bytes()
        assert with_film[kind].relative_to(tmp_path / "a") == without[kind].relative_to(
            tmp_path / "b"
        )
    found = {file.name for file in without["npz"].parent.iterdir()}
    assert {file.name for file in with_film["npz"].parent.iterdir()} == {*found, "film.png"}
    # Asked for later, it takes the samples that are there.
    assert "is there already" not in capsys.readouterr().out
    later = main._draw(tmp_path / "b", run_of(config))
    assert "is there already" in capsys.readouterr().out
    assert later["film"].read_bytes() == with_film["film"].read_bytes()
    # Where another process writes, this one only draws.
    later["film"].unlink()
    monkeypatch.setattr(film, "is_main_process", lambda: False)
    run = run_of(config)
    film.make(later["npz"], config, run.model, run.state.weights(0.9), run.mesh, False)
    assert not later["film"].exists()
