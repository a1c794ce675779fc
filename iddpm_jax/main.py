"""Command line: python -m iddpm_jax.main --config configs/digits.py --workdir runs/digits."""

import contextlib
import errno
import json
import os
import re
import sys
import time
from pathlib import Path

from iddpm_jax import allocator, runtime
from iddpm_jax import config as configs
from iddpm_jax.arguments import Arguments, parse
from iddpm_jax.errors import DivergedError, InputError
from iddpm_jax.usage import HELP


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
        batches = [config.nll.batch_size, config.train.batch_size // config.train.microbatches]
        if arguments.mode in ("fid", "data"):
            batches.append(config.fid.batch_size)
        if arguments.mode == "gradients":
            batches = [config.gradients.batch_size]
        if arguments.mode in ("convert", "figures"):
            batches = [1]  # nothing to share between devices
        if arguments.mode == "plan":
            _plan(arguments)
            return 0
        runtime.configure(
            arguments.devices or runtime.cpu_devices(runtime.cpu_cores(), batches),
            runtime.cache_folder(),
        )
        modes = {
            "train": _train,
            "sample": _sample,
            "nll": _nll,
            "fid": _fid,
            "convert": _convert,
            "data": _data,
            "gradients": _gradients,
            "figures": _figures,
            "report": _report,
        }
        with runtime.join(arguments.cluster) if arguments.cluster else contextlib.nullcontext():
            modes[arguments.mode](arguments)
        return 0
    except (InputError, DivergedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except RuntimeError:
        if arguments.cluster:
            # JAX's error when another process is gone; the closed connection says so in a line.
            time.sleep(2)
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = error.filename or arguments.workdir
        print(f"error: {error.strerror}: {where}; free some and try again", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _train(arguments: Arguments) -> None:
    import jax

    from iddpm_jax import build, data
    from iddpm_jax.evaluation import generate, nll, nll_table, samples
    from iddpm_jax.images import write_png
    from iddpm_jax.training import finetune, loop, parallel, runs

    config, workdir = arguments.config, arguments.workdir
    # Everything that can be refused is refused before the workdir becomes this run's.
    model = build.model(config)
    mesh = parallel.make_mesh(fsdp=config.train.fsdp)
    for part, microbatches in (("train", config.train.microbatches), ("nll", 1)):
        parallel.check_batch(mesh, config[part].batch_size, microbatches, f"{part}.batch_size")
    source = build.load_data(config, model, "train")
    build.load_data(config, model, config.nll.split)
    data.check_batch_size(source, config.train.batch_size)
    generate.classes_of(config, model, 1)
    few = config.copy_and_resolve_references()
    few.sample.count = min(64, config.sample.count)
    base = generate.base_of(few, model)
    base = base and base.first(few.sample.count)
    started = any((workdir / "checkpoints").glob("[0-9]*"))
    initial = None if started else finetune.read(config, model)
    build.settle(config, model)
    if parallel.is_main_process():
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            configs.save(config, workdir / "config.json")
        except OSError as error:
            raise InputError(f"--workdir {workdir} cannot be written ({error.strerror})") from None
    parallel.check_shared(workdir / "config.json")

    def preview(params, step):
        # In a file, a bar within the bar of training would be noise.
        bar = sys.stderr.isatty()
        images, classes = generate.generate(few, model, params, mesh, base, progress=bar)
        pixels = samples.preview(images, classes, base)
        if parallel.is_main_process():
            write_png(workdir / "samples" / f"training_{step:08d}.png", pixels)
        return pixels

    def evaluate(state):
        weights, count = state.weights(config.nll.ema_rate), config.train.evaluate_images
        bar = sys.stderr.isatty()
        return nll.evaluate(config, model, weights, mesh, bar, count).bits_per_dim

    state = loop.train(config, model, mesh, workdir, loop.Hooks(preview, evaluate), initial)
    if state is None:
        return
    print(f"samples and bits/dim on the {config.nll.split} split:")
    run = runs.Run(config, model, mesh, state)
    written = _draw(workdir, run)
    found, paths = _measure(workdir, run)
    if not parallel.is_main_process():
        return
    [likelihood, *_], [path, *_] = found.values(), paths.values()
    summary = f"{nll_table.summary(likelihood)} in {model.spec.dtype}"
    shown = "\n               ".join(
        str(written[k]) for k in ("grid", "npz", "film") if k in written
    )
    print(
        f"\nTrained to step {int(state.step)} on {jax.devices()[0].platform}.\n"
        f"  bits/dim     {summary}\n"
        f"  terms        {path}\n"
        f"  samples      {shown}\n"
        f"  curves       {workdir / 'progress.csv'}, {workdir / 'metrics.jsonl'}, "
        f"{workdir / 'tensorboard'}\n"
        f"  checkpoints  {workdir / 'checkpoints'}\n"
        f"More samples:  python -m iddpm_jax.main --workdir {workdir} --mode sample"
    )


def _sample(arguments: Arguments) -> None:
    from iddpm_jax.training import runs

    run = runs.open_run(arguments.workdir, arguments.config, arguments.checkpoint)
    for what, path in _draw(arguments.workdir, run).items():
        print(f"{what:5} {path}")


def _draw(workdir: Path, run) -> dict[str, Path]:
    """Draw the samples that are not there yet, and a film if asked for; all there is."""
    from iddpm_jax.evaluation import film, names, samples

    folder = names.sample_folder(workdir, run)
    try:
        folder.mkdir(parents=True, exist_ok=True)  # or the samples might be drawn for nothing
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror})") from None
    weights = run.state.weights(run.config.sample.ema_rate)
    written = samples.ensure(folder, run.config, run.model, weights, run.mesh)
    if run.config.sample.film:
        npz = written["npz"]
        written["film"] = film.make(npz, run.config, run.model, weights, run.mesh)
    return written


def _nll(arguments: Arguments) -> None:
    from iddpm_jax.evaluation import nll_table
    from iddpm_jax.training import runs

    run = runs.open_run(arguments.workdir, arguments.config, arguments.checkpoint)
    found, paths = _measure(arguments.workdir, run)
    if found:
        variance, dtype = run.model.parametrization.variance, run.model.spec.dtype
        print(nll_table.table(found, variance, dtype), "\n")
        for path in paths.values():
            print(f"terms {path}\njson  {path.with_suffix('.json')}")


def _measure(workdir: Path, run) -> tuple[dict, dict[str, Path]]:
    """Measure bits/dim and write it: (likelihoods, files) by the average's rate.

    There are no likelihoods in other processes than the main one.
    """
    from iddpm_jax.evaluation import names, nll

    settings = run.config.nll
    rates = {str(rate or 0): rate for rate in settings.ema_rates or (settings.ema_rate,)}
    paths = {name: names.likelihood_file(workdir, run, float(rate)) for name, rate in rates.items()}
    try:
        (workdir / "nll").mkdir(exist_ok=True)  # or it might be measured for nothing
    except OSError as error:
        raise InputError(f"{workdir / 'nll'} cannot be written ({error.strerror})") from None
    weights = {name: run.state.weights(rate) for name, rate in rates.items()}
    return nll.measure(run.config, run.model, weights, run.mesh, paths), paths


def _fid(arguments: Arguments) -> None:
    from iddpm_jax.evaluation import quality
    from iddpm_jax.training import parallel, runs

    config, workdir = arguments.config, arguments.workdir
    mesh = parallel.make_mesh()
    # All that can be refused is refused before samples are drawn.
    network = quality.network_of(config)
    reference = config.fid.reference
    reference = quality.of_file(Path(reference), config) if reference else quality.of_data(config)
    if config.fid.samples:
        path = Path(config.fid.samples)
    else:
        path = _draw(workdir, runs.open_run(workdir, config, arguments.checkpoint))["npz"]
    samples = quality.of_file(path, config)
    folder = workdir / "fid" if workdir else path.parent
    for line in quality.measure(config, network, samples, reference, mesh, folder):
        print(line)


def _data(arguments: Arguments) -> None:
    from iddpm_jax import inspection

    for line in inspection.inspect(arguments.config, arguments.workdir / "data"):
        print(line)
    if arguments.statistics:
        from iddpm_jax.evaluation import quality
        from iddpm_jax.training import parallel

        mesh = parallel.make_mesh()
        for line in quality.write_statistics(arguments.config, mesh, arguments.statistics):
            print(line)


def _gradients(arguments: Arguments) -> None:
    from iddpm_jax.evaluation import gradients

    for line in gradients.measure(arguments.config, arguments.workdir, arguments.checkpoint):
        print(line, flush=True)


def _figures(arguments: Arguments) -> None:
    from iddpm_jax import figures

    config, workdir, others = arguments.config, arguments.workdir, arguments.others
    for line in figures.draw(config, workdir, others, arguments.only, arguments.target):
        print(line)


def _report(arguments: Arguments) -> None:
    from iddpm_jax import report
    from iddpm_jax.training import runs

    run = runs.open_run(arguments.workdir, arguments.config, arguments.checkpoint)
    for line in report.write(arguments.workdir, run):
        print(line)


def _convert(arguments: Arguments) -> None:
    from iddpm_jax import build, convert
    from iddpm_jax.training import parallel, runs

    config, workdir = arguments.config, arguments.workdir
    if arguments.source is not None:
        model, mesh = build.model(config), parallel.make_mesh()
        lines = convert.from_files(config, model, mesh, arguments.source, workdir)
    else:
        _, model, _, state = runs.open_run(workdir, config, arguments.checkpoint)
        lines = convert.to_files(config, model, state, arguments.target, arguments.form or "pt")
    for line in lines:
        print(line)


def _plan(arguments: Arguments) -> None:
    import jax

    jax.config.update("jax_platforms", "cpu")  # nothing is run: leave accelerators to others
    cache = runtime.cache_folder()
    runtime.configure(2, cache)
    from iddpm_jax import plan

    topology = plan.topology(arguments.topology)
    found = plan.plan(arguments.config, topology, arguments.part or "all", cache / "plans")
    print(plan.report.text(found, topology))
    words = re.sub(r"\W+", "-", f"{arguments.config.data.name} {topology.name}")
    path = (arguments.workdir or cache / "plans") / f"plan_{words}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror})") from None
    print(f"\nas JSON: {path}")


if __name__ == "__main__":
    allocator.restart()
    code = main()
    if code:
        # Threads that outlive the failure would print more than the one line while Python ends.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
