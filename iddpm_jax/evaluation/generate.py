"""Drawing samples, on all devices; sample i depends on (seed, i) alone."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from iddpm_jax import build, data
from iddpm_jax.diffusion import guidance, samplers
from iddpm_jax.diffusion.respacing import padded
from iddpm_jax.diffusion.reverse import Parametrization, clip_x_0
from iddpm_jax.errors import DivergedError, InputError
from iddpm_jax.images import area_average_uint8, to_float, to_uint8
from iddpm_jax.training.parallel import is_main_process, map_batch, to_devices, to_host
from iddpm_jax.training.state import Params


class Base(NamedTuple):
    """What super-resolution starts from: small images uint8 [N, h, w, C], classes [N] or None."""

    images: np.ndarray
    classes: np.ndarray | None

    def first(self, count: int) -> "Base":
        """The first of them."""
        return Base(self.images[:count], None if self.classes is None else self.classes[:count])


def base_of(config: ConfigDict, model: build.Model) -> Base | None:
    """The small images to enlarge: those of sample.base, or small versions of test images.

    Args:
        config: sample.base and, without one, sample.count and the data are read.
        model: the model.

    Returns:
        Base, or None where the model is not for super-resolution.

    Raises:
        InputError: unreadable, of another shape, or without the classes that the model needs.
    """
    if model.low_res_shape is None:
        return None
    path = config.sample.base
    if not path:
        source = build.load_data(config, model, "test")
        chosen = [source[i] for i in range(min(config.sample.count, len(source)))]
        images = np.stack([example["image"] for example in chosen])
        small = area_average_uint8(images, *model.low_res_shape[:2])
        return Base(small, np.stack([example["label"] for example in chosen]))
    images, classes = data.read_npz(Path(path))
    if images.shape[1:] != model.low_res_shape:
        found, wanted = ("x".join(map(str, s)) for s in (images.shape[1:], model.low_res_shape))
        raise InputError(
            f"--base {path} has pictures of {found}; this model enlarges {wanted} to "
            f"{'x'.join(map(str, model.image_shape))}"
        )
    if model.class_conditional:
        if classes is None:
            raise InputError(
                f"--base {path} has no classes (arr_1), but this model is class-conditional; give "
                "the samples of a class-conditional base model"
            )
        if classes.max() >= model.num_classes:
            raise InputError(
                f"--base {path} has class {classes.max()}; this model has classes 0 to "
                f"{model.num_classes - 1}"
            )
    return Base(images, classes)


def classes_of(config: ConfigDict, model: build.Model, count: int) -> np.ndarray | None:
    """Class of each sample: out of sample.classes or all of them, in turn or at random.

    Args:
        config: sample.classes, sample.class_choice and sample.seed are read.
        model: the model.
        count: number of samples.

    Returns:
        int32 [count], or None for an unconditional model.

    Raises:
        InputError: a class that does not exist, or classes for an unconditional model.
    """
    wanted = tuple(config.sample.classes)
    if not model.class_conditional:
        if wanted or config.sample.class_choice == "random":
            key = "classes" if wanted else "class_choice"
            raise InputError(f"sample.{key} is set, but this model is unconditional; leave it out")
        return None
    wrong = [c for c in wanted if not 0 <= c < model.num_classes]
    if wrong:
        raise InputError(
            f"sample.classes has {wrong[0]}; this model has classes 0 to {model.num_classes - 1}"
        )
    choices = np.array(wanted or range(model.num_classes), np.int32)
    if config.sample.class_choice == "random":
        # A longer run begins with the classes of a shorter one.
        return np.random.default_rng(config.sample.seed).choice(choices, count)
    return np.resize(choices, count)


@functools.cache
def sampling_function(
    network: Callable,
    parametrization: Parametrization,
    image_shape: tuple[int, int, int],
    sampler: str,
    clip: bool,
    null_class: int | None,
    mesh: Mesh,
    frames: int = 0,
    variance: str | None = None,
) -> Callable:
    """Compiled sampler of a batch.

    Args:
        network, parametrization, image_shape, sampler, clip, mesh: what is compiled in.
        null_class: guide with the prediction for this class; None does not guide.
        frames: moments on the way to keep, see draw; 0: only the end.

    Returns:
        Function (params, padded process, its number of steps K, scalars by name, key), (index [B],
        classes [B] or None, small images uint8 [B, h, w, C] or None) -> images [B, H, W, C], or
        [B, frames + 1, 2, H, W, C]. It is the same for every K.
    """
    transform = clip_x_0 if clip else None

    def sample(shared: tuple, batch: tuple) -> jax.Array:
        params, process, steps, scalars, key = shared
        index, y, small = batch
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
        noise = samplers.noise_per_sample(keys, image_shape)
        low_res = None
        if small is not None:
            # One beyond the start, so that no step of the process shares it.
            small_noise = samplers.noise_per_sample(keys, small.shape[1:])(steps + 1)
            low_res = to_float(small) + scalars["low_res_noise"] * small_noise

        def denoise(x: jax.Array, t: jax.Array) -> jax.Array:
            if null_class is None:
                return network(params, x, t, y, None, low_res)
            # Both predictions in one batch.
            twice = (None if a is None else jnp.concatenate([a, a]) for a in (x, t, low_res))
            x, t, both_low_res = twice
            both_y = jnp.concatenate([y, jnp.full_like(y, null_class)])
            outputs = jnp.split(network(params, x, t, both_y, None, both_low_res), 2)
            return guidance.classifier_free(parametrization, *outputs, scalars["guidance"])

        start = noise(steps)
        arguments = (denoise, process, parametrization, start, noise)
        if sampler == "ddim":
            eta = scalars["eta"]
            result = samplers.ddim(
                *arguments, eta=eta, steps=steps, transform=transform, frames=frames
            )
        else:
            result = samplers.ancestral(
                *arguments, steps=steps, variance=variance, transform=transform, frames=frames
            )
        if not frames:
            return result.x
        # No x_0 led to the noise that it starts from: black.
        way = jnp.stack([result.x_frames, result.x_0_frames], axis=1)
        first = jnp.stack([start, -jnp.ones_like(start)])[None]
        return jnp.moveaxis(jnp.concatenate([first, way]), 2, 0)

    return map_batch(sample, mesh)


def asked(
    config: ConfigDict, model: build.Model, base: Base | None
) -> tuple[int, np.ndarray | None]:
    """How many samples, and the class of each (int32 [N], or None): those of a base are its own.

    Raises:
        InputError: see classes_of.
    """
    if base is None:
        return config.sample.count, classes_of(config, model, config.sample.count)
    return len(base.images), base.classes  # also where the network is not told them


def draw(
    config: ConfigDict,
    model: build.Model,
    params: Params,
    mesh: Mesh,
    base: Base | None = None,
    start: int = 0,
    progress: bool = True,
    frames: int = 0,
) -> Iterator[np.ndarray]:
    """Draw samples in order; each is the same to the last bit on any number of devices.

    XLA rounds differently for arrays of another size. So every device always has sample.batch_size
    neighbours, of which the first has a multiple of it as its number, wherever a run starts: one
    program, in which each sample has its place.

    Nichol & Dhariwal 2021, section 4, for fewer steps than trained; section 5 for cascades.

    Args:
        config: its sample part is read.
        model: the model.
        params: its parameters, or an average of them.
        mesh: devices, each of which takes sample.batch_size at a time.
        base: from base_of, for super-resolution; one sample for each.
        start: number of the first sample that is wanted.
        progress: show a bar, which begins at start.
        frames: moments on the way to keep, at most the number of steps: evenly spread, the last
            after the last step, and the noise before the first step as one more.

    Yields:
        uint8 [n, H, W, C], the next samples; with frames, [n, frames + 1, 2, H, W, C], x_t and the
        x_0 predicted in the step that led to it.

    Raises:
        InputError: impossible steps or classes.
        DivergedError: a sample is not finite.
    """
    settings = config.sample
    process = model.respaced(settings.steps, "sample.steps", settings.skip)
    count, classes = asked(config, model, base)
    if start >= count:
        return
    function = sampling_function(
        model.network.apply,
        model.parametrization,
        model.image_shape,
        settings.sampler,
        settings.clip_x_0,
        model.num_classes if settings.guidance != 1 else None,
        mesh,
        frames,
        settings.variance or None,
    )
    scalars = {k: np.float32(settings[k]) for k in ("eta", "guidance", "low_res_noise")}
    tables = padded(process, model.process.T)
    key = jax.random.key(settings.seed)
    shared = (params, tables, np.int32(process.T), scalars, key)
    first = start - start % settings.batch_size
    with _bar(start, count, progress) as bar:
        for offset, real in data.padded_chunks(count - first, settings.batch_size * mesh.size):
            index = first + offset
            y = classes[index] if model.class_conditional else None
            small = None if base is None else base.images[index]
            x = function(shared, to_devices(mesh, (index.astype(np.int32), y, small)))
            x = to_host(x)[max(0, start - index[0]) : real]
            if not np.isfinite(x).all():
                raise DivergedError(
                    "the samples are not finite; the weights are damaged or hardly trained, or "
                    f"{model.spec.dtype} is too coarse for them (model.dtype)"
                )
            bar.update(len(x))
            yield to_uint8(x)


def _bar(start: int, count: int, progress: bool) -> tqdm:
    return tqdm(
        initial=start,
        total=count,
        desc="sampling",
        unit="image",
        disable=not (progress and is_main_process()),
        leave=False,
    )


def generate(
    config: ConfigDict,
    model: build.Model,
    params: Params,
    mesh: Mesh,
    base: Base | None = None,
    progress: bool = True,
) -> tuple[np.ndarray, np.ndarray | None]:
    """All samples in memory: arguments and errors as draw.

    Returns:
        (uint8 [N, H, W, C], classes int32 [N] or None).
    """
    _, classes = asked(config, model, base)
    drawn = draw(config, model, params, mesh, base, progress=progress)
    return np.concatenate(list(drawn)), classes
