"""The least that a training step has to move, layer by layer; docs/plan.md explains the count."""

import math

from iddpm_jax.models.layout import Layer, UNetSpec, layout

KINDS = ("forward", "backward", "attention", "parameters")
"""Activations of convolutions, norms and joined activations, forward and backward; attention, both
ways; parameters, their gradients, averages and optimizer state."""


def training_bytes(
    spec: UNetSpec, image_shape: tuple[int, int, int], images: int, parameters: int, averages: int
) -> dict[str, int]:
    """Bytes of a training step on one device if each product reads and writes what it must, once.

    Norms, SiLU, dropout and softmax happen as a product reads, their sums as another one writes.

    Args:
        spec: shape of the network.
        image_shape: (H, W, C).
        images: on the device.
        parameters: how many there are, all of them on the device.
        averages: running averages of them.

    Returns:
        One count for each of KINDS; activations in spec.dtype, the state in float32.
    """
    counter = _Counter(spec, image_shape)
    plan = layout(spec)
    skips = []
    for block in plan.encoder:
        counter.block(block)
        skips.append((counter.channels, counter.size))
    counter.block(plan.middle)
    for block in plan.decoder:
        skip_channels, counter.size = skips.pop()
        counter.channels += skip_channels
        # Joining two activations, and parting their gradients, reads and writes all of them.
        counter.add(2 * counter.here, 2 * counter.here)
        counter.block(block, skips[-1][1] if skips else None)
    counter.conv(spec.out_channels, normed=True)
    width = 4 if spec.dtype == "float32" else 2
    counts = {kind: images * width * count for kind, count in counter.counts.items()}
    # Read forward and backward, and the gradient written; that is summed over the devices (read and
    # written). Adam reads it, reads and writes the parameters, two moments and the averages.
    passes = 2 + 1 + 2 + 1 + 2 * (3 + averages)
    return {**counts, "parameters": 4 * passes * parameters}


class _Counter:
    """Walks through the layers with the shape of what flows between them; counts entries."""

    def __init__(self, spec: UNetSpec, image_shape: tuple[int, int, int]):
        self._spec = spec
        self.size = image_shape[:2]
        self.channels = image_shape[2] * (2 if spec.super_resolution else 1)
        self.counts = dict.fromkeys(KINDS[:3], 0)

    @property
    def here(self) -> int:
        """Entries of the activation that the walk has come to, for one image."""
        return math.prod(self.size) * self.channels

    def add(self, forward: int, backward: int) -> None:
        """Count entries read or written."""
        self.counts["forward"] += forward
        self.counts["backward"] += backward

    def block(self, layers: list[Layer], size: tuple[int, int] | None = None) -> None:
        """Count layers; size is what an upsampling layer ends with."""
        for layer in layers:
            kind, _, resample = layer.kind.partition("_")
            if kind == "attention":
                self._attention(layer.heads)
                continue
            if "up" in (kind, resample):
                self.size = size
            elif "down" in (kind, resample):
                self.size = tuple(-(-n // 2) for n in self.size)
            if kind == "res":
                self._res(layer.channels)
            else:
                self.conv(layer.channels)

    def conv(self, channels: int, normed: bool = False) -> None:
        """A convolution, behind a norm or not; at stride 2 it is taken to read what it writes."""
        before = self.here
        self.channels = channels
        after = self.here
        # The gradient of the input reads that of the output and writes; that of the weights reads
        # input and output's gradient. Behind a norm the first also reads the input, for SiLU and
        # the norm's sums, and another pass reads both and writes the gradient of the norm's input.
        self.add(before + after, 2 * before + 2 * after + (4 * before if normed else 0))

    def _res(self, channels: int) -> None:
        channels_before, before = self.channels, self.here
        self.conv(channels, normed=True)
        self.conv(channels, normed=True)
        # The sum reads the block's input; its gradient is read where that of the norm is written.
        self.add(self.here, before)
        if channels_before != channels:
            self.channels = channels_before
            self.conv(channels)

    def _attention(self, heads: int) -> None:
        n, logits = self.here, heads * math.prod(self.size) ** 2
        # Forward: q, k, v from x; logits; their product with v; the last projection, and the sum.
        forward = (1 + 3) * n + 2 * n + logits + logits + 2 * n + 3 * n
        # Backward: the projection (4); of v (2) and of the weights (2); of q (2) and k (2), each
        # from the weights and their gradient; q, k, v (4 + 4); the norm and the sum (4).
        backward = 24 * n + logits + 2 * logits + 2 * 2 * logits
        self.counts["attention"] += forward + backward
