"""ImageNet 64x64 -> 256x256 by class: OpenAI's upsample_cond_500K.pt (280M parameters), official.

On few devices, raise train.microbatches.
"""

from iddpm_jax import config as base_config
from iddpm_jax.variants import apply


def get_config(variants: str = "") -> base_config.ConfigDict:
    """The 64 -> 256 upsampler's config.

    Args:
        variants: comma-separated, of official, l_simple, l_hybrid, l_vlb, linear, cosine, T1000,
            T4000.

    Returns:
        ConfigDict.
    """
    config = base_config.base()
    config.data.name = "folder:data/imagenet"
    config.data.image_shape = (256, 256, 3)
    config.data.num_classes = 1000
    config.diffusion.schedule = "linear"
    config.diffusion.rescale_timesteps = False
    config.model.low_res_size = 64
    config.model.width = 192
    config.model.channel_mult = (1, 1, 2, 2, 4, 4)
    config.model.num_res_blocks = 2
    config.model.class_conditional = True
    config.train.steps = 500_000
    config.train.batch_size = 256
    config.train.learning_rate = 3e-4
    config.sample.count = 16
    config.sample.batch_size = 16
    config.nll.batch_size = 16
    config.nll.terms = 100  # of T per image; 0 sums all of them, as the paper does
    apply(config, variants, {"official": None})
    config.loss.vlb_weight = 1 / config.diffusion.T  # one term L_t, as released
    return config
