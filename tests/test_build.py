"""From config to objects: what a config becomes, and which configs cannot become anything."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
