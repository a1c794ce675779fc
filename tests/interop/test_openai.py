"""Official names and layouts: recorded lists of parameters, round trips, refusals."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from golden_cases import cases, load
from golden_networks import (
    CASES,
    FILE,
    NAMES,
    listings,
    parameter_count,
    spec_of,
    spec_of_listing,
    state_dict,
    weight,
)

from iddpm_jax.interop.openai import (
    from_state_dict,
    module_names,
    newest_model,
    official_shapes,
    step_of,
    to_state_dict,
)
from iddpm_jax.models.classifier import ClassifierSpec, guided_classifier, make_classifier
from iddpm_jax.models.layout import UNetSpec
from iddpm_jax.models.unet import make_network

TINY = UNetSpec(
    width=32, channel_mult=(1, 2), num_res_blocks=1, attention_factors=(2,), num_classes=3
)

GUIDED = UNetSpec(
    width=64,
    channel_mult=(0.5, 1),
    num_res_blocks=1,
    attention_factors=(1, 2),
    num_head_channels=16,
    attention_order="qkv_first",
    num_classes=3,
    null_class=True,
    super_resolution=True,
    resblock_updown=True,
)

CLASSIFIER = ClassifierSpec(
    dataclasses.replace(TINY, num_classes=0, num_head_channels=16, resblock_updown=True),
    image_size=8,
    num_classes=5,
)

SPECS = {"improved": TINY, "guided": GUIDED, "classifier": CLASSIFIER}


def param_shapes(spec: UNetSpec | ClassifierSpec) -> dict:
    if isinstance(spec, ClassifierSpec):
        network, size = make_classifier(spec), spec.image_size
    else:
        network, size = make_network(spec), 8
    return jax.eval_shape(lambda: network.init(jax.random.key(0), (size, size, 3)))


def zeros(shape: tuple[int, ...]) -> np.ndarray:
    """An array of one zero, seen as a large one."""
    return np.broadcast_to(np.float32(0.0), shape)


def zero_params(spec: UNetSpec | ClassifierSpec) -> dict:
    return jax.tree.map(lambda leaf: zeros(leaf.shape), param_shapes(spec))


def numbered_params(spec: UNetSpec | ClassifierSpec) -> dict:
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
@pytest.mark.parametrize("name", listings())
def test_names_shapes_and_count_are_those_of_the_released_weights(name):
    listing = listings()[name]
    spec = spec_of_listing(listing)
    params = zero_params(spec)
    official = to_state_dict(spec, params)
    assert [[entry, list(array.shape)] for entry, array in official.items()] == listing["entries"]
    returned = from_state_dict(spec, {entry: zeros(shape) for entry, shape in listing["entries"]})
    assert jax.tree.map(np.shape, returned) == jax.tree.map(np.shape, params)
    assert parameter_count(params) == listing["num_params"]


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


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_params_survive_the_round_trip(spec):
    params = numbered_params(spec)
    returned = from_state_dict(spec, to_state_dict(spec, params))
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


def test_arrays_of_the_pooling_are_laid_out_as_documented():
    params = numbered_params(CLASSIFIER)
    official, pool = to_state_dict(CLASSIFIER, params), params["pool"]

    positions = pool["positional_embedding"]  # the mean and 4 x 4 pixels: [17, 64]
    assert official["out.2.positional_embedding"].shape == (64, 17)
    assert official["out.2.positional_embedding"][40, 3] == positions[3, 40]

    kernel = pool["qkv"]["kernel"]  # [64, 192]
    assert official["out.2.qkv_proj.weight"].shape == (192, 64, 1)
    assert official["out.2.qkv_proj.weight"][100, 3, 0] == kernel[3, 100]

    kernel = pool["proj"]["kernel"]  # [64, 5]
    assert official["out.2.c_proj.weight"].shape == (5, 64, 1)
    assert official["out.2.c_proj.weight"][4, 40, 0] == kernel[40, 4]


# Refusals


def test_superfluous_entries_raise():
    official = to_state_dict(TINY, numbered_params(TINY))
    official["ema.weight"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"the state dict has superfluous ema\.weight$"):
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
    official["time_embed.2.weight"] = official["time_embed.2.weight"][:100]
    message = r"time_embed\.2\.weight has shape \(100, 128\), the spec says \(128, 128\)$"
    with pytest.raises(ValueError, match=message):
        from_state_dict(TINY, official)


def test_of_many_wrong_shapes_three_are_named():
    official = to_state_dict(TINY, numbered_params(TINY))
    biases = [name for name in official if name.startswith("input") and name.endswith(".bias")]
    official |= {name: np.zeros(1) for name in biases}
    with pytest.raises(ValueError, match=f"; {len(biases)} in all$") as error:
        from_state_dict(TINY, official)
    assert re.findall(r"input_blocks\.\S+", str(error.value)) == biases[:3]


@pytest.mark.parametrize(
    ("file", "config", "message"),
    [
        ({"super_resolution": True}, {}, "is a super-resolution network.* no model.low_res_size"),
        ({}, {"super_resolution": True}, "no super-resolution network.* sets model.low_res_size"),
        (
            {},
            {"num_classes": 0},
            "with 3 classes; set model.class_conditional=true and data.num_classes=3$",
        ),
        ({"num_classes": 0}, {}, "is unconditional.* model.class_conditional; set it to false$"),
        ({"num_classes": 5}, {}, "classes are 5, the config's 3; set data.num_classes$"),
        ({"null_class": True}, {}, "4 classes, one more than data.num_classes.*label_dropout=0.1"),
        ({}, {"null_class": True}, "no class for .* beside its 3; set model.label_dropout to 0$"),
        ({"width": 64}, {}, "of width 64, the config's has model.width 32$"),
        ({}, {"out_channels": 3}, "6 channels.* 3; set diffusion.variance to learned_range$"),
        ({"out_channels": 3}, {}, "3 channels.* 6; set diffusion.variance to fixed_large$"),
    ],
)
def test_state_dict_of_another_network_names_the_key_to_change(file, config, message):
    other = dataclasses.replace(TINY, **file)
    official = to_state_dict(other, zero_params(other))
    with pytest.raises(ValueError, match=message) as error:
        from_state_dict(dataclasses.replace(TINY, **config), official)
    # One line, and no second objection, which would begin with "it" too.
    assert not re.search("\n|; its? ", str(error.value))


def test_state_dict_of_other_images_does_not_blame_the_variance():
    grey = dataclasses.replace(TINY, channels=1, out_channels=2)
    official = to_state_dict(TINY, zero_params(TINY))
    message = r"input_blocks\.0\.0\.weight has shape \(32, 3, 3, 3\), the spec says \(32, 1, 3, 3\)"
    with pytest.raises(ValueError, match=message):
        from_state_dict(grey, official)


def test_every_difference_is_named_in_one_line():
    other = dataclasses.replace(TINY, width=64, num_classes=0, out_channels=3)
    with pytest.raises(ValueError) as error:
        from_state_dict(TINY, to_state_dict(other, zero_params(other)))
    for key in ("model.width", "model.class_conditional", "diffusion.variance"):
        assert key in str(error.value)
    assert "\n" not in str(error.value)


def test_params_of_another_network_raise():
    params = numbered_params(TINY)
    del params["class_embedding"]
    with pytest.raises(ValueError, match="the tree lacks class_embedding/embedding"):
        to_state_dict(TINY, params)


def test_classifier_is_not_taken_for_a_diffusion_model():
    spec = guided_classifier(64)
    shapes = {name: np.zeros(0) for name in official_shapes(spec)}
    with pytest.raises(ValueError, match="^it is a classifier of noised images"):
        from_state_dict(TINY, shapes)


@pytest.mark.parametrize("name", ["input_blocks.0.0.weight", "label_emb.weight", "out.2.weight"])
@pytest.mark.parametrize("shape", [(), (3,), (1, 2, 3)])
def test_misshapen_entries_are_named_whatever_their_shape(name, shape):
    official = to_state_dict(TINY, zero_params(TINY))
    official[name] = np.zeros(shape)
    with pytest.raises(ValueError, match=re.escape(f"{name} has shape {shape}")):
        from_state_dict(TINY, official)


# File names


@pytest.mark.parametrize(
    ("name", "step"),
    [
        pair
        for _, case in cases("09_extras.npz", "resume_step_from_filename")
        for pair in zip(case["names"], case["steps"], strict=True)
        # The official code never asks for the step of an average.
        if "ema" not in pair[0]
    ],
)
def test_step_of_matches_the_recording(name, step):
    assert step_of(name) == step


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("runs/model123456.pt", 123456),
        ("model123456.safetensors", 123456),
        ("ema_0.9999_123456.pt", 123456),
        ("cifar10_uncond_50M_500K.pt", 500_000),
        ("lsun_uncond_100M_1200K_bs128.pt", 1_200_000),
        ("ema.pt", 0),
        ("ema_0.9999.pt", 0),
        ("64x64_diffusion.pt", 0),
    ],
)
def test_step_of_knows_averages_and_releases(name, step):
    assert step_of(name) == step


def test_newest_model_is_that_of_the_highest_step(tmp_path):
    assert newest_model(tmp_path) is None
    for name in ("ema_0.9999_000030.pt", "opt000030.pt", "mymodel000030.pt"):
        (tmp_path / name).touch()
    assert newest_model(tmp_path) is None
    for name in ("model.pt", "model000005.pt", "model1000000.safetensors", "model000020.pt"):
        (tmp_path / name).touch()
    assert newest_model(tmp_path).name == "model1000000.safetensors"
