"""The original's network in PyTorch, operation for operation, under the original's names.

Built from our layout, so that any config has its twin. It takes the weights that
`interop.openai.to_state_dict` writes, and gives the outputs of models.unet for them.
"""

import math

import torch
from torch import nn
from torch.nn import functional

from iddpm_jax.models.layout import Layer, UNetSpec, layout


class Norm(nn.GroupNorm):
    """Group norm in 32 groups, computed in float32 whatever comes in."""

    def __init__(self, channels: int):
        super().__init__(32, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.float()).type(x.dtype)


class Residual(nn.Module):
    """Residual block with scale and shift from the embedding, or with the embedding added."""

    def __init__(self, spec: UNetSpec, before: int, channels: int):
        super().__init__()
        self.scale_shift = spec.scale_shift_norm
        self.in_layers = nn.Sequential(
            Norm(before), nn.SiLU(), nn.Conv2d(before, channels, 3, padding=1)
        )
        factor = 2 if self.scale_shift else 1
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(4 * spec.width, factor * channels))
        self.out_layers = nn.Sequential(
            Norm(channels),
            nn.SiLU(),
            nn.Dropout(spec.dropout),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        same = before == channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(before, channels, 1)

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        h = self.in_layers(x)
        condition = self.emb_layers(embedding).type(h.dtype)[:, :, None, None]
        if self.scale_shift:
            scale, shift = condition.chunk(2, dim=1)
            norm, *rest = self.out_layers
            h = norm(h) * (1 + scale) + shift
            for layer in rest:
                h = layer(h)
        else:
            h = self.out_layers(h + condition)
        return self.skip_connection(x) + h


class Attention(nn.Module):
    """Self-attention over all pixels, heads first, the two products as einsums."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = Norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(2)
        qkv = self.qkv(self.norm(flat))
        batch, channels, length = qkv.shape
        q, k, v = qkv.reshape(batch * self.heads, channels // self.heads, length).chunk(3, dim=1)
        root = 1 / math.sqrt(math.sqrt(q.shape[1]))
        logits = torch.einsum("bct,bcs->bts", q * root, k * root)
        weights = torch.softmax(logits.float(), dim=-1).type(logits.dtype)
        h = torch.einsum("bts,bcs->bct", weights, v).reshape(batch, -1, length)
        return (flat + self.proj_out(h)).reshape(x.shape)


class Down(nn.Module):
    """3x3 convolution with stride 2."""

    def __init__(self, channels: int):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return self.op(x)


class Up(nn.Module):
    """Every pixel repeated 2x2, then a 3x3 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return self.conv(functional.interpolate(x, scale_factor=2, mode="nearest"))


class First(nn.Conv2d):
    """The first convolution, which takes no notice of the embedding either."""

    def forward(self, x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return super().forward(x)


class OriginalUNet(nn.Module):
    """The whole network; not for resblock_updown, super-resolution or plain resampling."""

    def __init__(self, spec: UNetSpec):
        super().__init__()
        self.width = spec.width
        wide, plan = 4 * spec.width, layout(spec)
        self.time_embed = nn.Sequential(
            nn.Linear(spec.width, wide), nn.SiLU(), nn.Linear(wide, wide)
        )
        if spec.num_classes:
            self.label_emb = nn.Embedding(spec.class_rows, wide)
        channels, skips = spec.channels, []
        self.input_blocks, self.output_blocks = nn.ModuleList(), nn.ModuleList()
        for block in plan.encoder:
            made, channels = _block(spec, block, channels)
            self.input_blocks.append(made)
            skips.append(channels)
        self.middle_block, channels = _block(spec, plan.middle, channels)
        for block in plan.decoder:
            made, channels = _block(spec, block, channels + skips.pop())
            self.output_blocks.append(made)
        last = nn.Conv2d(channels, spec.out_channels, 3, padding=1)
        self.out = nn.Sequential(Norm(channels), nn.SiLU(), last)

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None
    ) -> torch.Tensor:
        """[B, C, H, W], what the network is fed for t [B], classes [B] -> [B, C or 2 C, H, W]."""
        half = self.width // 2
        steps = torch.arange(half, dtype=torch.float32, device=x.device)
        angles = t.float()[:, None] * torch.exp(-math.log(10000) * steps / half)[None]
        embedding = self.time_embed(torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1))
        if y is not None:
            embedding = embedding + self.label_emb(y)
        h, skips = x, []
        for block in self.input_blocks:
            h = _run(block, h, embedding)
            skips.append(h)
        h = _run(self.middle_block, h, embedding)
        for block in self.output_blocks:
            h = _run(block, torch.cat([h, skips.pop()], dim=1), embedding)
        return self.out(h.type(x.dtype))


def _block(spec: UNetSpec, block: list[Layer], channels: int) -> tuple[nn.ModuleList, int]:
    """The layers of a block, and the channels that leave it."""
    made = nn.ModuleList()
    for layer in block:
        make = {
            "conv": lambda layer, before: First(before, layer.channels, 3, padding=1),
            "res": lambda layer, before: Residual(spec, before, layer.channels),
            "attention": lambda layer, _: Attention(layer.channels, layer.heads),
            "down": lambda layer, _: Down(layer.channels),
            "up": lambda layer, _: Up(layer.channels),
        }[layer.kind]
        made.append(make(layer, channels))
        channels = layer.channels
    return made, channels


def _run(block: nn.ModuleList, h: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
    for layer in block:
        h = layer(h, embedding)
    return h
