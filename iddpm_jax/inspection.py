"""The data as the network will see them: counts, classes, values, speed, labelled pictures."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from iddpm_jax import build, data
from iddpm_jax.errors import InputError
from iddpm_jax.images import area_average_uint8, grid, to_float, write_png

_SECONDS = 5.0  # given to each of the things that may take for ever
_SHOWN = 64  # pictures in a grid
_CELL = 72  # pixels that a class's name needs
_NAMED = 20  # classes listed in full


def inspect(config: ConfigDict, folder: Path, seconds: float | None = None) -> Iterator[str]:
    """Look at the data of a config, and write training.png and test.png.

    Args:
        config: checked; its data part, the image sizes of its model and train.batch_size count.
        folder: to write to, made if need be.
        seconds: limit for reading each split, and for the speed of the input; by default 5.

    Yields:
        Lines for people, as they become known.

    Raises:
        InputError: no such data, pictures that cannot be read, or a folder that cannot be written.
    """
    seconds = _SECONDS if seconds is None else seconds
    model = build.model(config)
    source = build.load_data(config, model, "train")
    data.check_batch_size(source, config.train.batch_size)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror})") from None
    yield f"{config.data.name}: pictures of {'x'.join(map(str, model.image_shape))}"
    yield from _split_lines("train", source, seconds)
    rate, batch = _input(config, source, seconds)
    yield f"input pipeline: {rate:,.0f} images/s ({config.data.num_threads} threads)"
    if config.data.resident:
        size = len(source) * np.prod(model.image_shape) / 2**20
        yield f"  not used in training: the split stays on every device ({size:,.1f} MiB)"
    path = folder / "training.png"
    write_png(path, labelled(_pairs(batch["image"], model), batch["label"], source.class_names))
    yield f"as training sees them: {path}"
    yield from _skipped_lines(source)

    try:
        source = build.load_data(config, model, "test")
    except InputError as error:  # training stops there, looking at the data need not
        yield f"test: none; {error}"
        return
    yield from _split_lines("test", source, seconds)
    chosen = np.unique(np.linspace(0, len(source) - 1, _SHOWN).astype(int))
    examples = [source[i] for i in chosen]
    images, labels = (np.stack([e[key] for e in examples]) for key in ("image", "label"))
    path = folder / "test.png"
    write_png(path, labelled(_pairs(images, model), labels, source.class_names))
    yield f"as evaluation sees them: {path}"
    yield from _skipped_lines(source)


def _split_lines(split: str, source: data.Source, seconds: float) -> Iterator[str]:
    """Counts, classes and values, from as many pictures as can be read in that time."""
    levels, seen = _read(split, source, seconds)
    read = f"all {len(seen):,}" if len(seen) == len(source) else f"{len(seen):,} of them"
    yield f"{split}: {len(source):,} pictures, {len(source.class_names) or 'no'} classes"
    if source.class_names:
        # Known without the pictures, or else of those that were read.
        labels = getattr(source, "labels", None)
        counts = np.bincount(
            np.array(seen) if labels is None else labels, minlength=len(source.class_names)
        )
        among = f" (in {read})" if labels is None else ""
        yield f"  classes{among}: {_classes(source.class_names, counts)}"
    values = np.asarray(to_float(np.arange(256, dtype=np.uint8)), np.float64)
    mean = np.average(values, weights=levels)
    deviation = np.sqrt(np.average((values - mean) ** 2, weights=levels))
    there = values[levels > 0]
    yield (
        f"  values (in {read}): {there.min():.3f} to {there.max():.3f}, mean {mean:.3f}, "
        f"standard deviation {deviation:.3f}"
    )


def _read(split: str, source: data.Source, seconds: float) -> tuple[np.ndarray, list[int]]:
    """(how often each of 256 levels occurs, labels of the pictures read)."""
    levels, labels = np.zeros(256, np.int64), []
    order = np.random.default_rng(0).permutation(len(source))
    end = time.monotonic() + seconds
    for i in tqdm(order, desc=f"reading {split}", unit=" pictures", mininterval=0.5, leave=False):
        example = source[int(i)]
        levels += np.bincount(example["image"].ravel(), minlength=256)
        labels.append(int(example["label"]))
        if time.monotonic() > end:
            break
    return levels, labels


def _classes(names: tuple[str, ...], counts: np.ndarray) -> str:
    """Pictures of each class, or of the largest and smallest."""
    order = np.argsort(-counts, kind="stable")
    words = [f"{names[i]} {counts[i]:,}" for i in order]
    if len(names) <= _NAMED:
        return ", ".join(words)
    return f"largest {', '.join(words[:3])}; smallest {', '.join(words[-3:])}"


def _input(
    config: ConfigDict, source: data.Source, seconds: float
) -> tuple[float, dict[str, np.ndarray]]:
    """(images/s of the input pipeline, the first pictures that training sees)."""
    batches = build.training_batches(config, source)
    first, images = [], 0
    begin = time.monotonic()
    with tqdm(desc="timing the input", unit=" pictures", mininterval=0.5, leave=False) as progress:
        while time.monotonic() < begin + seconds or images < _SHOWN:
            batch = next(batches)
            if images < _SHOWN:
                first.append(batch)
            images += len(batch["label"])
            progress.update(len(batch["label"]))
    rate = images / (time.monotonic() - begin)
    return rate, {key: np.concatenate([batch[key] for batch in first])[:_SHOWN] for key in first[0]}


def _skipped_lines(source: data.Source) -> Iterator[str]:
    skipped = sorted(getattr(source, "skipped", ()))
    if skipped:
        more = f" and {len(skipped) - 3} more" if len(skipped) > 3 else ""
        yield f"  not readable, skipped so far: {len(skipped)} ({', '.join(skipped[:3])}{more})"


def _pairs(images: np.ndarray, model: build.Model) -> np.ndarray:
    """Each picture next to the small one that a super-resolution model is given."""
    if model.low_res_shape is None:
        return images
    (rows, columns), (height, width) = model.low_res_shape[:2], images.shape[1:3]
    small = area_average_uint8(images, rows, columns)
    small = small[:, np.arange(height) * rows // height][:, :, np.arange(width) * columns // width]
    return np.concatenate([small, images], axis=2)


def labelled(images: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]) -> np.ndarray:
    """Pictures side by side, each above the name of its class.

    Args:
        images: uint8 [N, H, W, C]; of other C than 3, the first channel is shown.
        labels: int [N].
        class_names: by label; none are written if there are none.

    Returns:
        uint8 [rows H', columns W', 3].
    """
    colour = images if images.shape[-1] == 3 else images[..., :1].repeat(3, axis=-1)
    scale = max(1, _CELL // min(images.shape[1:3]))
    big = colour.repeat(scale, axis=1).repeat(scale, axis=2)
    if not class_names:
        return grid(big, scale=1)
    strips = {i: _strip(class_names[i], big.shape[2]) for i in set(labels.tolist())}
    return grid(np.concatenate([big, [strips[i] for i in labels.tolist()]], axis=1), scale=1)


def _strip(name: str, width: int) -> np.ndarray:
    """A name in white on black, shortened to fit; uint8 [height, width, 3]."""
    font = ImageFont.load_default(10)
    shown = name
    while shown and font.getlength(shown) > width:
        shown = shown.removesuffix("..")[:-1] + ".."
        if shown == "..":
            break
    strip = Image.new("RGB", (width, 14))
    ImageDraw.Draw(strip).text((1, 0), shown, font=font, fill="white")
    return np.asarray(strip)
