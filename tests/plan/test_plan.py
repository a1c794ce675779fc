"""Plans of small networks: without libtpu, and with it where it is installed."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from tiny_config import tiny

from iddpm_jax import build, main, plan, runtime
from iddpm_jax.errors import InputError
from iddpm_jax.plan import programs, results
from iddpm_jax.plan.traffic import training_bytes
from iddpm_jax.training import parallel, runs

ROOT = Path(__file__).resolve().parent.parent.parent
PUBLISHED = sorted(path.name for path in (ROOT / "configs").glob("*.py"))
SLICE = plan.topology("v5e:2x2")
SMALL = [
    *("--config", "configs/digits.py", "--config.diffusion.T=20", "--config.sample.steps=5"),
    *("--config.model.channel_mult=(1,)", "--config.model.attention_resolutions=()"),
]


@pytest.fixture(name="without_libtpu")
def hide_libtpu(monkeypatch):
    monkeypatch.setattr(results, "libtpu_version", lambda: None)


@pytest.fixture(name="cli")
def make_cli(without_libtpu, monkeypatch, tmp_path, capsys):
    """Function (arguments) -> (exit code, stdout, stderr), with a cache of its own."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(runtime, "configure", lambda *_: None)  # JAX has started

    def call(*arguments):
        sys.modules.pop("config_config", None)
        capsys.readouterr()
        code = main.main(["iddpm_jax.main", "--mode", "plan", *map(str, arguments)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    yield call
    sys.modules.pop("config_config", None)


@pytest.mark.slow
def test_command_line_estimates_without_libtpu_and_remembers(cli, tmp_path):
    workdir = tmp_path / "run"
    arguments = [*SMALL, "--topology", "v5e:2x2", "--workdir", workdir]
    code, out, err = cli(*arguments)
    assert code == 0, err
    assert "ESTIMATE" in out and "iddpm_jax[tpu-plan]" in out
    assert "of 16 GiB: fits" in out and "DOES NOT FIT" not in out
    assert "1 all-reduce" in out
    assert "compiling the training step for v5e:2x2: 0:00" in err
    # The file is all that is left, and does not make the folder a run.
    (path,) = workdir.iterdir()
    assert str(path) in out
    written = json.loads(path.read_text())
    assert set(written["programs"]) == {"train", "sample"}
    assert written["programs"]["train"]["images"] == 128
    assert written["programs"]["sample"]["trips"] == 5

    code, again, err = cli(*arguments)
    assert code == 0
    assert "compiling" not in err
    assert "earlier" in again and "earlier" not in out
    _, _, err = cli(*arguments, "--config.train.steps=77")  # changes no program
    assert "compiling" not in err


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], ["--topology", "v5e:2x2"]),
        (["--topology", "v5e:2x3"], ["v5e:2x3", "2x2, 2x4"]),
        (["--topology", "h100:8"], ["h100:8", "v4, v5e"]),
        (["--topology", "v5e:16x16"], ["train.batch_size 128", "256 devices"]),
        (
            ["--topology", "v5e:4x8", "--config.train.microbatches=8"],
            ["32 devices", "8 microbatches", "--config.train.batch_size"],
        ),
        (["--topology", "v5e:2x2", "--part", "nll"], ["nll", "'train', 'sample', 'all'"]),
        (["--topology", "v5e:2x2", "--mode", "train", "--workdir", "x"], ["--mode plan"]),
    ],
)
def test_what_cannot_be_planned_is_refused_in_a_line(cli, tmp_path, arguments, words):
    code, out, err = cli(*SMALL, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    for word in words:
        assert word in err
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_microbatches_change_memory_and_not_flops(without_libtpu, tmp_path):
    def step(microbatches):
        config = tiny(train__microbatches=microbatches, train__batch_size=64)
        return plan.plan(config, SLICE, "train", tmp_path)["programs"]["train"]

    whole, parts = step(1), step(4)
    assert parts["flops"] == pytest.approx(whole["flops"], rel=0.05)
    assert parts["bytes"] > 0.8 * whole["bytes"]
    assert parts["hand_flops"] == whole["hand_flops"]
    assert 1.0 < whole["flops"] / whole["hand_flops"] < 1.15
    sent = [sum(c["bytes"] * c["times"] for c in s["collectives"]) for s in (whole, parts)]
    assert sent[1] == pytest.approx(sent[0], rel=0.01)
    assert parts["memory"]["temporaries"] < whole["memory"]["temporaries"]


def test_a_chip_draws_its_own_batch_on_any_slice(without_libtpu, tmp_path, monkeypatch):
    memory = dict.fromkeys(("arguments", "results", "temporaries", "code"), 2**30)
    numbers = dict.fromkeys(("flops", "bytes", "operation_bytes", "hbm_bytes", "seconds"), 1.0)
    numbers |= {"collectives": [], "memory": memory}
    monkeypatch.setattr(programs, "measure", lambda *_: numbers)
    model = build.model(tiny(model__dtype="bfloat16"))
    parameters = plan.plan(tiny(), plan.topology("v5e:1x1"), "train", tmp_path)["parameters"]
    averages = len(tiny().train.ema_rates)
    by_hand = training_bytes(model.spec, model.image_shape, 16, parameters, averages)
    for name, chips in (("v5e:2x2", 4), ("v5e:4x4", 16)):
        found = plan.plan(tiny(sample__batch_size=6), plan.topology(name), "all", tmp_path)
        assert found["programs"]["sample"]["images"] == 6 * chips
        step = found["programs"]["train"]
        assert step["images"] == 16
        # Activations are those of a chip's images; every chip has all parameters.
        assert step["hand_bytes"]["forward"] * chips == by_hand["forward"]
        assert step["hand_bytes"]["parameters"] == by_hand["parameters"]
        assert "by hand, least" in plan.report.text(found, plan.topology(name))


def test_a_step_that_does_not_fit_comes_with_advice(without_libtpu, tmp_path, monkeypatch):
    refused = {"needed": 40 * 2**30, "available": 15.75 * 2**30, "seconds": 1.0}
    monkeypatch.setattr(programs, "measure", lambda *_: refused)
    found = plan.plan(tiny(), SLICE, "train", tmp_path)
    text = plan.report.text(found, SLICE)
    assert "40.00 of 16 GiB: DOES NOT FIT" in text
    # The state is nothing beside 40 GiB, so four parts of one image each would be a quarter.
    assert "--config.train.microbatches=4: about 10.0 GiB, which would fit" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_programs_of_published_configs_need_no_data(name, without_libtpu):
    path = ROOT / "configs" / name
    spec = importlib.util.spec_from_file_location("published", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    model, mesh = build.model(config), parallel.make_mesh()
    state = runs.abstract_state(config, model, mesh)
    step = programs.train_program(config, model, mesh, state)
    sampler = programs.sample_program(config, model, mesh, state)
    leaves = jax.tree.leaves((step.arguments, sampler.arguments))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding for leaf in leaves)
    # Parameters, their average, and two moments, in float32 on every device.
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    expected = 4 * parameters * (3 + len(config.train.ema_rates))
    assert programs.bytes_per_device(state) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "text",
    [
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. "
        "Exceeded hbm capacity by 4.75G.",
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (20.50G) exceeds available HBM (15.75G).",
    ],
)
def test_the_compilers_refusal_is_a_result(text):
    found = programs._too_large(jax.errors.JaxRuntimeError(text))
    assert found == {"needed": 20.5 * 2**30, "available": 15.75 * 2**30}


def test_other_failures_of_the_compiler_are_not():
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        programs._too_large(jax.errors.JaxRuntimeError("INTERNAL: Used 1G of 2G hbm"))


def test_a_half_written_result_is_measured_again(tmp_path):
    key = results.key(tiny(), "train", "v5e:2x2", "nobody")
    results.save(tmp_path, key, {"flops": 1.0})
    assert results.load(tmp_path, key) == {"flops": 1.0}
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text()[:-20])
    assert results.load(tmp_path, key) is None


@pytest.mark.parametrize(
    "change, program, same",
    [
        ({"train__steps": 9}, "train", True),
        ({"sample__steps": "4"}, "train", True),
        ({"model__width": 64}, "train", False),
        ({"train__microbatches": 2}, "train", False),
        ({"train__microbatches": 2}, "sample", True),
        ({"sample__steps": "4"}, "sample", False),
    ],
)
def test_results_are_kept_by_what_decides_them(change, program, same):
    before, after = (
        results.key(config, program, "v5e:2x2", "nobody") for config in (tiny(), tiny(**change))
    )
    assert (before == after) == same


@pytest.mark.slow
def test_the_tpus_compiler_agrees_with_the_count(tmp_path):
    pytest.importorskip("libtpu")
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    environment.pop("XLA_FLAGS", None)  # those of the tests are for CPUs
    command = [sys.executable, "-m", "iddpm_jax.main", "--mode", "plan", *SMALL]
    command += ["--topology", "v5e:2x2", "--workdir", str(tmp_path / "plan")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "compiled for the TPU by libtpu" in done.stdout
    (path,) = (tmp_path / "plan").iterdir()
    for program in json.loads(path.read_text())["programs"].values():
        assert 1.0 < program["flops"] / program["hand_flops"] < 1.15
        # Much of what is accessed stays on the chip.
        assert 0 < program["hbm_bytes"] < program["bytes"]


def test_refused_batch_names_the_slice():
    with pytest.raises(InputError, match="16 is not divisible by the 32 devices of v5e:4x8"):
        plan.plan(tiny(), plan.topology("v5e:4x8"), "train", Path("nowhere"))
