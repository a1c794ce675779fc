"""Weights between files and workdirs, from the command line: exact, and refused in one line."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_config import tiny

from iddpm_jax import build, convert, main, runtime
from iddpm_jax import config as configs
from iddpm_jax.errors import InputError
from iddpm_jax.interop import openai, weights
from iddpm_jax.training import runs
from iddpm_jax.training.parallel import make_mesh
from iddpm_jax.training.state import TrainState

CONFIG_FILE = """\
from tiny_config import tiny


def get_config(variants=""):
    return tiny()
"""


def state_dict(config) -> dict[str, np.ndarray]:
    """Official weights of a config's network in which no value occurs twice."""
    spec = build.model(config).spec
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), openai.shapes(spec))
    arrays, start = openai.to_state_dict(spec, zeros), 1
    for name, array in arrays.items():
        values = np.arange(start, start + array.size, dtype=np.float32) / 1e7
        arrays[name], start = values.reshape(array.shape), start + array.size
    return arrays


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(found) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name, strict=True)


@pytest.fixture(name="cli")
def make_cli(monkeypatch, capsys):
    """Function (arguments) -> (exit code, stdout, stderr), in a JAX that has started."""
    monkeypatch.setattr(runtime, "configure", lambda *_: None)

    def call(*arguments):
        capsys.readouterr()
        code = main.main(["iddpm_jax.main", *map(str, arguments)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


@pytest.fixture(name="config_file")
def write_config_file(tmp_path) -> Path:
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG_FILE)
    return path


@pytest.fixture(name="source")
def write_source(tmp_path) -> Path:
    path = tmp_path / "tiny_uncond_7K.safetensors"
    weights.write(path, state_dict(tiny()), {})
    return path


def assert_refused(cli, arguments, *words) -> None:
    code, _, error = cli(*arguments)
    assert code == 2 and error.startswith("error: ") and error.count("\n") == 1, error
    for word in words:
        assert word in error, error


@pytest.mark.slow
def test_weights_come_in_exactly_and_the_rest_starts_anew(cli, tmp_path, config_file, source):
    workdir = tmp_path / "run"
    flags = ("--mode", "convert", "--source", source, "--config", config_file, "--workdir", workdir)
    code, out, error = cli(*flags)
    assert code == 0 and not error and "step 7,000" in out

    _, model, _, state = runs.open_run(workdir)
    assert int(state.step) == 7000 and set(state.ema) == {"0.5", "0.9"}
    for params in (state.params, *state.ema.values()):
        assert_same(openai.to_state_dict(model.spec, params), state_dict(tiny()))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(state.opt_state))
    record = json.loads((workdir / configs.CONVERTED).read_text())
    assert record["step"] == 7000 and list(record["sha256"]) == [source.name]


@pytest.mark.slow
def test_weights_go_out_and_come_back_exactly_without_a_config(cli, tmp_path, config_file, source):
    first, out, second = (tmp_path / name for name in ("first", "out", "second"))
    cli("--mode", "convert", "--source", source, "--config", config_file, "--workdir", first)
    written = cli(
        *("--mode", "convert", "--workdir", first, "--target", out, "--format", "safetensors")
    )
    # The average that samples use is the plain "ema".
    names = ["model.safetensors", "ema.safetensors", "ema_0.5.safetensors"]
    assert written[:2] == (0, "".join(f"{out / name}\n" for name in names))
    assert_same(weights.read(out / "ema.safetensors").arrays, state_dict(tiny()))

    model_file = out / "model.safetensors"
    code, *_ = cli("--mode", "convert", "--source", model_file, "--workdir", second)
    assert code == 0
    states = [runs.open_run(workdir).state for workdir in (first, second)]
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), *states)
    assert configs.load(first / "config.json") == configs.load(second / "config.json")


@pytest.mark.slow
def test_a_folder_written_here_comes_back_average_by_average(tmp_path):
    config, mesh = tiny(), make_mesh()
    model = build.model(config)
    # Every set of parameters is another one.
    params = openai.from_state_dict(model.spec, state_dict(config))
    sets = [jax.tree.map(lambda a, i=i: a + np.float32(i), params) for i in range(3)]
    ema = {"0.5": sets[1], "0.9": sets[2]}
    state = TrainState(np.int32(3), sets[0], ema, None, None)
    convert.to_files(config, model, state, tmp_path / "out", "safetensors")
    convert.from_files(config, model, mesh, tmp_path / "out", tmp_path / "run")
    found = runs.open_run(tmp_path / "run").state
    assert int(found.step) == 3
    for ours, theirs in ((found.params, sets[0]), (found.ema["0.5"], sets[1]), (found.ema, ema)):
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), ours, theirs)


@pytest.mark.slow
def test_unfinished_conversion_can_be_tried_again(tmp_path, source):
    config, mesh = tiny(), make_mesh()
    model, run = build.model(config), tmp_path / "run"
    (run / "checkpoints" / "7000.orbax-checkpoint-tmp").mkdir(parents=True)
    convert.from_files(config, model, mesh, source, run)
    assert int(runs.open_run(run).state.step) == 7000


@pytest.mark.slow
def test_files_for_the_official_code_load_strictly(cli, tmp_path, config_file, source):
    torch = pytest.importorskip("torch")
    workdir, out = tmp_path / "run", tmp_path / "out"
    cli("--mode", "convert", "--source", source, "--config", config_file, "--workdir", workdir)
    assert cli("--mode", "convert", "--workdir", workdir, "--target", out)[0] == 0
    for name in ("model.pt", "ema.pt", "ema_0.5.pt"):
        loaded = torch.load(out / name, weights_only=True)
        expected = state_dict(tiny())
        assert list(loaded) == list(expected)  # the order of the official modules, too
        assert_same({key: tensor.numpy() for key, tensor in loaded.items()}, expected)


@pytest.mark.slow
def test_converted_workdir_samples_measures_and_trains_on(cli, tmp_path, config_file, source):
    workdir = tmp_path / "run"
    cli("--mode", "convert", "--source", source, "--config", config_file, "--workdir", workdir)
    run = ("--workdir", workdir, "--config.sample.count=4", "--config.nll.terms=1")
    assert cli(*run, "--mode", "sample")[0] == 0
    assert cli(*run, "--mode", "nll")[0] == 0
    more = ("--config.train.steps=7002", "--config.train.learning_rate=1e-5", "--config.seed=3")
    code, out, error = cli(*run, *more)
    assert code == 0 and "continuing from step 7000" in out
    state = runs.open_run(workdir).state
    assert int(state.step) == 7002
    # From here on it is a run like any other.
    assert_refused(cli, (*run, "--config.train.learning_rate=1e-6"), "holds another run")


@pytest.mark.slow
def test_converted_workdir_does_not_change_its_network(cli, tmp_path, config_file, source):
    workdir = tmp_path / "run"
    cli("--mode", "convert", "--source", source, "--config", config_file, "--workdir", workdir)
    for change in ("model.width=64", "train.ema_rates=(0.9,)", "train.gradient_clip=1.0"):
        assert_refused(cli, ("--workdir", workdir, f"--config.{change}"), "holds another run")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--source", "SOURCE"], ["--config is missing", "SOURCE"]),
        (["--config", "CONFIG"], ["--source", "--target"]),
        (["--config", "CONFIG", "--source", "SOURCE", "--target", "x"], ["one of them"]),
        (["--config", "CONFIG", "--source", "none"], ["none does not exist"]),
        (["--source", "none.safetensors"], ["none.safetensors does not exist"]),
        (["--config", "CONFIG", "--source", "SOURCE", "--format", "pt"], ["--target"]),
        (["--config", "CONFIG", "--source", "SOURCE", "--format", "onnx"], ["onnx", "safetensors"]),
        (
            ["--config", "CONFIG", "--source", "SOURCE", "--config.model.class_conditional=false"],
            ["class-conditional with 10 classes", "model.class_conditional=true"],
        ),
        (
            ["--config", "CONFIG", "--source", "SOURCE", "--config.model.low_res_size=4"],
            ["no super-resolution network", "model.low_res_size"],
        ),
        (
            ["--config", "CONFIG", "--source", "SOURCE", "--config.model.num_res_blocks=2"],
            ["lacks", "such entries"],
        ),
    ],
)
def test_bad_conversion_costs_one_line_and_leaves_nothing(
    cli, tmp_path, config_file, source, flags, words
):
    named = {"SOURCE": source, "CONFIG": config_file}
    workdir = tmp_path / "run"
    flags = [named.get(flag, flag) for flag in flags]
    words = [str(named.get(word, word)) for word in words]
    assert_refused(cli, ("--mode", "convert", "--workdir", workdir, *flags), *words)
    assert not workdir.exists()


def test_flags_of_other_modes_are_refused(cli, tmp_path, config_file, source):
    run = ("--config", config_file, "--workdir", tmp_path / "run")
    assert_refused(cli, (*run, "--source", source), "--mode convert")
    assert_refused(cli, (*run, "--target", "x", "--mode", "sample"), "--mode convert")
    assert_refused(cli, (*run, "--base", "x.npz"), "--mode sample")


@pytest.mark.slow
def test_workdir_in_use_is_left_alone(cli, tmp_path, config_file, source):
    flags = ("--mode", "convert", "--source", source, "--config", config_file)
    workdir = tmp_path / "run"
    cli(*flags, "--workdir", workdir)
    before = sorted(workdir.rglob("*"))
    assert_refused(cli, (*flags, "--workdir", workdir), "already holds checkpoints")
    assert sorted(workdir.rglob("*")) == before


def test_the_newest_step_of_an_official_folder_is_taken(tmp_path):
    for name in ("model000005.pt", "model000010.pt", "ema_0.9999_000005.pt", "opt000010.pt"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"no ema_0\.9999_000010\.pt or .* beside model000010"):
        convert.find_sources(tmp_path, (0.9999,), 0.9999)
    (tmp_path / "ema_0.9999_000010.pt").touch()
    sources = convert.find_sources(tmp_path, (0.9999,), 0.9999)
    assert sources.model.name == "model000010.pt" and sources.step == 10
    assert sources.ema[0.9999].name == "ema_0.9999_000010.pt"


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no model\*\.pt"):
        convert.find_sources(tmp_path, (), 0.0)
