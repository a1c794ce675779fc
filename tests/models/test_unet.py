"""The UNet against recordings of the official one, and what it does beyond them."""

import dataclasses
import functools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import GRADIENT, OUTPUT, assert_close, load, to_nchw, to_nhwc, tolerance
from golden_networks import (
    CASES,
    FILE,
    NAMES,
    PUBLISHED,
    direction,
    parameter_count,
    spec_of,
    state_dict,
)

from iddpm_jax.interop.openai import from_state_dict, to_state_dict
from iddpm_jax.models.unet import UNet, UNetSpec, concatenate_low_res, make_network

TINY = UNetSpec(
    width=32, channel_mult=(1, 2), num_res_blocks=1, attention_factors=(2,), num_heads=2
)

ONE_LEVEL = dataclasses.replace(TINY, channel_mult=(1,), attention_factors=())


class Replay(NamedTuple):
    """What a recorded network gives here, in the recording's layout."""

    output: np.ndarray
    block_norms: np.ndarray
    grad_x: np.ndarray
    gradients: dict[str, np.ndarray]


@functools.cache
def replay(name: str) -> Replay:
    """Run a recorded network forwards and backwards: one compilation for all of its tests."""
    arrays = {
        key.removeprefix(f"{name}/"): array
        for key, array in load(FILE).items()
        if key.startswith(f"{name}/")
    }
    cotangent = to_nhwc(arrays["cotangent"])

    def weighted_output(params, x, t, y, low_res):
        h = x if low_res is None else concatenate_low_res(x, low_res)
        output, sown = UNet(spec).apply({"params": params}, h, t, y, mutable=["intermediates"])
        return jnp.sum(output * cotangent), (output, sown["intermediates"]["blocks"])

    spec = spec_of(name)
    x, low_res = (
        jnp.asarray(to_nhwc(arrays[key])) if key in arrays else None for key in ("x", "low_res")
    )
    t, y = (jnp.asarray(arrays[key]) if key in arrays else None for key in ("timesteps", "y"))
    gradient = jax.jit(jax.grad(weighted_output, argnums=(0, 1), has_aux=True))
    (grad_params, grad_x), (output, blocks) = gradient(
        from_state_dict(spec, state_dict(name)), x, t, y, low_res
    )
    return Replay(
        to_nchw(output),
        np.array([np.linalg.norm(np.asarray(block, np.float64)) for block in blocks]),
        to_nchw(grad_x),
        {key: array.astype(np.float64) for key, array in to_state_dict(spec, grad_params).items()},
    )


def random_params(spec: UNetSpec, seed: int = 0) -> dict:
    """Parameters without zeros, so that every path of the network matters."""
    random = np.random.default_rng(seed)

    def draw(leaf):
        fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 100.0
        return jnp.asarray(random.normal(size=leaf.shape) / np.sqrt(fan_in), leaf.dtype)

    return jax.tree.map(draw, shapes(spec))


def shapes(spec: UNetSpec) -> dict:
    """The tree of a network's parameters, without computing them."""
    init = make_network(spec).init
    return jax.eval_shape(lambda: init(jax.random.key(0), (8, 8, spec.channels)))


def images(spec: UNetSpec, batch: int = 2, height: int = 8, width: int = 8) -> jax.Array:
    random = np.random.default_rng(1)
    return jnp.asarray(random.normal(size=(batch, height, width, spec.channels)), jnp.float32)


def relative_difference(a, b) -> float:
    """L2 norm of the difference over that of b."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.linalg.norm(a - b) / np.linalg.norm(b)


# Recorded networks


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_output_matches_the_recording(name):
    assert_close(FILE, f"{name}/output", replay(name).output, OUTPUT)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_block_matches_the_recording(name):
    assert_close(FILE, f"{name}/block_norms", replay(name).block_norms, OUTPUT)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_gradient_of_the_input_matches_the_recording(name):
    assert_close(FILE, f"{name}/grad_x", replay(name).grad_x, GRADIENT)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_the_parameters_match_the_recording(name):
    gradients = replay(name).gradients
    parameters = [entry for entry, _ in CASES[name]["params"]]
    # Where the exact gradient is zero, what was recorded is rounding error.
    zero = CASES[name]["analytically_zero_gradient"]
    matters = ~np.isin(parameters, zero)
    norms = np.array([np.linalg.norm(gradients[entry]) for entry in parameters])
    projections = np.array(
        [
            np.sum(gradients[entry] * direction(entry, gradients[entry].shape))
            for entry in parameters
        ]
    )
    for key, values in (("grad_norm", norms), ("grad_proj", projections)):
        np.testing.assert_allclose(
            values[matters],
            load(FILE)[f"{name}/{key}"][matters],
            rtol=0.0,
            atol=tolerance(FILE, f"{name}/{key}", GRADIENT),
            err_msg=key,
        )
    assert np.all(norms[~matters] < 1e-4 * norms.max())


@pytest.mark.parametrize("name", [name for name in NAMES if f"{name}/upsampled" in load(FILE)])
def test_low_res_images_join_enlarged_behind_the_noised_ones(name):
    x, low_res = (jnp.asarray(to_nhwc(load(FILE)[f"{name}/{key}"])) for key in ("x", "low_res"))
    together = concatenate_low_res(x, low_res)
    np.testing.assert_array_equal(together[..., : x.shape[-1]], x)
    assert_close(FILE, f"{name}/upsampled", to_nchw(together[..., x.shape[-1] :]), OUTPUT)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_parameter_count_matches_the_recording(name):
    assert parameter_count(shapes(spec_of(name))) == CASES[name]["num_params"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "count"),
    [
        (PUBLISHED["cifar10"], 52_546_438),
        (PUBLISHED["imagenet64"], 121_063_942),
        (dataclasses.replace(PUBLISHED["imagenet64"], width=64), 30_303_494),
        (dataclasses.replace(PUBLISHED["imagenet64"], width=96), 68_126_598),
        (dataclasses.replace(PUBLISHED["imagenet64"], width=192), 272_281_350),
        (PUBLISHED["imagenet64-conditional"], 273_049_350),
        (PUBLISHED["upsampler"], 279_792_390),
        (PUBLISHED["lsun"], 113_676_678),
    ],
)
def test_parameter_count_is_that_of_the_published_model(spec, count):
    assert parameter_count(shapes(spec)) == count


# Configurations the official code refuses


def test_any_image_size_works():
    # error_image_size_128: "unsupported image size: 128".
    network = make_network(TINY)
    x = jax.ShapeDtypeStruct((1, 128, 128, 3), jnp.float32)
    t = jax.ShapeDtypeStruct((1,), jnp.int32)
    assert jax.eval_shape(network.apply, shapes(TINY), x, t).shape == (1, 128, 128, 6)


def test_resampling_without_convolutions_has_no_parameters():
    # error_no_conv_resample: a TypeError; no_conv_resample above holds its numbers.
    params = shapes(dataclasses.replace(TINY, conv_resample=False))
    assert set(shapes(TINY)) - set(params) == {"down_0_resample", "up_1_resample"}


# Shapes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("height", "width", "channels", "channel_mult"),
    [(7, 10, 1, (1, 2)), (28, 28, 4, (1, 1, 1, 2)), (5, 3, 3, (1, 1, 1, 1))],
)
@pytest.mark.parametrize("conv_resample", [True, False])
def test_any_height_width_and_channels_work(height, width, channels, channel_mult, conv_resample):
    spec = dataclasses.replace(
        TINY,
        channels=channels,
        out_channels=2 * channels,
        channel_mult=channel_mult,
        attention_factors=(),
        conv_resample=conv_resample,
    )
    x, t = images(spec, 2, height, width), jnp.array([0, 999])
    output = jax.jit(make_network(spec).apply)(random_params(spec), x, t)
    assert output.shape == (2, height, width, 2 * channels)
    assert np.all(np.isfinite(output))
    assert output.std() > 0.01


@pytest.mark.slow
def test_fresh_network_gives_exactly_zero():
    network = make_network(ONE_LEVEL)
    x, t = images(ONE_LEVEL), jnp.array([0, 999])

    def fresh(key):
        return network.apply(network.init(key, x.shape[1:]), x, t)

    output = jax.jit(fresh)(jax.random.key(0))
    assert output.shape == (2, 8, 8, 6)
    assert not np.any(output)


# Classes


def test_missing_classes_raise():
    spec = dataclasses.replace(TINY, num_classes=10)
    x, t = images(spec), jnp.array([0, 999])
    with pytest.raises(ValueError, match="class-conditional: give classes 0 to 9"):
        jax.eval_shape(make_network(spec).apply, shapes(spec), x, t)


def test_superfluous_classes_raise():
    x, t, y = images(TINY), jnp.array([0, 999]), jnp.array([0, 1])
    with pytest.raises(ValueError, match="an unconditional network takes no classes"):
        jax.eval_shape(make_network(TINY).apply, shapes(TINY), x, t, y)


# Choices that leave the numbers alone


@pytest.mark.slow
def test_remat_gives_the_same_outputs_and_gradients():
    params, x, t = random_params(ONE_LEVEL), images(ONE_LEVEL), jnp.array([0, 999])
    keys = jax.random.split(jax.random.key(0), 2)

    def run(remat):
        network = make_network(dataclasses.replace(ONE_LEVEL, remat=remat, dropout=0.2))

        def loss(params):
            output = network.apply(params, x, t, None, keys)
            return jnp.sum(output**2), output

        gradients, output = jax.jit(jax.grad(loss, has_aux=True))(params)
        return {**gradients, "output": output}

    plain, remat = run(False), run(True)
    assert jax.tree.structure(plain) == jax.tree.structure(remat)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(plain))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6 * scale, rtol=1e-5), remat, plain
    )


@pytest.mark.slow
def test_bfloat16_stays_close_to_float32():
    params, x, t = random_params(TINY), images(TINY), jnp.array([0, 999])
    half = dataclasses.replace(TINY, dtype="bfloat16")
    exact, rounded = (jax.jit(make_network(spec).apply)(params, x, t) for spec in (TINY, half))
    assert rounded.dtype == jnp.float32
    # Above 0: the trunk did run in bfloat16.
    assert 1e-4 < relative_difference(rounded, exact) < 0.02


def test_parameters_are_float32_whatever_the_computation():
    params = shapes(dataclasses.replace(TINY, dtype="bfloat16", num_classes=3))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


@pytest.mark.slow
def test_dropout_of_an_example_does_not_depend_on_its_batch():
    spec = dataclasses.replace(ONE_LEVEL, dropout=0.5)
    params, x, t = random_params(spec), images(spec, batch=4), jnp.arange(4)
    keys = jax.random.split(jax.random.key(0), 4)
    apply = jax.jit(make_network(spec).apply)
    together = apply(params, x, t, None, keys)
    pair = apply(params, x[2:], t[2:], None, keys[2:])
    np.testing.assert_allclose(pair, together[2:], atol=1e-5)
    without = apply(params, x, t)
    others = apply(params, x, t, None, keys[::-1])
    assert relative_difference(without, together) > 0.05
    assert relative_difference(others, together) > 0.05


# Specs


def test_conditioning_by_addition_needs_no_scale():
    added = shapes(dataclasses.replace(TINY, scale_shift_norm=False))
    scaled = shapes(TINY)
    assert added["down_0_res_0"]["embedding"]["kernel"].shape == (128, 32)
    assert scaled["down_0_res_0"]["embedding"]["kernel"].shape == (128, 64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 48}, "width 48 x 1 is not a multiple of 32"),
        ({"width": 16, "channel_mult": (2, 3)}, "width 16 x 3 is not a multiple of 32"),
        ({"num_heads": 3}, "3 heads do not divide the channels"),
        ({"num_heads": 1, "num_heads_upsample": 5}, "5 heads do not divide the channels"),
    ],
)
def test_impossible_spec_raises(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        dataclasses.replace(TINY, **changes)


def test_heads_need_to_divide_the_channels_at_attention_levels_only():
    # 3 divides the 96 channels of the second level and of the middle, not the 32 of the first.
    dataclasses.replace(TINY, channel_mult=(1, 3), num_heads=3)
