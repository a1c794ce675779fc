"""Layers of the UNet: timestep embedding, convolutions, attention, dropout, resampling."""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, zeros

from iddpm_jax.models import threefry, winograd
from iddpm_jax.models.attention import attend_by_image
from iddpm_jax.models.convolution import convolve, convolve_enlarged
from iddpm_jax.models.norm import GroupNorm, keep

HEAD_ORDERS = ("heads_first", "qkv_first")

ATTENTION = ("plain", "by_image", "cudnn")
"""How attention is computed over many positions: for all images at once; image by image
(attention.py), on CPUs, for which dropout masks and norms then take their forms too; or by cuDNN's
fused kernel, for half precision on NVIDIA GPUs since Ampere."""

MANY_POSITIONS = 256
"""Below so many positions "plain" is fastest everywhere: benchmarks/README.md."""

CONVOLUTIONS = ("plain", "cpu")
"""How 3x3 convolutions are computed: as XLA does; or, in float32, for CPUs: in wide layers by
Winograd's products (winograd.py), elsewhere with gradients of our own (convolution.py)."""

WINOGRAD_CHANNELS = 128
WINOGRAD_PIXELS = 256
"""With fewer channels, in or out, or pixels of an image Winograd's products are not faster:
benchmarks/README.md."""


def fan_in_uniform(
    key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32
) -> jax.Array:
    """Uniform within 1 / sqrt(fan_in), the weights' initialisation of the original code."""
    variance = jnp.float32(1.0 / 3.0 / math.prod(shape[:-1]))
    return (threefry.uniform(key, shape, 1.0) * jnp.sqrt(3.0 * variance)).astype(dtype)


def _bias_init(fan_in: int) -> Initializer:
    bound = 1.0 / math.sqrt(fan_in)
    return lambda key, shape, dtype=jnp.float32: threefry.uniform(key, shape, bound).astype(dtype)


def _precision(dtype: jnp.dtype) -> jax.lax.Precision | None:
    # float32 means float32: accelerators would otherwise round the factors to fewer bits.
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


def conv3(
    x: jax.Array,
    features: int,
    name: str,
    *,
    stride: int = 1,
    enlarge: tuple[int, int] | None = None,
    zero: bool = False,
    dtype: jnp.dtype = jnp.float32,
    convolution: str = "plain",
) -> jax.Array:
    """3x3 convolution with one pixel of zero padding on every side, also at stride 2.

    Args:
        x: [B, H, W, C].
        features: output channels.
        name: parameter name within the calling module.
        stride: 1 or 2. "SAME" padding would differ at stride 2.
        enlarge: (H', W') that x is enlarged to before; see upsample_nearest.
        zero: initialise weight and bias to zero.
        dtype: type of the computation.
        convolution: one of CONVOLUTIONS.

    Returns:
        [B, ceil(H' / stride), ceil(W' / stride), features].
    """
    channels = x.shape[-1]
    own = None
    if convolution == "cpu" and dtype == jnp.float32:
        own = _for_cpus(x.shape, features, stride, enlarge)
    if enlarge is not None and own is not _convolve_enlarged:
        x = upsample_nearest(x, enlarge)
    conv = nn.Conv(
        features,
        (3, 3),
        strides=(stride, stride),
        padding=((1, 1), (1, 1)),
        kernel_init=zeros if zero else fan_in_uniform,
        bias_init=zeros if zero else _bias_init(9 * channels),
        dtype=dtype,
        precision=_precision(dtype),
        conv_general_dilated=own,
        name=name,
    )
    return keep(conv(x))


def _for_cpus(
    shape: tuple[int, ...], features: int, stride: int, enlarge: tuple[int, int] | None
) -> Callable[..., jax.Array]:
    """What takes the place of lax.conv_general_dilated, whose other arguments are fixed here."""
    batch, height, width, channels = shape
    if enlarge == (2 * height, 2 * width) and batch * height * width >= features:
        return _convolve_enlarged
    height, width = enlarge or (height, width)
    wide = (
        stride == 1
        and height % 2 == width % 2 == 0
        and height * width >= WINOGRAD_PIXELS
        and min(channels, features) >= WINOGRAD_CHANNELS
    )
    return _winograd if wide else _convolve


def _winograd(x: jax.Array, w: jax.Array, *_args, **_kwargs) -> jax.Array:
    return winograd.convolve(x, w)


def _convolve(x: jax.Array, w: jax.Array, strides: tuple, *_args, **_kwargs) -> jax.Array:
    return convolve(x, w, strides[0])


def _convolve_enlarged(x: jax.Array, w: jax.Array, *_args, **_kwargs) -> jax.Array:
    return convolve_enlarged(x, w)


def dense(
    x: jax.Array,
    features: int,
    name: str,
    *,
    zero: bool = False,
    dtype: jnp.dtype = jnp.float32,
) -> jax.Array:
    """Linear map of the last axis; on images, a 1x1 convolution. Arguments as conv3."""
    linear = nn.Dense(
        features,
        kernel_init=zeros if zero else fan_in_uniform,
        bias_init=zeros if zero else _bias_init(x.shape[-1]),
        dtype=dtype,
        precision=_precision(dtype),
        # Not in half precision, which is for accelerators: this is for CPUs.
        dot_general=_product if dtype == jnp.float32 else None,
        name=name,
    )
    return keep(linear(x))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _product(
    x: jax.Array, w: jax.Array, dimensions: tuple, precision: jax.lax.PrecisionLike
) -> jax.Array:
    """lax.dot_general for [..., C] x [C, K] -> [..., K], the gradient of w as x^T dy.

    JAX has it as (dy^T x)^T, for which XLA, on a CPU, brings dy into another order, and computes
    all that dy comes from again there.
    """
    return jax.lax.dot_general(x, w, dimensions, precision=precision)


def _product_forward(
    x: jax.Array, w: jax.Array, dimensions: tuple, precision: jax.lax.PrecisionLike
) -> tuple:
    return _product(x, w, dimensions, precision), (x, w)


def _product_backward(
    _dimensions: tuple, precision: jax.lax.PrecisionLike, kept: tuple, dy: jax.Array
) -> tuple:
    x, w = kept
    rows = (a.reshape(-1, a.shape[-1]) for a in (x, dy))
    dw = jax.lax.dot_general(*rows, (((0,), (0,)), ((), ())), precision=precision)
    return jnp.matmul(dy, w.T, precision=precision), dw


_product.defvjp(_product_forward, _product_backward)


def timestep_embedding(t: jax.Array, dim: int, max_period: float = 10000.0) -> jax.Array:
    """Sinusoidal embedding: cosines, then sines, then one zero if dim is odd.

    Vaswani et al. 2017, section 3.5, as used by Ho et al. 2020.

    Args:
        t: [B], any real values.
        dim: size of the embedding.
        max_period: wavelength of the slowest component over 2 pi.

    Returns:
        [B, dim] float32.
    """
    half = dim // 2
    frequencies = jnp.exp(-math.log(max_period) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t.astype(jnp.float32)[:, None] * frequencies[None, :]
    embedding = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, dim - 2 * half)))


class Attention(nn.Module):
    """Multi-head self-attention over all pixels, with a residual connection.

    Attributes:
        heads: number of heads, a divisor of the channels.
        order: of the channels of q, k and v, one of HEAD_ORDERS.
        dtype: type of the projections; softmax is float32.
        attention: one of ATTENTION.
    """

    heads: int
    order: str = "heads_first"
    dtype: jnp.dtype = jnp.float32
    attention: str = "plain"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C]."""
        batch, height, width, channels = x.shape
        norm = GroupNorm(by_product=self.attention == "by_image", name="norm")
        h = norm(x).reshape(batch, height * width, channels)
        qkv = dense(h, 3 * channels, "qkv", dtype=self.dtype)
        h = attend(qkv, self.heads, self.order, self.attention)
        h = dense(h, channels, "proj", zero=True, dtype=self.dtype)
        return x + h.reshape(x.shape)


def attend(qkv: jax.Array, heads: int, order: str, attention: str = "plain") -> jax.Array:
    """Attention of every position to all: softmax(q k / sqrt(channels of a head)) v.

    Args:
        qkv: queries, keys and values of all heads [B, N, 3 C]. Under "heads_first" the channels run
            head by head, and q, k, v within a head; under "qkv_first" q of all heads comes first.
        heads: number of heads.
        order: one of HEAD_ORDERS.
        attention: one of ATTENTION; all are "plain" below MANY_POSITIONS, and "cudnn" also for
            heads that its kernel does not take.

    Returns:
        [B, N, C].
    """
    batch, length, channels = qkv.shape
    size = channels // (3 * heads)
    if order == "heads_first":
        parts, axis = qkv.reshape(batch, length, heads, 3, size), 3
    else:
        parts, axis = qkv.reshape(batch, length, 3, heads, size), 2
    # Not by indices, whose gradient is a sum of three arrays of zeros around each part.
    q, k, v = (part.squeeze(axis) for part in jnp.split(parts, 3, axis))
    fused = qkv.dtype != jnp.float32 and size % 8 == 0 and size <= 128
    if length < MANY_POSITIONS or attention == "plain" or (attention == "cudnn" and not fused):
        h = _attend(q, k, v)
    elif attention == "cudnn":
        h = keep(jax.nn.dot_product_attention(q, k, v, implementation="cudnn"))
    else:
        root = size**-0.25
        h = keep(attend_by_image(q * root, k * root, v))
    return h.reshape(batch, length, channels // 3)


def _attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Attention as two products and a float32 softmax; all [..., N, heads, channels of a head]."""
    # Scaling both factors keeps half precision in range.
    root = q.shape[-1] ** -0.25
    precision = _precision(q.dtype)
    logits = jnp.einsum("...qhc,...khc->...hqk", q * root, k * root, precision=precision)
    weights = jax.nn.softmax(keep(logits).astype(jnp.float32), axis=-1).astype(v.dtype)
    return keep(jnp.einsum("...hqk,...khc->...qhc", weights, v, precision=precision))


def dropout(x: jax.Array, keys: jax.Array | None, rate: float, by_image: bool = False) -> jax.Array:
    """Dropout whose mask belongs to each example, whatever batch or device it is in.

    Args:
        x: [B, H, W, C].
        keys: a random key for each example [B]; None leaves x as it is.
        rate: share of entries set to zero.
        by_image: draw one mask after the other, as CPUs do faster; the masks are the same.

    Returns:
        Same shape as x, scaled by 1 / (1 - rate).
    """
    if keys is None or rate == 0.0:
        return x
    mask = threefry.masks(keys, 1.0 - rate, x.shape[1:], in_turn=by_image)
    return jnp.where(keep(mask), x / (1.0 - rate), 0.0).astype(x.dtype)


def upsample_nearest(x: jax.Array, size: tuple[int, int] | None = None) -> jax.Array:
    """Repeat every pixel 2x2: [B, H, W, C] -> [B, 2 H, 2 W, C], or less, cut to a size (H', W')."""
    batch, height, width, channels = x.shape
    # A broadcast; jax.image.resize has a slow gradient.
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
    x = x.reshape(batch, 2 * height, 2 * width, channels)
    return x if size is None else x[:, : size[0], : size[1]]


def average_pool(x: jax.Array) -> jax.Array:
    """Mean of every 2x2 block: [B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), C]."""
    return nn.avg_pool(x, (2, 2), strides=(2, 2), padding="SAME", count_include_pad=False)


def upsample_bilinear(x: jax.Array, height: int, width: int) -> jax.Array:
    """Bilinear resize, half-pixel centres, no anti-aliasing: [B, h, w, C] -> [B, H, W, C]."""
    shape = (x.shape[0], height, width, x.shape[-1])
    return jax.image.resize(x, shape, method="bilinear", antialias=False)
