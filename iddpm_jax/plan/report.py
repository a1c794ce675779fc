"""From counts to answers: whether it fits, how fast it can be at best, and what to change."""

import math

from ml_collections import ConfigDict

from iddpm_jax.plan.chips import GIB, Topology
from iddpm_jax.plan.waiting import clock

TITLES = {"train": "training step", "sample": "sampler, a batch"}
LIMITS = {"arithmetic": "FLOPs", "memory": "HBM", "links": "links"}


def roofline(numbers: dict, topology: Topology) -> dict[str, float]:
    """Seconds that each part of a device needs for a call at least; the longest binds.

    Williams et al. 2009, "Roofline"; for all-reduce, 2 (n - 1) / n of the bytes leave every device
    of a ring of n (Patarasuk & Yuan 2009).

    Args:
        numbers: "flops", "hbm_bytes" and "collectives" of each device and call.
        topology: the slice.

    Returns:
        Seconds for each of LIMITS.
    """
    chip = topology.chip
    sent = 0.0
    for collective in numbers["collectives"]:
        n = collective["group"] or topology.devices
        # An all-gather brings its shard to all others, a permutation sends everything.
        share = {
            "all-reduce": 2 * (n - 1) / n,
            "reduce-scatter": (n - 1) / n,
            "all-to-all": (n - 1) / n,
            "all-gather": n - 1,
            "collective-permute": 1,
        }[collective["kind"]]
        sent += share * collective["bytes"] * collective["times"]
    links = topology.links * chip.link_bandwidth / chip.cores
    return {
        "arithmetic": numbers["flops"] / (chip.flops / chip.cores),
        "memory": numbers["hbm_bytes"] / (chip.hbm_bandwidth / chip.cores),
        "links": sent / links if links else 0.0,
    }


def capacity(topology: Topology) -> float:
    """Memory of a device, bytes."""
    return topology.chip.hbm / topology.chip.cores


def needed(numbers: dict) -> float:
    """Memory that a program needs on each device, bytes."""
    return numbers["needed"] if "needed" in numbers else sum(numbers["memory"].values())


def fits(numbers: dict, topology: Topology) -> bool:
    """Whether a program fits into the memory of a device."""
    return "needed" not in numbers and needed(numbers) <= capacity(topology)


def advice(
    config: ConfigDict, topology: Topology, need: float, params: int, state: int
) -> list[str]:
    """What to change so that a training step fits, in the order to try it.

    Estimates: activations, which is what is neither state nor gradient, shrink with the share of
    the batch that is taken at once; fsdp leaves each device its share of the state.

    Args:
        config: of the run.
        topology: the slice.
        need: memory the step needs on each device, bytes.
        params: memory of whole parameters, bytes.
        state: memory of the train state on each device, bytes.

    Returns:
        One line for each thing to try; empty if it fits.
    """
    room, devices = capacity(topology), topology.devices
    if need <= room:
        return []
    train = config.train
    activations = max(need - state - params, 0)
    lines = []

    def add(change: str, size: float) -> bool:
        verdict = "would fit" if size <= room else "is still too much"
        lines.append(f"{change}: about {size / GIB:.1f} GiB, which {verdict}")
        return size <= room

    share = train.batch_size // devices
    parts = [m for m in _powers(share) if m > train.microbatches and share % m == 0]
    for m in parts:
        # The sum of the gradients is kept beside those of the part.
        size = state + 2 * params + activations * train.microbatches / m
        if add(f"--config.train.microbatches={m}", size):
            break
    if config.model.remat != "blocks":
        lines.append(
            "--config.model.remat=blocks: keeps little more than the inputs of the blocks, "
            "for a third more FLOPs; plan again to see how much that is"
        )
    for k in [k for k in _powers(devices) if k > train.fsdp and devices % k == 0]:
        # A device has the parameters whole while it works with them.
        if add(f"--config.train.fsdp={k}", state * train.fsdp / k + 2 * params + activations):
            break
    lines.append("a slice with more chips, or chips with more memory")
    return lines


def _powers(limit: int) -> list[int]:
    """2, 4, 8, ... up to a limit."""
    return [2**i for i in range(1, limit.bit_length()) if 2**i <= limit]


def text(report: dict, topology: Topology) -> str:
    """The report as a table for people.

    Args:
        report: from plan.plan.
        topology: the slice.
    """
    programs = report["programs"]
    columns = [_column(programs[name], topology) for name in programs]
    labels = list(dict.fromkeys(label for column in columns for label in column))
    rows = [["per device and call", *(TITLES[name] for name in programs)]]
    rows += [[label, *(column.get(label, "") for column in columns)] for label in labels]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    chip, cores = topology.chip, topology.chip.cores
    half = f", each of {cores} devices to XLA" if cores > 1 else ""
    chips = f"{topology.chips} chips" if topology.chips > 1 else "1 chip"
    head = [
        f"{report['name']} on {topology.name}: {chips}{half}, "
        f"{chip.flops / 1e12:g} TFLOP/s, {chip.hbm / GIB:g} GiB at {chip.hbm_bandwidth / 1e9:g} "
        "GB/s each",
        f"{report['parameters']:,} parameters in {report['dtype']}; train state "
        f"{report['state_bytes'] / GIB:.2f} GiB on each device",
        report["origin"],
        "",
    ]
    tail = []
    if report["advice"]:
        tail += ["The training step does not fit. To try, one after the other (estimates):"]
        tail += [f"  {line}" for line in report["advice"]]
    if not programs.get("sample", {"fits": True})["fits"]:
        tail.append("The sampler does not fit; lower --config.sample.batch_size.")
    return "\n".join([*head, *table, *([""] if tail else []), *tail])


def _column(program: dict, topology: Topology) -> dict[str, str]:
    """Cells of a program by the labels of their rows."""
    room = f"of {capacity(topology) / GIB:g} GiB"
    verdict = "fits" if program["fits"] else "DOES NOT FIT"
    cells = {"images, all devices": f"{program['images']}"}
    if program["trips"] > 1:
        word = "microbatches" if program["name"] == "train" else "steps each"
        cells["images, all devices"] += f" in {program['trips']} {word}"
    if "needed" in program:
        more = f"{needed(program) / GIB:.2f} {room}: {verdict}"
        return {**cells, "FLOPs by hand": _number(program["hand_flops"]), "memory": more}
    cells["FLOPs"] = _number(program["flops"])
    ratio = program["flops"] / program["hand_flops"]
    cells["FLOPs by hand"] = f"{_number(program['hand_flops'])} (XLA has {ratio - 1:+.1%})"
    cells["bytes accessed"] = f"{_number(program['bytes'])}B"
    cells["  by operations"] = f"{_number(program['operation_bytes'])}B"
    cells["  through HBM"] = f"{_number(program['hbm_bytes'])}B"
    if "hand_bytes" in program:
        cells["  by hand, least"] = f"{_number(sum(program['hand_bytes'].values()))}B"
    cells["collectives"] = _collectives(program["collectives"])
    cells["memory"] = f"{needed(program) / GIB:.2f} {room}: {verdict}"
    for use, size in program["memory"].items():
        cells[f"  {use}"] = f"{size / GIB:.2f}"
    cells["time at least"] = _seconds(program["seconds_at_least"])
    for limit, seconds in program["roofline"].items():
        binds = " (binds)" if seconds == program["seconds_at_least"] else ""
        cells[f"  for {LIMITS[limit]}"] = _seconds(seconds) + binds
    cells["images/s at most"] = f"{_rounded(program['images_per_second']):,.10g}"
    earlier = ", earlier" if program["remembered"] else ""
    cells["compiled in"] = clock(program["seconds"]) + earlier
    return cells


def _collectives(collectives: list[dict]) -> str:
    found = {}
    for c in collectives:
        count, size = found.get(c["kind"], (0, 0))
        found[c["kind"]] = count + c["times"], size + c["bytes"] * c["times"]
    return ", ".join(f"{n} {kind} {_number(b)}B" for kind, (n, b) in found.items()) or "none"


def _number(value: float) -> str:
    """Three digits and a prefix, such as 1.52 T."""
    power = min(max(int(math.log10(value) // 3), 0), 5) if value >= 1 else 0
    return f"{value / 1000**power:.3g} {' kMGTP'[power]}".replace("  ", " ")


def _rounded(value: float) -> float:
    """To three digits."""
    return float(f"{value:.3g}")


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{value * 1000:.3g} ms"
