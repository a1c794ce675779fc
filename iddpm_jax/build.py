"""From config to objects: process, network, optimizer; every objection names its key."""

import dataclasses
import re
from collections.abc import Callable
from typing import TypeVar

import grain
import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from iddpm_jax import data
from iddpm_jax.checks import check
from iddpm_jax.diffusion.losses import Objective
from iddpm_jax.diffusion.process import Process
from iddpm_jax.diffusion.respacing import respace
from iddpm_jax.diffusion.reverse import Parametrization
from iddpm_jax.diffusion.schedules import make_betas
from iddpm_jax.errors import InputError
from iddpm_jax.models.layout import UNetSpec
from iddpm_jax.models.unet import Network, make_network

Built = TypeVar("Built")


@dataclasses.dataclass(frozen=True)
class Model:
    """All that defines a diffusion model but its parameters.

    Attributes:
        betas: of the process it is trained on [T], float64.
        process: with all T steps.
        rescale_timesteps: whether the network is fed t * 1000 / T.
        parametrization: what the network's output stands for.
        objective: what training minimises.
        spec: shape of the network.
        network: its init and apply.
        image_shape: (H, W, C).
        low_res_shape: (h, w, C) of the small images of super-resolution, or None.
        num_classes: classes of the data, whether or not the network is told them; 0 if unknown.
    """

    betas: np.ndarray
    process: Process
    rescale_timesteps: bool
    parametrization: Parametrization
    objective: Objective
    spec: UNetSpec
    network: Network
    image_shape: tuple[int, int, int]
    low_res_shape: tuple[int, int, int] | None
    num_classes: int

    @property
    def class_conditional(self) -> bool:
        """Whether the network is told the class."""
        return self.spec.num_classes > 0

    def respaced(self, steps: str, key: str, skip: float = 0.0) -> Process:
        """The process with fewer steps, as the config key of this name asks, less a share."""
        return _explained(key, lambda: respace(self.betas, steps, self.rescale_timesteps, skip))


def _explained(key: str, make: Callable[[], Built]) -> Built:
    """Run `make`; an objection to its arguments becomes one line that names the config key."""
    try:
        return make()
    except ValueError as error:
        raise InputError(f"{key}: {error}") from None


def model(config: ConfigDict) -> Model:
    """The model a config describes.

    Args:
        config: every key of config.base().

    Returns:
        Model, without parameters.

    Raises:
        InputError: one line that names the key and what is allowed.
    """
    check(config)
    image_shape, num_classes = _image_shape_and_classes(config)
    low_res_shape = _low_res_shape(config, image_shape)
    settings = config.diffusion
    if settings.schedule == "linear" and settings.T < 21:
        raise InputError(
            f"diffusion.T is {settings.T}; the linear schedule needs at least 21 steps, as its "
            "last step else erases the image; use more steps or diffusion.schedule=cosine"
        )
    betas = _explained("diffusion.schedule", lambda: make_betas(settings.schedule, settings.T))
    process = respace(betas, "", settings.rescale_timesteps)
    _explained("diffusion.mean", lambda: Parametrization(mean=settings.mean))
    parametrization = _explained(
        "diffusion.variance", lambda: Parametrization(settings.mean, settings.variance)
    )
    objective = _explained("loss.name", lambda: Objective(config.loss.name, config.loss.vlb_weight))
    _check_trains_variance(objective, parametrization)
    spec = _spec(config, image_shape, num_classes, parametrization)
    _check_guidance(config, spec)
    for key in ("sample", "nll"):
        _explained(f"{key}.steps", lambda: respace(betas, config[key].steps))  # noqa: B023
    return Model(
        betas,
        process,
        settings.rescale_timesteps,
        parametrization,
        objective,
        spec,
        make_network(spec),
        image_shape,
        low_res_shape,
        num_classes,
    )


def _image_shape_and_classes(config: ConfigDict) -> tuple[tuple[int, int, int], int]:
    """From the config where it says; the data, which need not be at hand, is asked for the rest."""
    shape, num_classes = tuple(config.data.image_shape), config.data.num_classes
    if not shape or (config.model.class_conditional and not num_classes):
        source = _load(config, "train", shape)
        shape = shape or source.image_shape
        num_classes = num_classes or len(source.class_names)
        if config.model.class_conditional and not num_classes:
            raise InputError(
                f"data.name {config.data.name!r} has no classes to tell the network; use other "
                "data, or model.class_conditional=false"
            )
    return shape, num_classes


def settle(config: ConfigDict, model: Model) -> None:
    """Write what the model took from the data into its config.

    A workdir is then enough for samples, wherever the data are by then.
    """
    config.data.update(image_shape=model.image_shape, num_classes=model.num_classes)


def _low_res_shape(
    config: ConfigDict, image_shape: tuple[int, int, int]
) -> tuple[int, int, int] | None:
    size, (height, width, channels) = config.model.low_res_size, image_shape
    if not size:
        for key in ("train", "sample"):
            if config[key].low_res_noise:
                raise InputError(
                    f"{key}.low_res_noise is set, but there are no small images to put it on; "
                    "leave it out, or set model.low_res_size"
                )
        if config.sample.base:
            raise InputError(
                "sample.base (--base) is set, but this model draws without small images; leave it "
                "out, or use a super-resolution model (model.low_res_size)"
            )
        return None
    if config.sample.classes or config.sample.class_choice == "random":
        key = "classes" if config.sample.classes else "class_choice"
        raise InputError(
            f"sample.{key} is set, but a super-resolution model takes the classes of its small "
            "images; leave it out"
        )
    short_side = min(height, width)
    if size >= short_side:
        raise InputError(
            f"model.low_res_size is {size}; it must be below the {short_side} pixels of the images"
        )
    return height * size // short_side, width * size // short_side, channels


def _check_guidance(config: ConfigDict, spec: UNetSpec) -> None:
    if config.sample.guidance != 1 and not spec.null_class:
        raise InputError(
            f"sample.guidance is {config.sample.guidance}, but this model was not trained with "
            "classes kept back; set model.label_dropout=0.1 in training, or guidance to 1"
        )


def load_data(config: ConfigDict, model: Model, split: str) -> data.Source:
    """A split of the config's data.

    Args:
        config: its data part is read.
        model: what the data is for.
        split: "train" or "test".

    Returns:
        Source with images of the model's shape.

    Raises:
        InputError: no such data, other image shape, or more classes than the model has.
    """
    name = config.data.name
    source = _load(config, split, model.image_shape)
    if source.image_shape != model.image_shape:
        found, wanted = ("x".join(map(str, s)) for s in (source.image_shape, model.image_shape))
        raise InputError(
            f"data.name {name!r} has images of {found}, this model is for {wanted} "
            "(data.image_shape); use other data or another model"
        )
    if model.class_conditional and not source.class_names:
        raise InputError(
            f"data.name {name!r} has no classes, but the model is told them; use data with "
            "classes, or model.class_conditional=false"
        )
    if model.class_conditional and len(source.class_names) > model.num_classes:
        raise InputError(
            f"data.name {name!r} has {len(source.class_names)} classes, this model "
            f"{model.num_classes} (data.num_classes); use other data or another model"
        )
    return source


def _load(config: ConfigDict, split: str, image_shape: tuple[int, ...]) -> data.Source:
    settings = config.data
    return data.load(
        settings.name, split, image_shape, settings.labels, settings.corrupt, settings.tfds_dir
    )


def training_batches(
    config: ConfigDict, source: data.Source, process: int = 0, processes: int = 1
) -> grain.DatasetIterator:
    """Batches as the config asks for; see data.training_batches.

    Args:
        config: its seed, its data part and train.batch_size are read.
        source: training split.
        process: this one's number.
        processes: how many share each batch.

    Returns:
        Iterator over this process's part of each batch.

    Raises:
        InputError: see data.training_batches.
    """
    settings = config.data
    return data.training_batches(
        source,
        config.train.batch_size,
        config.seed,
        settings.random_flip,
        settings.random_crop,
        process,
        processes,
        settings.num_threads,
        settings.prefetch_batches,
    )


def _check_trains_variance(objective: Objective, parametrization: Parametrization) -> None:
    if objective.name == "l_simple" and parametrization.learns_variance:
        raise InputError(
            "loss.name l_simple does not train a learned variance; set diffusion.variance to "
            "fixed_small or fixed_large, or loss.name to l_hybrid"
        )
    if objective.name == "l_hybrid" and not parametrization.learns_variance:
        raise InputError(
            "loss.name l_hybrid exists to train a learned variance; set diffusion.variance to "
            "learned_range, or loss.name to l_simple"
        )


def _spec(
    config: ConfigDict,
    image_shape: tuple[int, int, int],
    num_classes: int,
    parametrization: Parametrization,
) -> UNetSpec:
    height, width, channels = image_shape
    settings = config.model
    levels = len(settings.channel_mult)
    short_side = min(height, width)
    if short_side < 2 ** (levels - 1):
        raise InputError(
            f"model.channel_mult has {levels} levels, but images of {height}x{width} can be halved "
            f"only {short_side.bit_length() - 1} times; give fewer levels"
        )
    factor_of = {-(-short_side // 2**level): 2**level for level in range(levels)}
    unknown = [size for size in settings.attention_resolutions if size not in factor_of]
    if unknown:
        raise InputError(
            f"model.attention_resolutions has {unknown[0]}, but images of {height}x{width} pass "
            f"through {', '.join(map(str, factor_of))}; use some of those"
        )
    dtype = _dtype(settings.dtype)
    return _explained(
        "model",
        lambda: UNetSpec(
            channels=channels,
            out_channels=parametrization.output_channels(channels),
            width=settings.width,
            channel_mult=tuple(settings.channel_mult),
            num_res_blocks=settings.num_res_blocks,
            attention_factors=tuple(factor_of[size] for size in settings.attention_resolutions),
            num_heads=settings.num_heads,
            num_heads_upsample=settings.num_heads_upsample,
            num_head_channels=settings.num_head_channels,
            attention_order=settings.attention_order,
            attention=_attention(dtype),
            convolution=_convolution(settings.convolution),
            num_classes=num_classes if settings.class_conditional else 0,
            null_class=settings.label_dropout > 0,
            super_resolution=settings.low_res_size > 0,
            dropout=settings.dropout,
            scale_shift_norm=settings.scale_shift_norm,
            conv_resample=settings.conv_resample,
            resblock_updown=settings.resblock_updown,
            remat=settings.remat,
            dtype=dtype,
        ),
    )


def _dtype(name: str) -> str:
    if name != "auto":
        return name
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def _attention(dtype: str) -> str:
    """The fastest of layers.ATTENTION where this process runs."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return "by_image"
    # AMD's capabilities are names, such as gfx942; cuDNN's kernel is for 8.0 and above.
    capability = re.fullmatch(r"\d+\.\d+", str(getattr(device, "compute_capability", "")))
    fused = dtype != "float32" and capability and float(capability[0]) >= 8.0
    return "cudnn" if fused else "plain"


def _convolution(name: str) -> str:
    if name != "auto":
        return name
    return "cpu" if jax.default_backend() == "cpu" else "plain"


def learning_rate(config: ConfigDict) -> optax.Schedule:
    """Learning rate of each optimizer step, counted from 0.

    Args:
        config: its train part is read.

    Returns:
        Constant, or falling linearly to 0 at train.steps; rising from 0 over train.warmup_steps.
    """
    train = config.train

    def rate(step: jax.Array) -> jax.Array:
        value = train.learning_rate
        if train.learning_rate_decay == "linear":
            value = value * (1.0 - step / train.steps)
        if train.warmup_steps:
            value = value * jax.numpy.minimum(1.0, (step + 1) / train.warmup_steps)
        return value

    return rate


def optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """AdamW (0.9, 0.999, 1e-8), behind a clip of the gradient's norm where one is asked for."""
    train = config.train
    adam = optax.adamw(learning_rate(config), weight_decay=train.weight_decay)
    if not train.gradient_clip:
        return adam
    return optax.chain(optax.clip_by_global_norm(train.gradient_clip), adam)
