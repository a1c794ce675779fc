"""From the command line to (mode, workdir, config, devices), with one-line objections."""

import argparse
import importlib.util
import os
from pathlib import Path
from typing import NamedTuple, NoReturn

from absl import flags
from ml_collections import ConfigDict, config_flags

from iddpm_jax import config as configs
from iddpm_jax.errors import InputError

MODES = ("train", "sample", "nll")

HELP = """\
Improved Denoising Diffusion Probabilistic Models (Nichol & Dhariwal 2021).

  python -m iddpm_jax.main --config FILE[:VARIANT,...] --workdir FOLDER [--mode MODE]
                           [--config.KEY=VALUE ...]

Modes
  train   (default) train, or continue from the workdir's newest checkpoint; at the end draw
          samples and measure bits/dim
  sample  draw samples from a trained workdir
  nll     measure bits/dim on the test split, term by term

Examples
  Train on the built-in digits:
    python -m iddpm_jax.main --config configs/digits.py --workdir runs/digits
  The same with L_vlb, importance sampling and the linear schedule:
    python -m iddpm_jax.main --config configs/digits.py:l_vlb,linear --workdir runs/vlb
  Change anything; every key is described in iddpm_jax/config.py:
    ... --config.train.steps=5000 --config.model.width=64
  100 samples of the digits 3 and 8 by 25 steps of DDIM; the workdir knows its own config:
    python -m iddpm_jax.main --workdir runs/digits --mode sample \\
      --config.sample.count=100 --config.sample.classes='(3, 8)' \\
      --config.sample.sampler=ddim --config.sample.steps=25
  The bound over all T steps, and the same model with 100 steps:
    python -m iddpm_jax.main --workdir runs/digits --mode nll --config.nll.terms=0
    python -m iddpm_jax.main --workdir runs/digits --mode nll --config.nll.steps=100

Flags
  --config     a file in configs/, with variants after a colon: l_simple, l_hybrid, l_vlb, linear,
               cosine, and those of the file. May be left out where the workdir holds a run.
  --workdir    folder of the run: its config, checkpoints, curves, samples and results
  --mode       train, sample or nll
  --devices    virtual devices on a CPU, one per core by default (also: DEVICES=2)
  --help       this text

Bad input ends with one line and exit code 2, a loss that is not finite with exit code 1.
"""


class Arguments(NamedTuple):
    """What the user asked for.

    Attributes:
        mode: one of MODES.
        workdir: folder of the run; it need not exist.
        config: overrides applied, checked.
        devices: virtual CPU devices asked for, or None.
    """

    mode: str
    workdir: Path
    config: ConfigDict
    devices: int | None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see --help")


def parse(argv: list[str]) -> Arguments:
    """Read the command line, the config file or the workdir's config, and the overrides.

    Args:
        argv: arguments without the program's name.

    Returns:
        Arguments. Nothing has been written.

    Raises:
        InputError: one line that says what is wrong and what to change.
    """
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--workdir", nargs="?")
    parser.add_argument("--mode", default="train", choices=MODES)
    parser.add_argument("--config", nargs="?")
    parser.add_argument("--devices", default=os.environ.get("DEVICES") or None)
    given, overrides = parser.parse_known_args(argv)
    if not given.workdir:
        raise InputError("--workdir is missing; name a folder for the run, such as runs/digits")
    workdir = Path(given.workdir)
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"--workdir {workdir} is a file; name a folder")

    stored = workdir / "config.json"
    if given.config:
        config = _from_file(given.config)
    elif stored.exists():
        config = configs.load(stored)
    else:
        raise InputError(
            f"--config is missing, and {workdir} holds no run; give one of {_config_files()}"
        )
    config = _override(config, overrides)
    configs.check(config)
    if stored.exists():
        _check_same_run(configs.load(stored), config, stored)
    return Arguments(given.mode, workdir, config, _devices(given.devices))


def _devices(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"--devices (or DEVICES) is {text!r}; it must be a whole number above 0")
    return int(text)


def _config_files() -> str:
    found = sorted(str(path) for path in Path("configs").glob("*.py"))
    return ", ".join(found) or "the files in configs/ (here there is no such folder)"


def _from_file(argument: str) -> ConfigDict:
    """The config of FILE or FILE:VARIANT,..."""
    path, _, variants = argument.partition(":")
    if not Path(path).is_file():
        raise InputError(f"--config file {path} does not exist; use one of {_config_files()}")
    spec = importlib.util.spec_from_file_location("config_file", path)
    if spec is None or spec.loader is None:
        raise InputError(f"--config file {path} is not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config(variants) if variants else module.get_config()
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's file may do
        raise InputError(f"--config file {path} fails: {_one_line(error)}") from None
    if not isinstance(config, ConfigDict):
        raise InputError(
            f"--config file {path}: get_config returned {config!r}; it must return the config"
        )
    return config


def _one_line(error: BaseException) -> str:
    """The most telling line of an exception."""
    # A KeyError's text is a repr, with its line breaks spelled out.
    lines = [line.strip(" '") for line in str(error).replace("\\n", "\n").splitlines()]
    lines = [line for line in lines if line]
    hint = next((line for line in lines if line.startswith("Did you mean")), None)
    return f"{type(error).__name__}: {hint or (lines[-1] if lines else 'no message')}"


def _override(config: ConfigDict, overrides: list[str]) -> ConfigDict:
    """Apply --config.KEY=VALUE arguments."""
    known = dict(configs.flat(configs.base()))
    for argument in overrides:
        name = argument.lstrip("-").split("=", 1)[0]
        key = name.removeprefix("no").removeprefix("config.")
        if argument.startswith("-") and name.removeprefix("no").startswith("config."):
            if key not in known:
                raise InputError(f"there is no config key {key!r}{configs.suggestion(key)}")
    values = flags.FlagValues()
    command = ["iddpm_jax", *overrides]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=command)
        rest = values(command)
        config = values.config
    except Exception as error:  # absl and ml_collections each raise their own
        raise InputError(_one_line(error).split(": ", 1)[1]) from None
    if len(rest) > 1:
        raise InputError(f"{rest[1]!r} is not understood; flags look like --mode=sample")
    return config


def _check_same_run(old: ConfigDict, new: ConfigDict, path: Path) -> None:
    changed = configs.differences(old, new)
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise InputError(
            f"{path} holds another run ({'; '.join(changed[:3])}{more}); use another --workdir, or "
            "leave out --config and those overrides to go on with that run"
        )
