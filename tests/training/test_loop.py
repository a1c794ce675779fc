"""Whole runs: resuming bit for bit, stopping, diverging, damaged checkpoints, what is reported."""

import csv
import json
import os
import shutil
import signal
import time

import jax
import numpy as np
import pytest
from tiny_config import tiny

from iddpm_jax import build, data
from iddpm_jax import config as configs
from iddpm_jax.errors import DivergedError, InputError
from iddpm_jax.images import write_png
from iddpm_jax.training import loop, runs
from iddpm_jax.training.checkpoint import Checkpoints
from iddpm_jax.training.parallel import make_mesh

# Nearly all of it compiles a training step, a sampler or a likelihood.
pytestmark = pytest.mark.slow

IMPORTANCE = {"loss__name": "l_vlb", "loss__timesteps": "importance", "loss__history_size": 2}


def no_preview(*_):
    raise AssertionError("no samples were asked for")


def no_evaluation(_):
    raise AssertionError("no bits/dim were asked for")


def train(config, workdir, preview, evaluate=no_evaluation):
    """loop.train on all devices."""
    return loop.train(
        config, build.model(config), make_mesh(), workdir, loop.Hooks(preview, evaluate)
    )


def assert_same(a, b):
    """Equal to the last bit, leaf by leaf."""
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))


def position_after(workdir, config):
    """Position of the data iterator in the newest checkpoint."""
    model, mesh = build.model(config), make_mesh()
    with Checkpoints(workdir / "checkpoints", 2) as checkpoints:
        return runs.restore(config, model, mesh, checkpoints)[1]


def batch_at(config, position):
    source = data.load(config.data.name, "train")
    batches = data.training_batches(
        source, config.train.batch_size, config.seed, config.data.random_flip
    )
    batches.set_state(position)
    return next(batches)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Twenty steps in one go: (config, workdir, final state)."""
    workdir = tmp_path_factory.mktemp("straight")
    config = tiny(train__steps=20, model__dropout=0.1, data__random_flip=True, **IMPORTANCE)
    return config, workdir, jax.device_get(train(config, workdir, no_preview))


def test_ten_and_ten_steps_equal_twenty_exactly(straight, tmp_path):
    config, workdir, expected = straight
    first = config.copy_and_resolve_references()
    first.train.steps = 10
    train(first, tmp_path, no_preview)
    state = jax.device_get(train(config, tmp_path, no_preview))
    assert int(state.step) == 20
    assert int(state.history.seen.sum()) == 20 * 16
    assert_same(expected, state)
    positions = [position_after(folder, config) for folder in (workdir, tmp_path)]
    assert_same(*(batch_at(config, position) for position in positions))


@pytest.fixture(scope="module")
def in_twos(straight, tmp_path_factory):
    """The first four steps of the same run, two to a dispatch. Few, as CPUs are slow at them."""
    config = straight[0].copy_and_resolve_references()
    config.train.update(steps=4, steps_per_dispatch=2)
    workdir = tmp_path_factory.mktemp("in_twos")
    return config, workdir, jax.device_get(train(config, workdir, no_preview))


def test_steps_of_a_dispatch_are_those_of_single_ones(straight, in_twos):
    ones, twos = (
        [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        for _, workdir, _ in (straight, in_twos)
    )
    assert [row["step"] for row in twos] == [2, 4]
    for one, two in zip(ones, twos, strict=False):
        for name in one.keys() - {"images_per_second", "data_wait"}:
            expected = np.nan if one[name] is None else one[name]
            found = np.nan if two[name] is None else two[name]
            np.testing.assert_allclose(found, expected, rtol=1e-4, err_msg=name)
    config, workdir, state = in_twos
    assert (int(state.step), int(state.history.seen.sum())) == (4, 4 * 16)
    assert position_after(workdir, config) == {"next_index": 4}


def test_run_of_several_steps_to_a_dispatch_resumes_exactly(in_twos, tmp_path, monkeypatch):
    config, _, expected = in_twos
    asked = []

    def after(_, dispatch):
        asked.append(dispatch)
        return "notice to stop"

    with monkeypatch.context() as patch:
        patch.setattr(loop.StopRequest, "after", after)
        assert train(config, tmp_path, no_preview) is None
    with Checkpoints(tmp_path / "checkpoints", None) as checkpoints:
        assert checkpoints.latest == 2
    with monkeypatch.context() as patch:
        patch.setattr(loop.StopRequest, "after", lambda _, dispatch: asked.append(dispatch))
        assert_same(expected, jax.device_get(train(config, tmp_path, no_preview)))
    assert asked == [1, 2]  # one by one: in several processes none may be left out


def test_run_that_stands_within_a_dispatch_is_refused(in_twos):
    config, workdir, _ = in_twos
    other = config.copy_and_resolve_references()
    other.train.update(steps=6, log_every_steps=3, checkpoint_every_steps=99)
    other.train.steps_per_dispatch = 3
    with pytest.raises(InputError, match="steps_per_dispatch is 3, .* the 4 steps"):
        train(other, workdir, no_preview)


def test_diverged_dispatch_names_the_step(in_twos, tmp_path):
    """The learning rate is so high that the loss of the second step overflows."""
    config = in_twos[0].copy_and_resolve_references()
    config.train.learning_rate = 1e30
    with pytest.raises(DivergedError, match="not finite at step 2; there is no checkpoint"):
        train(config, tmp_path, no_preview)


def test_float16_run_resumes_with_its_scale(tmp_path):
    config = tiny(train__steps=4, model__dtype="float16")
    expected = jax.device_get(train(config, tmp_path / "straight", no_preview))
    config.train.steps = 2
    train(config, tmp_path / "halves", no_preview)
    config.train.steps = 4
    state = jax.device_get(train(config, tmp_path / "halves", no_preview))
    assert_same(expected, state)
    rows = [
        json.loads(line)
        for line in (tmp_path / "halves" / "metrics.jsonl").read_text().splitlines()
    ]
    # Means of two steps each, of the scale that a step was taken under; no step was skipped.
    assert [row["skipped"] for row in rows] == [0, 0]
    scales = [row["log2_loss_scale"] for row in rows]
    np.testing.assert_allclose(scales, [20.0005, 20.0025], rtol=0, atol=1e-5)
    np.testing.assert_allclose(state.loss_scale.log2, 20.004, rtol=0, atol=1e-5)


def test_stored_state_equals_the_one_in_memory(straight):
    config, workdir, expected = straight
    with Checkpoints(workdir / "checkpoints", 2) as checkpoints:
        stored, _ = runs.restore(config, build.model(config), make_mesh(), checkpoints)
    assert_same(expected, jax.device_get(stored))


def test_run_restores_onto_fewer_devices(straight):
    config, workdir, expected = straight
    mesh = make_mesh(jax.devices()[:1])
    with Checkpoints(workdir / "checkpoints", 2) as checkpoints:
        stored, _ = runs.restore(config, build.model(config), mesh, checkpoints)
    assert_same(expected, jax.device_get(stored))


def test_finished_run_does_nothing_more(straight, capsys):
    config, workdir, expected = straight
    state = train(config, workdir, no_preview)
    assert "already trained to step 20" in capsys.readouterr().out
    assert_same(expected, jax.device_get(state))


def test_rows_have_rate_losses_quartiles_and_importance(straight):
    _, workdir, _ = straight
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(2, 21, 2))
    names = {"loss", "l_simple", "l_vlb", "gradient_norm", "learning_rate", "images_per_second"}
    names |= {f"{loss}_q{q}" for loss in ("l_simple", "l_vlb") for q in range(4)}
    assert names | {"warmed_up", "effective_sample_size"} <= rows[0].keys()
    assert rows[0]["warmed_up"] < rows[-1]["warmed_up"]
    with (workdir / "progress.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in table] == [row["loss"] for row in rows]
    assert list((workdir / "tensorboard").glob("events.out.tfevents.*"))


def test_rows_after_the_restored_step_are_not_repeated(tmp_path):
    config = tiny(train__steps=4)
    train(config, tmp_path, no_preview)
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 6, "loss": 1.0}\n{"step": 8, "lo')
    config.train.steps = 8
    train(config, tmp_path, no_preview)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    assert "l_simple" in rows[2]


def test_preview_is_asked_for_at_its_steps(tmp_path):
    seen = []

    def preview(params, step):
        seen.append(step)
        return np.zeros((8, 8, 1), np.uint8)

    train(tiny(train__steps=5, train__sample_every_steps=2), tmp_path, preview)
    assert seen == [2, 4]


def test_signal_saves_and_stops(tmp_path):
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def preview(params, step):
        os.kill(os.getpid(), signal.SIGTERM)
        return np.zeros((8, 8, 1), np.uint8)

    config = tiny(train__steps=50, train__sample_every_steps=3)
    assert train(config, tmp_path, preview) is None
    with Checkpoints(tmp_path / "checkpoints", 2) as checkpoints:
        assert checkpoints.latest == 4
    assert signal.signal(signal.SIGTERM, before or signal.SIG_DFL) == signal.SIG_DFL


def test_diverged_run_names_step_and_last_good_checkpoint(tmp_path):
    config = tiny(train__steps=40, train__checkpoint_every_steps=2)
    train(tiny(train__steps=2), tmp_path, no_preview)
    config.train.learning_rate = 1e30
    with pytest.raises(DivergedError, match=r"not finite at step \d+.*checkpoints/\d+"):
        train(config, tmp_path, no_preview)
    with Checkpoints(tmp_path / "checkpoints", 2) as checkpoints:
        state, _ = runs.restore(config, build.model(config), make_mesh(), checkpoints)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state.params)))


def test_run_goes_back_from_a_damaged_checkpoint_and_saves_its_step_anew(tmp_path, capsys):
    config = tiny(train__steps=4, train__checkpoint_every_steps=2)
    expected = jax.device_get(train(config, tmp_path, no_preview))
    folder = tmp_path / "checkpoints"
    shutil.rmtree(folder / "4" / "state")
    config.train.steps = 6
    train(config, tmp_path, no_preview)
    out, error = capsys.readouterr()
    assert "continuing from step 2" in out
    assert "warning: checkpoint" in error and "going back" in error
    assert sorted(f.name for f in folder.iterdir()) == ["4", "4.damaged", "6"]
    with Checkpoints(folder, None) as checkpoints:
        model = build.model(config)
        again, _ = runs.restore(config, model, make_mesh(), checkpoints, step=4)
    assert_same(expected, jax.device_get(again))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6]


def test_evaluations_are_reported_saved_and_the_best_is_kept(tmp_path):
    measured = {2: 3.0, 4: 1.0, 6: 2.0, 8: 4.0}
    config = tiny(train__steps=9, train__evaluate_every_steps=2, train__log_every_steps=5)
    config.train.keep_checkpoints = 1
    train(config, tmp_path, no_preview, lambda state: measured[int(state.step)])
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(r["step"], r.get("test_bits_per_dim")) for r in rows] == [
        *((2, 3.0), (4, 1.0), (5, None), (6, 2.0), (8, 4.0), (9, None))
    ]
    assert sorted(f.name for f in (tmp_path / "checkpoints").iterdir()) == ["4", "9"]
    for choice, step in (("best", 4), ("9", 9), (None, 9)):
        configs.save(config, tmp_path / "config.json")
        assert int(runs.open_run(tmp_path, checkpoint=choice).state.step) == step
    with pytest.raises(InputError, match="no checkpoint of step 7; it has 4, 9"):
        runs.open_run(tmp_path, checkpoint="7")


def test_reading_leaves_a_save_in_progress_alone(straight):
    _, workdir, _ = straight
    unfinished = workdir / "checkpoints" / "30.orbax-checkpoint-tmp"
    unfinished.mkdir()

    def gone(keep: int | None, within: float) -> bool:
        with Checkpoints(workdir / "checkpoints", keep) as checkpoints:
            assert checkpoints.latest == 20
            deadline = time.monotonic() + within  # orbax clears up in the background
            while unfinished.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
        return not unfinished.exists()

    assert not gone(None, within=0.5)
    assert gone(2, within=60)


def test_old_checkpoints_are_removed(tmp_path):
    config = tiny(train__steps=6, train__checkpoint_every_steps=2)
    train(config, tmp_path, no_preview)
    kept = sorted(f.name for f in (tmp_path / "checkpoints").iterdir())
    assert kept == ["4", "6"]


def test_picture_that_cannot_be_read_costs_no_step(tmp_path):
    rng, folder = np.random.default_rng(0), tmp_path / "pictures"
    for i in range(64):
        write_png(folder / "train" / f"a_{i}.png", rng.integers(0, 256, (8, 8, 3), np.uint8))
    (folder / "test").mkdir()
    shutil.copy(folder / "train" / "a_0.png", folder / "test")
    (folder / "train" / "a_7.png").write_bytes(b"no picture")
    config = tiny(
        data__name=f"folder:{folder}", model__class_conditional=False, train__steps=5, seed=1
    )
    with pytest.raises(InputError, match="a_7.png") as error:
        train(config, tmp_path / "run", no_preview)
    assert "\n" not in str(error.value)
    with Checkpoints(tmp_path / "run" / "checkpoints", None) as checkpoints:
        saved = checkpoints.latest
    assert (
        1 <= saved < 4
    )  # one of the first four batches has the picture, with this seed a late one
    skipping = config.copy_and_resolve_references()
    skipping.data.corrupt = "skip"
    resumed = jax.device_get(train(skipping, tmp_path / "run", no_preview))
    assert_same(resumed, jax.device_get(train(skipping, tmp_path / "straight", no_preview)))
