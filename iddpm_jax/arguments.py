"""From the command line to (mode, workdir, config, devices), with one-line objections."""

import argparse
import os
import re
import runpy
from pathlib import Path
from typing import NamedTuple, NoReturn

from absl import flags
from ml_collections import ConfigDict, config_flags

from iddpm_jax import config as configs
from iddpm_jax import runtime
from iddpm_jax.checks import check
from iddpm_jax.errors import InputError

MODES = (
    "train",
    "sample",
    "nll",
    "fid",
    "convert",
    "data",
    "gradients",
    "figures",
    "report",
    "plan",
)
PARTS = ("train", "sample", "all")
"""What a plan compiles: the training step, the sampler, or both."""


class Arguments(NamedTuple):
    """What the user asked for.

    Attributes:
        mode: one of MODES.
        workdir: folder of the run; it need not exist. None where a plan or a comparison of two
            files is not about a run.
        config: overrides applied, checked.
        devices: virtual CPU devices asked for, or None.
        source: file or folder of weights to convert, or None.
        target: folder to write weights or figures to, or None.
        form: format of the files written there, "pt" or "safetensors"; None for the usual one.
        checkpoint: "best", a step as digits, or None for the newest.
        cluster: the processes that share the work, or None for one alone.
        topology: slice to plan for, such as "v5e:2x2", or None.
        part: of the plan, one of PARTS; None for all.
        statistics: file to write statistics of the data to, or None.
        others: workdirs whose results are drawn beside this one's.
        only: names of the figures to draw; () for all.
    """

    mode: str
    workdir: Path | None
    config: ConfigDict
    devices: int | None
    source: Path | None = None
    target: Path | None = None
    form: str | None = None
    checkpoint: str | None = None
    cluster: runtime.Cluster | None = None
    topology: str | None = None
    part: str | None = None
    statistics: Path | None = None
    others: tuple[Path, ...] = ()
    only: tuple[str, ...] = ()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see --help")


def parse(argv: list[str]) -> Arguments:
    """Read the command line, the config (file, workdir's or source's), and the overrides.

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
    parser.add_argument("--source")
    parser.add_argument("--target")
    parser.add_argument("--format", choices=("pt", "safetensors"))
    parser.add_argument("--base")
    parser.add_argument("--samples")
    parser.add_argument("--reference")
    parser.add_argument("--statistics")
    parser.add_argument("--with", dest="others")
    parser.add_argument("--only")
    parser.add_argument("--coordinator")
    parser.add_argument("--num_processes")
    parser.add_argument("--process_id")
    parser.add_argument("--distributed", action="store_true")
    parser.add_argument("--checkpoint")
    parser.add_argument("--topology")
    parser.add_argument("--part", choices=PARTS)
    given, overrides = parser.parse_known_args(argv)
    two_files = given.mode == "fid" and given.samples and given.reference
    if not given.workdir and given.mode != "plan" and not two_files:
        raise InputError("--workdir is missing; name a folder for the run, such as runs/digits")
    if re.match(r"\w+://", given.workdir or ""):
        raise InputError(
            f"--workdir {given.workdir} is not a folder; mount the bucket (gcsfuse) and name the "
            "folder it is mounted at"
        )
    workdir = Path(given.workdir) if given.workdir else None
    if workdir and workdir.exists() and not workdir.is_dir():
        raise InputError(f"--workdir {workdir} is a file; name a folder")

    _check_conversion(given)
    _check_checkpoint(given)
    _check_plan(given)
    _check_comparison(given)
    stored = workdir and workdir / "config.json"
    if given.config:
        config = _from_file(given.config)
    elif given.source and not stored.exists():
        config = _from_source(Path(given.source))
    elif stored and stored.exists():
        config = configs.load(stored)
    elif two_files:
        config = configs.base()
        config.train.steps = 1  # nothing is trained
        config.fid.network = "inception"
    else:
        without = f", and {workdir} holds no run" if workdir else ""
        raise InputError(f"--config is missing{without}; give one of {_config_files()}")
    config = _override(config, overrides)
    if given.base is not None:
        config.sample.base = given.base
    if given.mode == "fid":
        config.fid.samples = given.samples or config.fid.samples
        config.fid.reference = given.reference or config.fid.reference
    check(config)
    # A plan changes nothing, so it may ask what the run would be with other settings.
    if given.mode != "plan" and stored and stored.exists():
        _check_same_run(configs.load(stored), config, stored, given.mode)
    named = (given.source, given.target, given.statistics)
    source, target, statistics = (Path(p) if p else None for p in named)
    return Arguments(
        given.mode,
        workdir,
        config,
        given.devices and _whole("--devices (or DEVICES)", given.devices),
        source,
        target,
        given.format,
        given.checkpoint,
        _cluster(given),
        given.topology,
        given.part,
        statistics,
        _other_workdirs(given),
        tuple(name for name in (given.only or "").split(",") if name),
    )


def _cluster(given: argparse.Namespace) -> runtime.Cluster | None:
    """The processes that the flags name, or that the environment shows."""
    named = (given.coordinator, given.num_processes, given.process_id)
    if not any(named):
        found = runtime.cluster_around(os.environ)
        return runtime.Cluster() if given.distributed else found
    if not all(named) or given.distributed:
        raise InputError(
            "--coordinator, --num_processes and --process_id go together, and without "
            "--distributed; give all three or none"
        )
    count = _whole("--num_processes", given.num_processes)
    index = _whole("--process_id", given.process_id, least=0)
    if index >= count:
        raise InputError(
            f"--process_id is {index}; with {count} processes it must lie from 0 to {count - 1}"
        )
    host, _, port = given.coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(
            f"--coordinator is {given.coordinator!r}; give HOST:PORT, such as localhost:1234"
        )
    return runtime.Cluster(given.coordinator, count, index)


def _check_conversion(given: argparse.Namespace) -> None:
    """Convert goes one way at a time, and its flags belong to it."""
    if given.mode == "convert" and bool(given.source) == bool(given.target):
        raise InputError(
            "--mode convert needs --source FILE to fill the workdir with weights, or --target "
            "FOLDER to write the workdir's weights; give one of them"
        )
    if given.source and not Path(given.source).exists():
        raise InputError(f"--source {given.source} does not exist; check the path")
    if given.mode != "convert" and given.source:
        raise InputError("--source is for --mode convert; add it, or leave it out")
    if given.mode not in ("convert", "figures") and given.target:
        raise InputError("--target is for --mode convert and figures; add one, or leave it out")
    if given.format and not given.target:
        raise InputError("--format is for --target; add it, or leave --format out")
    if given.mode != "sample" and given.base:
        raise InputError("--base is for --mode sample; add it, or leave it out")


def _check_checkpoint(given: argparse.Namespace) -> None:
    if given.checkpoint is None:
        return
    if given.mode == "train" or given.source:
        raise InputError(
            "--checkpoint is for what reads a trained workdir: --mode sample, nll, fid, "
            "gradients, report, and convert with --target; leave it out"
        )
    if given.checkpoint != "best" and not given.checkpoint.isdecimal():
        raise InputError(f"--checkpoint is {given.checkpoint!r}; it must be best, or a step")


def _check_plan(given: argparse.Namespace) -> None:
    """A plan needs a slice, and its flags belong to it."""
    if given.mode == "plan" and not given.topology:
        raise InputError("--mode plan needs --topology; name a TPU slice, such as v5e:2x2")
    if given.mode != "plan" and (given.topology or given.part):
        raise InputError("--topology and --part are for --mode plan; add it, or leave them out")


def _check_comparison(given: argparse.Namespace) -> None:
    """The files that are compared are there, and their flags belong to fid or data."""
    if given.mode != "fid" and (given.samples or given.reference):
        raise InputError("--samples and --reference are for --mode fid; add it, or leave them out")
    if given.mode != "data" and given.statistics:
        raise InputError("--statistics is for --mode data; add it, or leave it out")


def _other_workdirs(given: argparse.Namespace) -> tuple[Path, ...]:
    """Those that --with names; each holds a run."""
    for flag, value in (("--with", given.others), ("--only", given.only)):
        if value and given.mode != "figures":
            raise InputError(f"{flag} is for --mode figures; add it, or leave it out")
    others = tuple(Path(name) for name in (given.others or "").split(",") if name)
    for other in others:
        if not (other / "config.json").is_file():
            raise InputError(f"--with {other} holds no run; name workdirs, with commas between")
    return others


def _from_source(source: Path) -> ConfigDict:
    """The config that a .safetensors file written here carries."""
    from iddpm_jax.interop import openai, weights

    file = openai.newest_model(source) if source.is_dir() else source
    if file is not None:
        text = weights.read_metadata(file).get("config")
        if text is not None:
            return configs.loads(text, file)
    raise InputError(
        f"--config is missing, and --source {source} does not say what network it holds; give "
        f"one of {_config_files()}"
    )


def _whole(flag: str, text: str, least: int = 1) -> int:
    if not text.isdecimal() or int(text) < least:
        raise InputError(f"{flag} is {text!r}; it must be a whole number from {least} up")
    return int(text)


def _config_files() -> str:
    found = sorted(str(path) for path in Path("configs").glob("*.py"))
    return ", ".join(found) or "the files in configs/ (here there is no such folder)"


def _from_file(argument: str) -> ConfigDict:
    """The config of FILE or FILE:VARIANT,..."""
    path, _, variants = argument.partition(":")
    if not Path(path).is_file():
        raise InputError(f"--config file {path} does not exist; use one of {_config_files()}")
    if Path(path).suffix != ".py":
        raise InputError(f"--config file {path} is not a Python file; its name must end in .py")
    try:
        # Not imported: that would leave compiled code beside the file.
        get_config = runpy.run_path(path, run_name="config_file")["get_config"]
        config = get_config(variants) if variants else get_config()
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


def _check_same_run(old: ConfigDict, new: ConfigDict, path: Path, mode: str) -> None:
    converted = (path.parent / configs.CONVERTED).exists()
    if mode != "train":
        free = (*configs.FREE_ON_READING, *(["data."] if mode == "data" else []))
    elif converted and not (path.parent / "metrics.jsonl").exists():
        free = configs.FREE_AFTER_CONVERSION
    else:
        free = configs.FREE_ON_RESUME
    changed = configs.differences(old, new, free)
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise InputError(
            f"{path} holds another run ({'; '.join(changed[:3])}{more}); use another --workdir, or "
            "leave out --config and those overrides to go on with that run"
        )
