"""The shape of a network: its spec, and the layers that follow from it, in the order they run."""

import dataclasses
from typing import NamedTuple

from iddpm_jax.models.layers import ATTENTION, CONVOLUTIONS, HEAD_ORDERS
from iddpm_jax.models.norm import GROUPS

REMAT = ("none", "elementwise", "blocks")
"""What the backward pass computes again: nothing; all but products, statistics and dropout masks;
all but the inputs of residual blocks and attention."""


@dataclasses.dataclass(frozen=True)
class UNetSpec:
    """Everything that shapes a UNet.

    Attributes:
        channels: channels of an image, C.
        out_channels: channels of the output, 2 C where the variance is learned.
        width: channels of the first level, a multiple of 32.
        channel_mult: channels of each level over width, also fractions; every level halves the
            resolution.
        num_res_blocks: residual blocks per level of the encoder; the decoder has one more.
        attention_factors: down-sampling factors (1, 2, 4, ...) at which attention follows each
            block.
        num_heads: attention heads.
        num_heads_upsample: attention heads in the decoder; 0 means num_heads.
        num_head_channels: channels of a head; where above 0 the numbers of heads follow from it.
        attention_order: how the channels of q, k and v lie in a projection; "heads_first" (improved
            diffusion) or "qkv_first" (guided diffusion's new order).
        attention: how it is computed, one of ATTENTION; not a matter of the weights.
        convolution: how 3x3 ones are computed, one of CONVOLUTIONS; not a matter of the weights.
        num_classes: number of classes; 0 for an unconditional model.
        null_class: one class more, num_classes itself, stands for "not told" (classifier-free
            guidance).
        super_resolution: the network also sees a small image of what it shall draw.
        dropout: rate of dropout in the residual blocks.
        scale_shift_norm: condition by scale and shift after a norm, the paper's choice; else by
            adding.
        conv_resample: resample with a convolution; else with 2x2 averages and plain repetition.
        resblock_updown: resample inside a residual block instead (guided diffusion).
        remat: what the backward pass computes again to save memory, one of REMAT.
        dtype: type of the trunk's computation, "float32", "bfloat16" or "float16".
    """

    channels: int = 3
    out_channels: int = 6
    width: int = 128
    channel_mult: tuple[float, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 3
    attention_factors: tuple[int, ...] = (2, 4)
    num_heads: int = 4
    num_heads_upsample: int = 0
    num_head_channels: int = 0
    attention_order: str = "heads_first"
    attention: str = "plain"
    convolution: str = "plain"
    num_classes: int = 0
    null_class: bool = False
    super_resolution: bool = False
    dropout: float = 0.0
    scale_shift_norm: bool = True
    conv_resample: bool = True
    resblock_updown: bool = False
    remat: str = "none"
    dtype: str = "float32"

    def __post_init__(self):
        if self.num_heads < 1 or self.num_heads_upsample < 0 or self.num_head_channels < 0:
            raise ValueError(
                "num_heads must be at least 1, num_heads_upsample and num_head_channels at least 0"
            )
        if self.attention not in ATTENTION:
            raise ValueError(
                f"attention {self.attention!r} is unknown; use one of {', '.join(ATTENTION)}"
            )
        if self.remat not in REMAT:
            raise ValueError(f"remat {self.remat!r} is unknown; use one of {', '.join(REMAT)}")
        if self.convolution not in CONVOLUTIONS:
            raise ValueError(
                f"convolution {self.convolution!r} is unknown; use one of {', '.join(CONVOLUTIONS)}"
            )
        if self.attention_order not in HEAD_ORDERS:
            raise ValueError(
                f"attention_order {self.attention_order!r} is unknown; "
                f"use one of {', '.join(HEAD_ORDERS)}"
            )
        for mult in self.channel_mult:
            if self.width * mult % GROUPS:
                raise ValueError(
                    f"width {self.width} x channel_mult {mult} is not a multiple of {GROUPS}"
                )
        if self.null_class and not self.num_classes:
            raise ValueError("only a class-conditional network can have a null class")
        attended = [m for i, m in enumerate(self.channel_mult) if 2**i in self.attention_factors]
        # The middle block always has attention, at the last level's width.
        for mult in [*attended, self.channel_mult[-1]]:
            self._check_heads(self.level_channels(mult))

    def _check_heads(self, channels: int) -> None:
        if self.num_head_channels:
            if channels % self.num_head_channels:
                raise ValueError(
                    f"heads of {self.num_head_channels} channels do not divide the {channels} "
                    "channels of an attention level"
                )
            return
        for heads in (self.num_heads, self.num_heads_upsample or self.num_heads):
            if channels % heads:
                raise ValueError(
                    f"{heads} heads do not divide the channels at every attention level"
                )

    def level_channels(self, mult: float) -> int:
        """Channels of a level with this multiplier."""
        return int(self.width * mult)

    @property
    def class_rows(self) -> int:
        """Rows of the class embedding: the classes, and the null class where there is one."""
        return self.num_classes + int(self.null_class)


class Layer(NamedTuple):
    """One layer: its kind, its name in the parameter tree, its output channels and heads."""

    kind: str  # "conv", "res", "attention", "down", "up", "res_down" or "res_up"
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

    def heads(channels: int, wanted: int) -> int:
        return channels // spec.num_head_channels if spec.num_head_channels else wanted

    down, up = ("res_down", "res_up") if spec.resblock_updown else ("down", "up")
    levels = [(i, spec.level_channels(mult)) for i, mult in enumerate(spec.channel_mult)]
    encoder = [[Layer("conv", "conv_in", levels[0][1])]]
    for level, channels in levels:
        count = heads(channels, spec.num_heads)
        for i in range(spec.num_res_blocks):
            block = [Layer("res", f"down_{level}_res_{i}", channels)]
            if 2**level in spec.attention_factors:
                block.append(Layer("attention", f"down_{level}_attention_{i}", channels, count))
            encoder.append(block)
        if level < len(levels) - 1:
            encoder.append([Layer(down, f"down_{level}_resample", channels)])

    middle = [
        Layer("res", "middle_res_0", channels),
        Layer("attention", "middle_attention", channels, heads(channels, spec.num_heads)),
        Layer("res", "middle_res_1", channels),
    ]

    decoder = []
    for level, channels in reversed(levels):
        count = heads(channels, spec.num_heads_upsample or spec.num_heads)
        for i in range(spec.num_res_blocks + 1):
            block = [Layer("res", f"up_{level}_res_{i}", channels)]
            if 2**level in spec.attention_factors:
                block.append(Layer("attention", f"up_{level}_attention_{i}", channels, count))
            if level > 0 and i == spec.num_res_blocks:
                block.append(Layer(up, f"up_{level}_resample", channels))
            decoder.append(block)
    return Layout(encoder, middle, decoder)
