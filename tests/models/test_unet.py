"""The UNet against recordings of the official one, and what it does beyond them."""

import dataclasses
import functools
from typing import NamedTuple

import float64_layers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import GRADIENT, OUTPUT, assert_close, load, to_nchw, to_nhwc, tolerance
from golden_networks import (
    CASES,
    FILE,
    NAMES,
    direction,
    parameter_count,
    spec_of,
    state_dict,
)

from iddpm_jax.interop.openai import from_state_dict, to_state_dict
from iddpm_jax.models.layout import UNetSpec
from iddpm_jax.models.unet import UNet, concatenate_low_res, make_network

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
        output, sown = UNet(spec).apply(
            {"params": params}, x, t, y, None, low_res, mutable=["intermediates"]
        )
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


def random_params(spec: UNetSpec) -> dict:
    return float64_layers.random_params(shapes(spec))


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
    ("width", "count"), [(64, 30_303_494), (96, 68_126_598), (192, 272_281_350)]
)
def test_parameter_count_of_other_widths_is_that_of_section_6(width, count):
    # The ImageNet-64 networks of 30, 68 and 270 million; interop/test_openai.py has the released.
    spec = UNetSpec(width=width, channel_mult=(1, 2, 3, 4), attention_factors=(4, 8))
    assert parameter_count(shapes(spec)) == count


# Guided diffusion's network


GUIDED = UNetSpec(
    width=64,
    channel_mult=(0.5, 1),
    num_res_blocks=1,
    attention_factors=(2,),
    num_head_channels=16,
    attention_order="qkv_first",
    num_classes=3,
    resblock_updown=True,
)


def reference_guided(params: dict, x, t, y) -> np.ndarray:
    """GUIDED's network, layer by layer in float64."""
    embedding = float64_layers.embed_time(t, params, 64)
    embedding += params["class_embedding"]["embedding"][np.asarray(y)]

    def run(h, *names, resample=""):
        for name in names:
            if "attention" in name:
                h = float64_layers.attention(h, params[name], 4, "qkv_first")
            else:
                h = float64_layers.res_block(h, embedding, params[name], resample)
        return h

    def join(h, skip):
        return np.concatenate([h, skip], axis=-1)

    conv_in, conv_out = (float64_layers.float64(params[name]) for name in ("conv_in", "conv_out"))
    first = float64_layers.conv3(np.asarray(x, np.float64), conv_in)
    second = run(first, "down_0_res_0")
    third = run(second, "down_0_resample", resample="down")
    fourth = run(third, "down_1_res_0", "down_1_attention_0")
    h = run(fourth, "middle_res_0", "middle_attention", "middle_res_1")
    h = run(join(h, fourth), "up_1_res_0", "up_1_attention_0")
    h = run(join(h, third), "up_1_res_1", "up_1_attention_1")
    h = run(h, "up_1_resample", resample="up")
    h = run(join(h, second), "up_0_res_0")
    h = run(join(h, first), "up_0_res_1")
    h = float64_layers.silu(float64_layers.group_norm(h, params["norm_out"]))
    return float64_layers.conv3(h, conv_out)


@pytest.mark.slow
def test_guided_network_matches_float64():
    params, x = random_params(GUIDED), images(GUIDED)
    t, y = jnp.array([3, 700]), jnp.array([2, 0])
    output = jax.jit(make_network(GUIDED).apply)(params, x, t, y)
    assert output.shape == (2, 8, 8, 6)
    np.testing.assert_allclose(output, reference_guided(params, x, t, y), atol=5e-5)


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
@pytest.mark.parametrize(
    "resampling", [{}, {"conv_resample": False}, {"resblock_updown": True}], ids=str
)
def test_any_height_width_and_channels_work(height, width, channels, channel_mult, resampling):
    spec = dataclasses.replace(
        TINY,
        channels=channels,
        out_channels=2 * channels,
        channel_mult=channel_mult,
        attention_factors=(),
        **resampling,
    )
    x, t = images(spec, 2, height, width), jnp.array([0, 999])
    output = jax.jit(make_network(spec).apply)(random_params(spec), x, t)
    assert output.shape == (2, height, width, 2 * channels)
    assert np.all(np.isfinite(output))
    assert output.std() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), [(16, 16), (15, 18)])
@pytest.mark.parametrize(
    "resampling", [{}, {"conv_resample": False}, {"resblock_updown": True}], ids=str
)
def test_forms_for_cpus_give_the_plain_ones_results(height, width, resampling):
    spec = dataclasses.replace(TINY, **resampling)
    params, x = random_params(spec), images(spec, 2, height, width)
    results = []
    for forms in ({}, {"attention": "by_image", "convolution": "cpu"}):
        apply = make_network(dataclasses.replace(spec, **forms)).apply

        def loss(params, x, apply=apply):
            output = apply(params, x, jnp.array([0, 999]))
            return jnp.sum(output**2), output

        grad = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
        results.append(jax.tree.leaves(grad(params, x)))
    # Where the exact gradient is zero, both are rounding error, of others' size.
    largest = max(np.abs(plain).max() for plain in results[0])
    for plain, cpu in zip(*results, strict=True):
        error = 2e-5 * np.abs(plain).max() + 2e-7 * largest
        np.testing.assert_allclose(cpu, plain, rtol=0, atol=error)


@pytest.mark.slow
def test_fresh_network_gives_exactly_zero():
    network = make_network(ONE_LEVEL)
    x, t = images(ONE_LEVEL), jnp.array([0, 999])

    def fresh(key):
        return network.apply(network.init(key, x.shape[1:]), x, t)

    output = jax.jit(fresh)(jax.random.key(0))
    assert output.shape == (2, 8, 8, 6)
    assert not np.any(output)


def test_conditioning_by_addition_needs_no_scale():
    added = shapes(dataclasses.replace(TINY, scale_shift_norm=False))
    scaled = shapes(TINY)
    assert added["down_0_res_0"]["embedding"]["kernel"].shape == (128, 32)
    assert scaled["down_0_res_0"]["embedding"]["kernel"].shape == (128, 64)


def test_first_level_may_be_narrower_than_the_width():
    spec = dataclasses.replace(TINY, width=64, channel_mult=(0.5, 1))
    params = shapes(spec)
    assert params["conv_in"]["kernel"].shape == (3, 3, 3, 32)
    assert params["conv_out"]["kernel"].shape == (3, 3, 32, 6)
    # The embedding of t keeps the width.
    assert params["time_embedding_in"]["kernel"].shape == (64, 256)
    assert params["down_1_res_0"]["conv_in"]["kernel"].shape == (3, 3, 32, 64)
    x, t = images(spec), jnp.array([0, 999])
    assert jax.eval_shape(make_network(spec).apply, params, x, t).shape == (2, 8, 8, 6)


# Classes and small images


def test_missing_classes_raise():
    spec = dataclasses.replace(TINY, num_classes=10)
    x, t = images(spec), jnp.array([0, 999])
    with pytest.raises(ValueError, match="class-conditional: give classes 0 to 9"):
        jax.eval_shape(make_network(spec).apply, shapes(spec), x, t)


def test_superfluous_classes_raise():
    x, t, y = images(TINY), jnp.array([0, 999]), jnp.array([0, 1])
    with pytest.raises(ValueError, match="an unconditional network takes no classes"):
        jax.eval_shape(make_network(TINY).apply, shapes(TINY), x, t, y)


def test_null_class_adds_a_row():
    told = shapes(dataclasses.replace(TINY, num_classes=10))
    guided = shapes(dataclasses.replace(TINY, num_classes=10, null_class=True))
    assert told["class_embedding"]["embedding"].shape == (10, 128)
    assert guided["class_embedding"]["embedding"].shape == (11, 128)


def test_missing_small_images_raise():
    spec = dataclasses.replace(TINY, super_resolution=True)
    x, t = images(spec), jnp.array([0, 999])
    with pytest.raises(ValueError, match="is for super-resolution: give it small images, low_res"):
        jax.eval_shape(make_network(spec).apply, shapes(spec), x, t)


def test_superfluous_small_images_raise():
    x, t = images(TINY), jnp.array([0, 999])
    with pytest.raises(ValueError, match="this network takes no small images"):
        jax.eval_shape(make_network(TINY).apply, shapes(TINY), x, t, None, None, x)


# Choices that leave the numbers alone


@pytest.mark.slow
@pytest.mark.parametrize("words", ["elementwise", "blocks"])
def test_remat_gives_the_same_outputs_and_gradients(words):
    spec = dataclasses.replace(ONE_LEVEL, attention_factors=(1,), dropout=0.2)
    params, x, t = random_params(spec), images(spec), jnp.array([0, 999])
    keys = jax.random.split(jax.random.key(0), 2)

    def run(remat):
        network = make_network(dataclasses.replace(spec, remat=remat))

        def loss(params):
            output = network.apply(params, x, t, None, keys)
            return jnp.sum(output**2), output

        gradients, output = jax.jit(jax.grad(loss, has_aux=True))(params)
        return {**gradients, "output": output}

    plain, remat = run("none"), run(words)
    assert jax.tree.structure(plain) == jax.tree.structure(remat)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(plain))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6 * scale, rtol=1e-5), remat, plain
    )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["full_a", "ssn_off", "superres"])
def test_half_precision_stays_close_to_the_recording(name, dtype):
    spec = spec_of(name)
    inputs = {
        key: load(FILE).get(f"{name}/{key}") for key in ("x", "timesteps", "y", "low_res", "output")
    }
    x, low_res, recorded = (
        None if inputs[key] is None else jnp.asarray(to_nhwc(inputs[key]))
        for key in ("x", "low_res", "output")
    )
    apply = jax.jit(make_network(dataclasses.replace(spec, dtype=dtype)).apply)
    params = from_state_dict(spec, state_dict(name))
    output = apply(params, x, inputs["timesteps"], inputs["y"], None, low_res)
    assert output.dtype == jnp.float32
    # 0.02 and 0.0024; far below half of eps, the trunk would have run in another type.
    eps = float(jnp.finfo(dtype).eps)
    assert 0.5 * eps < relative_difference(output, recorded) < 2.5 * eps


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
