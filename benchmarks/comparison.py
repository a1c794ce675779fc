"""What train_step.py, sample.py and nll.py share: command line, table, results."""

import argparse
import datetime
import json
import math
import os
import platform
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import numpy as np
from contest import FOLDER, Contender, Result, Workload, contest, ratio
from harness import commit, load_config
from ml_collections import ConfigDict

from iddpm_jax import allocator, build
from iddpm_jax.config import flat
from iddpm_jax.interop.openai import official_shapes
from iddpm_jax.models.flops import flops_per_image, training_flops_per_image

OURS = "iddpm_jax"
CONTENDERS = {
    OURS: "contenders.ours:default",
    "one device": "contenders.ours:one_device",
    "original": "contenders.original:eager",
    "original, channels last": "contenders.original:channels_last",
    "original, compiled": "contenders.original:compiled",
    "original, compiled, channels last": "contenders.original:compiled_channels_last",
    "diffusers": "contenders.diffusers_unet:eager",
    "diffusers, channels last": "contenders.diffusers_unet:channels_last",
    "diffusers, compiled": "contenders.diffusers_unet:compiled",
    "diffusers, compiled, channels last": "contenders.diffusers_unet:compiled_channels_last",
    "ddpm-pytorch": "contenders.ddpm_pytorch:eager",
    "ddpm-pytorch, compiled": "contenders.ddpm_pytorch:compiled",
    "matrix product": "contenders.matrix_product:product",
}
"""Ours and peers, by the names that --contenders takes."""

PEAK = "matrix product"
PEAK_FLOPS = 2 * 4096**3


def main(kind: str, title: str) -> None:
    """Read the command line, time, print a table, keep the results.

    Args:
        kind: of the workload.
        title: of the program, for --help.
    """
    args = _arguments(title)
    config = _config(args)
    model = build.model(config)
    build.settle(config, model)
    peers = dict(peer.split("=", 1) for peer in args.peer)
    known = {**CONTENDERS, **peers}
    names = [*(name.strip() for name in args.contenders.split(";")), *peers]
    if unknown := [name for name in names if name not in known]:
        sys.exit(f"{unknown[0]!r} is no contender; there are: {'; '.join(known)}")
    contenders = [_contender(name, known[name]) for name in [*names, PEAK]]
    with tempfile.TemporaryDirectory() as folder:
        weights = _random_weights(model.spec, Path(folder))
        workload = Workload(kind, config.to_json(), args.batch, str(weights))
        results = contest(
            contenders, workload, args.rounds, args.seconds, args.apart, args.together
        )
    product = results.pop(PEAK)
    calls = int(config.sample.steps) if kind == "sample" else 1
    flops = training_flops_per_image if kind == "train" else flops_per_image
    counted = flops(model.spec, model.image_shape) * calls * args.batch
    record = {
        "kind": kind,
        "config": args.config,
        "set": args.set,
        "dtype": config.model.dtype,
        "batch_size": args.batch,
        "network_calls": calls,
        "gflops_by_hand": round(counted / 1e9, 1),
        "peak_gflops_per_s": None if product.failed else round(PEAK_FLOPS / product.median / 1e9),
        "contenders": {name: _numbers(results, name, args.batch) for name in results},
        **_circumstances(),
    }
    print(table(record))
    _keep(kind, record)


def _contender(name: str, builder: str) -> Contender:
    """Ours in the environment that our programs give themselves; peers in this one."""
    own = builder.startswith("contenders.ours:")
    return Contender(name, builder, allocator.environment(os.environ) if own else {})


def _arguments(title: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--config", default="configs/emoji.py:small", help="FILE[:VARIANTS]")
    parser.add_argument("--set", nargs="*", default=[], help="changes of it, KEY=VALUE")
    parser.add_argument("--batch", type=int, default=32, help="images, over all devices")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=7, help="timings of each that count")
    parser.add_argument("--seconds", type=float, default=1.0, help="that a timing takes at least")
    parser.add_argument(
        "--contenders",
        default=f"{OURS};original;original, compiled;diffusers;ddpm-pytorch",
        help=f"names between semicolons, of: {'; '.join(CONTENDERS)}",
    )
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=MODULE:FUNCTION",
        help="another contender: a function like those in benchmarks/contenders",
    )
    parser.add_argument(
        "--apart",
        action="store_true",
        help="one contender after the other, each with all memory, instead of in turns",
    )
    parser.add_argument(
        "--together",
        action="store_true",
        help="build all contenders at once, on a machine with many cores",
    )
    return parser.parse_args()


def _config(args: argparse.Namespace) -> ConfigDict:
    config = load_config(args.config)
    config.model.dtype = args.dtype
    config.train.batch_size = args.batch
    config.sample.steps = "50"
    config.update_from_flattened_dict(
        dict(_assignment(config, assignment) for assignment in args.set)
    )
    return config


def _assignment(config: ConfigDict, text: str) -> tuple[str, object]:
    key, _, value = text.partition("=")
    if isinstance(dict(flat(config)).get(key), str):
        return key, value
    return key, json.loads(value)


def _random_weights(spec, folder: Path) -> Path:
    """Weights of no meaning, with no zeros among them, under their official names."""
    rng, arrays = np.random.default_rng(0), {}
    for name, shape in official_shapes(spec).items():
        fan_in = math.prod(shape[1:]) or 1
        arrays[name] = rng.normal(0, 1 / math.sqrt(fan_in), shape).astype(np.float32)
        if len(shape) == 1:  # norms' factors, and all shifts
            arrays[name] = 0.1 * arrays[name] + (name.endswith("weight"))
    np.savez(folder / "weights.npz", **{k: v.astype(np.float32) for k, v in arrays.items()})
    return folder / "weights.npz"


def _numbers(results: dict[str, Result], name: str, batch: int) -> dict:
    found = results[name]
    if found.failed:
        return {"failed": found.failed}
    numbers = {
        "seconds": round(found.median, 5),
        "spread": [round(min(found.seconds), 5), round(max(found.seconds), 5)],
        "images_per_s": round(batch / found.median, 2),
        "first_s": round(found.first_s, 1),
        "host_gib": round(found.host_gib, 2),
        "device_gib": found.device_gib and round(found.device_gib, 2),
    }
    if name != OURS and OURS in results and not results[OURS].failed:
        numbers["ours_is_faster"] = [round(r, 3) for r in ratio(results, name, OURS)]
    return numbers


def _circumstances() -> dict:
    import jax

    device = jax.devices()[0]
    cores = len(os.sched_getaffinity(0))
    packages = ("jax", "torch", "diffusers", "denoising-diffusion-pytorch")
    installed = {d.metadata["name"].lower() for d in metadata.distributions()}
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "command": " ".join(["python", *sys.argv]),
        "preloaded": Path(os.environ.get("LD_PRELOAD", "")).name,
        "ours_preloads": Path(allocator.environment(os.environ).get("LD_PRELOAD", "")).name,
        "device": f"{device.device_kind} {platform.machine()}, {cores} cores",
        "versions": {p: metadata.version(p) for p in packages if p in installed},
    }


def table(record: dict) -> str:
    """A record as a Markdown table."""
    peak, flops = record["peak_gflops_per_s"], record["gflops_by_hand"]
    lines = [
        f"{record['kind']}: {record['config']}, batch {record['batch_size']}, {record['dtype']}, "
        f"{record['device']}; {record['date']}, {record['commit']}",
        "",
        "| | ms | lowest to highest | of the peak | memory GiB | first s | ours is faster |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, found in record["contenders"].items():
        if "failed" in found:
            lines.append(f"| {name} | failed: {found['failed']} | | | | | |")
            continue
        ms, (low, high) = 1e3 * found["seconds"], (1e3 * s for s in found["spread"])
        share = f"{flops / found['seconds'] / peak:.0%}" if peak else ""
        memory = found["device_gib"] or found["host_gib"]
        low_r, mid, high_r = found.get("ours_is_faster", (1, 1, 1))
        faster = "" if name == OURS else f"{mid:.2f} ({low_r:.2f} to {high_r:.2f})"
        lines.append(
            f"| {name} | {ms:.4g} | {low:.4g} to {high:.4g} | {share} | {memory:.1f} | "
            f"{found['first_s']:.0f} | {faster} |"
        )
    return "\n".join(lines)


def _keep(kind: str, record: dict) -> None:
    """Put a record into results/KIND.json, in place of one of the same work in the same place."""
    path = FOLDER / "results" / f"{kind}.json"
    records = json.loads(path.read_text()) if path.exists() else []
    same = ("config", "set", "dtype", "batch_size", "device", "preloaded", "ours_preloads")
    records = [r for r in records if any(r.get(key, "") != record[key] for key in same)]
    path.write_text(json.dumps([*records, record], indent=1) + "\n")
