"""CIFAR-10, 32x32: the paper's unconditional model (52.5M parameters) and the rows of its Table 2.

Rows of Table 2 as variants: T1000,linear,l_simple; linear,l_simple; linear (L_hybrid);
l_simple (cosine); none (cosine, L_hybrid); l_vlb (cosine). All are trained for 500K steps.
official is the file as it is: OpenAI's cifar10_uncond_50M_500K.pt; official,l_vlb is
cifar10_uncond_vlb_50M_500K.pt.
The data, once: python -m iddpm_jax.data.cifar10 --download
"""

from iddpm_jax import config as base_config
from iddpm_jax.variants import apply


def get_config(variants: str = "") -> base_config.ConfigDict:
    """The CIFAR-10 config.

    Args:
        variants: comma-separated, of official, l_simple, l_hybrid, l_vlb, linear, cosine, T1000,
            T4000.

    Returns:
        ConfigDict.
    """
    config = base_config.base()
    config.data.name = "tfds:cifar10"
    config.data.image_shape = (32, 32, 3)
    config.data.num_classes = 10
    config.model.dropout = 0.3
    config.train.steps = 500_000
    config.sample.count = 100
    config.nll.terms = 100  # of T per image; 0 sums all of them, as the paper does
    apply(config, variants, {"official": None})
    return config
