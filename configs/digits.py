"""Class-conditional digits, 8x8 grey: minutes on a laptop."""

from iddpm_jax import config as base_config
from iddpm_jax.variants import apply


def _guidance(config: base_config.ConfigDict) -> None:
    """Keep classes back in training, so that sample.guidance can be used."""
    config.model.label_dropout = 0.1


def _half(config: base_config.ConfigDict) -> None:
    """4x4, the first stage of a cascade."""
    config.data.image_shape = (4, 4, 1)
    config.model.attention_resolutions = (2,)


def _superres(config: base_config.ConfigDict) -> None:
    """4x4 -> 8x8, the second stage of a cascade."""
    config.model.low_res_size = 4
    config.train.low_res_noise = 0.1


VARIANTS = {"guidance": _guidance, "half": _half, "superres": _superres}


def get_config(variants: str = "") -> base_config.ConfigDict:
    """The digits config.

    Args:
        variants: comma-separated, of guidance, half, superres, l_simple, l_hybrid, l_vlb, linear,
            cosine, T1000, T4000.

    Returns:
        ConfigDict.
    """
    config = base_config.base()
    config.data.name = "digits"
    config.diffusion.T = 1000
    config.model.width = 32
    config.model.channel_mult = (1, 2)
    config.model.num_res_blocks = 1
    config.model.attention_resolutions = (4,)
    config.model.class_conditional = True
    config.train.steps = 700
    config.train.batch_size = 128
    config.train.learning_rate = 2e-3
    config.train.gradient_clip = 1.0  # without it L_vlb gets nowhere in so few steps
    config.train.learning_rate_decay = "linear"
    config.train.warmup_steps = 50
    config.train.ema_rates = (0.99,)
    config.train.log_every_steps = 50
    config.train.sample_every_steps = 500
    config.train.checkpoint_every_steps = 500
    config.sample.count = 100
    config.sample.steps = "100"
    config.sample.batch_size = 25
    config.sample.ema_rate = 0.99
    config.nll.ema_rate = 0.99
    config.nll.terms = 100
    config.nll.batch_size = 512
    apply(config, variants, VARIANTS)
    return config
