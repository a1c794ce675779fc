"""The UNet of Ho et al. 2020 as Nichol & Dhariwal 2021 changed it (appendix A)."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from iddpm_jax.models.layers import (
    GROUPS,
    Attention,
    GroupNorm,
    average_pool,
    conv3,
    dense,
    dropout,
    timestep_embedding,
    upsample_bilinear,
    upsample_nearest,
)


@dataclasses.dataclass(frozen=True)
class UNetSpec:
    """Everything that shapes a UNet.

    Attributes:
        channels: channels of the network's input, C; of a super-resolution network 2 C.
        out_channels: channels of the output, 2 C where the variance is learned.
        width: channels of the first level, a multiple of 32.
        channel_mult: width of each level over the first; every level halves the resolution.
        num_res_blocks: residual blocks per level of the encoder; the decoder has one more.
        attention_factors: down-sampling factors (1, 2, 4, ...) at which attention follows each
            block.
        num_heads: attention heads.
        num_heads_upsample: attention heads in the decoder; 0 means num_heads.
        num_classes: number of classes; 0 for an unconditional model.
        dropout: rate of dropout in the residual blocks.
        scale_shift_norm: condition by scale and shift after a norm, the paper's choice; else by
            adding.
        conv_resample: resample with a convolution; else with 2x2 averages and plain repetition.
        remat: recompute the residual blocks' activations in the backward pass, to save memory.
        dtype: type of the trunk's computation, "float32" or "bfloat16".
    """

    channels: int = 3
    out_channels: int = 6
    width: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 3
    attention_factors: tuple[int, ...] = (2, 4)
    num_heads: int = 4
    num_heads_upsample: int = 0
    num_classes: int = 0
    dropout: float = 0.0
    scale_shift_norm: bool = True
    conv_resample: bool = True
    remat: bool = False
    dtype: str = "float32"

    def __post_init__(self):
        if self.num_heads < 1 or self.num_heads_upsample < 0:
            raise ValueError("num_heads must be at least 1, num_heads_upsample at least 0")
        for mult in self.channel_mult:
            if self.width * mult % GROUPS:
                raise ValueError(f"width {self.width} x {mult} is not a multiple of {GROUPS}")
        for heads in (self.num_heads, self.num_heads_upsample or self.num_heads):
            # The middle block always has attention, at the last level's width.
            if any(self.width * mult % heads for mult in self._attended_mults()):
                raise ValueError(
                    f"{heads} heads do not divide the channels at every attention level"
                )

    def _attended_mults(self) -> list[int]:
        attended = [m for i, m in enumerate(self.channel_mult) if 2**i in self.attention_factors]
        return [*attended, self.channel_mult[-1]]


class Layer(NamedTuple):
    """One layer: its kind, its name in the parameter tree, its output channels and heads."""

    kind: str  # "conv", "res", "attention", "down" or "up"
    name: str
    channels: int
    heads: int = 0


class Layout(NamedTuple):
    """The layers of a UNet in the order they run; read by the network and by interop.

    Attributes:
        encoder: blocks of layers; each block's output is kept for the decoder.
        middle: one block.
        decoder: blocks of layers; each takes one kept output, concatenated.
    """

    encoder: list[list[Layer]]
    middle: list[Layer]
    decoder: list[list[Layer]]


def layout(spec: UNetSpec) -> Layout:
    """The layers of a UNet, derived from its spec."""
    heads, heads_up = spec.num_heads, spec.num_heads_upsample or spec.num_heads
    levels = list(enumerate(spec.channel_mult))
    encoder = [[Layer("conv", "conv_in", spec.width)]]
    for level, mult in levels:
        channels = spec.width * mult
        for i in range(spec.num_res_blocks):
            block = [Layer("res", f"down_{level}_res_{i}", channels)]
            if 2**level in spec.attention_factors:
                block.append(Layer("attention", f"down_{level}_attention_{i}", channels, heads))
            encoder.append(block)
        if level < len(levels) - 1:
            encoder.append([Layer("down", f"down_{level}_resample", channels)])

    middle = [
        Layer("res", "middle_res_0", channels),
        Layer("attention", "middle_attention", channels, heads),
        Layer("res", "middle_res_1", channels),
    ]

    decoder = []
    for level, mult in reversed(levels):
        channels = spec.width * mult
        for i in range(spec.num_res_blocks + 1):
            block = [Layer("res", f"up_{level}_res_{i}", channels)]
            if 2**level in spec.attention_factors:
                block.append(Layer("attention", f"up_{level}_attention_{i}", channels, heads_up))
            if level > 0 and i == spec.num_res_blocks:
                block.append(Layer("up", f"up_{level}_resample", channels))
            decoder.append(block)
    return Layout(encoder, middle, decoder)


class ResBlock(nn.Module):
    """Residual block conditioned on the embedding of timestep and class.

    Attributes:
        spec: of the whole network.
        channels: output channels.
        index: position of the block in the network; keeps dropout masks of blocks apart.
    """

    spec: UNetSpec
    channels: int
    index: int

    @nn.compact
    def __call__(
        self, x: jax.Array, embedding: jax.Array, dropout_keys: jax.Array | None
    ) -> jax.Array:
        """[B, H, W, C], [B, 4 width], keys [B] or None -> [B, H, W, channels]."""
        spec, dtype = self.spec, jnp.dtype(self.spec.dtype)
        h = nn.silu(GroupNorm(name="norm_in")(x))
        h = conv3(h, self.channels, "conv_in", dtype=dtype)

        if spec.scale_shift_norm:
            condition = dense(nn.silu(embedding), 2 * self.channels, "embedding")
            h = GroupNorm(name="norm_out")(h, *jnp.split(condition, 2, axis=-1))
        else:
            condition = dense(nn.silu(embedding), self.channels, "embedding")
            h = GroupNorm(name="norm_out")(h + condition[:, None, None, :].astype(h.dtype))
        if dropout_keys is not None:
            dropout_keys = jax.vmap(lambda key: jax.random.fold_in(key, self.index))(dropout_keys)
        h = dropout(nn.silu(h), dropout_keys, spec.dropout)
        h = conv3(h, self.channels, "conv_out", zero=True, dtype=dtype)

        if x.shape[-1] != self.channels:
            x = dense(x, self.channels, "skip", dtype=dtype)
        return x + h


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
    ) -> jax.Array:
        """Predict the parameters of p(x_{t-1} | x_t).

        Args:
            x: noised images [B, H, W, C]; any height and width.
            t: what Process.model_t says for each image [B], integer or float.
            y: classes [B], int32, for a class-conditional network only.
            dropout_keys: a random key for each image [B]; None turns dropout off.

        Returns:
            [B, H, W, out_channels] float32.

        Raises:
            ValueError: classes missing, or given to an unconditional network.
        """
        spec = self.spec
        if (y is None) != (spec.num_classes == 0):
            raise ValueError(
                "an unconditional network takes no classes"
                if y is not None
                else f"this network is class-conditional: give classes 0 to {spec.num_classes - 1}"
            )
        embedding = timestep_embedding(t, spec.width)
        embedding = dense(embedding, 4 * spec.width, "time_embedding_in")
        embedding = dense(nn.silu(embedding), 4 * spec.width, "time_embedding_out")
        if y is not None:
            table = nn.Embed(
                spec.num_classes,
                4 * spec.width,
                embedding_init=nn.initializers.normal(1.0),
                name="class_embedding",
            )
            embedding = embedding + table(y)

        dtype = jnp.dtype(spec.dtype)
        res_block = nn.remat(ResBlock) if spec.remat else ResBlock
        res_index = itertools.count()

        def run(block: list[Layer], h: jax.Array) -> jax.Array:
            for layer in block:
                stride = 2 if layer.kind == "down" else 1
                if layer.kind == "res":
                    res = res_block(spec, layer.channels, next(res_index), name=layer.name)
                    h = res(h, embedding, dropout_keys)
                elif layer.kind == "attention":
                    h = Attention(layer.heads, dtype, name=layer.name)(h)
                elif layer.kind == "up":
                    # An odd size was rounded up on the way down: cut back to what waits there.
                    height, width = skips[-1].shape[1:3]
                    h = upsample_nearest(h)[:, :height, :width]
                elif not spec.conv_resample and layer.kind == "down":
                    h = average_pool(h)
                if layer.kind == "conv" or (layer.kind in ("down", "up") and spec.conv_resample):
                    h = conv3(h, layer.channels, layer.name, stride=stride, dtype=dtype)
            self.sow("intermediates", "blocks", h)
            return h

        h = x.astype(spec.dtype)
        skips = []
        plan = layout(spec)
        for block in plan.encoder:
            h = run(block, h)
            skips.append(h)
        h = run(plan.middle, h)
        for block in plan.decoder:
            h = run(block, jnp.concatenate([h, skips.pop()], axis=-1))

        h = nn.silu(GroupNorm(name="norm_out")(h.astype(jnp.float32)))
        return conv3(h, spec.out_channels, "conv_out", zero=True)


class Network(NamedTuple):
    """A network as two pure functions.

    Attributes:
        init: (key, image shape (H, W, C)) -> params, a nested dict of float32 arrays.
        apply: (params, x, t, y, dropout_keys) -> output; see UNet.__call__.
    """

    init: Callable[[jax.Array, tuple[int, int, int]], dict]
    apply: Callable[..., jax.Array]


def make_network(spec: UNetSpec) -> Network:
    """The init and apply functions of a UNet."""
    model = UNet(spec)

    def init(key: jax.Array, image_shape: tuple[int, int, int]) -> dict:
        y = jnp.zeros((1,), jnp.int32) if spec.num_classes else None
        x, t = jnp.zeros((1, *image_shape)), jnp.zeros((1,), jnp.int32)
        return model.init(key, x, t, y)["params"]

    def apply(
        params: dict,
        x: jax.Array,
        t: jax.Array,
        y: jax.Array | None = None,
        dropout_keys: jax.Array | None = None,
    ) -> jax.Array:
        return model.apply({"params": params}, x, t, y, dropout_keys)

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
