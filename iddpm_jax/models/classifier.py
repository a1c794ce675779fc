"""Classifier of noised images: the UNet's encoder and attention pooling.

Dhariwal & Nichol 2021 ("Diffusion Models Beat GANs on Image Synthesis"), section 4 and appendix I.
Its gradient guides samplers; see diffusion/guidance.py.
"""

import dataclasses
import itertools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from iddpm_jax.models.blocks import embed_time, run_block, run_encoder
from iddpm_jax.models.layers import attend, dense
from iddpm_jax.models.layout import UNetSpec, layout
from iddpm_jax.models.norm import GroupNorm
from iddpm_jax.models.unet import Network


@dataclasses.dataclass(frozen=True)
class ClassifierSpec:
    """Everything that shapes a classifier.

    Attributes:
        encoder: its encoder and middle block are used; num_head_channels must be set.
        image_size: height and width of the images, pixels; the pooling learns its positions.
        num_classes: number of classes.
    """

    encoder: UNetSpec
    image_size: int = 64
    num_classes: int = 1000

    def __post_init__(self):
        if not self.encoder.num_head_channels:
            raise ValueError("the classifier's pooling needs num_head_channels")
        if self.encoder.num_classes or self.encoder.super_resolution:
            raise ValueError("a classifier is told neither the class nor a small image")
        if self.image_size % 2 ** (len(self.encoder.channel_mult) - 1):
            raise ValueError(f"image_size {self.image_size} cannot be halved at every level")


def guided_classifier(image_size: int) -> ClassifierSpec:
    """The classifier that guided-diffusion released for ImageNet at 64, 128, 256 or 512 pixels."""
    channel_mult = {
        64: (1, 2, 3, 4),
        128: (1, 1, 2, 3, 4),
        256: (1, 1, 2, 2, 4, 4),
        512: (0.5, 1, 1, 2, 2, 4, 4),
    }
    encoder = UNetSpec(
        channel_mult=channel_mult[image_size],
        num_res_blocks=4 if image_size == 64 else 2,
        attention_factors=tuple(image_size // size for size in (32, 16, 8)),
        num_head_channels=64,
        resblock_updown=True,
    )
    return ClassifierSpec(encoder, image_size)


class AttentionPool(nn.Module):
    """The mean over all pixels attends to the pixels: [B, H, W, C] -> [B, features].

    Attributes:
        heads: number of heads.
        features: size of the result.
    """

    heads: int
    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        h = x.reshape(batch, height * width, channels)
        h = jnp.concatenate([h.mean(axis=1, keepdims=True), h], axis=1)
        position = self.param(
            "positional_embedding",
            nn.initializers.normal(channels**-0.5),
            (1 + height * width, channels),
        )
        qkv = dense(h + position[None], 3 * channels, "qkv")
        # What the mean has gathered is the answer.
        return dense(attend(qkv, self.heads, "qkv_first")[:, 0], self.features, "proj")


class Classifier(nn.Module):
    """log p(y | x_t), up to a constant.

    Attributes:
        spec: its shape.
    """

    spec: ClassifierSpec

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array) -> jax.Array:
        """Noised images [B, H, W, C], what Process.model_t says [B] -> logits [B, num_classes]."""
        spec = self.spec.encoder
        plan, res_index = layout(spec), itertools.count()
        embedding = embed_time(spec, t)
        h = run_encoder(spec, plan.encoder, x, embedding, None, res_index)[-1]
        h = run_block(spec, plan.middle, h, embedding, None, res_index)
        h = GroupNorm("silu", name="norm_out")(h.astype(jnp.float32))
        heads = h.shape[-1] // spec.num_head_channels
        return AttentionPool(heads, self.spec.num_classes, name="pool")(h)


def make_classifier(spec: ClassifierSpec) -> Network:
    """The init and apply functions of a classifier; apply takes (params, x, t)."""
    model = Classifier(spec)

    def init(key: jax.Array, image_shape: tuple[int, int, int]) -> dict:
        return model.init(key, jnp.zeros((1, *image_shape)), jnp.zeros((1,), jnp.int32))["params"]

    def apply(params: dict, x: jax.Array, t: jax.Array) -> jax.Array:
        return model.apply({"params": params}, x, t)

    return Network(init, apply)


def class_gradient(
    logits: Callable[[jax.Array, jax.Array], jax.Array], y: jax.Array, scale: float = 1.0
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """A cond_fn for samplers: scale times the gradient of log p(y | x_t) in x_t.

    Dhariwal & Nichol 2021, section 4.

    Args:
        logits: (x_t [B, H, W, C], model_t [B]) -> [B, classes], such as a classifier with its
            parameters bound.
        y: wanted classes [B], int32.
        scale: strength; 1 samples from p(x | y) of the two models, more sharpens it.

    Returns:
        Function (x_t, model_t) -> gradient [B, H, W, C].
    """

    def log_probability(x: jax.Array, t: jax.Array) -> jax.Array:
        log_p = jax.nn.log_softmax(logits(x, t))
        return jnp.sum(jnp.take_along_axis(log_p, y[:, None], axis=1))

    gradient = jax.grad(log_probability)
    return lambda x, t: scale * gradient(x, t)
