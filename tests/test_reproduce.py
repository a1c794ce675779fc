"""The suite: that its commands are sound, and that it goes on after them."""

import os
from pathlib import Path

import jax
import pytest

from iddpm_jax import arguments, main, reproduce, runtime
from iddpm_jax import config as configs

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("DEVICES", "2")
    # Other tests go on with the programs that they have compiled.
    monkeypatch.setattr(jax, "clear_caches", lambda: None)


@pytest.fixture(name="called")
def record_calls(monkeypatch):
    """Commands that reach main, which does nothing but what a finished training leaves."""
    calls = []

    def call(argv):
        calls.append(argv[1:])
        if "--config" in argv:
            folder = Path(argv[argv.index("--workdir") + 1]) / "nll"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "bound.json").write_text("{}")
        return 0

    monkeypatch.setattr(main, "main", call)
    return calls


@pytest.mark.parametrize("data", ["digits", "emoji"])
def test_commands_are_what_the_command_line_takes(data, tmp_path):
    trained = {}
    commands = [*reproduce.commands(data, tmp_path, 2), *reproduce.figures(tmp_path, 2)]
    for command in commands:
        parsed = arguments.parse(command)  # objects to keys, words and modes that do not exist
        if parsed.mode == "train":
            parsed.workdir.mkdir(parents=True)
            configs.save(parsed.config, parsed.workdir / "config.json")
            trained[parsed.workdir.name] = parsed.config
    rows = {
        name: (c.diffusion.T, c.diffusion.schedule, c.loss.name, c.loss.timesteps)
        for name, c in trained.items()
    }
    T = {"digits": 400, "emoji": 4000}[data]
    for seed in (0, 1):
        assert rows[f"short_linear_simple_seed{seed}"] == (T // 4, "linear", "l_simple", "uniform")
        assert rows[f"linear_hybrid_seed{seed}"] == (T, "linear", "l_hybrid", "uniform")
        assert rows[f"cosine_vlb_seed{seed}"] == (T, "cosine", "l_vlb", "importance")
        assert rows[f"cosine_vlb_uniform_seed{seed}"] == (T, "cosine", "l_vlb", "uniform")
        assert trained[f"cosine_vlb_seed{seed}"].seed == seed
    assert {trained[f"width{width}"].model.width for width in (32, 64, 96)} == {32, 64, 96}


@pytest.mark.parametrize("cores, devices", [(1, 1), (3, 2), (6, 4), (128, 64)])
def test_every_batch_can_be_shared_by_the_devices(tmp_path, monkeypatch, called, cores, devices):
    monkeypatch.delenv("DEVICES")
    monkeypatch.setattr(runtime, "cpu_cores", lambda: cores)
    monkeypatch.setattr(reproduce, "commands", lambda *_: [])
    assert reproduce.run("digits", tmp_path, 1) == 0
    assert os.environ.pop("DEVICES") == str(devices)
    for data in ("digits", "emoji"):
        config = arguments.parse(
            ["--workdir", str(tmp_path / data), "--config", f"configs/paper.py:{data}"]
        ).config
        for part in (config.train, config.nll, config.fid, config.gradients):
            assert part.batch_size % devices == 0


def test_no_command_comes_twice(tmp_path):
    commands = [tuple(command) for command in reproduce.commands("digits", tmp_path, seeds=3)]
    assert len(set(commands)) == len(commands)


def test_what_is_done_is_not_run_again(tmp_path, called):
    assert reproduce.run("digits", tmp_path, 1) == 0
    every = list(reproduce.commands("digits", tmp_path, 1))
    drawn = list(reproduce.figures(tmp_path, 1))
    assert called == every + drawn
    called.clear()
    done = (tmp_path / "done.txt").read_text().splitlines()
    (tmp_path / "done.txt").write_text("\n".join(done[:-2]) + "\n")
    assert reproduce.run("digits", tmp_path, 1) == 0
    assert called == every[-2:] + drawn  # figures always: more may have been measured


def test_compiled_programs_are_let_go_before_every_training(tmp_path, monkeypatch, called):
    kept = []
    monkeypatch.setattr(jax, "clear_caches", lambda: kept.append(len(called)))
    assert reproduce.run("digits", tmp_path, 1) == 0
    assert kept == [i for i, command in enumerate(called) if "--config" in command]


def test_a_failing_command_ends_the_suite(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(main, "main", lambda _: 2)
    assert reproduce.run("digits", tmp_path, 1) == 2
    assert not (tmp_path / "done.txt").exists()
    assert "--config configs/paper.py:digits" in capsys.readouterr().out


def test_a_training_that_was_stopped_ends_the_suite(tmp_path, monkeypatch):
    monkeypatch.setattr(main, "main", lambda _: 0)  # saves, and ends without bits/dim
    assert reproduce.run("digits", tmp_path, 1) == 130
    assert not (tmp_path / "done.txt").exists()
