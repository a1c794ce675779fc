"""Command line: python -m iddpm_jax.main --config configs/digits.py --workdir runs/digits."""

import os
import re
import sys
import zlib
from pathlib import Path

from ml_collections import ConfigDict

from iddpm_jax import config as configs
from iddpm_jax import runtime
from iddpm_jax.arguments import HELP, Arguments, parse
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
        arguments = parse(argv[1:])
        config = arguments.config
        batches = [config.sample.batch_size, config.nll.batch_size]
        batches.append(config.train.batch_size // config.train.microbatches)
        if arguments.mode == "convert":
            batches = [1]  # nothing to share between devices
        runtime.configure(
            arguments.devices or runtime.cpu_devices(runtime.cpu_cores(), batches),
            runtime.cache_folder(),
        )
        if arguments.mode == "convert":
            _convert(arguments)
        else:
            {"train": _train, "sample": _sample, "nll": _nll}[arguments.mode](
                config, arguments.workdir
            )
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
    from iddpm_jax.images import write_png
    from iddpm_jax.training import loop, parallel

    # Everything that can be refused is refused before the workdir becomes this run's.
    model = build.model(config)
    mesh = parallel.make_mesh()
    for part, microbatches in (("train", config.train.microbatches), ("sample", 1), ("nll", 1)):
        parallel.check_batch(mesh, config[part].batch_size, microbatches, f"{part}.batch_size")
    source = build.load_data(config, model, "train")
    data.check_batch_size(source, config.train.batch_size)
    generate.classes_of(config, model, 1)
    few = config.copy_and_resolve_references()
    few.sample.count = min(64, config.sample.count)
    base = generate.base_of(few, model)
    base = base and base.first(few.sample.count)
    build.settle(config, model)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        configs.save(config, workdir / "config.json")
    except OSError as error:
        raise InputError(f"--workdir {workdir} cannot be written ({error.strerror})") from None

    def preview(params, step):
        # In a file, a bar within the bar of training would be noise.
        bar = sys.stderr.isatty()
        images, classes = generate.generate(few, model, params, mesh, base, progress=bar)
        pixels = generate.preview(images, classes, base)
        write_png(workdir / "samples" / f"training_{step:08d}.png", pixels)
        return pixels

    state = loop.train(config, model, mesh, workdir, preview)
    if state is None:
        return
    print(f"{config.sample.count} samples and bits/dim on the {config.nll.split} split:")
    written = _draw(config, workdir, loop.Run(config, model, mesh, state))
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


def _sample(config: ConfigDict, workdir: Path) -> None:
    from iddpm_jax.training import loop

    for what, path in _draw(config, workdir, loop.open_run(workdir, config)).items():
        print(f"{what:5} {path}")


def _draw(config: ConfigDict, workdir: Path, run) -> dict[str, Path]:
    """Draw samples and write them."""
    from iddpm_jax.evaluation import generate

    base = generate.base_of(config, run.model)
    weights = run.state.weights(config.sample.ema_rate)
    images, classes = generate.generate(config, run.model, weights, run.mesh, base)
    folder = _sample_folder(config, workdir, run.state)
    return generate.write(folder, images, classes, base, config.sample.png)


def _nll(config: ConfigDict, workdir: Path) -> None:
    from iddpm_jax.evaluation import nll
    from iddpm_jax.training import loop

    _, model, mesh, state = loop.open_run(workdir, config)
    likelihood = nll.evaluate(config, model, state.weights(config.nll.ema_rate), mesh)
    path = _nll_path(config, workdir, state)
    likelihood.save(path, config.to_dict())
    print(nll.summary(likelihood))
    print(f"terms {path}")


def _convert(arguments: Arguments) -> None:
    from iddpm_jax import build, convert
    from iddpm_jax.training import loop, parallel

    config, workdir = arguments.config, arguments.workdir
    if arguments.source is not None:
        model, mesh = build.model(config), parallel.make_mesh()
        lines = convert.from_files(config, model, mesh, arguments.source, workdir)
    else:
        _, model, _, state = loop.open_run(workdir, config)
        lines = convert.to_files(config, model, state, arguments.target, arguments.form)
    for line in lines:
        print(line)


def _sample_folder(config: ConfigDict, workdir: Path, state) -> Path:
    """A folder named after all that decides the samples, so that other choices keep theirs."""
    s = config.sample
    parts = [f"step{int(state.step):08d}", s.sampler, s.steps or str(config.diffusion.T)]
    parts += [f"eta{s.eta:g}"] if s.sampler == "ddim" else []
    parts += ["classes" + "-".join(map(str, s.classes))] if s.classes else []
    parts += ["random"] if s.class_choice == "random" else []
    parts += [f"guidance{s.guidance:g}"] if s.guidance != 1 else []
    if s.base:
        parts.append(f"base{zlib.crc32(Path(s.base).read_bytes()):08x}")
    parts += [f"noise{s.low_res_noise:g}"] if s.low_res_noise else []
    parts += [f"ema{s.ema_rate:g}", *([] if s.clip_x_0 else ["unclipped"]), *_dtype(config)]
    parts.append(f"seed{s.seed}")
    return workdir / "samples" / "_".join(parts).replace(",", "-")


def _dtype(config: ConfigDict) -> list[str]:
    return [] if config.model.dtype == "auto" else [config.model.dtype]


def _nll_path(config: ConfigDict, workdir: Path, state) -> Path:
    n = config.nll
    data = re.sub(r"\W+", "-", config.data.name)
    parts = [f"step{int(state.step):08d}", data, n.split, f"{n.steps or config.diffusion.T}steps"]
    parts += [f"{n.terms}terms"] if n.terms else []
    parts += [f"ema{n.ema_rate:g}", *([] if n.clip_x_0 else ["unclipped"]), *_dtype(config)]
    parts.append(f"seed{n.seed}")
    return workdir / "nll" / ("_".join(parts).replace(",", "-") + ".npz")


if __name__ == "__main__":
    code = main()
    if code:
        # Threads that outlive the failure would print more than the one line while Python ends.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
