"""Your own pictures, 32x32 colour: edit the line PICTURES, or set --config.data.name=folder:PATH.

--config.model.class_conditional=true where each class has a subfolder of its own, and
--config.data.random_flip=true where a mirrored picture is as good, get more out of few pictures.
"""

from iddpm_jax import config as base_config
from iddpm_jax.variants import apply

PICTURES = "pictures"  # the folder; jpg, png, gif, webp or bmp of any size, subfolders too


def _large(config: base_config.ConfigDict) -> None:
    """For a GPU and thousands of pictures: the paper's CIFAR-10 network and learning rate."""
    config.model.width = 128
    config.model.channel_mult = (1, 2, 2, 2)
    config.model.num_res_blocks = 3
    config.model.attention_resolutions = (16, 8)
    config.model.dropout = 0.1
    config.train.steps = 100_000
    config.train.batch_size = 128
    config.train.learning_rate = 1e-4
    config.train.ema_rates = (0.9999,)
    config.train.sample_every_steps = 5000
    config.train.checkpoint_every_steps = 5000
    config.sample.count = 64
    config.sample.steps = "250"
    config.sample.ema_rate = 0.9999
    config.nll.ema_rate = 0.9999


def get_config(variants: str = "") -> base_config.ConfigDict:
    """A small network, for a CPU.

    Args:
        variants: comma-separated, of large, l_simple, l_hybrid, l_vlb, linear, cosine, T1000,
            T4000.

    Returns:
        ConfigDict.
    """
    config = base_config.base()
    config.data.name = f"folder:{PICTURES}"
    config.data.image_shape = (32, 32, 3)  # 64x64 and others work too
    config.data.corrupt = "skip"  # among one's own pictures there is often a broken one
    config.diffusion.T = 1000
    config.model.width = 32
    config.model.channel_mult = (1, 1, 2, 2)
    config.model.num_res_blocks = 1
    config.model.attention_resolutions = (8,)
    config.train.steps = 3000  # each about half a second of one CPU core
    config.train.batch_size = 16
    config.train.learning_rate = 1e-3
    config.train.learning_rate_decay = "linear"
    config.train.warmup_steps = 50
    config.train.gradient_clip = 1.0
    config.train.ema_rates = (0.99,)
    config.train.log_every_steps = 50
    config.train.sample_every_steps = 500
    config.train.checkpoint_every_steps = 200
    config.sample.count = 25
    config.sample.steps = "50"
    config.sample.ema_rate = 0.99
    config.nll.ema_rate = 0.99
    config.nll.terms = 20
    apply(config, variants, {"large": _large})
    return config
