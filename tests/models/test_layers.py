"""Layers against numpy float64, closed forms and recorded values."""

from collections.abc import Callable

import flax.linen as nn
import float64_layers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import SMALL, assert_close, cases, load, to_nchw, to_nhwc

from iddpm_jax.models.layers import (
    HEAD_ORDERS,
    MANY_POSITIONS,
    Attention,
    attend,
    average_pool,
    conv3,
    dense,
    dropout,
    timestep_embedding,
    upsample_bilinear,
    upsample_nearest,
)
from iddpm_jax.models.norm import ACTIVATIONS, GroupNorm

NETWORKS = "07_unet.npz"
EXTRAS = "09_extras.npz"


class Layer(nn.Module):
    """A layer function as a module of its own."""

    function: Callable

    @nn.compact
    def __call__(self, x):
        return self.function(x)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# Timestep embedding


@pytest.mark.parametrize(("name", "case"), cases(NETWORKS, "timestep_embedding"))
def test_timestep_embedding_matches_the_recording(name, case):
    t = jnp.asarray(load(NETWORKS)[f"{name}/timesteps"])
    embedding = timestep_embedding(t, case["dim"], case["max_period"])
    assert embedding.dtype == jnp.float32
    assert_close(NETWORKS, f"{name}/embedding", embedding, SMALL)


def test_timestep_embedding_is_cosines_then_sines_then_zero():
    t = np.array([0.0, 1.0, 2.5])
    embedding = np.asarray(timestep_embedding(jnp.asarray(t), 5, 100.0))
    angles = t[:, None] * np.array([1.0, 0.1])
    expected = np.concatenate([np.cos(angles), np.sin(angles), np.zeros((3, 1))], axis=1)
    np.testing.assert_allclose(embedding, expected, atol=1e-6)


# Group norm


@pytest.mark.parametrize("channels", [32, 64, 160])
@pytest.mark.parametrize("conditioned", [False, True])
@pytest.mark.parametrize("by_product", [False, True])
def test_group_norm_matches_float64(channels, conditioned, by_product):
    x = 3.0 * normal(0, 2, 5, 4, channels) + normal(1, channels)
    params = {"scale": normal(2, channels), "bias": normal(3, channels)}
    outer = (normal(4, 2, channels), normal(5, 2, channels)) if conditioned else ()
    out = GroupNorm(by_product=by_product).apply({"params": params}, x, *outer)
    np.testing.assert_allclose(out, float64_layers.group_norm(x, params, *outer), atol=2e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("by_product", [False, True])
def test_group_norm_ends_with_its_activation_and_gives_all_gradients(activation, by_product):
    x, params = normal(0, 2, 3, 3, 64), {"scale": normal(1, 64), "bias": normal(2, 64)}
    outer, cotangent = [normal(3, 2, 64), normal(4, 2, 64)], normal(5, 2, 3, 3, 64)

    def exact(x, params, outer):
        h = float64_layers.group_norm(x, params, *outer)
        return float64_layers.silu(h) if activation == "silu" else h

    def ours(x, params, outer):
        return GroupNorm(activation, by_product).apply({"params": params}, x, *outer)

    inputs = (x, params, outer)
    np.testing.assert_allclose(ours(*inputs), exact(*inputs), atol=2e-5)
    gradients = jax.grad(lambda *a: jnp.sum(ours(*a) * cotangent), argnums=(0, 1, 2))(*inputs)
    for i, (value, gradient) in enumerate(
        zip(jax.tree.leaves(inputs), jax.tree.leaves(gradients), strict=True)
    ):
        direction = normal(6 + i, *value.shape)
        ahead, behind = (
            _moved(inputs, i, step * direction.astype(np.float64)) for step in (1e-5, -1e-5)
        )
        slope = np.sum(cotangent * (exact(*ahead) - exact(*behind))) / 2e-5
        np.testing.assert_allclose(np.sum(gradient * direction), slope, rtol=2e-3, atol=2e-3)


def _moved(inputs, i, by):
    leaves, tree = jax.tree.flatten(inputs)
    leaves = [leaf.astype(np.float64) for leaf in leaves]
    leaves[i] = leaves[i] + by
    return jax.tree.unflatten(tree, leaves)


def test_group_norm_survives_a_large_mean():
    x = 1000.0 + normal(0, 2, 16, 16, 64)
    params = {"scale": np.ones(64), "bias": np.zeros(64)}
    out = GroupNorm().apply({"params": params}, x)
    # The mean of the squares less the square of the mean would be off by several per cent.
    np.testing.assert_allclose(out, float64_layers.group_norm(x, params), atol=1e-3)


def test_group_norm_adds_1e_5_to_the_variance():
    x = 1e-3 * normal(0, 2, 4, 4, 64).astype(np.float64)  # a variance of 1e-6
    params = {"scale": np.ones(64), "bias": np.zeros(64)}
    groups = x.reshape(2, 16, 32, 2)
    mean, variance = (f(groups, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
    expected = ((groups - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape)
    found = GroupNorm().apply({"params": params}, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_group_norm_of_bfloat16_keeps_float32_statistics():
    x = jnp.asarray(8.0 + normal(0, 2, 32, 32, 32), jnp.bfloat16)
    params = {"scale": np.ones(32), "bias": np.zeros(32)}
    out = GroupNorm().apply({"params": params}, x)
    assert out.dtype == jnp.bfloat16
    expected = float64_layers.group_norm(x.astype(jnp.float32), params)
    # Rounding the result costs 2^-9 of it; statistics in bfloat16 would be off by per cents.
    np.testing.assert_allclose(out.astype(jnp.float32), expected, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_group_norm_gradient_matches_differences_in_float64(dtype):
    x = np.asarray(jnp.asarray(3.0 + normal(0, 2, 4, 4, 64), dtype), np.float64)
    params = {"scale": normal(1, 64), "bias": normal(2, 64)}
    cotangent, direction = (normal(seed, *x.shape).astype(np.float64) for seed in (3, 4))

    def weighted(x):
        out = GroupNorm().apply({"params": params}, x)
        return jnp.sum(out.astype(jnp.float32) * jnp.asarray(cotangent, jnp.float32))

    gradient = np.asarray(jax.grad(weighted)(jnp.asarray(x, dtype)), np.float64)
    ahead, behind = (
        np.sum(cotangent * float64_layers.group_norm(x + step * direction, params))
        for step in (1e-5, -1e-5)
    )
    norm = np.linalg.norm(gradient) * np.linalg.norm(direction)
    eps = float(jnp.finfo(dtype).eps)
    assert abs(np.sum(gradient * direction) - (ahead - behind) / 2e-5) < eps * norm


# Attention


def attention_params(channels: int) -> dict:
    return {
        "norm": {"scale": 1.0 + 0.1 * normal(0, channels), "bias": 0.1 * normal(1, channels)},
        "qkv": {
            # Large enough that the softmax is far from uniform.
            "kernel": 1.5 * normal(2, channels, 3 * channels) / np.float32(channels**0.5),
            "bias": normal(3, 3 * channels),
        },
        "proj": {
            "kernel": normal(4, channels, channels) / np.float32(channels**0.5),
            "bias": normal(5, channels),
        },
    }


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("order", HEAD_ORDERS)
def test_attend_matches_float64(heads, order):
    qkv = 1.5 * normal(7, 2, 6, 3 * 16)
    expected = float64_layers.attend(qkv.astype(np.float64), heads, order)
    np.testing.assert_allclose(attend(jnp.asarray(qkv), heads, order), expected, atol=5e-6)


def test_attend_takes_its_softmax_in_float32(monkeypatch):
    types = []
    softmax = jax.nn.softmax
    monkeypatch.setattr(
        jax.nn, "softmax", lambda x, axis: types.append(x.dtype) or softmax(x, axis=axis)
    )
    attended = attend(jnp.ones((1, 4, 12), jnp.bfloat16), 2, "heads_first")
    assert types == [jnp.float32] and attended.dtype == jnp.bfloat16


def test_fused_attention_is_attention_and_only_for_what_gains(monkeypatch):
    asked = []
    library = jax.nn.dot_product_attention

    def without_gpu(q, k, v, implementation):
        asked.append((q.shape, implementation))
        return library(q, k, v, implementation="xla")

    monkeypatch.setattr(jax.nn, "dot_product_attention", without_gpu)
    for length, size in ((MANY_POSITIONS, 8), (MANY_POSITIONS, 4), (64, 8)):
        qkv = 1.5 * normal(9, 2, length, 3 * 2 * size)
        for order in HEAD_ORDERS:
            found = attend(jnp.asarray(qkv, jnp.bfloat16), 2, order, "cudnn").astype(jnp.float32)
            expected = float64_layers.attend(qkv.astype(np.float64), 2, order)
            np.testing.assert_allclose(found, expected, atol=0.15)  # half precision
    assert asked == 2 * [((2, MANY_POSITIONS, 2, 8), "cudnn")]


@pytest.mark.parametrize("order", HEAD_ORDERS)
def test_attention_image_by_image_is_attention_with_its_gradient(order):
    qkv = 1.5 * normal(9, 3, MANY_POSITIONS, 3 * 2 * 4)
    expected = float64_layers.attend(qkv.astype(np.float64), 2, order)
    np.testing.assert_allclose(attend(qkv, 2, order, "by_image"), expected, atol=5e-6)

    def weighted(qkv, attention):
        return jnp.sum(attend(qkv, 2, order, attention) * normal(10, *expected.shape))

    by_image, plain = (jax.grad(weighted)(qkv, attention) for attention in ("by_image", "plain"))
    np.testing.assert_allclose(by_image, plain, atol=2e-5)


def test_orders_of_the_heads_differ_by_a_permutation_of_the_channels():
    heads, size = 4, 3
    qkv = jnp.asarray(normal(8, 2, 5, 3 * heads * size))
    # Where each channel of q of all heads, then k, then v, is when a head's q, k, v are together.
    places = np.arange(3 * heads * size).reshape(heads, 3, size).swapaxes(0, 1).ravel()
    expected = attend(qkv, heads, "heads_first")
    np.testing.assert_array_equal(attend(qkv[..., places], heads, "qkv_first"), expected)
    assert np.abs(attend(qkv, heads, "qkv_first") - expected).max() > 0.1


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("order", HEAD_ORDERS)
def test_attention_matches_float64(heads, order):
    x, params = normal(6, 2, 3, 5, 64), attention_params(64)
    out = Attention(heads, order).apply({"params": params}, x)
    expected = float64_layers.attention(x, params, heads, order)
    np.testing.assert_allclose(out, expected, atol=2e-5)


def test_attention_starts_as_the_identity():
    x = jnp.asarray(normal(6, 2, 3, 4, 32))
    out, _ = jax.jit(Attention(2).init_with_output)(jax.random.key(0), x)
    np.testing.assert_array_equal(out, x)


# Convolutions and linear maps


@pytest.mark.parametrize(
    ("stride", "size", "covered"),
    [
        (1, 4, [2, 3, 3, 2]),
        (2, 4, [2, 3]),  # padding one side only would give 3, 2
        (2, 5, [2, 3, 2]),
        (2, 1, [1]),
    ],
)
def test_conv3_pads_one_pixel_on_every_side(stride, size, covered):
    layer = Layer(lambda x: conv3(x, 1, "conv", stride=stride))
    params = {"conv": {"kernel": jnp.ones((3, 3, 1, 1)), "bias": jnp.zeros(1)}}
    out = layer.apply({"params": params}, jnp.ones((1, size, 6, 1)))
    # Along the other axis the second output sees three pixels at either stride.
    np.testing.assert_array_equal(out[0, :, 1, 0], 3.0 * np.array(covered))


@pytest.mark.parametrize(
    ("function", "fan_in"),
    [
        (lambda x: conv3(x, 64, "layer"), 9 * 48),
        (lambda x: dense(x, 512, "layer"), 48),
    ],
    ids=["conv3", "dense"],
)
def test_weights_start_uniform_within_the_root_of_fan_in(function, fan_in):
    init = jax.jit(Layer(function).init)
    params = init(jax.random.key(0), jnp.zeros((1, 4, 4, 48)))["params"]["layer"]
    bound = 1.0 / np.sqrt(fan_in)
    kernel, bias = np.asarray(params["kernel"]).ravel(), np.asarray(params["bias"])
    for values in (kernel, bias):
        assert 0.9 * bound < np.abs(values).max() <= bound
    assert abs(kernel.mean()) < 0.02 * bound
    assert kernel.std() == pytest.approx(bound / np.sqrt(3.0), rel=0.02)
    # A uniform distribution has half of its mass within half of its range.
    assert np.mean(np.abs(kernel) < bound / 2) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("function", [conv3, dense])
def test_zero_starts_weights_and_biases_at_zero(function):
    layer = Layer(lambda x: function(x, 8, "layer", zero=True))
    params = jax.jit(layer.init)(jax.random.key(0), jnp.zeros((1, 4, 4, 16)))["params"]["layer"]
    assert set(params) == {"kernel", "bias"}
    assert not any(np.any(array) for array in params.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dense_has_the_gradients_of_a_product(dtype):
    layer = Layer(lambda x: dense(x, 8, "layer", dtype=jnp.dtype(dtype)))
    # Small integers, of which bfloat16 holds products and sums too.
    arrays = normal(0, 2, 3, 4, 16), normal(1, 16, 8), normal(2, 2, 3, 4, 8)
    x, kernel, dy = (np.round(array) for array in arrays)
    params = {"layer": {"kernel": kernel, "bias": np.zeros(8, np.float32)}}

    def weighted(params, x):
        return jnp.sum(layer.apply({"params": params}, x).astype(jnp.float32) * dy)

    d_params, dx = jax.grad(weighted, argnums=(0, 1))(params, x)
    np.testing.assert_array_equal(dx, dy @ kernel.T)
    np.testing.assert_array_equal(d_params["layer"]["kernel"], np.einsum("bhwc,bhwk->ck", x, dy))
    np.testing.assert_array_equal(d_params["layer"]["bias"], dy.sum(axis=(0, 1, 2)))


# Resampling


def test_upsample_nearest_repeats_every_pixel():
    x = normal(0, 2, 3, 4, 5)
    np.testing.assert_array_equal(upsample_nearest(x), x.repeat(2, axis=1).repeat(2, axis=2))


@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 6), (4, 3), (7, 1), (1, 1)])
def test_average_pool_takes_the_mean_of_the_pixels_there_are(height, width):
    x = normal(0, 2, height, width, 3)
    expected = np.empty((2, -(-height // 2), -(-width // 2), 3))
    for i in range(expected.shape[1]):
        for j in range(expected.shape[2]):
            block = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].astype(np.float64)
            expected[:, i, j] = block.mean(axis=(1, 2))
    np.testing.assert_allclose(average_pool(x), expected, atol=1e-6)


@pytest.mark.parametrize(("name", "case"), cases(EXTRAS, "bilinear_upsample"))
def test_upsample_bilinear_matches_the_recording(name, case):
    x = jnp.asarray(to_nhwc(load(EXTRAS)[f"{name}/x"]))
    assert_close(EXTRAS, f"{name}/y", to_nchw(upsample_bilinear(x, *case["size"])), 2e-5)


# Dropout


def test_dropout_drops_at_its_rate_and_rescales_the_rest():
    rate = 0.3
    x = jnp.full((4, 32, 32, 8), 2.0)
    out = np.asarray(dropout(x, jax.random.split(jax.random.key(0), 4), rate))
    kept = out != 0.0
    np.testing.assert_allclose(out[kept], 2.0 / (1.0 - rate), rtol=1e-6)
    deviation = np.sqrt(rate * (1.0 - rate) / out.size)
    assert abs(kept.mean() - (1.0 - rate)) < 4.0 * deviation


def test_dropout_masks_differ_between_examples_but_not_between_batches():
    keys = jax.random.split(jax.random.key(1), 4)
    x = jnp.ones((4, 6, 5, 3))
    together = np.asarray(dropout(x, keys, 0.5))
    for i in range(4):
        np.testing.assert_array_equal(dropout(x[i : i + 1], keys[i : i + 1], 0.5)[0], together[i])
    assert len({example.tobytes() for example in together}) == 4


def test_dropout_without_keys_or_rate_returns_its_input():
    x = jnp.asarray(normal(0, 2, 3, 3, 4))
    assert dropout(x, None, 0.5) is x
    assert dropout(x, jax.random.split(jax.random.key(0), 2), 0.0) is x


def test_dropout_keeps_the_type_of_its_input():
    x = jnp.ones((2, 3, 3, 4), jnp.bfloat16)
    assert dropout(x, jax.random.split(jax.random.key(0), 2), 0.5).dtype == jnp.bfloat16
