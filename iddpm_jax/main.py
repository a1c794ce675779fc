"""Command line: python -m iddpm_jax.main --config configs/digits.py --workdir runs/digits."""

import os
import sys
from pathlib import Path

from ml_collections import ConfigDict

from iddpm_jax import config as configs
from iddpm_jax import runtime
from iddpm_jax.arguments import HELP, parse
from iddpm_jax.errors import DivergedError, InputError


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments with the program's name in front; sys.argv by default.

    Returns:
        Exit code: 0, 1 for a diverged run, 2 for bad input, 130 for Ctrl-C outside of training.
    """
    argv = sys.argv if argv is None else argv
    if any(arg in ("--help", "-h", "-help") for arg in argv[1:]):
        print(HELP)
        return 0
    try:
        mode, workdir, config, devices = parse(argv[1:])
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
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _train(config: ConfigDict, workdir: Path) -> None:
    import jax

    from iddpm_jax import build, data
    from iddpm_jax.evaluation import generate, nll
    from iddpm_jax.images import grid, write_png
    from iddpm_jax.training import loop, parallel

    # Everything that can be refused is refused before the workdir becomes this run's.
    model = build.model(config)
    mesh = parallel.make_mesh()
    for part, microbatches in (("train", config.train.microbatches), ("sample", 1), ("nll", 1)):
        parallel.check_batch(mesh, config[part].batch_size, microbatches, f"{part}.batch_size")
    data.check_batch_size(data.load(config.data.name, "train"), config.train.batch_size)
    generate.classes_of(config, model, 1)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        configs.save(config, workdir / "config.json")
    except OSError as error:
        raise InputError(f"--workdir {workdir} cannot be written ({error.strerror})") from None

    few = config.copy_and_resolve_references()
    few.sample.count = min(64, config.sample.count)

    def preview(params, step):
        # In a file, a bar within the bar of training would be noise.
        images, _ = generate.generate(few, model, params, mesh, progress=sys.stderr.isatty())
        pixels = grid(images)
        write_png(workdir / "samples" / f"training_{step:08d}.png", pixels)
        return pixels

    state = loop.train(config, model, mesh, workdir, preview)
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
    with checkpoint.Checkpoints(folder, None) as checkpoints:
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
    code = main()
    if code:
        # Threads that outlive the failure would print more than the one line while Python ends.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
