"""Winograd's convolution beside XLA's, and where conv3 uses it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iddpm_jax.models import layers, winograd
from iddpm_jax.models.layers import WINOGRAD_CHANNELS, conv3


def plain(x, w):
    return jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
    )


def arrays(channels, features, height=8, width=6):
    rng = np.random.default_rng(0)
    shapes = (2, height, width, channels), (3, 3, channels, features), (2, height, width, features)
    return [rng.standard_normal(shape, np.float32) for shape in shapes]


@pytest.mark.parametrize("channels, features", [(5, 7), (1, 1), (160, 128)])
def test_is_the_convolution_with_its_gradients(channels, features):
    x, w, dy = arrays(channels, features)
    expected, backward = jax.vjp(plain, x, w)
    found, winograd_backward = jax.vjp(winograd.convolve, x, w)
    for a, b in zip((found, *winograd_backward(dy)), (expected, *backward(dy)), strict=True):
        # Rounding of float32: the transforms are sums of four entries, with factors of 1 and 1/2.
        np.testing.assert_allclose(a, b, atol=2e-6 * np.abs(b).max())


def test_one_pixel_sees_its_nine_neighbours_and_no_more():
    x = np.zeros((1, 4, 4, 1), np.float32)
    x[0, 1, 2] = 1.0
    w = np.arange(9, dtype=np.float32).reshape(3, 3, 1, 1)
    found = np.asarray(winograd.convolve(x, w))[0, :, :, 0]
    expected = np.zeros((4, 4))
    expected[:3, 1:] = w[::-1, ::-1, 0, 0]  # a correlation, as in every network
    np.testing.assert_allclose(found, expected, atol=1e-6)


class Conv(nn.Module):
    """conv3 by itself."""

    features: int
    arguments: dict

    @nn.compact
    def __call__(self, x):
        return conv3(x, self.features, "conv", **self.arguments)


@pytest.mark.parametrize(
    "fast, size, channels, features, arguments",
    [
        (True, (16, 16), WINOGRAD_CHANNELS, WINOGRAD_CHANNELS, {}),
        (False, (16, 16), WINOGRAD_CHANNELS, WINOGRAD_CHANNELS, {"convolution": "plain"}),
        (False, (16, 16), 3, WINOGRAD_CHANNELS, {}),
        (False, (16, 16), WINOGRAD_CHANNELS, 6, {}),
        (False, (8, 8), WINOGRAD_CHANNELS, WINOGRAD_CHANNELS, {}),
        (False, (17, 16), WINOGRAD_CHANNELS, WINOGRAD_CHANNELS, {}),
        (False, (32, 32), WINOGRAD_CHANNELS, WINOGRAD_CHANNELS, {"stride": 2}),
        (False, (16, 16), WINOGRAD_CHANNELS, WINOGRAD_CHANNELS, {"dtype": jnp.bfloat16}),
    ],
)
def test_conv3_uses_it_where_it_is_faster(monkeypatch, fast, size, channels, features, arguments):
    asked = []

    def recorded(x, w, *_args, **_kwargs):
        asked.append(x.shape)
        return winograd.convolve(x, w)

    monkeypatch.setattr(layers, "_winograd", recorded)
    network = Conv(features, {"convolution": "cpu", **arguments})
    x = jax.ShapeDtypeStruct((1, *size, channels), jnp.float32)
    jax.eval_shape(network.init, jax.random.key(0), x)
    assert bool(asked) == fast


def test_parameters_and_results_of_conv3_are_those_of_the_plain_one():
    x = np.random.default_rng(1).standard_normal((2, 16, 16, 128), np.float32)
    outputs = []
    params = Conv(128, {}).init(jax.random.key(0), x)
    for convolution in layers.CONVOLUTIONS:
        network = Conv(128, {"convolution": convolution})
        outputs.append(network.apply(params, x))
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-5)
