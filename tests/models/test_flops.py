"""Counts of multiply-adds against a count by hand and XLA's."""

import jax
import jax.numpy as jnp
import pytest

from iddpm_jax.models.flops import (
    KINDS,
    flops_per_image,
    multiply_adds,
    training_flops_per_image,
)
from iddpm_jax.models.layout import UNetSpec
from iddpm_jax.models.unet import make_network

TINY = UNetSpec(
    channels=1,
    out_channels=2,
    width=32,
    channel_mult=(1,),
    num_res_blocks=1,
    attention_factors=(),
)


def small(**changes: object) -> UNetSpec:
    """Two levels, attention on the second; so wide that convolutions outweigh the rest."""
    return UNetSpec(channel_mult=(1, 2), num_res_blocks=1, attention_factors=(2,), **changes)


def xla_flops(spec: UNetSpec, image_shape: tuple[int, int, int]) -> float:
    """XLA's count for one image, of the program before it is compiled."""
    network = make_network(spec)
    params = jax.eval_shape(lambda key: network.init(key, image_shape), jax.random.key(0))
    vector = jax.ShapeDtypeStruct((1,), jnp.int32)
    x = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    arguments = [params, x, vector, vector if spec.num_classes else None, None]
    small = (1, 2, 2, image_shape[2])
    if spec.super_resolution:
        arguments.append(jax.ShapeDtypeStruct(small, jnp.float32))
    return jax.jit(network.apply).lower(*arguments).cost_analysis()["flops"]


def test_tiny_network_agrees_with_a_count_by_hand():
    # 4x4 pixels; along a line of 4, a 3-pixel window has 10 products that are not padding.
    taps = 10 * 10
    conv_in, conv_out = taps * 1 * 32, taps * 32 * 2
    res = taps * 32 * 32 * 2  # two convolutions
    res_up = taps * (64 * 32 + 32 * 32)  # takes a skip of 32 channels
    # One block down, two in the middle, two up.
    assert multiply_adds(TINY, (4, 4, 1)) == {
        "convolutions": conv_in + 3 * res + 2 * res_up + conv_out,
        # The two skips, and q, k, v and the output of the middle's attention.
        "projections": 2 * 16 * 64 * 32 + 16 * 32 * 4 * 32,
        "attention": 2 * 16 * 16 * 32,
        # 32 -> 128 -> 128, and scale and shift of five blocks.
        "embedding": 32 * 128 + 128 * 128 + 5 * 128 * 64,
    }


@pytest.mark.parametrize(
    "spec, image_shape",
    [
        pytest.param(UNetSpec(), (32, 32, 3), marks=pytest.mark.slow),
        (small(num_classes=10, scale_shift_norm=False, conv_resample=False), (16, 16, 3)),
        (small(num_head_channels=64, resblock_updown=True), (15, 10, 3)),
        (small(super_resolution=True), (15, 10, 3)),
    ],
    ids=["cifar10", "no_convolutions_between", "odd_resblock_updown", "odd_superres"],
)
def test_count_agrees_with_xla(spec, image_shape):
    # XLA counts norms and activations too, which are less than a hundredth of the whole.
    ratio = xla_flops(spec, image_shape) / flops_per_image(spec, image_shape)
    assert 1.0 < ratio < 1.01


def test_flops_are_two_for_each_multiply_add_and_three_passes():
    counts = multiply_adds(TINY, (8, 8, 1))
    assert set(counts) == set(KINDS)
    assert flops_per_image(TINY, (8, 8, 1)) == 2 * sum(counts.values())
    assert training_flops_per_image(TINY, (8, 8, 1)) == 6 * sum(counts.values())


def test_cifar10_agrees_with_the_count_in_the_docs():
    # docs/plan.md, "The count by hand", level by level.
    narrow, wide = 128, 256
    # Products of one 3x3 filter, those with padding left out.
    at32, at16, at8, at4 = 94**2, 46**2, 22**2, 10**2
    square = wide * wide
    convolutions = at32 * (3 * narrow + narrow * 6 + 6 * narrow**2)  # in, out, encoder
    convolutions += at32 * (384 * narrow + 3 * 256 * narrow + 4 * narrow**2 + square)
    convolutions += at16 * (narrow * wide + square + 4 * square)
    convolutions += at16 * (3 * 512 * wide + 384 * wide + 4 * square + square)
    convolutions += at8 * (6 * square + 4 * 512 * wide + 4 * square + square)
    convolutions += at4 * (6 * square + 4 * square + 4 * 512 * wide + 4 * square)
    convolutions += 47**2 * narrow**2 + 23**2 * square + 11**2 * square  # stride 2
    skips = 1024 * (384 + 3 * 256) * narrow + 256 * (128 + 3 * 512 + 384) * wide
    skips += (64 + 16) * 4 * 512 * wide
    attentions = 7 * 256, 7 * 64, 16  # blocks times pixels
    products = 2 * wide * (7 * 256**2 + 7 * 64**2 + 16**2)
    time = 128 * 512 + 512**2 + 512 * 2 * (7 * narrow + 23 * wide)
    assert multiply_adds(UNetSpec(), (32, 32, 3)) == {
        "convolutions": convolutions,
        "projections": skips + sum(attentions) * 4 * square,
        "attention": products,
        "embedding": time,
    }
