"""From config to objects: what a config becomes, and which configs cannot become anything."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny_config import tiny

from iddpm_jax import build
from iddpm_jax.config import base
from iddpm_jax.diffusion.respacing import space_timesteps
from iddpm_jax.errors import InputError


def small(**changes):
    """A config for the 8x8 digits that can be built, with changes by dotted key ("__")."""
    config = base()
    values = {
        "data.name": "digits",
        "train.steps": 10,
        "model.width": 32,
        "model.channel_mult": (1, 2),
        "model.num_res_blocks": 1,
        "model.attention_resolutions": (4,),
        "diffusion.T": 100,
        "sample.steps": "",
    }
    values.update({key.replace("__", "."): value for key, value in changes.items()})
    config.update_from_flattened_dict(values)
    return config


def refusal(**changes) -> str:
    with pytest.raises(InputError) as caught:
        build.model(small(**changes))
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_model_carries_what_the_config_says():
    model = build.model(small(model__class_conditional=True, diffusion__schedule="linear"))
    assert model.image_shape == (8, 8, 1)
    assert model.num_classes == 10 and model.class_conditional
    assert model.betas.shape == (100,) and model.betas.dtype == np.float64
    # The linear schedule of 1000 steps from 1e-4 to 0.02, stretched to 100.
    np.testing.assert_allclose(model.betas[[0, -1]], [1e-3, 0.2], rtol=1e-12)
    assert model.process.T == 100
    assert (model.parametrization.mean, model.parametrization.variance) == ("eps", "learned_range")
    assert (model.objective.name, model.objective.vlb_weight) == ("l_hybrid", 0.001)
    assert (model.spec.channels, model.spec.out_channels) == (1, 2)
    assert (model.spec.width, model.spec.channel_mult) == (32, (1, 2))


def test_unconditional_model_knows_how_many_classes_the_data_has():
    model = build.model(small())
    assert not model.class_conditional
    assert (model.spec.num_classes, model.num_classes) == (0, 10)


def test_fixed_variance_needs_no_channels_of_its_own():
    model = build.model(small(loss__name="l_simple", diffusion__variance="fixed_large"))
    assert model.spec.out_channels == 1


def test_colour_data_gives_colour_networks():
    model = build.model(small(data__name="emoji", model__attention_resolutions=(16,)))
    assert model.image_shape == (32, 32, 3)
    assert (model.spec.channels, model.spec.out_channels) == (3, 6)


@pytest.mark.parametrize(
    "name, mult, sizes, factors",
    [
        ("digits", (1, 2), (4,), (2,)),
        ("digits", (1, 2, 2, 2), (8, 2, 1), (1, 4, 8)),
        ("digits", (1, 2), (), ()),
        ("emoji", (1, 2, 2, 2), (16, 8), (2, 4)),
        ("emoji", (1, 1, 1, 1, 1, 1), (1, 32), (32, 1)),
    ],
)
def test_attention_sizes_become_down_sampling_factors(name, mult, sizes, factors):
    changes = {"model__channel_mult": mult, "model__attention_resolutions": sizes}
    assert build.model(small(data__name=name, **changes)).spec.attention_factors == factors


def test_attention_at_a_size_that_does_not_occur_is_refused():
    text = refusal(model__attention_resolutions=(4, 16))
    assert "model.attention_resolutions" in text and "16" in text and "8, 4" in text


@pytest.mark.parametrize("levels", [5, 6])
def test_more_levels_than_the_images_can_be_halved_are_refused(levels):
    text = refusal(model__channel_mult=(1,) * levels)
    assert "model.channel_mult" in text and f"{levels} levels" in text and "8x8" in text


@pytest.mark.parametrize("T", [1, 10, 19, 20])
def test_linear_schedule_with_too_few_steps_is_refused(T):
    text = refusal(diffusion__schedule="linear", diffusion__T=T)
    assert "diffusion." in text and f"{T}" in text and "linear" in text and "cosine" in text


def test_linear_schedule_needs_21_steps():
    model = build.model(small(diffusion__schedule="linear", diffusion__T=21))
    assert model.betas.max() < 1


@pytest.mark.parametrize("T", [1, 2, 19])
def test_cosine_schedule_takes_any_number_of_steps(T):
    assert build.model(small(diffusion__T=T)).process.T == T


@pytest.mark.parametrize(
    "key, legal",
    [
        ("diffusion.schedule", ("linear", "cosine")),
        ("diffusion.mean", ("eps", "x_0", "prev_mean")),
        ("diffusion.variance", ("learned_range", "learned", "fixed_small", "fixed_large")),
        ("loss.name", ("l_simple", "l_hybrid", "l_vlb")),
        ("data.name", ("digits", "emoji")),
    ],
)
def test_unknown_word_names_the_key_and_the_legal_words(key, legal):
    text = refusal(**{key: "nonsense"})
    for word in (key, "nonsense", *legal):
        assert word in text


@pytest.mark.parametrize("key", ["sample.steps", "nll.steps"])
@pytest.mark.parametrize("steps", ["abc", "101", "ddim70", "0", "ddim", ",", "1.5"])
def test_impossible_steps_name_their_key(key, steps):
    assert key in refusal(**{key: steps})


@pytest.mark.parametrize("width", [1, 33, 48, 100])
def test_width_that_is_no_multiple_of_32_is_refused(width):
    text = refusal(model__width=width)
    assert "model" in text and f"width {width}" in text and "32" in text


@pytest.mark.parametrize("key", ["model.num_heads", "model.num_heads_upsample"])
def test_heads_that_do_not_divide_the_channels_are_refused(key):
    text = refusal(**{key: 5})
    assert "model" in text and "5 heads" in text


def test_build_checks_the_config():
    assert "train.steps" in refusal(train__steps=0)


@pytest.mark.parametrize("steps", ["10", "ddim25", "3,4"])
def test_respaced_process_keeps_the_steps_asked_for(steps):
    model = build.model(small())
    kept = space_timesteps(100, steps)
    process = model.respaced(steps, "sample.steps")
    np.testing.assert_array_equal(process.timesteps, kept)
    # rescale_timesteps: the network is fed t * 1000 / T, T being the original's.
    np.testing.assert_allclose(process.model_t, kept * 10.0, rtol=1e-6)
    with pytest.raises(InputError, match=r"sample\.steps.*'x'"):
        model.respaced("x", "sample.steps")


def test_timesteps_are_fed_as_they_are_unless_rescaled():
    model = build.model(small(diffusion__rescale_timesteps=False))
    np.testing.assert_array_equal(model.process.model_t, np.arange(100))
    np.testing.assert_array_equal(model.respaced("ddim4", "nll.steps").model_t, [0, 25, 50, 75])


def test_auto_dtype_is_float32_on_a_cpu():
    assert build.model(small()).spec.dtype == "float32"
    assert build.model(small(model__dtype="bfloat16")).spec.dtype == "bfloat16"


@pytest.mark.parametrize(
    "capability, dtype, attention",
    [
        ("9.0", "bfloat16", "cudnn"),
        ("12.0", "float16", "cudnn"),
        ("9.0", "float32", "plain"),
        ("7.5", "float16", "plain"),  # a T4
        ("gfx942", "bfloat16", "plain"),  # AMD
    ],
)
def test_fused_attention_is_for_gpus_that_have_it(monkeypatch, capability, dtype, attention):
    gpu = types.SimpleNamespace(platform="gpu", compute_capability=capability)
    monkeypatch.setattr(jax, "local_devices", lambda: [gpu])
    assert build.model(small(model__dtype=dtype)).spec.attention == attention


def test_attention_on_a_cpu_goes_image_by_image():
    assert build.model(small()).spec.attention == "by_image"


def test_convolutions_have_forms_of_their_own_on_a_cpu_and_plain_elsewhere(monkeypatch):
    assert build.model(small()).spec.convolution == "cpu"
    assert build.model(small(model__convolution="plain")).spec.convolution == "plain"
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert build.model(small()).spec.convolution == "plain"


def test_network_puts_out_the_shape_the_parametrization_needs():
    model = build.model(small(model__class_conditional=True))
    height, width, channels = model.image_shape
    x = jax.ShapeDtypeStruct((2, height, width, channels), jnp.float32)
    label = jax.ShapeDtypeStruct((2,), jnp.int32)
    params = jax.eval_shape(lambda: model.network.init(jax.random.key(0), model.image_shape))
    output = jax.eval_shape(
        model.network.apply, params, x, jax.ShapeDtypeStruct((2,), jnp.float32), label
    )
    assert output.shape == (2, height, width, 2 * channels)


def test_shape_and_classes_in_the_config_leave_the_data_alone():
    model = build.model(
        small(
            data__name="npz:/nonexistent",
            data__image_shape=(16, 12, 3),
            data__num_classes=7,
            model__class_conditional=True,
            model__attention_resolutions=(),
        )
    )
    assert model.image_shape == (16, 12, 3)
    assert model.num_classes == model.spec.num_classes == 7
    # An unconditional model does not need to know the number of classes.
    model = build.model(small(data__name="npz:/nonexistent", data__image_shape=(8, 8, 1)))
    assert model.image_shape == (8, 8, 1) and model.num_classes == 0


def test_data_is_read_for_what_the_config_does_not_say():
    assert "/nonexistent" in refusal(data__name="npz:/nonexistent")
    conditional = {"data__image_shape": (8, 8, 1), "model__class_conditional": True}
    assert "/nonexistent" in refusal(data__name="npz:/nonexistent", **conditional)
    model = build.model(small(data__image_shape=(4, 4, 1), model__class_conditional=True))
    assert model.image_shape == (4, 4, 1) and model.num_classes == 10


@pytest.mark.parametrize("shape", [(8, 8), (8, 0, 1), (8, 8, 1, 1)])
def test_impossible_image_shape_is_refused(shape):
    assert "data.image_shape" in refusal(data__image_shape=shape)


def data_refusal(split: str = "train", **changes) -> str:
    config = small(**changes)
    with pytest.raises(InputError) as caught:
        build.load_data(config, build.model(config), split)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_data_has_the_shape_of_the_model():
    config = small(data__image_shape=(4, 4, 1))
    source = build.load_data(config, build.model(config), "test")
    assert source.image_shape == (4, 4, 1) and len(source) == 359


@pytest.mark.parametrize("shape", [(16, 16, 1), (8, 8, 3), (4, 8, 1)])
def test_data_of_another_shape_is_refused(shape):
    text = data_refusal(data__image_shape=shape, model__attention_resolutions=())
    for word in ("'digits'", "8x8x1", "x".join(map(str, shape)), "data.image_shape"):
        assert word in text


def test_how_data_are_read_comes_from_the_config(tmp_path):
    for i in range(20):
        pixels = np.arange(64, dtype=np.uint8).reshape(8, 8) + i
        Image.fromarray(pixels).save(tmp_path / f"{i % 2}_{i:02d}.png")
    (tmp_path / "0_08.png").write_bytes(b"no picture")
    options = {"data__name": f"folder:{tmp_path}", "data__image_shape": (4, 4, 1)}
    changes = {"model__attention_resolutions": (), "train__batch_size": 6}
    config = tiny(**options, **changes, data__corrupt="skip", data__labels="none")
    config.model.class_conditional = False
    source = build.load_data(config, build.model(config), "train")
    assert source.class_names == () and source.image_shape == (4, 4, 1)
    batches = build.training_batches(config, source, 1, 3)
    assert next(batches)["image"].shape == (2, 4, 4, 1)
    config.data.corrupt = "fail"
    source = build.load_data(config, build.model(config), "train")
    with pytest.raises(InputError, match=r"0_08\.png cannot be read"):
        [source[i] for i in range(len(source))]
    assert build.model(tiny(**options, **changes)).num_classes == 2


def test_crops_and_flips_come_from_the_config():
    def batch(**changes):
        config = tiny(**changes)
        source = build.load_data(config, build.model(config), "train")
        return next(build.training_batches(config, source))

    plain, flipped, cropped = batch(), batch(data__random_flip=True), batch(data__random_crop=0.5)
    mirrored = (flipped["image"] == plain["image"][:, :, ::-1]).all(axis=(1, 2, 3))
    same = (flipped["image"] == plain["image"]).all(axis=(1, 2, 3))
    assert (mirrored | same).all() and mirrored.any() and same.any()
    assert (cropped["image"] != plain["image"]).any(axis=(1, 2, 3)).mean() > 0.5
    for other in (flipped, cropped):
        np.testing.assert_array_equal(other["label"], plain["label"])


def test_evaluation_is_neither_mirrored_nor_cropped():
    config = tiny(data__random_flip=True, data__random_crop=0.5)
    for split in ("train", "test"):
        source = build.load_data(config, build.model(config), split)
        plain = build.load_data(tiny(), build.model(tiny()), split)
        for i in range(0, len(source), 50):
            np.testing.assert_array_equal(source[i]["image"], plain[i]["image"])


def test_data_with_more_classes_than_the_model_is_refused():
    changes = {"data__num_classes": 9, "data__image_shape": (8, 8, 1)}
    text = data_refusal(model__class_conditional=True, **changes)
    assert "10 classes" in text and "this model 9" in text and "data.num_classes" in text
    config = small(**changes)  # an unconditional model does not care
    assert len(build.load_data(config, build.model(config), "train")) == 1438
    config = small(**{**changes, "data__num_classes": 11}, model__class_conditional=True)
    assert len(build.load_data(config, build.model(config), "train")) == 1438


@pytest.mark.parametrize(
    "shape, size, low_res_shape",
    [((8, 8, 1), 4, (4, 4, 1)), ((16, 24, 3), 4, (4, 6, 3)), ((24, 16, 3), 15, (22, 15, 3))],
)
def test_super_resolution_takes_small_images_of_the_same_proportions(shape, size, low_res_shape):
    changes = {"data__image_shape": shape, "model__attention_resolutions": ()}
    model = build.model(small(model__low_res_size=size, **changes))
    assert model.low_res_shape == low_res_shape
    assert model.spec.super_resolution and model.spec.channels == shape[2]
    params = jax.eval_shape(lambda: model.network.init(jax.random.key(0), model.image_shape))
    assert params["conv_in"]["kernel"].shape == (3, 3, 2 * shape[2], 32)
    assert build.model(small(**changes)).low_res_shape is None


@pytest.mark.parametrize("size", [8, 9])
def test_small_images_that_are_not_smaller_are_refused(size):
    text = refusal(model__low_res_size=size)
    assert f"model.low_res_size is {size}" in text and "8 pixels" in text


def test_small_images_for_a_base_model_are_refused():
    text = refusal(sample__base="samples.npz")
    assert "sample.base" in text and "model.low_res_size" in text
    build.model(small(sample__base="samples.npz", model__low_res_size=4))


def test_classes_are_not_chosen_for_super_resolution():
    changes = {"model__class_conditional": True, "model__low_res_size": 4}
    assert "sample.classes" in refusal(sample__classes=(1,), **changes)


def test_guidance_needs_a_model_that_was_trained_for_it():
    for changes in ({}, {"model__class_conditional": True}):
        text = refusal(sample__guidance=2.0, **changes)
        assert "sample.guidance is 2.0" in text and "model.label_dropout" in text
    model = build.model(
        small(sample__guidance=2.0, model__class_conditional=True, model__label_dropout=0.1)
    )
    assert model.spec.null_class and model.spec.class_rows == 11 and model.num_classes == 10


def test_label_dropout_needs_classes():
    text = refusal(model__label_dropout=0.1)
    assert "model.label_dropout" in text and "model.class_conditional" in text


@pytest.mark.parametrize(
    "decay, warmup, expected",
    [
        ("constant", 0, [0.8, 0.8, 0.8, 0.8, 0.8]),
        ("linear", 0, [0.8, 0.72, 0.64, 0.4, 0.08]),
        ("constant", 4, [0.2, 0.4, 0.6, 0.8, 0.8]),
        ("linear", 4, [0.2, 0.36, 0.48, 0.4, 0.08]),
    ],
)
def test_learning_rate_by_hand(decay, warmup, expected):
    rate = build.learning_rate(
        small(
            train__learning_rate=0.8, train__learning_rate_decay=decay, train__warmup_steps=warmup
        )
    )
    for step, value in zip([0, 1, 2, 5, 9], expected, strict=True):
        np.testing.assert_allclose(rate(jnp.int32(step)), value, rtol=1e-6)
        np.testing.assert_allclose(rate(step), value, rtol=1e-6)


def adamw(params, gradients, rates, weight_decay, clip):
    """Loshchilov & Hutter 2019, algorithm 2, in float64; the clip is of the global L2 norm."""
    params = {k: np.asarray(v, np.float64) for k, v in params.items()}
    m = {k: np.zeros_like(v) for k, v in params.items()}
    v = {k: np.zeros_like(p) for k, p in params.items()}
    for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradient.values()))
        scale = min(1.0, clip / norm) if clip else 1.0
        for k, p in params.items():
            g = scale * gradient[k].astype(np.float64)
            m[k] = 0.9 * m[k] + 0.1 * g
            v[k] = 0.999 * v[k] + 0.001 * g**2
            direction = (m[k] / (1 - 0.9**t)) / (np.sqrt(v[k] / (1 - 0.999**t)) + 1e-8)
            params[k] = p - rate * (direction + weight_decay * p)
    return params


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("clip", [0.0, 2.0])
def test_optimizer_is_adamw_behind_a_clip(weight_decay, clip):
    rng = np.random.default_rng(0)
    shapes = {"kernel": (3, 4), "bias": (4,)}

    def draw(scale):
        return {k: (scale * rng.normal(size=s)).astype(np.float32) for k, s in shapes.items()}

    start = draw(1.0)
    gradients = [draw(scale) for scale in (0.1, 5.0, 1.0)]  # of global norm 0.4, 20 and 4
    optimizer = build.optimizer(
        small(
            train__steps=4,
            train__learning_rate=0.1,
            train__learning_rate_decay="linear",
            train__weight_decay=weight_decay,
            train__gradient_clip=clip,
        )
    )
    params, state = start, optimizer.init(start)
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
        params = {k: params[k] + updates[k] for k in params}
    expected = adamw(start, gradients, [0.1, 0.075, 0.05], weight_decay, clip)
    for k in shapes:
        np.testing.assert_allclose(params[k], expected[k], rtol=0, atol=2e-6)


def test_data_without_classes_are_refused_by_a_model_that_is_told_them(tmp_path):
    np.savez(tmp_path / "a.npz", np.zeros((20, 8, 8, 1), np.uint8))
    name = f"npz:{tmp_path / 'a.npz'}"
    with pytest.raises(InputError, match=r"no classes.*model\.class_conditional=false"):
        build.model(tiny(data__name=name))
    config = tiny(data__name=name, data__image_shape=(8, 8, 1), data__num_classes=10)
    with pytest.raises(InputError, match=r"no classes.*model\.class_conditional=false"):
        build.load_data(config, build.model(config), "train")
    config = tiny(data__name=name, model__class_conditional=False)
    assert len(build.load_data(config, build.model(config), "train")) == 18
