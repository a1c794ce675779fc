"""Samples on disk: a drawing that was stopped goes on to the same file, byte for byte."""

import dataclasses
import itertools
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny_config import tiny

from iddpm_jax import build, data
from iddpm_jax.evaluation import samples
from iddpm_jax.evaluation.generate import Base
from iddpm_jax.evaluation.samples import decided_by, ensure, preview, show, write
from iddpm_jax.images import grid
from iddpm_jax.models.unet import Network
from iddpm_jax.training.parallel import make_mesh

PICTURES = np.random.default_rng(0).integers(0, 256, (30, 4, 5, 3)).astype(np.uint8)


def test_files_hold_images_and_classes(tmp_path):
    images = np.arange(6 * 4 * 5 * 3, dtype=np.uint8).reshape(6, 4, 5, 3)
    path, classes = tmp_path / "samples_6x4x5x3.npz", np.array([0, 1, 0, 1, 0, 1])
    write(path, [images[:2], images[2:]], 6, classes)
    show(path, classes, None, single=True)
    with np.load(path) as arrays:
        np.testing.assert_array_equal(arrays["arr_0"], images)
        assert arrays["arr_1"].tolist() == [0, 1, 0, 1, 0, 1]
    with Image.open(tmp_path / "png" / "000003_class1.png") as single:
        np.testing.assert_array_equal(np.asarray(single), images[3])
    with Image.open(tmp_path / "grid.png") as grid:
        width, height = grid.size
    assert width < height  # two classes across, three pictures of each


def test_grid_has_a_column_for_each_class_that_comes_in_turn():
    images = np.arange(12, dtype=np.uint8)[:, None, None, None].repeat(4, 1).repeat(5, 2)
    for classes, columns in (
        ([0, 1, 2] * 4, 3),
        ([3, 8] * 6, 2),
        ([*range(5), *range(5), 0, 1], 5),
        ([0, 1, 1] * 4, None),  # two classes, but not in turn
        ([2, 0, 2, 1] * 3, None),
        ([5] * 12, None),
        (range(12), None),
    ):
        shown = preview(images, np.array(classes), None)
        np.testing.assert_array_equal(shown, grid(images, columns))
    np.testing.assert_array_equal(preview(images, None, None), grid(images))
    # Of many pictures the first 400, whatever the classes of the others.
    many, i = np.resize(images, (500, 4, 5, 1)), np.arange(500)
    shown = preview(many, np.where(i < 400, i % 10, 11), None)
    np.testing.assert_array_equal(shown, grid(many[:400], 10))


def test_file_does_not_depend_on_how_its_images_came(tmp_path):
    files = []
    for i, cuts in enumerate(([], [1, 2, 29], [13], range(1, 30))):
        files.append(tmp_path / f"{i}.npz")
        write(files[-1], np.split(PICTURES, cuts), 27, np.arange(27), {"seed": 3})
    assert len({file.read_bytes() for file in files}) == 1
    images, classes = data.read_npz(files[0])
    np.testing.assert_array_equal(images, PICTURES[:27])
    np.testing.assert_array_equal(classes, np.arange(27))


def test_file_is_whole_or_not_there(tmp_path):
    def until_the_disk_is_full():
        yield PICTURES[:7]
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        write(tmp_path / "a.npz", until_the_disk_is_full(), 30)
    assert list(tmp_path.iterdir()) == []


def formula(strength=1.0):
    """(config changes of it, model, parameters): classes darken, and nothing is learned."""

    def apply(params, x, t, y, dropout_keys, low_res):
        eps = 0.5 * x + params["strength"] * 0.02 * y[:, None, None, None]
        return jnp.concatenate([eps, jnp.zeros_like(x)], axis=-1)

    model = dataclasses.replace(build.model(tiny()), network=Network(lambda *_: None, apply))
    return model, {"strength": jnp.float32(strength)}


def test_all_that_decides_a_sample_is_told_apart():
    model, params = formula()
    base = Base(PICTURES[:4], np.arange(4))
    same = [
        decided_by(tiny(**changes), model, params, None)
        for changes in (
            {},
            {"sample__count": 50, "sample__batch_size": 3, "sample__png": True},
            {"sample__film": True},
            {"nll__seed": 4, "sample__ema_rate": 0.5},  # the weights speak for themselves
            {"sample__skip": 0.05},  # less than half of one step of five
        )
    ]
    assert all(made_by == same[0] for made_by in same)
    linear = build.model(tiny(diffusion__schedule="linear", diffusion__T=21))
    wide = build.model(tiny(model__width=64))
    others = [
        *(
            decided_by(tiny(**{f"sample__{key}": value}), model, params, None)
            for key, value in {
                "seed": 1,
                "steps": "4",
                "sampler": "ddim",
                "eta": 0.5,
                "classes": (1,),
                "class_choice": "random",
                "guidance": 2.0,
                "low_res_noise": 0.1,
                "clip_x_0": False,
                "skip": 0.4,
                "variance": "fixed_large",
            }.items()
        ),
        *(decided_by(tiny(), m, params, None) for m in (linear, wide)),
        decided_by(tiny(), *formula(1.0 + 2**-23), None),
        decided_by(tiny(), model, params, base),
        decided_by(tiny(), model, params, base.first(3)),
        decided_by(tiny(), model, params, Base(PICTURES[:4], np.arange(4)[::-1])),
    ]
    assert len({repr(made_by) for made_by in [same[0], *others]}) == 1 + len(others)


def sample(folder, devices=2, model=None, **changes):
    """Twenty-three samples by the formula, with every batch a part: the bytes of their file."""
    config = tiny(**{"sample__count": 23, "sample__batch_size": 2, **changes})
    mesh = make_mesh(jax.devices()[:devices])
    written = ensure(folder, config, *(model or formula()), mesh, False, part_seconds=0.0)
    return written["npz"].read_bytes()


def stop_after(monkeypatch, batches, error):
    """Let drawing end with an error after some batches."""

    def stopping(*arguments):
        yield from itertools.islice(draw(*arguments), batches)
        raise error

    draw = samples.draw
    monkeypatch.setattr(samples, "draw", stopping)
    return lambda: monkeypatch.setattr(samples, "draw", draw)


@pytest.mark.slow
def test_stopped_drawing_goes_on_to_the_same_file_on_other_devices(tmp_path, monkeypatch, capsys):
    expected = sample(tmp_path / "whole", devices=4)
    begin = {"part": "drawing the others", "none": "", "damage": "drawing the others"}
    for how, batches in (("part", 2), ("none", 0), ("damage", 4)):
        again = stop_after(monkeypatch, batches, MemoryError())
        with pytest.raises(MemoryError):
            sample(tmp_path / how)
        again()
        found = sorted((tmp_path / how).glob("parts/rows_from_*"))
        assert len(found) == batches
        if how == "damage":
            found[2].write_bytes(found[2].read_bytes()[:300])
        capsys.readouterr()
        again = stop_after(monkeypatch, 1, MemoryError())
        with pytest.raises(MemoryError):
            sample(tmp_path / how, devices=1)
        again()
        assert begin[how] in capsys.readouterr().out
        assert sample(tmp_path / how, devices=3) == expected
        assert {file.name for file in (tmp_path / how).iterdir()} == {
            "grid.png",
            "samples_23x8x8x1.npz",
        }


@pytest.mark.slow
def test_interruption_keeps_what_was_drawn_and_says_so(tmp_path, monkeypatch, capsys):
    again = stop_after(monkeypatch, 2, KeyboardInterrupt())
    config = tiny(sample__count=23, sample__batch_size=2)
    with pytest.raises(KeyboardInterrupt):
        # Parts are far from due.
        ensure(tmp_path, config, *formula(), make_mesh(jax.devices()[:2]), False)
    again()
    assert "8 of 23 samples are kept; the same command goes on" in capsys.readouterr().err
    sample(tmp_path)
    assert "8 of 23 samples are there" in capsys.readouterr().out


@pytest.mark.slow
def test_samples_are_drawn_once_and_anew_for_other_weights(tmp_path, monkeypatch, capsys):
    first = sample(tmp_path)
    again = stop_after(monkeypatch, 0, AssertionError("drawn twice"))
    assert sample(tmp_path, devices=4, sample__png=True) == first
    assert "is there already" in capsys.readouterr().out
    assert len(list((tmp_path / "png").iterdir())) == 23
    for changes in ({"model": formula(2.0)}, {"sample__seed": 1}, {"sample__count": 24}):
        with pytest.raises(AssertionError, match="drawn twice"):
            sample(tmp_path, **changes)
    again()
    assert sample(tmp_path, model=formula(2.0)) == sample(tmp_path / "b", model=formula(2.0))


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["balanced", "random"])
def test_longer_drawing_takes_the_parts_of_a_shorter_one(tmp_path, monkeypatch, capsys, choice):
    def stopped(count):
        again = stop_after(monkeypatch, 3, MemoryError())
        with pytest.raises(MemoryError):
            sample(tmp_path / "a", sample__count=count, sample__class_choice=choice)
        again()

    stopped(11)  # all eleven were drawn, but not merged
    expected = sample(tmp_path / "b", sample__class_choice=choice)
    assert sample(tmp_path / "a", sample__class_choice=choice) == expected
    assert "11 of 23 samples are there" in capsys.readouterr().out
    # And a shorter one those of a longer.
    stopped(24)
    expected = sample(tmp_path / "b", sample__count=9, sample__class_choice=choice)
    assert sample(tmp_path / "a", sample__count=9, sample__class_choice=choice) == expected


SCRIPT = """\
import sys
from pathlib import Path
import jax
jax.config.update("jax_num_cpu_devices", int(sys.argv[2]))
from iddpm_jax import build
from iddpm_jax.evaluation.samples import ensure
from iddpm_jax.training.parallel import make_mesh
from tiny_config import tiny
config = tiny(sample__count=600, sample__batch_size=5, sample__steps="20")
model = build.model(config)
params = jax.jit(lambda: model.network.init(jax.random.key(0), model.image_shape))()
params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(1), p.shape), params)
ensure(Path(sys.argv[1]), config, model, params, make_mesh(), False, part_seconds=0.0)
"""


@pytest.mark.slow
def test_killed_process_goes_on_to_the_same_file_on_other_devices(tmp_path):
    def start(folder, devices):
        command = [sys.executable, "-c", SCRIPT, str(folder), str(devices)]
        return subprocess.Popen(command, cwd=Path(__file__).parent.parent)

    file = "samples_600x8x8x1.npz"
    assert start(tmp_path / "whole", 4).wait() == 0
    for devices in (2, 1):
        process = start(tmp_path / "killed", devices)
        before = len(list((tmp_path / "killed").glob("parts/rows_from_*")))
        while len(list((tmp_path / "killed").glob("parts/rows_from_*"))) < before + 3:
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / file).exists()
    assert start(tmp_path / "killed", 3).wait() == 0
    assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
