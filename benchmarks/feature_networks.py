"""Do FD-digits and FD-emoji rank spoilt pictures as eyes would? The test split, worse and worse.

python benchmarks/feature_networks.py

Against the training split. Networks were trained on the faults of the first rows, not on those of
the last: blocks that change places, fewer grey levels, missing classes, few pictures often.
"""

from collections.abc import Iterator

import jax
import numpy as np
from harness import report

from iddpm_jax import data
from iddpm_jax.data import ArraySource
from iddpm_jax.evaluation import small_network
from iddpm_jax.evaluation.features import Features, extract
from iddpm_jax.evaluation.fid import frechet_distance, statistics
from iddpm_jax.evaluation.neighbours import precision_recall
from iddpm_jax.evaluation.subset_scores import inception_scores
from iddpm_jax.evaluation.train_small_network import FAULTS, add_faults
from iddpm_jax.training.parallel import make_mesh

LEVELS = (0.1, 0.25, 0.5, 1.0)
NEIGHBOURS = 3


def main() -> None:
    """Print a table for each network and keep the numbers."""
    report("feature_networks", {name: table(name) for name in small_network.SPECS})


def table(name: str) -> dict[str, dict[str, float]]:
    """Scores of every row against the training split."""
    train, test = data.load(name, "train"), data.load(name, "test")
    sets = {"train": train.images, **dict(rows(test))}
    reference, *spoilt = features(name, list(sets.values()))
    # How far some training pictures are from the others: a floor for the test split.
    order = np.random.default_rng(0).permutation(len(train))
    some, others = (
        Features(*(f[chosen] for f in reference)) for chosen in np.split(order, [len(test)])
    )
    found = {"some training pictures, others": scores(some, others)}
    found |= {row: scores(s, reference) for row, s in zip(list(sets)[1:], spoilt, strict=True)}
    print(f"\n{'FD-' + name:32}{'FD':>8}{'spatial':>9}{'IS':>7}{'precision':>11}{'recall':>8}")
    for row, numbers in found.items():
        fd, spatial, inception, precision, recall = numbers.values()
        print(f"{row:32}{fd:8.2f}{spatial:9.2f}{inception:7.2f}{precision:11.2f}{recall:8.2f}")
    return found


def rows(test: ArraySource) -> Iterator[tuple[str, np.ndarray]]:
    """(what was done, uint8 pictures), as many as the test split has but for missing classes."""
    rng, x = np.random.default_rng(0), test.images
    yield "test split", x
    for i, fault in enumerate(FAULTS):
        if fault == "saturation" and x.shape[-1] == 1:
            continue
        # Light faults on a black background, dark ones on a white: clipping would undo the others.
        sign = -1 if fault == "contrast" or (fault == "brightness" and np.median(x) > 127) else 1
        for level in LEVELS:
            levels = np.zeros((len(x), len(FAULTS)), np.float32)
            levels[:, i] = sign * level
            spoilt = add_faults(jax.random.key(0), x.astype(np.float32), levels)
            yield f"{fault} {sign * level}", np.asarray(spoilt).round().astype(np.uint8)
    for count in (2, 4, 8, 16):
        yield f"{count} of 16 blocks change places", swapped_blocks(x, count, rng)
    for count in (8, 4, 3, 2):
        yield f"{count} levels a colour", ((x // (256 / count)) * (255 / (count - 1))).astype("u1")
    for count in (1, 2, 4, 6):
        yield f"{count} classes missing", x[test.labels >= count]
    for count in (100, 50, 25, 10):
        yield f"{count} pictures again and again", np.resize(rng.permutation(x)[:count], x.shape)
    yield "noise alone", rng.integers(0, 256, x.shape).astype(np.uint8)


def swapped_blocks(images: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Cut pictures into 4x4 blocks, of which some change places."""
    number, height, width, channels = images.shape
    cut = images.reshape(number, 4, height // 4, 4, width // 4, channels)
    blocks = cut.swapaxes(2, 3).reshape(number, 16, -1).copy()
    for picture in blocks:
        chosen = rng.permutation(16)[:count]
        picture[chosen] = picture[np.roll(chosen, 1)]
    cut = blocks.reshape(number, 4, 4, height // 4, width // 4, channels).swapaxes(2, 3)
    return cut.reshape(images.shape)


def features(name: str, sets: list[np.ndarray]) -> list[Features]:
    """Of the network in the package, compiled once for all sets."""
    network, images = small_network.network(name), np.concatenate(sets)
    found = extract(network, lambda i: images[i], len(images), make_mesh(), 128, progress=False)
    ends = np.cumsum([len(s) for s in sets])[:-1]
    return [Features(*parts) for parts in zip(*(np.split(f, ends) for f in found), strict=True)]


def scores(found: Features, reference: Features) -> dict[str, float]:
    """What the table shows."""
    near = precision_recall(found.pool, reference.pool, NEIGHBOURS)
    return {
        "fd": frechet_distance(statistics(found.pool), statistics(reference.pool)),
        "spatial": frechet_distance(statistics(found.spatial), statistics(reference.spatial)),
        "inception_score": float(inception_scores(found.logits, [np.arange(len(found.logits))])[0]),
        "precision": float(near.precision),
        "recall": float(near.recall),
    }


if __name__ == "__main__":
    main()
