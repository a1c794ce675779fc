"""ImageNet 64x64, class-conditional: OpenAI's imagenet64_cond_270M_250K.pt (273M parameters).

official is the file as it is. The batch is for many devices; on few, raise train.microbatches.
"""

from iddpm_jax import config as base_config
from iddpm_jax.variants import apply


def _guidance(config: base_config.ConfigDict) -> None:
    """Keep classes back in training, for classifier-free guidance (Ho & Salimans 2022)."""
    config.model.label_dropout = 0.1


def get_config(variants: str = "") -> base_config.ConfigDict:
    """The class-conditional ImageNet-64 config.

    Args:
        variants: comma-separated, of official, guidance, l_simple, l_hybrid, l_vlb, linear, cosine,
            T1000, T4000.

    Returns:
        ConfigDict.
    """
    config = base_config.base()
    config.data.name = "tfds:imagenet_resized/64x64"
    config.data.image_shape = (64, 64, 3)
    config.data.num_classes = 1000
    config.diffusion.rescale_timesteps = False
    config.model.width = 192
    config.model.channel_mult = (1, 2, 3, 4)
    config.model.class_conditional = True
    config.train.steps = 250_000
    config.train.batch_size = 2048
    config.train.learning_rate = 3e-4
    config.nll.terms = 100  # of T per image; 0 sums all of them, as the paper does
    apply(config, variants, {"official": None, "guidance": _guidance})
    config.loss.vlb_weight = 1 / config.diffusion.T  # one term L_t, as released
    return config
