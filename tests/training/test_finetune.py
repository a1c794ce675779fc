"""Starting from another run's parameters."""

import jax
import numpy as np
import pytest
from tiny_config import tiny

from iddpm_jax import build, convert
from iddpm_jax import config as configs
from iddpm_jax.errors import InputError
from iddpm_jax.training import finetune, loop, runs
from iddpm_jax.training.parallel import make_mesh

pytestmark = pytest.mark.slow


def train(config, workdir):
    """The final state, from main's steps in main's order."""
    model = build.model(config)
    initial = finetune.read(config, model)
    build.settle(config, model)
    configs.save(config, workdir / "config.json")
    return jax.device_get(loop.train(config, model, make_mesh(), workdir, None, initial))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A finished run: (workdir, its state)."""
    workdir = tmp_path_factory.mktemp("source")
    return workdir, train(tiny(train__steps=3), workdir)


def started(config):
    """The state that fine-tuning would begin with."""
    model, mesh = build.model(config), make_mesh()
    state = finetune.start_from(runs.new_state(config, model, mesh)(), finetune.read(config, model))
    return jax.device_get(state)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_everything_but_the_parameters_is_new(source):
    workdir, trained = source
    state = started(tiny(init_from=str(workdir), train__ema_rates=(0.9, 0.99)))
    assert_equal(state.params, trained.weights(0.9))  # the average that the source samples with
    assert int(state.step) == 0
    for rate in ("0.9", "0.99"):
        assert_equal(state.ema[rate], state.params)
    for moment in jax.tree.leaves(state.opt_state):
        np.testing.assert_array_equal(moment, 0)


def test_other_classes_are_learned_anew(source):
    workdir, trained = source
    config = tiny(init_from=str(workdir), data__name="emoji", data__image_shape=(8, 8, 3))
    with pytest.raises(InputError, match="conv_in.*here; set the model part"):
        started(config)
    config = tiny(init_from=str(workdir), data__num_classes=12)
    state, fresh = started(config), runs.new_state(config, build.model(config), make_mesh())()
    assert_equal(state.params["class_embedding"], jax.device_get(fresh.params["class_embedding"]))
    assert len(jax.tree.leaves(state.params["class_embedding"])[0]) == 12
    assert_equal(state.params["conv_out"], trained.weights(0.9)["conv_out"])
    state = started(tiny(init_from=str(workdir), model__class_conditional=False))
    assert "class_embedding" not in state.params
    assert_equal(state.params["conv_out"], trained.weights(0.9)["conv_out"])


def test_file_of_weights_is_a_start_too(source, tmp_path):
    workdir, trained = source
    run = runs.open_run(workdir)
    convert.to_files(run.config, run.model, run.state, tmp_path, "safetensors")
    state = started(tiny(init_from=str(tmp_path / "ema.safetensors")))
    assert_equal(state.params, trained.weights(0.9))
    state = started(tiny(init_from=str(tmp_path / "ema.safetensors"), data__num_classes=11))
    assert_equal(state.params["conv_out"], trained.weights(0.9)["conv_out"])


def test_run_goes_on_from_its_own_checkpoint_afterwards(source, tmp_path):
    workdir, _ = source
    config = tiny(init_from=str(workdir), train__steps=4)
    (tmp_path / "straight").mkdir()
    (tmp_path / "halves").mkdir()
    expected = train(config.copy_and_resolve_references(), tmp_path / "straight")
    first = config.copy_and_resolve_references()
    first.train.steps = 2
    train(first, tmp_path / "halves")
    assert_equal(train(config, tmp_path / "halves"), expected)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"init_from": "/nowhere"}, "init_from /nowhere does not exist; name a workdir"),
        ({"model__width": 64}, "does not fit this config: .* set the model part"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(source, change, words):
    config = tiny(**{"init_from": str(source[0]), **change})
    with pytest.raises(InputError, match=words) as error:
        finetune.read(config, build.model(config))
    assert "\n" not in str(error.value)
