"""--mode gradients: rows in files and a table, from checkpoints on disk."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_config import tiny

from iddpm_jax import build, main, runtime
from iddpm_jax import config as configs
from iddpm_jax.evaluation import gradients
from iddpm_jax.evaluation.gradient_noise import Sums, estimate
from iddpm_jax.models.unet import Network
from iddpm_jax.training.checkpoint import Checkpoints
from iddpm_jax.training.parallel import make_mesh
from iddpm_jax.training.runs import new_state

SETTINGS = {"gradients__batches": 20, "gradients__batch_size": 8, "model__class_conditional": False}


def stored(folder, steps=(2, 4), **changes):
    """A workdir with checkpoints of a network that was never trained."""
    config = tiny(data__image_shape=(8, 8, 1), data__num_classes=10, **SETTINGS, **changes)
    folder.mkdir()
    configs.save(config, folder / "config.json")
    state = new_state(config, build.model(config), make_mesh())()
    with Checkpoints(folder / "checkpoints", 9) as checkpoints:
        for step in steps:
            state = type(state)(np.int32(step) + 0 * state.step, *_rest(state))
            checkpoints.save(step, state, None, config.to_dict())
    return folder


def _rest(state):
    return state.params, state.ema, state.opt_state, state.history, state.loss_scale


@pytest.fixture(autouse=True)
def replace_network(monkeypatch):
    """A network that compiles at once: eps is linear in x_t, pixel by pixel."""

    def init(_, shape):
        return {"slope": jnp.full(shape, 0.5)}

    def apply(params, x, t, y, dropout_keys, low_res):
        eps = params["slope"][None] * x
        return eps if fixed else jnp.concatenate([eps, 0.1 * eps], axis=-1)

    def make_network(spec):
        nonlocal fixed
        fixed = spec.out_channels == spec.channels
        return Network(init, apply)

    fixed = False
    monkeypatch.setattr(build, "make_network", make_network)


@pytest.fixture(name="cli")
def make_cli(monkeypatch, capsys):
    """Function (arguments) -> (exit code, stdout, stderr), in this process."""
    monkeypatch.setattr(runtime, "configure", lambda *_: None)

    def call(*arguments):
        capsys.readouterr()
        code = main.main(["iddpm_jax.main", "--mode", "gradients", *map(str, arguments)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


@pytest.mark.slow
def test_every_checkpoint_is_measured_once_and_kept(cli, tmp_path, monkeypatch):
    folder = stored(tmp_path / "run", diffusion__variance="fixed_large", loss__name="l_simple")
    code, out, _ = cli("--workdir", folder)
    assert code == 0
    assert "L_hybrid is left out" in out and "fixed_large" in out
    assert "step 2: gradients of 20 batches of 8" in out and "step 4: gradients" in out
    stem = folder / "gradients" / "step00000004_digits_20x8images_seed0"
    record = json.loads(stem.with_suffix(".json").read_text())
    rows = {(row["objective"], row["timesteps"]): row for row in record["rows"]}
    assert set(rows) == {(o, "uniform") for o in ("l_simple", "l_vlb")} | {("l_vlb", "importance")}
    with np.load(stem.with_suffix(".npz")) as arrays:
        sums = Sums(*(arrays[f"l_vlb_uniform_{name}"] for name in Sums._fields))
        np.testing.assert_allclose(arrays["l_vlb_importance_p"].sum(), 1, rtol=1e-5)
    noise, row = estimate(sums), rows["l_vlb", "uniform"]
    assert row["variance"] == noise.variance.value
    assert row["noise_scale_error"] == noise.scale.error or math.isnan(noise.scale.error)
    ratio = record["importance"]["l_vlb"]["factor"]
    quotient = rows["l_vlb", "importance"]["variance"] / row["variance"]
    np.testing.assert_allclose(ratio, quotient, rtol=1e-12)

    def measure(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(gradients.Measurement, "rows", measure)
    assert cli("--workdir", folder)[:2] == (code, out)
    alone = cli("--workdir", folder, "--checkpoint", "2")[1]
    assert "step 2: " in alone and "step 4: " not in alone
    with pytest.raises(AssertionError, match="measured again"):
        cli("--workdir", folder, "--config.gradients.seed=1")


def test_what_was_interrupted_loses_one_checkpoint_at_most(cli, tmp_path, monkeypatch):
    folder, seen = stored(tmp_path / "run", loss__name="l_vlb"), []

    def rows(_, state, *__):
        seen.append(int(state.step))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return []

    monkeypatch.setattr(gradients.Measurement, "rows", rows)
    code, _, err = cli("--workdir", folder)
    assert (code, err) == (130, "interrupted\n")
    assert cli("--workdir", folder)[0] == 0
    assert seen == [2, 4, 4]


def test_workdir_without_checkpoints_is_refused(cli, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    configs.save(tiny(), folder / "config.json")
    code, out, err = cli("--workdir", folder)
    assert (code, out) == (2, "")
    assert "holds no checkpoints" in err and err.count("\n") == 1


def test_table_says_bounds_and_errors():
    row = {
        "objective": "l_vlb",
        "timesteps": "uniform",
        "noise_scale": 1234.5,
        "noise_scale_error": 210.0,
        "noise_scale_at_least": 900.0,
        "resolved": True,
        "squared_gradient": 0.5,
        "squared_gradient_error": 0.0625,
        "variance": 617.25,
        "variance_error": 31.0,
        "norm": 3.0,
        "norm_variance": 0.25,
        "loss": 7.5,
        "loss_variance": 4.0,
    }
    lost = {**row, "timesteps": "importance", "resolved": False, "noise_scale": None}
    record = {
        "step": 1000,
        "made_by": {"gradients": {"batches": 20, "batch_size": 8}},
        # A loss that somebody added has a row too.
        "rows": [row, lost, {**lost, "objective": "l_new", "noise_scale_at_least": None}],
        "importance": {
            "l_vlb": {
                "factor": 0.25,
                "factor_error": 0.01,
                "scale_evenly": 12345.0,
                "scale_evenly_error": 600.0,
            }
        },
    }
    title, _, first, second, third, ratio = gradients.table(record)
    assert title.startswith("step 1,000")
    words = ("L_vlb", "evenly", "1,234 +- 210", "0.5 +- 0.06", "617 +- 3e+01", "3 (0.5)", "7.5 (2)")
    for word in words:
        assert word in first
    assert "by importance" in second and "> 900" in second and "unknown" in third
    assert third.startswith("L_new ")
    assert "0.25 +- 0.01" in ratio and "12,345 +- 600" in ratio
