"""guided-diffusion's released models (Dhariwal & Nichol 2021), one variant for each file.

To convert and sample them; how long each was trained is in that paper, and not set here.
"""

from collections.abc import Callable

from iddpm_jax import config as base_config
from iddpm_jax.variants import apply

WIDE = (1, 1, 2, 2, 4, 4)


def _model(
    size: int, channel_mult: tuple[float, ...], schedule: str = "linear", **model: object
) -> Callable[[base_config.ConfigDict], None]:
    """A variant: size of the images, and what differs in the network."""

    def change(config: base_config.ConfigDict) -> None:
        config.data.image_shape = (size, size, 3)
        config.diffusion.schedule = schedule
        config.model.update(channel_mult=channel_mult, **model)

    return change


MODELS = {
    "64x64_diffusion": _model(
        64,
        (1, 2, 3, 4),
        "cosine",
        width=192,
        num_res_blocks=3,
        attention_order="qkv_first",
        dropout=0.1,
    ),
    "128x128_diffusion": _model(128, (1, 1, 2, 3, 4), num_head_channels=0),
    "256x256_diffusion": _model(256, WIDE),
    "256x256_diffusion_uncond": _model(256, WIDE, class_conditional=False),
    "512x512_diffusion": _model(512, (0.5, 1, 1, 2, 2, 4, 4)),
    "64_256_upsampler": _model(256, WIDE, width=192, num_head_channels=0, low_res_size=64),
    "128_512_upsampler": _model(
        512, WIDE, width=192, low_res_size=128, attention_resolutions=(32, 16)
    ),
    **dict.fromkeys(
        ("lsun_bedroom", "lsun_cat", "lsun_horse", "lsun_bedroom_cat_horse"),
        _model(256, WIDE, class_conditional=False, dropout=0.1),
    ),
}


def get_config(variants: str = "") -> base_config.ConfigDict:
    """The config of one of guided-diffusion's models.

    Args:
        variants: a key of MODELS (64x64_diffusion by default), and after a comma others that every
            config has.

    Returns:
        ConfigDict.
    """
    config = base_config.base()
    config.data.name = "folder:data/imagenet"
    config.data.num_classes = 1000
    config.diffusion.T = 1000
    config.diffusion.rescale_timesteps = False
    config.model.width = 256
    config.model.num_res_blocks = 2
    config.model.attention_resolutions = (32, 16, 8)
    config.model.num_head_channels = 64
    config.model.resblock_updown = True
    config.model.class_conditional = True
    config.train.steps = 500_000
    config.sample.count = 16
    config.sample.batch_size = 16
    config.nll.batch_size = 16
    config.nll.terms = 100  # of T per image; 0 sums all of them, as the paper does
    if not MODELS.keys() & set(variants.split(",")):
        variants = f"64x64_diffusion,{variants}"
    apply(config, variants, MODELS)
    config.loss.vlb_weight = 1 / config.diffusion.T  # one term L_t, as released
    return config
