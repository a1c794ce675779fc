"""The paper's ablations at the size of the data at hand: what iddpm_jax.reproduce trains.

Rows of Tables 1 and 2 as variants: short,linear,l_simple; linear,l_simple; linear (L_hybrid);
l_simple (cosine); none (cosine, L_hybrid); l_vlb (cosine, importance sampling); and beside them
l_vlb,uniform (without it). short takes a quarter of the T, as the paper's 1000 is of its 4000.
"""

from iddpm_jax import config as base_config
from iddpm_jax.variants import Variant, apply


def _digits(config: base_config.ConfigDict) -> None:
    """8x8 grey, half a minute to train on two CPU cores.

    T is 400, not 4000: importance sampling wants 10 losses of every step before it begins, and 500
    batches of 64 have eight of each of 4000.
    """
    config.data.name = "digits"
    config.diffusion.T = 400
    config.model.width = 32
    config.model.channel_mult = (1, 1)
    config.model.num_res_blocks = 1
    config.model.attention_resolutions = (4,)
    config.train.steps = 500
    config.train.batch_size = 64
    config.train.learning_rate = 2e-3
    config.train.gradient_clip = 1.0  # without it L_vlb gets nowhere in so few steps
    config.train.learning_rate_decay = "linear"
    config.train.warmup_steps = 50
    config.train.ema_rates = (0.99,)
    config.train.log_every_steps = 10
    config.train.keep_every_steps = 125
    config.train.checkpoint_every_steps = 125
    config.sample.count = 500
    config.sample.steps = "50"
    config.sample.batch_size = 125
    config.nll.batch_size = 512


def _emoji(config: base_config.ConfigDict) -> None:
    """32x32 colour, for a GPU."""
    config.data.name = "emoji"
    config.model.width = 64
    config.model.num_res_blocks = 2
    config.model.dropout = 0.3
    config.train.steps = 20_000
    config.train.batch_size = 128
    config.train.learning_rate = 2e-4
    config.train.warmup_steps = 500
    config.train.ema_rates = (0.999,)
    config.train.log_every_steps = 100
    config.train.keep_every_steps = 5000
    config.train.checkpoint_every_steps = 5000
    config.sample.count = 2000
    config.sample.steps = "250"
    config.sample.batch_size = 500
    config.nll.terms = 250
    config.nll.batch_size = 1024


def _short(config: base_config.ConfigDict) -> None:
    config.diffusion.T //= 4


def _uniform(config: base_config.ConfigDict) -> None:
    config.loss.timesteps = "uniform"


def _scaling(config: base_config.ConfigDict) -> None:
    """Bits/dim on the way, for the scaling study, which asks for several widths."""
    config.train.evaluate_every_steps = config.train.steps // 5
    config.train.evaluate_images = 128
    config.nll.terms = 50


VARIANTS: dict[str, Variant] = {
    "digits": _digits,
    "emoji": _emoji,
    "short": _short,
    "uniform": _uniform,
    "scaling": _scaling,
}


def get_config(variants: str = "") -> base_config.ConfigDict:
    """A config of the ablations.

    Args:
        variants: comma-separated; emoji first, unless it is the digits, then of short, uniform,
            scaling, l_simple, l_hybrid, l_vlb, linear, cosine, T1000, T4000.

    Returns:
        ConfigDict.
    """
    config = base_config.base()
    config.model.class_conditional = True
    config.train.sample_every_steps = 0
    if "emoji" not in variants.split(","):
        _digits(config)
    apply(config, variants, VARIANTS)
    config.sample.ema_rate = config.nll.ema_rate = config.train.ema_rates[0]
    return config
