"""Command line: python -m iddpm_jax.main --config configs/digits.py --workdir runs/digits."""

import os
import sys
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from iddpm_jax import config as configs
from iddpm_jax import runtime
from iddpm_jax.errors import DivergedError, InputError

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

MODES = ("train", "sample", "nll")


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments with the program's name in front; sys.argv by default.

    Returns:
        Exit code: 0, 1 for a diverged run, 2 for bad input.
    """
    argv = sys.argv if argv is None else argv
    if any(arg in ("--help", "-h", "-help") for arg in argv[1:]):
        print(HELP)
        return 0
    try:
        mode, workdir, config, devices = _parse(argv)
        configs.check(config)
        batches = [config.sample.batch_size, config.nll.batch_size]
        batches.append(config.train.batch_size // config.train.microbatches)
        runtime.configure(
            devices or runtime.cpu_devices(runtime.cpu_cores(), batches), runtime.cache_folder()
        )
        {"train": _train, "sample": _sample, "nll": _nll}[mode](config, workdir)
        return 0
    except (InputError, DivergedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1


def _parse(argv: list[str]) -> tuple[str, Path, ConfigDict, int | None]:
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_enum("mode", "train", MODES, "", flag_values=values)
    flags.DEFINE_integer(
        "devices", os.environ.get("DEVICES"), "", lower_bound=1, flag_values=values
    )
    workdir = _given(argv, "workdir")
    if not workdir:
        raise InputError("--workdir is missing; name a folder for the run, such as runs/digits")
    stored = Path(workdir) / "config.json"
    file = _given(argv, "config")
    _check_overrides(argv)
    if file:
        _check_config_file(file)
        config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    elif stored.exists():
        config_flags.DEFINE_config_dict(
            "config", configs.load(stored), flag_values=values, sys_argv=argv
        )
    else:
        raise InputError(
            f"--config is missing, and {workdir} holds no run; give one of {_config_files()}"
        )
    try:
        rest = values(argv)
    except InputError:
        raise
    except Exception as error:  # a config file may raise anything, and config_flags wraps it
        raise InputError(_last_line(error)) from None
    if len(rest) > 1:
        raise InputError(f"{rest[1]!r} is not understood; flags look like --mode=sample")
    config = values.config
    if file and stored.exists():
        _check_same_run(configs.load(stored), config, stored)
    return values.mode, Path(workdir), config, values.devices


def _given(argv: list[str], name: str) -> str | None:
    """The value of --name=value or --name value, or None."""
    for arg, following in zip(argv[1:], [*argv[2:], None], strict=True):
        if arg in (f"--{name}", f"-{name}"):
            return following
        if arg.startswith((f"--{name}=", f"-{name}=")):
            return arg.split("=", 1)[1]
    return None


def _check_overrides(argv: list[str]) -> None:
    known = dict(configs.flat(configs.base()))
    for arg in argv[1:]:
        if arg.startswith(("--config.", "-config.")):
            key = arg.lstrip("-").removeprefix("config.").split("=", 1)[0]
            if key not in known:
                raise InputError(f"there is no config key {key!r}{configs.suggestion(key)}")


def _config_files() -> str:
    found = sorted(str(path) for path in Path("configs").glob("*.py"))
    return ", ".join(found) or "the files in configs/ (here there is no such folder)"


def _check_config_file(argument: str) -> None:
    path = argument.split(":", 1)[0]
    if not Path(path).is_file():
        raise InputError(f"--config file {path} does not exist; use one of {_config_files()}")


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if lines else type(error).__name__
    return text.removeprefix("iddpm_jax.errors.InputError: ")


def _check_same_run(old: ConfigDict, new: ConfigDict, path: Path) -> None:
    changed = configs.differences(old, new)
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise InputError(
            f"{path} holds another run ({'; '.join(changed[:3])}{more}); use another --workdir, or "
            "leave out --config to go on with that run"
        )


def _train(config: ConfigDict, workdir: Path) -> None:
    import jax

    from iddpm_jax import build
    from iddpm_jax.evaluation import generate, nll
    from iddpm_jax.images import grid, write_png
    from iddpm_jax.training import loop, parallel

    model = build.model(config)
    mesh = parallel.make_mesh()
    for size in (config.sample.batch_size, config.nll.batch_size):
        parallel.check_batch(mesh, size)
    generate.classes_of(config, model, 1)
    workdir.mkdir(parents=True, exist_ok=True)
    configs.save(config, workdir / "config.json")

    few = config.copy_and_resolve_references()
    few.sample.count = min(64, config.sample.count)

    def preview(model, params, mesh, step):
        images, _ = generate.generate(few, model, params, mesh, progress=False)
        pixels = grid(images)
        write_png(workdir / "samples" / f"training_{step:08d}.png", pixels)
        return pixels

    state = loop.train(config, workdir, preview)
    if state is None:
        return
    print(f"{config.sample.count} samples and bits/dim on the {config.nll.split} split:")
    images, classes = generate.generate(config, model, state.weights(config.sample.ema_rate), mesh)
    written = generate.write(_sample_folder(config, workdir, state), images, classes, False)
    likelihood = nll.evaluate(config, model, state.weights(config.nll.ema_rate), mesh)
    path = _nll_path(config, workdir, state)
    likelihood.save(path, config.to_dict())
    print(
        f"\nTrained to step {int(state.step)} on {jax.devices()[0].platform}.\n"
        f"  bits/dim     {nll.summary(likelihood)}\n"
        f"  terms        {path}\n"
        f"  samples      {written['grid']}\n"
        f"               {written['npz']}\n"
        f"  curves       {workdir / 'progress.csv'}, {workdir / 'metrics.jsonl'}, "
        f"{workdir / 'tensorboard'}\n"
        f"  checkpoints  {workdir / 'checkpoints'}\n"
        f"More samples:  python -m iddpm_jax.main --workdir {workdir} --mode sample"
    )


def _restored(config: ConfigDict, workdir: Path):
    """The model and newest state of a workdir: (model, mesh, state)."""
    from iddpm_jax import build
    from iddpm_jax.training import checkpoint, loop, parallel

    model = build.model(config)
    mesh = parallel.make_mesh()
    folder = workdir / "checkpoints"
    if not folder.is_dir():
        raise InputError(f"{workdir} holds no checkpoints; train first with --mode train")
    with checkpoint.Checkpoints(folder, config.train.keep_checkpoints) as checkpoints:
        state, _ = loop.restore(config, model, mesh, checkpoints)
    return model, mesh, state


def _sample(config: ConfigDict, workdir: Path) -> None:
    from iddpm_jax.evaluation import generate

    model, mesh, state = _restored(config, workdir)
    weights = state.weights(config.sample.ema_rate)
    images, classes = generate.generate(config, model, weights, mesh)
    folder = _sample_folder(config, workdir, state)
    for what, path in generate.write(folder, images, classes, config.sample.png).items():
        print(f"{what:5} {path}")


def _nll(config: ConfigDict, workdir: Path) -> None:
    from iddpm_jax.evaluation import nll

    model, mesh, state = _restored(config, workdir)
    likelihood = nll.evaluate(config, model, state.weights(config.nll.ema_rate), mesh)
    path = _nll_path(config, workdir, state)
    likelihood.save(path, config.to_dict())
    print(nll.summary(likelihood))
    print(f"terms {path}")


def _sample_folder(config: ConfigDict, workdir: Path, state) -> Path:
    """A folder named after all that decides the samples, so that other choices keep theirs."""
    s = config.sample
    parts = [f"step{int(state.step):08d}", s.sampler, s.steps or str(config.diffusion.T)]
    parts += [f"eta{s.eta:g}"] if s.sampler == "ddim" else []
    parts += ["classes" + "-".join(map(str, s.classes))] if s.classes else []
    parts += [f"ema{s.ema_rate:g}", *([] if s.clip_x_0 else ["unclipped"]), f"seed{s.seed}"]
    return workdir / "samples" / "_".join(parts).replace(",", "-")


def _nll_path(config: ConfigDict, workdir: Path, state) -> Path:
    n = config.nll
    parts = [f"step{int(state.step):08d}", n.split, f"{n.steps or config.diffusion.T}steps"]
    parts += [f"{n.terms}terms"] if n.terms else []
    parts += [f"ema{n.ema_rate:g}", *([] if n.clip_x_0 else ["unclipped"]), f"seed{n.seed}"]
    return workdir / "nll" / ("_".join(parts).replace(",", "-") + ".npz")


if __name__ == "__main__":
    sys.exit(main())
