"""Training of the small feature networks; minutes on two CPU cores.

    python -m iddpm_jax.evaluation.train_small_network --data digits --target features_digits.npz

A network learns the class of a picture and, at the same time, how the picture has been spoilt. A
classifier alone would learn to overlook what a bad model gets wrong.
"""

import argparse
import datetime
import functools
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from iddpm_jax import data
from iddpm_jax.errors import InputError
from iddpm_jax.evaluation import small_network
from iddpm_jax.evaluation.small_network import SPECS, Params, Spec

BATCH_SIZE = 64
EMA_RATE = 0.998


class Recipe(NamedTuple):
    """How a set is trained.

    Attributes:
        steps: of the optimizer.
        shift: pixels that pictures move by, at most.
        flip: whether a mirrored picture is as good as the original.
        weight_decay: of AdamW.
    """

    steps: int
    shift: int
    flip: bool
    weight_decay: float


RECIPES = {
    "digits": Recipe(steps=4000, shift=1, flip=False, weight_decay=0.01),
    "emoji": Recipe(steps=2000, shift=4, flip=True, weight_decay=0.05),
}

FAULTS = {
    "noise": (0, 1),
    "blur": (0, 1),
    "brightness": (-1, 1),
    "contrast": (-1, 1),
    "saturation": (-1, 1),
    "dead pixels": (0, 1),
    "another picture": (0, 1),
}
"""What a picture may suffer from, and the range of its level; 0 is none."""

SHARE_OF_FAULTS = 0.25
"""How often a picture has each of them; 13% of colour pictures have none."""

_UNSCALED = {"pool.scale": np.float32(1), "spatial.scale": np.float32(1)}


def spoil(key: jax.Array, images: jax.Array, recipe: Recipe) -> tuple[jax.Array, jax.Array]:
    """Pictures moved a little, some mirrored, each with a few faults.

    Args:
        key: random key.
        images: float32 [B, H, W, C] in 0..255.
        recipe: shift and flip are read.

    Returns:
        (images [B, H, W, C] in 0..255, levels of the faults [B, len(FAULTS)]).
    """
    for_flip, for_shift, for_levels, for_faults = jax.random.split(key, 4)
    if recipe.flip:
        flip = jax.random.bernoulli(for_flip, 0.5, (len(images), 1, 1, 1))
        images = jnp.where(flip, images[:, :, ::-1], images)
    images = _shift(for_shift, images, recipe.shift)
    levels = _levels(for_levels, len(images), images.shape[-1])
    return add_faults(for_faults, images, levels), levels


def _levels(key: jax.Array, count: int, channels: int) -> jax.Array:
    for_level, for_presence = jax.random.split(key)
    low, high = jnp.array(list(FAULTS.values()), jnp.float32).T
    shape = (count, len(FAULTS))
    level = low[None] + (high - low)[None] * jax.random.uniform(for_level, shape)
    share = [0.0 if channels == 1 and f == "saturation" else SHARE_OF_FAULTS for f in FAULTS]
    return level * jax.random.bernoulli(for_presence, jnp.array(share)[None], shape)


def add_faults(key: jax.Array, images: jax.Array, levels: jax.Array) -> jax.Array:
    """Spoil pictures by given levels.

    Args:
        key: random key, of noise and dead pixels.
        images: float32 [B, H, W, C] in 0..255; what is mixed in is the picture before.
        levels: [B, len(FAULTS)], in the order and ranges of FAULTS.

    Returns:
        [B, H, W, C] in 0..255.
    """
    for_noise, for_place, for_colour = jax.random.split(key, 3)
    noise, blur, brightness, contrast, saturation, dead, mixture = (
        level.reshape(-1, 1, 1, 1) for level in levels.T
    )
    # The picture itself stays the clearer one, so that its class is right.
    x = images + 0.45 * mixture * (jnp.roll(images, 1, axis=0) - images)
    x = x + blur * (_blur(x) - x)
    grey = x.mean(axis=-1, keepdims=True)
    x = grey + (1 + saturation) * (x - grey)
    mean = x.mean(axis=(1, 2, 3), keepdims=True)
    x = mean + (1 + 0.6 * contrast) * (x - mean) + 80 * brightness
    x = x + 80 * noise * jax.random.normal(for_noise, x.shape)
    black_or_white = 255.0 * jax.random.bernoulli(for_colour, 0.5, x.shape)
    x = jnp.where(jax.random.uniform(for_place, x.shape) < 0.3 * dead, black_or_white, x)
    return jnp.clip(x, 0, 255)


def _shift(key: jax.Array, images: jax.Array, most: int) -> jax.Array:
    """Move each picture by up to `most` pixels; its edge goes on."""
    padded = jnp.pad(images, ((0, 0), (most, most), (most, most), (0, 0)), mode="edge")
    offsets = jax.random.randint(key, (len(images), 2), 0, 2 * most + 1)
    return jax.vmap(
        lambda image, offset: jax.lax.dynamic_slice(image, (*offset, 0), images.shape[1:])
    )(padded, offsets)


def _blur(images: jax.Array) -> jax.Array:
    """Mean of 3x3 pixels."""
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    height, width = images.shape[1:3]
    return sum(padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)) / 9


def init(key: jax.Array, spec: Spec) -> dict[str, jax.Array]:
    """Random weights for silu (He et al. 2015), biases 0, and the second output, the levels."""
    wanted = small_network.shapes(spec)
    wanted |= {"levels.weight": (small_network.POOL, len(FAULTS)), "levels.bias": (len(FAULTS),)}
    params = {}
    for i, (name, shape) in enumerate(wanted.items()):
        if name.endswith(".weight"):
            deviation = (2 / np.prod(shape[:-1])) ** 0.5
            params[name] = deviation * jax.random.normal(jax.random.fold_in(key, i), shape)
        elif name.endswith(".bias"):
            params[name] = jnp.zeros(shape)
    return params


def loss(
    spec: Spec, recipe: Recipe, params: Params, key: jax.Array, images: jax.Array, y: jax.Array
) -> jax.Array:
    """Cross entropy of the classes, and squared error of the levels; scalar."""
    images, levels = spoil(key, images, recipe)
    found = small_network.apply(spec, {**params, **_UNSCALED}, images)
    classes = optax.softmax_cross_entropy_with_integer_labels(found.logits, y)
    guess = found.pool @ params["levels.weight"] + params["levels.bias"][None]
    return classes.mean() + 2 * jnp.square(guess - levels).sum(axis=-1).mean()


def train(spec: Spec, recipe: Recipe, source: data.ArraySource, seed: int) -> dict[str, np.ndarray]:
    """Train on all pictures of a source.

    Args:
        spec: the network.
        recipe: how.
        source: training pictures with classes.
        seed: of weights, order and faults.

    Returns:
        The average of the weights along the way, in half precision as they are stored, and the
        scales.
    """
    for_weights, for_steps = jax.random.split(jax.random.key(seed))
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, 3e-3, min(200, recipe.steps // 10), recipe.steps
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=recipe.weight_decay)
    )
    images, y = jnp.asarray(source.images, jnp.float32), jnp.asarray(source.labels)

    @jax.jit
    def step(params: dict, average: dict, state: optax.OptState, i: jax.Array) -> tuple:
        order, faults = jax.random.split(jax.random.fold_in(for_steps, i.astype(jnp.int32)))
        chosen = jax.random.choice(order, len(y), (BATCH_SIZE,))
        gradient = jax.grad(functools.partial(loss, spec, recipe))(
            params, faults, images[chosen], y[chosen]
        )
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        rate = jnp.minimum(EMA_RATE, i / (i + 10))
        return params, optax.incremental_update(params, average, 1 - rate), state

    params = init(for_weights, spec)
    average, state = params, optimizer.init(params)
    for i in tqdm(range(recipe.steps), unit="step", leave=False):
        params, average, state = step(params, average, state, jnp.float32(i))
    kept = [name for name in small_network.shapes(spec) if name not in _UNSCALED]
    return scaled(spec, {name: np.float16(average[name]) for name in kept}, source.images)


def scaled(spec: Spec, params: Params, images: np.ndarray) -> dict[str, np.ndarray]:
    """Add the scales with which features of these pictures have a variance of 1 on average."""
    found = features(spec, {**params, **_UNSCALED}, images)
    return {
        **params,
        "pool.scale": 1 / np.sqrt(found.pool.var(axis=0).mean()),
        "spatial.scale": 1 / np.sqrt(found.spatial.var(axis=0).mean()),
    }


def features(spec: Spec, params: Params, images: np.ndarray) -> small_network.Features:
    """Features of uint8 pictures, on one device; numpy arrays."""
    function = jax.jit(functools.partial(small_network.apply, spec))
    params = {name: np.float32(array) for name, array in params.items()}
    parts = [
        function(params, images[i : i + 256].astype(np.float32)) for i in range(0, len(images), 256)
    ]
    return small_network.Features(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def main(arguments: list[str]) -> int:
    """Train one network and write it; 0, 2 where the input was wrong, or 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, choices=SPECS, help="the built-in set")
    parser.add_argument("--target", required=True, type=Path, help=".npz file to write")
    parser.add_argument("--steps", type=int, help="of the optimizer, if not the recipe's")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and faults")
    given = parser.parse_args(arguments)
    try:
        run(given.data, given.target, given.steps, given.seed)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def run(name: str, target: Path, steps: int | None, seed: int) -> None:
    """Train the network of a set, measure it, write it and say how good it is.

    Args:
        name: "digits" or "emoji".
        target: .npz file; a folder that does not exist is made.
        steps: of the optimizer; None takes the recipe's.
        seed: of weights, order and faults.

    Raises:
        InputError: no steps, or a target that cannot be written.
    """
    spec, recipe = SPECS[name], RECIPES[name]
    recipe = recipe._replace(steps=recipe.steps if steps is None else steps)
    if recipe.steps < 1:
        raise InputError(f"--steps {recipe.steps} trains nothing; give 1 or more")
    if target.suffix != ".npz" or target.is_dir():
        raise InputError(f"--target {target} is not a name for weights; give FILE.npz")
    try:  # before the minutes of training
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--target {target} cannot be written ({error.strerror})") from None
    params = train(spec, recipe, data.load(name, "train"), seed)
    accuracy = {
        split: float(accuracy_of(spec, params, data.load(name, split)))
        for split in ("train", "test")
    }
    about = {
        "command": f"python -m iddpm_jax.evaluation.train_small_network --data {name} "
        f"--steps {recipe.steps} --seed {seed}",
        "data": name,
        "seed": seed,
        "recipe": recipe._asdict(),
        "accuracy": accuracy,
        "date": datetime.date.today().isoformat(),
        "jax": jax.__version__,
    }
    small_network.write(target, params, about)
    shown = ", ".join(f"{value:.1%} of {split}" for split, value in accuracy.items())
    print(f"{target}: {shown} pictures get the right class")


def accuracy_of(spec: Spec, params: Params, source: data.ArraySource) -> float:
    """Share of pictures that get the right class."""
    found = features(spec, params, source.images)
    return np.mean(found.logits.argmax(axis=1) == source.labels)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
