"""What makes a config impossible."""

from ml_collections import ConfigDict

from iddpm_jax.config import base, check_type, flat, suggestion
from iddpm_jax.errors import InputError

# Closed words of keys that no other code checks.
_CHOICES = {
    "data.labels": ("auto", "folders", "prefix", "none"),
    "data.corrupt": ("fail", "skip"),
    "loss.timesteps": ("uniform", "importance"),
    "model.attention_order": ("heads_first", "qkv_first"),
    "model.remat": ("none", "elementwise", "blocks"),
    "model.convolution": ("auto", "plain", "cpu"),
    "model.dtype": ("auto", "float32", "bfloat16", "float16"),
    "train.learning_rate_decay": ("constant", "linear"),
    "sample.sampler": ("ancestral", "ddim"),
    "sample.variance": ("", "fixed_small", "fixed_large"),
    "sample.class_choice": ("balanced", "random"),
    "nll.split": ("train", "test"),
    "fid.split": ("train", "test"),
    "fid.network": ("auto", "inception", "digits", "emoji"),
    "fid.preprocessing": ("pytorch_fid", "tensorflow"),
}
_AT_LEAST = {
    **dict.fromkeys(
        (
            "diffusion.T loss.history_size model.width model.num_res_blocks model.num_heads "
            "train.batch_size train.microbatches train.fsdp train.log_every_steps "
            "train.steps_per_dispatch train.evaluate_images "
            "train.keep_checkpoints train.checkpoint_every_steps sample.count "
            "sample.batch_size nll.batch_size nll.draws fid.batch_size fid.neighbours "
            "fid.kid_subsets gradients.batch_size data.num_threads data.prefetch_batches"
        ).split(),
        1,
    ),
    "fid.manifold_images": 2,
    "fid.kid_subset_size": 2,
    "gradients.batches": 20,  # two in each group of the jackknife
    **dict.fromkeys(
        (
            "nll.terms fid.resamples model.num_heads_upsample model.num_head_channels "
            "model.low_res_size data.num_classes train.low_res_noise sample.low_res_noise "
            "sample.guidance train.warmup_steps train.hang_seconds "
            "train.keep_best train.keep_every_steps train.evaluate_every_steps "
            "train.weight_decay train.gradient_clip train.sample_every_steps loss.vlb_weight"
        ).split(),
        0,
    ),
}
_FROM_0_TO_1 = (
    "loss.uniform_share model.dropout model.label_dropout sample.eta sample.ema_rate nll.ema_rate "
    "data.random_crop"
).split()


def check(config: ConfigDict) -> None:
    """Refuse a config that cannot work, key by key and then across keys.

    What needs to know the diffusion code or the data is left to build.model.

    Args:
        config: as base(), changed.

    Raises:
        InputError: one line that names the key, what is allowed and what to change.
    """
    values, defaults = dict(flat(config)), dict(flat(base()))
    for key in values:
        if key not in defaults:
            raise InputError(f"there is no config key {key!r}{suggestion(key)}")
    for key, default in defaults.items():
        if key not in values:
            raise InputError(f"config key {key!r} is missing; get_config must start from base()")
        check_type(key, values[key], default)
    for key in ("seed", "sample.seed", "nll.seed", "fid.seed", "gradients.seed"):
        # JAX would take the lower 32 bits only.
        if not 0 <= values[key] < 2**32:
            raise InputError(f"{key} is {values[key]}; it must lie from 0 to 2**32 - 1")
    for key, allowed in _CHOICES.items():
        if values[key] not in allowed:
            words = ", ".join(word or repr(word) for word in allowed)
            raise InputError(f"{key} is {values[key]!r}; use one of {words}")
    for key, least in _AT_LEAST.items():
        if not values[key] >= least:
            raise InputError(f"{key} is {values[key]}; it must be at least {least}")
    for key in _FROM_0_TO_1:
        if not 0 <= values[key] <= 1:
            raise InputError(f"{key} is {values[key]}; it must lie from 0 to 1")
    _check_together(config)


def _check_together(config: ConfigDict) -> None:
    train, model = config.train, config.model
    if train.steps < 1:
        raise InputError(
            f"train.steps is {train.steps}; say how long to train, such as "
            "--config.train.steps=100000"
        )
    if not train.learning_rate > 0:
        raise InputError(f"train.learning_rate is {train.learning_rate}; it must be above 0")
    if train.batch_size % train.microbatches:
        raise InputError(
            f"train.batch_size {train.batch_size} is not divisible by {train.microbatches} "
            "microbatches; change one of them"
        )
    for key in ("steps", *(key for key in train if key.endswith("_every_steps"))):
        if train[key] % train.steps_per_dispatch:
            raise InputError(
                f"train.{key} is {train[key]}, not a multiple of train.steps_per_dispatch, which "
                f"is {train.steps_per_dispatch}; change one of them"
            )
    if not all(0 < rate < 1 for rate in train.ema_rates):
        raise InputError(
            f"train.ema_rates is {train.ema_rates}; each rate must lie between 0 and 1"
        )
    if not model.channel_mult or not min(model.channel_mult) > 0:
        raise InputError(f"model.channel_mult is {model.channel_mult}; each must be above 0")
    shape = config.data.image_shape
    if shape and (len(shape) != 3 or min(shape) < 1):
        raise InputError(
            f"data.image_shape is {tuple(shape)}; give height, width and channels, such as "
            "(32, 32, 3), or () for the data's own"
        )
    if config.data.resident and config.data.random_crop:
        raise InputError(
            "data.resident keeps pictures at the size that is trained on, and data.random_crop "
            "cuts larger ones; leave out one of them"
        )
    if not 0 <= config.sample.skip < 1:
        raise InputError(
            f"sample.skip is {config.sample.skip}; it must be at least 0 and below 1, the share of "
            "the sampling steps that is left out"
        )
    if config.sample.variance and config.sample.sampler == "ddim":
        raise InputError(
            f"sample.variance is {config.sample.variance}, but DDIM (sample.sampler) has a "
            "variance of its own (sample.eta); leave out one of them"
        )
    if model.label_dropout and not model.class_conditional:
        raise InputError(
            "model.label_dropout needs classes to keep back; set model.class_conditional=true"
        )
    rates = [("sample.ema_rate", config.sample.ema_rate), ("nll.ema_rate", config.nll.ema_rate)]
    for key, rate in [*rates, *(("nll.ema_rates", rate) for rate in config.nll.ema_rates)]:
        if rate != 0 and rate not in train.ema_rates:
            raise InputError(
                f"{key} is {rate}, but train.ema_rates has {tuple(train.ema_rates)}; "
                "use one of those, or 0 for the parameters themselves"
            )
