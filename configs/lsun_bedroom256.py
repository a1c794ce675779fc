"""LSUN bedroom 256x256, unconditional: OpenAI's lsun_uncond_100M_*.pt (114M parameters).

official is the file as it is: lsun_uncond_100M_1200K_bs128.pt. On few devices, raise
train.microbatches.
"""

from iddpm_jax import config as base_config
from iddpm_jax.variants import apply


def _batch64(config: base_config.ConfigDict) -> None:
    """The released lsun_uncond_100M_2400K_bs64.pt: the same network, a smaller batch and rate."""
    config.train.steps = 2_400_000
    config.train.batch_size = 64
    config.train.learning_rate = 2e-5


def get_config(variants: str = "") -> base_config.ConfigDict:
    """The LSUN bedroom config.

    Args:
        variants: comma-separated, of official, batch64, l_simple, l_hybrid, l_vlb, linear, cosine,
            T1000, T4000.

    Returns:
        ConfigDict.
    """
    config = base_config.base()
    config.data.name = "folder:data/lsun_bedroom"
    config.data.image_shape = (256, 256, 3)
    config.diffusion.T = 1000
    config.diffusion.schedule = "linear"
    config.diffusion.rescale_timesteps = False
    config.model.channel_mult = (1, 1, 2, 2, 4, 4)
    config.model.num_res_blocks = 2
    config.model.attention_resolutions = (16,)
    config.model.num_heads = 1
    config.model.scale_shift_norm = False
    config.train.steps = 1_200_000
    config.sample.count = 16
    config.sample.batch_size = 16
    config.nll.batch_size = 16
    config.nll.terms = 100  # of T per image; 0 sums all of them, as the paper does
    apply(config, variants, {"official": None, "batch64": _batch64})
    config.loss.vlb_weight = 1 / config.diffusion.T  # one term L_t, as released
    return config
