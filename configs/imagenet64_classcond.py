"""ImageNet 64x64, class-conditional: OpenAI's imagenet64_cond_270M_250K.pt (273M parameters)."""

from iddpm_jax import config as base_config


def _official(config: base_config.ConfigDict) -> None:
    """The released model."""
    # What this file is without variants; the word stays for whoever looks for it.


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
    config.data.name = "npz:data/imagenet64_classes"
    config.data.image_shape = (64, 64, 3)
    config.data.num_classes = 1000
    config.diffusion.rescale_timesteps = False
    config.model.width = 192
    config.model.channel_mult = (1, 2, 3, 4)
    config.model.class_conditional = True
    config.train.steps = 250_000
    config.train.batch_size = 2048
    config.train.learning_rate = 3e-4
    base_config.variants(config, variants, {"official": _official, "guidance": _guidance})
    config.loss.vlb_weight = 1 / config.diffusion.T  # one term L_t, as released
    return config
