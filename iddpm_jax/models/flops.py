"""Multiply-adds of a network, layer by layer from its layout; docs/plan.md has one by hand."""

import math

from iddpm_jax.models.layout import Layer, UNetSpec, layout

KINDS = ("convolutions", "projections", "attention", "embedding")
"""3x3 convolutions; 1x1 ones (skips, into and out of attention); attention's two products; layers
of vectors, on the embedding of time."""


def multiply_adds(spec: UNetSpec, image_shape: tuple[int, int, int]) -> dict[str, int]:
    """Multiply-adds of one forward pass for one image, by kind.

    Products with the zeros around an image are left out, as XLA leaves them out; norms,
    activations and the like, which are no products of matrices, are not counted.

    Args:
        spec: shape of the network.
        image_shape: (H, W, C).

    Returns:
        One count for each of KINDS.
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
        counter.block(block, skips[-1][1] if skips else None)
    counter.conv3(spec.out_channels)
    return counter.counts


def flops_per_image(spec: UNetSpec, image_shape: tuple[int, int, int]) -> int:
    """FLOPs of one forward pass for one image: two for each multiply-add."""
    return 2 * sum(multiply_adds(spec, image_shape).values())


def training_flops_per_image(spec: UNetSpec, image_shape: tuple[int, int, int]) -> int:
    """FLOPs of forward and backward pass for one image.

    The backward pass has two products for each of the forward pass: one gives the gradient of the
    weights, one that of the input. Recomputing activations (spec.remat) is not counted: it is work,
    but not progress.
    """
    return 3 * flops_per_image(spec, image_shape)


class _Counter:
    """Walks through the layers with the shape of what flows between them."""

    def __init__(self, spec: UNetSpec, image_shape: tuple[int, int, int]):
        self._spec = spec
        self.size = image_shape[:2]
        self.channels = image_shape[2] * (2 if spec.super_resolution else 1)
        self._embedding = 4 * spec.width
        self.counts = dict.fromkeys(KINDS, 0)
        self.counts["embedding"] += spec.width * self._embedding + self._embedding**2

    def block(self, layers: list[Layer], size: tuple[int, int] | None = None) -> None:
        """Count layers; size is what an upsampling layer ends with."""
        for layer in layers:
            kind, _, resample = layer.kind.partition("_")
            if kind == "res":
                self._res(layer.channels, resample)
            elif kind == "attention":
                self._attention()
            elif kind == "up":
                self.size = size
            if layer.kind == "res_up":
                self.size = size
            if kind == "conv" or (kind in ("down", "up") and self._spec.conv_resample):
                self.conv3(layer.channels, stride=2 if kind == "down" else 1)
            elif kind == "down":
                self._halve()

    def conv3(self, channels: int, stride: int = 1) -> None:
        """A 3x3 convolution with one pixel of padding on every side."""
        taps = math.prod(_taps(n, stride) for n in self.size)
        self.counts["convolutions"] += taps * self.channels * channels
        self.channels = channels
        if stride == 2:
            self._halve()

    def _halve(self) -> None:
        self.size = tuple(-(-n // 2) for n in self.size)

    def _res(self, channels: int, resample: str) -> None:
        if resample == "down":
            self._halve()
        elif resample == "up":
            self.size = tuple(2 * n for n in self.size)
        before = self.channels
        self.conv3(channels)
        self.conv3(channels)
        if before != channels:
            self.counts["projections"] += math.prod(self.size) * before * channels
        factors = 2 if self._spec.scale_shift_norm else 1
        self.counts["embedding"] += self._embedding * factors * channels

    def _attention(self) -> None:
        pixels, channels = math.prod(self.size), self.channels
        self.counts["projections"] += pixels * channels * 4 * channels
        self.counts["attention"] += 2 * pixels**2 * channels


def _taps(n: int, stride: int) -> int:
    """Products per line of n pixels whose pixel is not padding: 3 n - 2 at stride 1."""
    centres = range(0, n, stride)
    return sum(0 <= centre + offset < n for centre in centres for offset in (-1, 0, 1))
