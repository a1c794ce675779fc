"""The classifier against numpy float64, its gradient against a closed form, its refusals."""

import dataclasses
import re

import float64_layers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iddpm_jax.models.classifier import (
    AttentionPool,
    ClassifierSpec,
    class_gradient,
    make_classifier,
)
from iddpm_jax.models.layout import UNetSpec

ENCODER = UNetSpec(
    width=32,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_factors=(2,),
    num_head_channels=16,
    resblock_updown=True,
)

SPEC = ClassifierSpec(ENCODER, image_size=16, num_classes=5)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def random_params(spec: ClassifierSpec) -> dict:
    init, size = make_classifier(spec).init, spec.image_size
    shapes = jax.eval_shape(lambda: init(jax.random.key(0), (size, size, 3)))
    return float64_layers.random_params(shapes)


def reference_classifier(x, t, params: dict) -> np.ndarray:
    """Logits of SPEC's network, layer by layer."""
    embedding = float64_layers.embed_time(t, params, 32)

    def res(h, name, resample=""):
        return float64_layers.res_block(h, embedding, params[name], resample)

    h = float64_layers.conv3(np.asarray(x, np.float64), float64_layers.float64(params["conv_in"]))
    h = res(h, "down_0_res_0")
    h = res(h, "down_0_resample", "down")
    h = res(h, "down_1_res_0")
    h = float64_layers.attention(h, params["down_1_attention_0"], heads=4)
    h = res(h, "middle_res_0")
    h = float64_layers.attention(h, params["middle_attention"], heads=4)
    h = res(h, "middle_res_1")
    h = float64_layers.silu(float64_layers.group_norm(h, params["norm_out"]))
    return float64_layers.attention_pool(h, params["pool"], heads=4)


# The network


@pytest.mark.parametrize("heads", [1, 4])
def test_attention_pool_matches_float64(heads):
    x, pool = normal(0, 2, 3, 5, 64), AttentionPool(heads, 7)
    shapes = jax.eval_shape(lambda: pool.init(jax.random.key(0), x))["params"]
    assert shapes["positional_embedding"].shape == (1 + 3 * 5, 64)
    params = float64_layers.random_params(shapes)
    # Large enough that the softmax is far from uniform.
    params["qkv"]["kernel"] *= 1.5
    out = pool.apply({"params": params}, x)
    expected = float64_layers.attention_pool(x, params, heads)
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.slow
def test_classifier_matches_float64():
    params, x, t = random_params(SPEC), normal(1, 2, 16, 16, 3), jnp.array([3, 700])
    logits = jax.jit(make_classifier(SPEC).apply)(params, x, t)
    assert logits.shape == (2, 5)
    assert logits.dtype == jnp.float32
    expected = reference_classifier(x, t, params)
    assert np.abs(expected[0] - expected[1]).max() > 0.05
    np.testing.assert_allclose(logits, expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_logits_of_half_precision_are_float32_and_close(dtype):
    half = dataclasses.replace(SPEC, encoder=dataclasses.replace(ENCODER, dtype=dtype))
    params, x, t = random_params(SPEC), normal(1, 2, 16, 16, 3), jnp.array([3, 700])
    logits = jax.jit(make_classifier(half).apply)(params, x, t)
    assert logits.dtype == jnp.float32
    expected = reference_classifier(x, t, params)
    # Above 1e-5: the trunk did run in half precision.
    assert 1e-5 < np.linalg.norm(logits - expected) / np.linalg.norm(expected) < 0.02


# Its gradient


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_gradient_of_linear_logits_is_the_closed_form(scale):
    x, y, t = normal(2, 3, 2, 2, 3), jnp.array([0, 3, 1]), jnp.array([0.5, 1.0, 2.0])
    weights, bias = normal(3, 12, 4), normal(4, 4)

    def logits(x_t, model_t):
        return model_t[:, None] * (x_t.reshape(-1, 12) @ weights) + bias[None]

    gradient = class_gradient(logits, y, scale)(jnp.asarray(x), t)
    # d/dx of t x.W_y - log sum exp(t x.W + b) is t (W_y - the mean of W under the softmax).
    w, tau = weights.astype(np.float64), np.asarray(t, np.float64)[:, None]
    p = float64_layers.softmax(tau * (x.reshape(3, 12) @ w) + bias)
    expected = scale * tau * (w.T[np.asarray(y)] - p @ w.T)
    np.testing.assert_allclose(gradient, expected.reshape(x.shape), atol=1e-5)


# Specs


@pytest.mark.parametrize(
    ("encoder", "changes", "message"),
    [
        ({"num_head_channels": 0}, {}, "pooling needs num_head_channels"),
        ({"num_classes": 5}, {}, "told neither the class nor a small image"),
        ({"super_resolution": True}, {}, "told neither the class nor a small image"),
        ({}, {"image_size": 15}, "image_size 15 cannot be halved at every level"),
    ],
)
def test_impossible_spec_raises(encoder, changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        dataclasses.replace(SPEC, encoder=dataclasses.replace(ENCODER, **encoder), **changes)


def test_last_level_may_have_an_odd_size():
    dataclasses.replace(SPEC, image_size=14)
