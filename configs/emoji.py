"""Emoji, 32x32 colour: CIFAR-10's shape without a download. Real art, small, easily overfitted."""

from iddpm_jax import config as base_config
from iddpm_jax.variants import apply


def _small(config: base_config.ConfigDict) -> None:
    """For a laptop: a narrow network and fewer steps."""
    config.model.width = 32
    config.model.num_res_blocks = 1
    config.train.steps = 5000
    config.train.batch_size = 32
    config.train.ema_rates = (0.999,)
    config.train.log_every_steps = 50
    config.train.sample_every_steps = 1000
    config.train.checkpoint_every_steps = 500
    config.sample.ema_rate = 0.999
    config.nll.ema_rate = 0.999
    config.nll.terms = 50


def _half(config: base_config.ConfigDict) -> None:
    """16x16, the first stage of a cascade."""
    config.data.image_shape = (16, 16, 3)
    config.model.attention_resolutions = (8, 4)


def _superres(config: base_config.ConfigDict) -> None:
    """16x16 -> 32x32, the second stage of a cascade."""
    config.model.low_res_size = 16
    config.train.low_res_noise = 0.1


def get_config(variants: str = "") -> base_config.ConfigDict:
    """The emoji config: half the paper's CIFAR-10 width, class-conditional.

    Args:
        variants: comma-separated, of small, half, superres, l_simple, l_hybrid, l_vlb, linear,
            cosine, T1000, T4000.

    Returns:
        ConfigDict.
    """
    config = base_config.base()
    config.data.name = "emoji"
    config.diffusion.T = 4000
    config.model.width = 64
    config.model.class_conditional = True
    config.model.dropout = 0.3
    config.train.steps = 100000
    config.train.batch_size = 128
    config.train.ema_rates = (0.999, 0.9999)
    config.train.warmup_steps = 500
    config.train.sample_every_steps = 5000
    config.train.checkpoint_every_steps = 5000
    config.sample.count = 81
    config.sample.steps = "250"
    apply(config, variants, {"small": _small, "half": _half, "superres": _superres})
    return config
