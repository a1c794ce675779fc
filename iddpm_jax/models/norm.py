"""Group norm with the paper's conditioning and what follows it, as one map with its own gradient.

Autodiff would read the activations once for every sum in the derivative. By hand, the gradient is
two readings of x and of what comes back: one for all sums, one for the result. Only x and numbers
per channel are kept for it.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

GROUPS = 32
EPSILON = 1e-5
ACTIVATIONS = ("silu", "none")

KEPT = "kept"
keep = functools.partial(checkpoint_name, name=KEPT)
"""Mark what is costly to compute: kept for the backward pass where it computes the rest again."""


class GroupNorm(nn.Module):
    """Group normalisation in 32 groups with float32 statistics, and an activation.

    Wu & He 2018, with epsilon 1e-5. An outer scale and shift are the paper's conditioning (appendix
    A: GroupNorm(h) (1 + scale) + shift).

    Attributes:
        activation: what follows, one of ACTIVATIONS.
        by_product: see normalise.
    """

    activation: str = "none"
    by_product: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, scale: jax.Array | None = None, shift: jax.Array | None = None
    ) -> jax.Array:
        """Normalise [B, H, W, C]; scale and shift are [B, C]. Returns x's shape and type."""
        batch, channels = x.shape[0], x.shape[-1]
        gamma = self.param("scale", nn.initializers.ones, (channels,))
        beta = self.param("bias", nn.initializers.zeros, (channels,))
        factor, offset = (jnp.broadcast_to(p[None], (batch, channels)) for p in (gamma, beta))
        if scale is not None:
            factor, offset = factor * (1.0 + scale), offset * (1.0 + scale) + shift
        return normalise(x, factor, offset, self.activation, self.by_product)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalise(
    x: jax.Array, factor: jax.Array, offset: jax.Array, activation: str, by_product: bool
) -> jax.Array:
    """activation(x_hat factor + offset), x_hat being x less its group's mean over its std.

    Args:
        x: [B, H, W, C].
        factor, offset: [B, C], float32.
        activation: one of ACTIVATIONS.
        by_product: bring groups' means to their channels by a product of matrices. XLA looks them
            up at every pixel otherwise, and CPUs then take one entry at a time.

    Returns:
        x's shape and type.
    """
    return _forward(x, factor, offset, activation, by_product)[0]


def _forward(
    x: jax.Array, factor: jax.Array, offset: jax.Array, activation: str, by_product: bool
) -> tuple[jax.Array, tuple]:
    mean, inverse_std = (keep(s) for s in _statistics(x, by_product))
    slope = inverse_std * factor
    a = x.astype(jnp.float32) * _at_pixels(slope) + _at_pixels(offset - mean * slope)
    y = nn.silu(a) if activation == "silu" else a
    return y.astype(x.dtype), (x, factor, offset, mean, inverse_std)


def _backward(
    activation: str, by_product: bool, kept: tuple, dy: jax.Array
) -> tuple[jax.Array, ...]:
    x, factor, offset, mean, inverse_std = kept
    x_hat = (x.astype(jnp.float32) - _at_pixels(mean)) * _at_pixels(inverse_std)
    da = dy.astype(jnp.float32)
    if activation == "silu":
        a = x_hat * _at_pixels(factor) + _at_pixels(offset)
        sigmoid = nn.sigmoid(a)
        da = da * sigmoid * (1.0 + a * (1.0 - sigmoid))
    d_offset, d_factor = da.sum(axis=(1, 2)), (da * x_hat).sum(axis=(1, 2))
    # What the group's mean and variance take away from a change of x: its parts along 1 and x_hat.
    pixels = x.shape[1] * x.shape[2]
    along_one, along_x_hat = (
        _per_group(factor * d / pixels, by_product) for d in (d_offset, d_factor)
    )
    d_x_hat = da * _at_pixels(factor) - _at_pixels(along_one) - x_hat * _at_pixels(along_x_hat)
    return (d_x_hat * _at_pixels(inverse_std)).astype(x.dtype), d_factor, d_offset


normalise.defvjp(_forward, _backward)


def _statistics(x: jax.Array, by_product: bool) -> tuple[jax.Array, jax.Array]:
    """Mean and inverse standard deviation of each channel's group, both [B, C] float32."""
    per_group = functools.partial(_per_group, by_product=by_product)
    h = x.astype(jnp.float32)
    mean = per_group(h.mean(axis=(1, 2)))
    if x.dtype == jnp.float32:
        variance = per_group(((h - _at_pixels(mean)) ** 2).mean(axis=(1, 2)))
    else:
        # Both in one reading of x, which the convolution before can do as it writes. What float32
        # loses in the difference is far below half precision's rounding of x.
        variance = jnp.maximum(per_group((h**2).mean(axis=(1, 2))) - mean**2, 0.0)
    return mean, jax.lax.rsqrt(variance + EPSILON)


def _per_group(per_channel: jax.Array, by_product: bool) -> jax.Array:
    """The mean over each group's channels, in place of every one of them: [B, C] -> [B, C]."""
    batch, channels = per_channel.shape
    size = channels // GROUPS
    mean = per_channel.reshape(batch, GROUPS, size).mean(axis=-1)
    if not by_product:
        return jnp.repeat(mean, size, axis=1)
    channel_of_group = jnp.repeat(jnp.eye(GROUPS), size, axis=1)
    return jnp.matmul(mean, channel_of_group, precision=jax.lax.Precision.HIGHEST)


def _at_pixels(per_channel: jax.Array) -> jax.Array:
    """[B, C] -> [B, 1, 1, C]."""
    return per_channel[:, None, None, :]
