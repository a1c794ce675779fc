"""Bits per dimension of a data split: the prior and every term L_t of the bound (section 2.1)."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from iddpm_jax import build, data
from iddpm_jax.diffusion.process import Process
from iddpm_jax.diffusion.respacing import padded
from iddpm_jax.evaluation.likelihood import Bound, Likelihood, paired
from iddpm_jax.evaluation.parts import Parts, told_apart
from iddpm_jax.evaluation.terms import (
    SHARES,
    TABLES,
    prior_function,
    steps_of_images,
    terms_function,
)
from iddpm_jax.training.checksum import digest
from iddpm_jax.training.parallel import (
    check_batch,
    is_main_process,
    share_to_devices,
    to_host,
)
from iddpm_jax.training.state import Params

BATCHES_PER_PART = 16
MOST_PARTS = 2000


@dataclasses.dataclass(frozen=True, eq=False)
class _Task:
    """What is measured, and where.

    Attributes:
        settings: the config's nll part.
        model, process, mesh: of the evaluation.
        read: index in the split -> example; the last few are kept.
        chosen: index in the split of each image [N].
        steps: terms of each image [N, M].
        weight: number of terms that an evaluated one stands for [K].
    """

    settings: ConfigDict
    model: build.Model
    process: Process
    mesh: Mesh
    read: Callable[[int], dict[str, np.ndarray]]
    chosen: np.ndarray
    steps: np.ndarray
    weight: np.ndarray

    @property
    def terms(self) -> int:
        """Evaluations of the network per image and average."""
        return self.steps.shape[1] * self.settings.draws

    @property
    def part(self) -> int:
        """Images measured between two saves; the last of their batches is nearly full."""
        by_batches = BATCHES_PER_PART * self.settings.batch_size // self.terms
        return max(1, by_batches, -(-len(self.chosen) // MOST_PARTS))

    def images(self, i: np.ndarray) -> np.ndarray:
        """Images of rows i [B] -> uint8 [B, H, W, C]."""
        return np.stack([self.read(index)["image"] for index in self.chosen[i].tolist()])

    def pairs(self, rows: np.ndarray, pair: np.ndarray) -> tuple:
        """What the compiled function takes: pairs [B], counted over the terms of rows."""
        row, term = np.divmod(pair, self.terms)
        i, (s, draw) = rows[row], np.divmod(term, self.settings.draws)
        y = None
        if self.model.class_conditional:
            y = np.array([self.read(index)["label"] for index in self.chosen[i].tolist()], np.int32)
        index, t = self.chosen[i].astype(np.int32), self.steps[i, s].astype(np.int32)
        return self.images(i), y, index, t, None if self.settings.draws == 1 else draw


def _task(config: ConfigDict, model: build.Model, mesh: Mesh, count: int | None) -> _Task:
    settings = config.nll
    check_batch(mesh, settings.batch_size)
    process = model.respaced(settings.steps, "nll.steps")
    source = build.load_data(config, model, settings.split)
    chosen = min(count or len(source), len(source))
    chosen = np.arange(chosen) * len(source) // chosen
    steps, weight = steps_of_images(len(source), process.T, settings.terms, settings.seed)
    steps = steps if len(chosen) == len(source) else steps[chosen]
    # Neighbouring pairs share their image, and a batch goes through several averages.
    read = functools.lru_cache(settings.batch_size)(source.__getitem__)
    return _Task(settings, model, process, mesh, read, chosen, steps, weight)


def _in_batches(
    task: _Task, function: Callable, shared: list, count: int, make: Callable
) -> Iterator[tuple[np.ndarray, list]]:
    """A function's results for 0 ... count - 1: (indices [n], results under each of `shared`).

    The next batch is made while the devices work on this one.
    """
    waiting = None
    for index, real in data.padded_chunks(count, task.settings.batch_size):
        own = np.array_split(index, jax.process_count())[jax.process_index()]
        batch = share_to_devices(task.mesh, make(own))
        started = index[:real], [function(s, batch) for s in shared]
        if waiting is not None:
            yield _fetched(waiting)
        waiting = started
    yield _fetched(waiting)


def _fetched(batch: tuple[np.ndarray, list]) -> tuple[np.ndarray, list]:
    index, results = batch
    return index, jax.tree.map(lambda values: values[: len(index)], to_host(results))


def _measure(task: _Task, weights: dict[str, Params], rows: np.ndarray, bar: tqdm) -> dict:
    """The next rows of results, by names such as "0.99:l_t"; see _summed."""
    function = terms_function(
        task.model.network.apply,
        task.model.parametrization,
        task.settings.clip_x_0,
        task.model.low_res_shape,
        task.mesh,
    )
    key = jax.random.key(task.settings.seed)
    tables = padded(task.process, task.model.process.T)
    shared = [(params, tables, key) for params in weights.values()]
    found: list[dict[str, list]] = [{} for _ in weights]
    make = functools.partial(task.pairs, rows)
    for index, results in _in_batches(task, function, shared, len(rows) * task.terms, make):
        for lists, values in zip(found, results, strict=True):
            for name, value in values.items():
                lists.setdefault(name, []).append(value)
            bar.update(len(index))
    batches = _in_batches(
        task,
        prior_function(task.mesh),
        [task.process],
        len(rows),
        lambda i: task.images(rows[i]),
    )
    arrays = {"prior": np.concatenate([prior for _, [prior] in batches])}
    for average, lists in zip(weights, found, strict=True):
        shape = (len(rows), task.steps.shape[1], task.settings.draws)
        values = {name: np.concatenate(parts).reshape(shape) for name, parts in lists.items()}
        summed = _summed(values, task.steps[rows], task.weight)
        arrays |= {f"{average}:{name}": array for name, array in summed.items()}
    return arrays


def _summed(values: dict[str, np.ndarray], steps: np.ndarray, weight: np.ndarray) -> dict:
    """What is kept of the values of n images, by name.

    Args:
        values: by name [n, M, D].
        steps: [n, M].
        weight: [K].

    Returns:
        The names of TABLES: [n, M], means over the draws. "draws": sum of l_t over the steps
        [n, D]. Of each other bound its sum, NAME_total [n]. NAME_steps, of all but TABLES:
        sums over the images [1, K].
    """
    kept = {name: values[name].mean(axis=2) for name in TABLES}
    kept["draws"] = np.einsum("nmd,nm->nd", values["l_t"].astype(np.float64), weight[steps])
    for name in [name for name in values if name not in TABLES]:
        mean = values[name].mean(axis=2, dtype=np.float64)
        if name not in SHARES:
            kept[f"{name}_total"] = (mean * weight[steps]).sum(axis=1)
        sums = np.bincount(steps.ravel(), mean.ravel(), minlength=len(weight))
        kept[f"{name}_steps"] = sums[None]
    return kept


def evaluate_all(
    config: ConfigDict,
    model: build.Model,
    weights: dict[str, Params],
    mesh: Mesh,
    progress: bool = True,
    count: int | None = None,
    parts: Parts | None = None,
) -> dict[str, Likelihood]:
    """The variational bound of a whole split or a part of it, each image once.

    Nichol & Dhariwal 2021, equations 4 to 7. A super-resolution model is given each image's own
    small version.

    Args:
        config: its nll part is read.
        model: the model.
        weights: parameters, or averages of them, by name; all see the same noise.
        mesh: devices of all processes, which share each batch; a process reads its own share.
        progress: show a bar.
        count: images, spread evenly over the split; None for all, as for more than there are.
        parts: results so far, made with made_by(...); None keeps them in memory.

    Returns:
        Likelihood of every image under each of the weights, whichever others are measured. Noise
        depends on the seed, the image, the index of the step in the process in use and the number
        of the draw. With parts on disk, nothing in other processes than the main one.

    Raises:
        InputError: impossible steps, or a batch the devices cannot share.
    """
    task = _task(config, model, mesh, count)
    on_disk, parts = parts is not None, parts or Parts(None, {})
    per_image = task.terms * len(weights)
    with tqdm(
        total=len(task.chosen) * per_image,
        initial=parts.done * per_image,
        desc="bits/dim",
        unit="term",
        disable=not (progress and is_main_process()),
        leave=False,
    ) as bar:
        while parts.done < len(task.chosen):
            rows = np.arange(parts.done, min(parts.done + task.part, len(task.chosen)))
            parts.append(_measure(task, weights, rows, bar))
    return {} if on_disk and not is_main_process() else _collected(task, list(weights), parts)


def evaluate(
    config: ConfigDict,
    model: build.Model,
    params: Params,
    mesh: Mesh,
    progress: bool = True,
    count: int | None = None,
) -> Likelihood:
    """evaluate_all for one set of parameters, in memory."""
    return evaluate_all(config, model, {"": params}, mesh, progress, count)[""]


def _collected(task: _Task, averages: list[str], parts: Parts) -> dict[str, Likelihood]:
    """Parts -> results, one part at a time."""
    N, K = len(task.chosen), len(task.weight)
    rows_of: dict[str, list] = {}
    sums: dict[str, Any] = {}
    tables = {f"{a}:{name}": np.empty((N, K), np.float32) for a in averages for name in TABLES}
    known, first = np.zeros(K, int), 0
    for part in parts:
        rows = slice(first, first := first + len(part["prior"]))
        known += np.bincount(task.steps[rows].ravel(), minlength=K)
        for name, array in part.items():
            if name in tables:
                tables[name][rows] = np.nan
                np.put_along_axis(tables[name][rows], task.steps[rows], array, axis=1)
            elif name.endswith("_steps"):
                sums[name] = sums.get(name, 0.0) + array[0]
            else:
                rows_of.setdefault(name, []).append(array)
    arrays = {name: np.concatenate(found) for name, found in rows_of.items()}
    arrays |= {
        name: np.divide(total, known, out=np.full(K, np.nan), where=known > 0)
        for name, total in sums.items()
    }
    return {a: _likelihood(task, a, tables, arrays) for a in averages}


def _likelihood(task: _Task, average: str, tables: dict, arrays: dict) -> Likelihood:
    prior, own = arrays["prior"], f"{average}:"
    arrays = {name.removeprefix(own): a for name, a in arrays.items() if name.startswith(own)}
    others = [name.removesuffix("_total") for name in arrays if name.endswith("_total")]
    return Likelihood(
        np.asarray(task.process.timesteps),
        task.weight,
        *(tables[own + name] for name in TABLES),
        prior,
        arrays["draws"] + prior[:, None],
        {
            name: Bound(arrays[f"{name}_total"] + prior, arrays[f"{name}_steps"])
            for name in sorted(others)
        },
        *(arrays.get(f"{name}_steps") for name in SHARES),
    )


def made_by(config: ConfigDict, model: build.Model, weights: dict[str, Params]) -> dict:
    """All that decides a row of results, of JSON's types; every process must call it.

    The size of a batch and the number of devices, which change rounding only, are not in it.

    Args:
        config: of the evaluation.
        model: the model.
        weights: parameters by name; their checksums are taken.

    Returns:
        Settings, checksums of the weights, and the data by name, size and a few of the images.
    """
    source = build.load_data(config, model, config.nll.split)
    nll = {k: v for k, v in config.nll.items() if k not in ("batch_size", "ema_rate", "ema_rates")}
    return {
        "nll": nll,
        "weights": {name: digest(params) for name, params in weights.items()},
        "data": [config.data.name, config.nll.split, *told_apart(source)],
        "diffusion": config.diffusion.to_dict(),
        "model": {**config.model.to_dict(), "dtype": model.spec.dtype},
    }


def measure(
    config: ConfigDict,
    model: build.Model,
    weights: dict[str, Params],
    mesh: Mesh,
    paths: dict[str, Path],
) -> dict[str, Likelihood]:
    """evaluate_all of a whole split into files, going on after what a killed program left.

    Args:
        config, model, weights, mesh: see evaluate_all.
        paths: .npz to write for each of the weights; what is unfinished lies in a folder beside the
            first.

    Returns:
        Likelihood for each of the weights; nothing in other processes than the main one.

    Raises:
        InputError: see evaluate_all.
    """
    first = next(iter(paths.values()))
    parts = Parts(first.with_suffix(".parts"), made_by(config, model, weights))
    found = evaluate_all(config, model, weights, mesh, parts=parts)
    for name, likelihood in found.items():
        settings = {**config.to_dict(), "dtype": model.spec.dtype, "average": name}
        minus = {
            other: paired(likelihood.per_image, found[other].per_image)
            for other in found
            if other != name
        }
        likelihood.save(paths[name], settings, minus)
    parts.remove()
    return found
