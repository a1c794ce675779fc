"""ImageNet 64x64, unconditional: the paper's model (121M parameters), Table 1, the scaling study.

Rows of Table 1 as variants: T1000,linear,l_simple; linear,l_simple; linear (L_hybrid); l_simple
(cosine); none (cosine, L_hybrid); l_vlb (cosine), each for 200K steps with 200K, as released for
1.5M steps without. Section 6 trains width64, width96, width128 and width192.
official is the file as it is: OpenAI's imagenet64_uncond_100M_1500K.pt; official,l_vlb is
imagenet64_uncond_vlb_100M_1500K.pt.
"""

import math
from collections.abc import Callable

from iddpm_jax import config as base_config
from iddpm_jax.variants import apply


def _width(width: int) -> Callable[[base_config.ConfigDict], None]:
    def change(config: base_config.ConfigDict) -> None:
        config.model.width = width
        # Section 6: the rate falls with the square root of the width; 1e-4 at 128.
        config.train.learning_rate = 1e-4 / math.sqrt(width / 128)

    return change


def get_config(variants: str = "") -> base_config.ConfigDict:
    """The ImageNet-64 config.

    Args:
        variants: comma-separated, of official, 200K, width64, width96, width128, width192,
            l_simple, l_hybrid, l_vlb, linear, cosine, T1000, T4000.

    Returns:
        ConfigDict.
    """
    config = base_config.base()
    config.data.name = "tfds:downsampled_imagenet/64x64"
    config.data.image_shape = (64, 64, 3)
    config.data.num_classes = 1000
    config.model.channel_mult = (1, 2, 3, 4)
    config.train.steps = 1_500_000
    config.nll.terms = 100  # of T per image; 0 sums all of them, as the paper does
    own = {
        "official": None,
        "200K": lambda config: config.train.update(steps=200_000),
        **{f"width{width}": _width(width) for width in (64, 96, 128, 192)},
    }
    apply(config, variants, own)
    return config
