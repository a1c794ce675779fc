"""The convolution and its own gradients beside XLA's, and the form that CPUs are given."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iddpm_jax.models import convolution, layers
from iddpm_jax.models.convolution import convolve, convolve_enlarged
from iddpm_jax.models.layers import conv3, upsample_nearest

SHAPES = [
    (1, (6, 8), 6),  # stride; height, width; images that are summed at once
    (1, (7, 5), 6),
    (2, (8, 6), 6),
    (2, (7, 6), 6),
    (2, (5, 7), 6),
    (1, (6, 8), 3),
    (2, (8, 6), 2),
    (1, (7, 5), 1),
]


def plain(x, w, stride):
    return jax.lax.conv_general_dilated(
        x,
        w,
        (stride, stride),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )


@pytest.mark.parametrize("stride, size, at_once", SHAPES)
def test_is_the_convolution_with_its_gradients(monkeypatch, stride, size, at_once):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, *size, 5), np.float32)
    w = rng.standard_normal((3, 3, 5, 7), np.float32)
    expected, backward = jax.vjp(lambda x, w: plain(x, w, stride), x, w)
    dy = rng.standard_normal(expected.shape, np.float32)
    monkeypatch.setattr(convolution, "PIXELS", at_once * dy.shape[1] * dy.shape[2])

    found, own_backward = jax.vjp(lambda x, w: convolve(x, w, stride), x, w)
    for a, b in zip((found, *own_backward(dy)), (expected, *backward(dy)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6 * np.abs(b).max())


@pytest.mark.parametrize("stride, size", [(1, (3, 5)), (2, (5, 6)), (2, (6, 5))])
def test_with_fewer_pixels_than_channels_it_is_a_product_and_the_same(stride, size):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, *size, 5), np.float32)
    w = rng.standard_normal((3, 3, 5, 31), np.float32)
    expected, backward = jax.vjp(lambda x, w: plain(x, w, stride), x, w)
    dy = rng.standard_normal(expected.shape, np.float32)

    found, own_backward = jax.vjp(lambda x, w: convolve(x, w, stride), x, w)
    for a, b in zip((found, *own_backward(dy)), (expected, *backward(dy)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6 * np.abs(b).max())
    text = jax.jit(convolve, static_argnums=2).lower(x, w, stride).as_text()
    assert "dot_general" in text and "convolution" not in text


@pytest.mark.parametrize("size, at_once", [((3, 4), 6), ((4, 3), 2), ((1, 5), 1)])
def test_of_an_enlarged_image_is_that_of_repeated_pixels_with_its_gradients(
    monkeypatch, size, at_once
):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, *size, 5), np.float32)
    w = rng.standard_normal((3, 3, 5, 7), np.float32)
    expected, backward = jax.vjp(lambda x, w: plain(upsample_nearest(x), w, 1), x, w)
    dy = rng.standard_normal(expected.shape, np.float32)
    monkeypatch.setattr(convolution, "PIXELS", at_once * dy.shape[1] * dy.shape[2])

    found, own_backward = jax.vjp(convolve_enlarged, x, w)
    for a, b in zip((found, *own_backward(dy)), (expected, *backward(dy)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6 * np.abs(b).max())


class Enlarging(nn.Module):
    """conv3 of an enlarged image, by itself."""

    features: int
    size: tuple[int, int]
    convolution: str
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        arguments = {"convolution": self.convolution, "dtype": self.dtype}
        return conv3(x, self.features, "conv", enlarge=self.size, **arguments)


@pytest.mark.parametrize(
    "own, features, size, choice",
    [
        (True, 24, (6, 8), {}),
        (False, 25, (6, 8), {}),  # more channels than pixels: the weights' sums would cost more
        (False, 24, (5, 8), {}),  # cut, so that zeros stand where pixels were
        (False, 24, (6, 8), {"convolution": "plain"}),
        (False, 24, (6, 8), {"dtype": jnp.bfloat16}),
    ],
)
def test_conv3_never_makes_the_enlarged_image_where_that_pays(
    monkeypatch, own, features, size, choice
):
    asked = []

    def recorded(x, w, *_args, **_kwargs):
        asked.append(x.shape)
        return convolve_enlarged(x, w)

    monkeypatch.setattr(layers, "_convolve_enlarged", recorded)
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5), np.float32)
    network = Enlarging(features, size, **{"convolution": "cpu", **choice})
    params = network.init(jax.random.key(0), x)
    asked.clear()
    found = network.apply(params, x)
    assert asked == [x.shape] * own
    enlarged = upsample_nearest(x)[:, : size[0], : size[1]]
    weights = params["params"]["conv"]
    expected = np.asarray(plain(enlarged, weights["kernel"], 1)) + np.asarray(weights["bias"])
    np.testing.assert_allclose(found, expected, atol=0.05 if "dtype" in choice else 2e-6)


@pytest.mark.parametrize("batch, parts", [(4, 1), (16, 4), (5, 1), (7, 1), (14, 2), (11, 11)])
def test_images_are_summed_in_equal_parts_that_stay_in_the_cache(batch, parts):
    x = jax.ShapeDtypeStruct((batch, 24, 24, 2), np.float32)
    w = jax.ShapeDtypeStruct((3, 3, 2, 2), np.float32)

    def gradient(x, w):
        return jax.grad(lambda w: convolve(x, w, 1).sum())(w)

    text = jax.jit(gradient).lower(x, w).as_text()
    part = re.search(r"stablehlo.convolution.*tensor<2x24x24x(\d+)xf32>", text)
    assert int(part[1]) * parts == batch


@pytest.mark.parametrize(
    "convolve",
    [lambda x, w: convolve(x, w, 1), lambda x, w: convolve(x, w, 2), convolve_enlarged],
    ids=["stride 1", "stride 2", "enlarged"],
)
def test_every_convolution_of_a_loop_is_in_the_order_of_the_library(convolve):
    def loop(x, w):
        def body(w, _):
            return w - jax.grad(lambda w: (convolve(x, w) ** 2).sum())(w), None

        return jax.lax.scan(body, w, length=3)[0]

    x, w = np.ones((2, 8, 8, 4), np.float32), np.ones((3, 3, 4, 4), np.float32)
    text = jax.jit(loop).lower(x, w).compile().as_text()
    orders = set(re.findall(r"dim_labels=(\S+?),", text))
    assert orders == {"b01f_01io->b01f"}
