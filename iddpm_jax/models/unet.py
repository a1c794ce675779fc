"""The UNet of Ho et al. 2020 as Nichol & Dhariwal 2021 changed it (appendix A)."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from iddpm_jax.models.blocks import embed_time, run_block, run_encoder
from iddpm_jax.models.layers import conv3, upsample_bilinear
from iddpm_jax.models.layout import UNetSpec, layout
from iddpm_jax.models.norm import GroupNorm


class UNet(nn.Module):
    """The denoising network.

    Attributes:
        spec: its shape.
    """

    spec: UNetSpec

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        t: jax.Array,
        y: jax.Array | None = None,
        dropout_keys: jax.Array | None = None,
        low_res: jax.Array | None = None,
    ) -> jax.Array:
        """Predict the parameters of p(x_{t-1} | x_t).

        Args:
            x: noised images [B, H, W, C]; any height and width.
            t: what Process.model_t says for each image [B], integer or float.
            y: classes [B], int32, for a class-conditional network only.
            dropout_keys: a random key for each image [B]; None turns dropout off.
            low_res: small images [B, h, w, C] in [-1, 1], for a super-resolution network only.

        Returns:
            [B, H, W, out_channels] float32.

        Raises:
            ValueError: classes or small images missing, or given to a network that takes none.
        """
        spec = self.spec
        _check_conditions(spec, y, low_res)
        if low_res is not None:
            x = concatenate_low_res(x, low_res)
        embedding = embed_time(spec, t)
        if y is not None:
            table = nn.Embed(
                spec.class_rows,
                4 * spec.width,
                embedding_init=nn.initializers.normal(1.0),
                name="class_embedding",
            )
            embedding = embedding + table(y)

        plan, res_index = layout(spec), itertools.count()
        skips = run_encoder(spec, plan.encoder, x, embedding, dropout_keys, res_index)
        h = run_block(spec, plan.middle, skips[-1], embedding, dropout_keys, res_index)
        blocks = [*skips, h]
        for block in plan.decoder:
            h = jnp.concatenate([h, skips.pop()], axis=-1)
            size = skips[-1].shape[1:3] if skips else None
            h = run_block(spec, block, h, embedding, dropout_keys, res_index, size)
            blocks.append(h)
        for h in blocks:
            self.sow("intermediates", "blocks", h)

        norm = GroupNorm("silu", by_product=spec.attention == "by_image", name="norm_out")
        h = norm(h.astype(jnp.float32))
        return conv3(h, spec.out_channels, "conv_out", zero=True)


def _check_conditions(spec: UNetSpec, y: jax.Array | None, low_res: jax.Array | None) -> None:
    if (y is None) != (spec.num_classes == 0):
        raise ValueError(
            "an unconditional network takes no classes"
            if y is not None
            else f"this network is class-conditional: give classes 0 to {spec.num_classes - 1}"
        )
    if (low_res is None) == spec.super_resolution:
        raise ValueError(
            "this network takes no small images"
            if low_res is not None
            else "this network is for super-resolution: give it small images, low_res"
        )


class Network(NamedTuple):
    """A network as two pure functions.

    Attributes:
        init: (key, image shape (H, W, C)) -> params, a nested dict of float32 arrays.
        apply: (params, x, t, y, dropout_keys, low_res) -> output; see UNet.__call__.
    """

    init: Callable[[jax.Array, tuple[int, int, int]], dict]
    apply: Callable[..., jax.Array]


def make_network(spec: UNetSpec) -> Network:
    """The init and apply functions of a UNet."""
    model = UNet(spec)

    def init(key: jax.Array, image_shape: tuple[int, int, int]) -> dict:
        x, t = jnp.zeros((1, *image_shape)), jnp.zeros((1,), jnp.int32)
        y = jnp.zeros((1,), jnp.int32) if spec.num_classes else None
        return model.init(key, x, t, y, None, x if spec.super_resolution else None)["params"]

    def apply(
        params: dict,
        x: jax.Array,
        t: jax.Array,
        y: jax.Array | None = None,
        dropout_keys: jax.Array | None = None,
        low_res: jax.Array | None = None,
    ) -> jax.Array:
        return model.apply({"params": params}, x, t, y, dropout_keys, low_res)

    return Network(init, apply)


def concatenate_low_res(x: jax.Array, low_res: jax.Array) -> jax.Array:
    """Input of a super-resolution UNet: x beside the bilinearly enlarged small image.

    Args:
        x: noised images [B, H, W, C].
        low_res: small images [B, h, w, C] in [-1, 1].

    Returns:
        [B, H, W, 2 C].
    """
    return jnp.concatenate([x, upsample_bilinear(low_res, *x.shape[1:3])], axis=-1)
