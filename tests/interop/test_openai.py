"""Official names and layouts: recorded lists of parameters, round trips, refusals."""

import hashlib
import re

import jax
import numpy as np
import pytest
from golden_cases import cases, load
from golden_networks import CASES, FILE, NAMES, PUBLISHED, spec_of, state_dict, weight

from iddpm_jax.interop.openai import (
    from_state_dict,
    module_names,
    step_from_filename,
    to_state_dict,
)
from iddpm_jax.models.unet import UNetSpec, make_network

TINY = UNetSpec(
    width=32, channel_mult=(1, 2), num_res_blocks=1, attention_factors=(2,), num_classes=3
)


def param_shapes(spec: UNetSpec) -> dict:
    init = make_network(spec).init
    return jax.eval_shape(lambda: init(jax.random.key(0), (8, 8, spec.channels)))


def numbered_params(spec: UNetSpec) -> dict:
    """Parameters in which no value occurs twice."""
    leaves, tree = jax.tree.flatten(param_shapes(spec))
    ends = np.cumsum([leaf.size for leaf in leaves])
    values = np.split(np.arange(ends[-1], dtype=np.float64), ends[:-1])
    return tree.unflatten(
        [part.reshape(leaf.shape) for part, leaf in zip(values, leaves, strict=True)]
    )


# Names


@pytest.mark.parametrize("name", NAMES)
def test_names_and_shapes_are_the_recorded_ones_in_their_order(name):
    official = to_state_dict(spec_of(name), from_state_dict(spec_of(name), state_dict(name)))
    assert [[entry, list(array.shape)] for entry, array in official.items()] == CASES[name][
        "params"
    ]


@pytest.mark.parametrize("name", NAMES)
def test_module_names_differ_and_cover_every_recorded_module(name):
    modules = list(module_names(spec_of(name)).values())
    assert len(set(modules)) == len(modules)
    recorded = dict.fromkeys(entry.rsplit(".", 1)[0] for entry, _ in CASES[name]["params"])
    assert [module for module in modules if module in recorded] == list(recorded)
    # A network need not have classes, changes of channels or convolutions in its resampling.
    optional = re.compile(r"label_emb|.*\.skip_connection|.*\.op|.*\.\d+\.conv")
    assert all(optional.fullmatch(module) for module in set(modules) - set(recorded))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "count", "digest"),
    [
        ("cifar10", 446, "3c51bea96a963ca0"),
        ("imagenet64", 450, "02b30195905779bf"),
        ("imagenet64-conditional", 451, "f828f2bed7a719c7"),
        ("upsampler", 457, "23c32e07728439d7"),
        ("lsun", 426, "27744f772c0935ef"),
    ],
)
def test_names_and_shapes_are_those_of_the_released_weights(model, count, digest):
    # Arrays of one zero each, seen as large ones.
    params = jax.tree.map(
        lambda leaf: np.broadcast_to(np.float32(0.0), leaf.shape), param_shapes(PUBLISHED[model])
    )
    official = to_state_dict(PUBLISHED[model], params)
    lines = [f"{name} {array.shape}" for name, array in official.items()]
    assert len(lines) == count
    # The digests are of the listings that the official code gives for the models it released.
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == digest


# Values


@pytest.mark.parametrize("name", [name for name in NAMES if CASES[name]["weights"] == "stored"])
def test_weights_by_the_rule_are_the_stored_ones(name):
    for entry, shape in CASES[name]["params"]:
        stored = load(FILE)[f"{name}/weights/{entry}"]
        np.testing.assert_array_equal(weight(entry, tuple(shape)), stored)


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_survives_the_round_trip(name):
    spec, official = spec_of(name), state_dict(name)
    returned = to_state_dict(spec, from_state_dict(spec, official))
    for entry, array in official.items():
        np.testing.assert_array_equal(returned[entry], array, err_msg=entry, strict=True)


def test_params_survive_the_round_trip():
    params = numbered_params(TINY)
    returned = from_state_dict(TINY, to_state_dict(TINY, params))
    assert jax.tree.structure(returned) == jax.tree.structure(params)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), returned, params)


def test_each_kind_of_array_is_laid_out_as_documented():
    params = numbered_params(TINY)
    official = to_state_dict(TINY, params)

    kernel = params["down_1_res_0"]["conv_in"]["kernel"]  # [3, 3, 32, 64]
    convolution = official["input_blocks.3.0.in_layers.2.weight"]
    assert convolution.shape == (64, 32, 3, 3)
    assert convolution[5, 7, 0, 2] == kernel[0, 2, 7, 5]

    kernel = params["time_embedding_in"]["kernel"]  # [32, 128]
    assert official["time_embed.0.weight"].shape == (128, 32)
    assert official["time_embed.0.weight"][100, 3] == kernel[3, 100]

    kernel = params["down_1_res_0"]["skip"]["kernel"]  # [32, 64]
    assert official["input_blocks.3.0.skip_connection.weight"].shape == (64, 32, 1, 1)
    assert official["input_blocks.3.0.skip_connection.weight"][5, 7, 0, 0] == kernel[7, 5]

    kernel = params["middle_attention"]["qkv"]["kernel"]  # [64, 192]
    assert official["middle_block.1.qkv.weight"].shape == (192, 64, 1)
    assert official["middle_block.1.qkv.weight"][100, 3, 0] == kernel[3, 100]

    embedding = params["class_embedding"]["embedding"]
    np.testing.assert_array_equal(official["label_emb.weight"], embedding)


# Refusals


def test_superfluous_entries_raise():
    official = to_state_dict(TINY, numbered_params(TINY))
    official["ema.weight"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"has superfluous ema\.weight \(1 such entries\)"):
        from_state_dict(TINY, official)


def test_missing_entries_raise_and_five_are_named():
    official = to_state_dict(TINY, numbered_params(TINY))
    kept = {name: array for name, array in official.items() if not name.startswith("input")}
    with pytest.raises(ValueError, match="the state dict lacks") as error:
        from_state_dict(TINY, kept)
    assert len(re.findall(r"input_blocks\.\S+", str(error.value))) == 5
    assert f"({len(official) - len(kept)} such entries)" in str(error.value)


def test_wrong_shape_raises():
    official = to_state_dict(TINY, numbered_params(TINY))
    official["out.2.weight"] = official["out.2.weight"][:3]
    message = r"out\.2\.weight has shape \(3, 32, 3, 3\), the spec says \(6, 32, 3, 3\)"
    with pytest.raises(ValueError, match=message):
        from_state_dict(TINY, official)


def test_params_of_another_network_raise():
    params = numbered_params(TINY)
    del params["class_embedding"]
    with pytest.raises(ValueError, match="the tree lacks class_embedding/embedding"):
        to_state_dict(TINY, params)


# File names


@pytest.mark.parametrize(
    ("name", "step"),
    [
        pair
        for _, case in cases("09_extras.npz", "resume_step_from_filename")
        for pair in zip(case["names"], case["steps"], strict=True)
    ],
)
def test_step_from_filename_matches_the_recording(name, step):
    assert step_from_filename(name) == step
