"""Samples on disk: drawn in parts that a kill leaves whole, merged, and shown."""

import dataclasses
import itertools
import json
import math
import sys
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from iddpm_jax import build
from iddpm_jax.evaluation.generate import Base, asked, base_of, draw
from iddpm_jax.evaluation.parts import Parts, from_main, hashed
from iddpm_jax.images import enlarge, grid, write_png
from iddpm_jax.training.checksum import digest
from iddpm_jax.training.parallel import is_main_process
from iddpm_jax.training.state import Params

PART_SECONDS = 5.0
"""Samples go to disk as often as this, or after each batch that takes longer."""

SHOWN = 400
"""Samples in a grid, at most."""


def ensure(
    folder: Path,
    config: ConfigDict,
    model: build.Model,
    params: Params,
    mesh: Mesh,
    progress: bool = True,
    part_seconds: float = PART_SECONDS,
) -> dict[str, Path]:
    """Draw config.sample.count samples into a folder, or what is still missing of them.

    A kill loses the batch in hand and at most part_seconds of others; the same call goes on after
    them, to the same file byte for byte. All processes must call this together.

    Args:
        folder: made if missing. What other settings or weights left there is drawn anew.
        config: its sample part is read.
        model: the model.
        params: its parameters, or an average of them.
        mesh: devices.
        progress: show a bar.
        part_seconds: see PART_SECONDS.

    Returns:
        What is there: "npz" (arr_0 images, arr_1 classes), "grid", and "png" (a folder).

    Raises:
        InputError, DivergedError: see draw and base_of.
    """
    base = base_of(config, model)
    count, classes = asked(config, model, base)
    made_by = decided_by(config, model, params, base)
    path = folder / f"samples_{'x'.join(map(str, (count, *model.image_shape)))}.npz"
    if from_main(is_main_process() and _made_by(path) == made_by):
        _say(f"{path} is there already")
    else:
        parts = Parts(folder / "parts", made_by)
        if parts.done:
            _say(f"{min(parts.done, count)} of {count} samples are there; drawing the others")
        drawn = draw(config, model, params, mesh, base, parts.done, progress)
        try:
            parts.extend(({"images": images} for images in drawn), part_seconds)
        except KeyboardInterrupt:
            kept = f"{parts.done} of {count} samples are kept"
            _say(f"\n{kept}; the same command goes on after them", sys.stderr)
            raise
        if is_main_process():
            write(path, (part["images"] for part in parts), count, classes, made_by)
        parts.remove()
    if is_main_process():
        show(path, classes, base, config.sample.png)
    from_main(0)  # other processes may read it next
    png = {"png": folder / "png"} if config.sample.png else {}
    return {"npz": path, "grid": folder / "grid.png", **png}


def _say(line: str, file: TextIO | None = None) -> None:
    """Print in the main process alone."""
    if is_main_process():
        print(line, file=file)


def decided_by(config: ConfigDict, model: build.Model, params: Params, base: Base | None) -> dict:
    """All that decides sample i: settings, network, process, weights, small images; JSON's types.

    Neither the number of samples nor sample.batch_size, which changes their last bits only.

    Args:
        config: its sample part is read.
        model: the model.
        params: the weights.
        base: the small images of super-resolution.
    """
    process = model.respaced(config.sample.steps, "sample.steps", config.sample.skip)
    small = [] if base is None else [a for a in base if a is not None]
    # Paths, rates, skip and variance are names; what they stand for is among the others.
    names = ("count", "batch_size", "png", "film", "base", "ema_rate", "skip", "variance")
    variance = config.sample.variance or model.parametrization.variance
    found = {
        "sample": {k: v for k, v in config.sample.to_dict().items() if k not in names},
        "network": dataclasses.asdict(model.spec),
        "parametrization": {"mean": model.parametrization.mean, "variance": variance},
        "image_shape": model.image_shape,
        "weights": digest(params),
        "process": hashed(*jax.tree.leaves(process)),
        "base": hashed(*small) if small else "",
    }
    return json.loads(json.dumps(found))  # as it is read back: lists, not tuples


def _made_by(path: Path) -> dict | None:
    """What the samples of a file were made by; None where it says nothing of that."""
    try:
        with path.open("rb") as opened, np.load(opened) as arrays:
            return json.loads(str(arrays["made_by"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def write(
    path: Path,
    images: Iterable[np.ndarray],
    count: int,
    classes: np.ndarray | None = None,
    made_by: dict | None = None,
) -> None:
    """Write samples as evaluators expect them: arr_0 images, arr_1 classes.

    Args:
        path: of the .npz, which is whole or not there; its folder is made if missing.
        images: uint8 [n, H, W, C], one after the other; they need not fit in memory together.
        count: how many of them to write.
        classes: int32 [N] or None.
        made_by: what decided them, kept beside them as JSON.
    """
    one_by_one = itertools.chain.from_iterable(images)
    first = next(one_by_one)
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *first.shape)}
    others = {} if classes is None else {"arr_1": classes}
    if made_by is not None:
        others["made_by"] = np.array(json.dumps(made_by, sort_keys=True))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    try:
        with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED) as file:
            with file.open("arr_0.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                # One by one, so that the bytes do not depend on how they came.
                for image in itertools.chain([first], itertools.islice(one_by_one, count - 1)):
                    member.write(image.tobytes())
            for name, array in others.items():
                with file.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def show(path: Path, classes: np.ndarray | None, base: Base | None, single: bool) -> None:
    """Make pictures of samples in a file, beside it.

    Args:
        path: of the .npz.
        classes: int32 [N] or None.
        base: the small images they were drawn from, for super-resolution.
        single: one PNG per image as well as the grid.
    """
    shown = np.stack(list(itertools.islice(images_of(path), SHOWN)))
    write_png(path.parent / "grid.png", preview(shown, classes, base))
    for i, image in enumerate(images_of(path) if single else ()):
        name = f"{i:06d}.png" if classes is None else f"{i:06d}_class{classes[i]}.png"
        write_png(path.parent / "png" / name, image)


def images_of(path: Path) -> Iterator[np.ndarray]:
    """The images of a file of samples, uint8 [H, W, C], one by one."""
    with zipfile.ZipFile(path) as file, file.open("arr_0.npy") as member:
        np.lib.format.read_magic(member)
        (count, *shape), _, _ = np.lib.format.read_array_header_1_0(member)
        for _ in range(count):
            yield np.frombuffer(member.read(math.prod(shape)), np.uint8).reshape(shape)


def preview(images: np.ndarray, classes: np.ndarray | None, base: Base | None) -> np.ndarray:
    """A grid of the first samples, for people.

    Args:
        images: uint8 [N, H, W, C].
        classes: int32 [N] or None; each has a column of its own where they come in turn.
        base: the small images; each is shown, enlarged without smoothing, left of its sample.

    Returns:
        uint8 [height, width, C].
    """
    images = images[:SHOWN]
    if base is not None:
        small = enlarge(base.images[: len(images)], *images.shape[1:3])
        pairs = np.stack([small, images], axis=1)
        return grid(pairs.reshape(-1, *images.shape[1:]), 2 * math.ceil(math.sqrt(len(images) / 2)))
    return grid(images, columns_of(None if classes is None else classes[: len(images)]))


def columns_of(classes: np.ndarray | None) -> int | None:
    """How many classes there are, where they come in turn: [0, 1, 2, 0, 1, 2] -> 3; else None."""
    columns = 0 if classes is None else len(set(classes))
    if 1 < columns < len(classes) and np.array_equal(classes[columns:], classes[:-columns]):
        return columns
    return None
