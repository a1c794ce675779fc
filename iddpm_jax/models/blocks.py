"""Blocks that the UNet and the classifier share: embedding of the condition, residual block."""

import functools
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp

from iddpm_jax.models.layers import (
    Attention,
    average_pool,
    conv3,
    dense,
    dropout,
    timestep_embedding,
    upsample_nearest,
)
from iddpm_jax.models.layout import Layer, UNetSpec
from iddpm_jax.models.norm import KEPT, GroupNorm


def embed_time(spec: UNetSpec, t: jax.Array) -> jax.Array:
    """Two linear layers on the sinusoidal embedding: [B] -> [B, 4 width] float32."""
    embedding = timestep_embedding(t, spec.width)
    embedding = dense(embedding, 4 * spec.width, "time_embedding_in")
    return dense(nn.silu(embedding), 4 * spec.width, "time_embedding_out")


class ResBlock(nn.Module):
    """Residual block conditioned on the embedding of timestep and class.

    Attributes:
        spec: of the whole network.
        channels: output channels.
        index: position of the block in the network; keeps dropout masks of blocks apart.
        resample: "down" or "up" resamples both branches without weights (guided diffusion), "" not.
    """

    spec: UNetSpec
    channels: int
    index: int
    resample: str = ""

    @nn.compact
    def __call__(
        self, x: jax.Array, embedding: jax.Array, dropout_keys: jax.Array | None
    ) -> jax.Array:
        """[B, H, W, C], [B, 4 width], keys [B] or None -> [B, H', W', channels]."""
        spec, dtype = self.spec, jnp.dtype(self.spec.dtype)
        norm = functools.partial(GroupNorm, "silu", by_product=spec.attention == "by_image")
        h = norm(name="norm_in")(x)
        enlarge = None
        if self.resample == "down":
            h, x = average_pool(h), average_pool(x)
        elif self.resample == "up":
            x = upsample_nearest(x)
            enlarge = x.shape[1:3]
        conv = functools.partial(conv3, dtype=dtype, convolution=spec.convolution)
        h = conv(h, self.channels, "conv_in", enlarge=enlarge)

        norm_out = norm(name="norm_out")
        if spec.scale_shift_norm:
            condition = dense(nn.silu(embedding), 2 * self.channels, "embedding")
            h = norm_out(h, *jnp.split(condition, 2, axis=-1))
        else:
            condition = dense(nn.silu(embedding), self.channels, "embedding")
            h = norm_out(h + condition[:, None, None, :].astype(h.dtype))
        if dropout_keys is not None:
            dropout_keys = jax.vmap(lambda key: jax.random.fold_in(key, self.index))(dropout_keys)
        h = dropout(h, dropout_keys, spec.dropout, by_image=spec.attention == "by_image")
        h = conv(h, self.channels, "conv_out", zero=True)

        if x.shape[-1] != self.channels:
            x = dense(x, self.channels, "skip", dtype=dtype)
        return x + h


def recomputed(module: type[nn.Module], remat: str) -> type[nn.Module]:
    """A module whose backward pass computes again what the forward pass does not keep.

    Args:
        module: the module's class.
        remat: one of layout.REMAT.

    Returns:
        Class with the same parameters and results.
    """
    if remat == "none":
        return module
    if remat == "blocks":
        return nn.remat(module)
    return nn.remat(module, policy=jax.checkpoint_policies.save_only_these_names(KEPT))


def run_block(
    spec: UNetSpec,
    block: list[Layer],
    h: jax.Array,
    embedding: jax.Array,
    dropout_keys: jax.Array | None,
    res_index: Iterator[int],
    size: tuple[int, int] | None = None,
) -> jax.Array:
    """Run the layers of a block, as submodules of the module that calls.

    Args:
        spec: of the whole network.
        block: layers.
        h: [B, H, W, C].
        embedding: of timestep and class [B, 4 width].
        dropout_keys: a random key for each image [B]; None turns dropout off.
        res_index: counts the residual blocks of the network.
        size: (H, W) that an upsampling layer ends with.

    Returns:
        [B, H', W', C'].
    """
    dtype = jnp.dtype(spec.dtype)
    res_block, attention = (recomputed(module, spec.remat) for module in (ResBlock, Attention))
    for layer in block:
        kind, _, resample = layer.kind.partition("_")
        if kind == "res":
            res = res_block(spec, layer.channels, next(res_index), resample, name=layer.name)
            h = res(h, embedding, dropout_keys)
        elif kind == "attention":
            attend = attention(
                layer.heads, spec.attention_order, dtype, spec.attention, name=layer.name
            )
            h = attend(h)
        elif kind == "up" and not spec.conv_resample:
            h = upsample_nearest(h, size)
        elif kind == "down" and not spec.conv_resample:
            h = average_pool(h)
        if layer.kind == "res_up":
            # An odd size was rounded up on the way down: cut back to what waits there.
            h = h[:, : size[0], : size[1]]
        if kind == "conv" or (kind in ("down", "up") and spec.conv_resample):
            stride = 2 if kind == "down" else 1
            # Half precision would round away the little noise that images at small t have.
            exact = jnp.float32 if kind == "conv" else dtype
            conv = functools.partial(conv3, dtype=exact, convolution=spec.convolution)
            enlarge = size if kind == "up" else None
            h = conv(h, layer.channels, layer.name, stride=stride, enlarge=enlarge).astype(dtype)
    return h


def run_encoder(
    spec: UNetSpec,
    blocks: list[list[Layer]],
    x: jax.Array,
    embedding: jax.Array,
    dropout_keys: jax.Array | None,
    res_index: Iterator[int],
) -> list[jax.Array]:
    """The outputs of all encoder blocks, in order; arguments as run_block."""
    outputs = [x]
    for block in blocks:
        outputs.append(run_block(spec, block, outputs[-1], embedding, dropout_keys, res_index))
    return outputs[1:]
