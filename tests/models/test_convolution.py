"""The convolution and its own gradients beside XLA's, and the form that CPUs are given."""

import re

import jax
import numpy as np
import pytest

from iddpm_jax.models import convolution
from iddpm_jax.models.convolution import convolve

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


@pytest.mark.parametrize("batch, parts", [(4, 1), (16, 4), (5, 1), (7, 1), (14, 2), (11, 11)])
def test_images_are_summed_in_equal_parts_that_stay_in_the_cache(batch, parts):
    x = jax.ShapeDtypeStruct((batch, 24, 24, 2), np.float32)
    w = jax.ShapeDtypeStruct((3, 3, 2, 2), np.float32)

    def gradient(x, w):
        return jax.grad(lambda w: convolve(x, w, 1).sum())(w)

    text = jax.jit(gradient).lower(x, w).as_text()
    part = re.search(r"stablehlo.convolution.*tensor<2x24x24x(\d+)xf32>", text)
    assert int(part[1]) * parts == batch


@pytest.mark.parametrize("stride", [1, 2])
def test_every_convolution_of_a_loop_is_in_the_order_of_the_library(stride):
    def loop(x, w):
        def body(w, _):
            return w - jax.grad(lambda w: (convolve(x, w, stride) ** 2).sum())(w), None

        return jax.lax.scan(body, w, length=3)[0]

    x, w = np.ones((2, 8, 8, 4), np.float32), np.ones((3, 3, 4, 4), np.float32)
    text = jax.jit(loop).lower(x, w).compile().as_text()
    orders = set(re.findall(r"dim_labels=(\S+?),", text))
    assert orders == {"b01f_01io->b01f"}
