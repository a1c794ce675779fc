"""Samples: independent of batch and devices, by class, written as evaluators expect."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_config import tiny

from iddpm_jax import build
from iddpm_jax.diffusion import samplers
from iddpm_jax.errors import InputError
from iddpm_jax.evaluation import generate as drawing
from iddpm_jax.evaluation.generate import classes_of, generate
from iddpm_jax.images import to_uint8
from iddpm_jax.models.unet import Network
from iddpm_jax.training.parallel import make_mesh

# Nearly all of it compiles a training step, a sampler or a likelihood.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model_and_params():
    """A network with weights that do something, so that its samples differ."""
    model = build.model(tiny())
    params = jax.jit(lambda: model.network.init(jax.random.key(0), model.image_shape))()
    rng = np.random.default_rng(0)
    leaves, tree = jax.tree.flatten(params)
    return model, tree.unflatten(
        [p + 0.02 * rng.standard_normal(p.shape).astype("f") for p in leaves]
    )


def draw(model_and_params, devices=4, **overrides):
    mesh = make_mesh(jax.devices()[:devices])
    return generate(tiny(**overrides), *model_and_params, mesh, progress=False)


@pytest.fixture(scope="module")
def eight(model_and_params):
    """Eight ancestral samples on four devices."""
    return draw(model_and_params)[0]


def assert_same_pictures(a, b):
    """Equal but for a rounding that falls on the other side of a level."""
    assert a.shape == b.shape and a.dtype == b.dtype == np.uint8
    assert np.abs(a.astype(int) - b.astype(int)).max() <= 1
    assert (a != b).mean() < 0.02


@pytest.mark.parametrize("devices, batch", [(4, 4), (1, 3), (2, 2)])
def test_sample_depends_on_seed_and_index_alone(model_and_params, eight, devices, batch):
    images, _ = draw(model_and_params, devices, sample__batch_size=batch)
    assert_same_pictures(eight, images)


def test_samples_are_equal_to_the_last_bit_on_any_devices_from_any_start(
    model_and_params, monkeypatch
):
    """Before they are rounded to levels, which hides most differences."""
    monkeypatch.setattr(drawing, "to_uint8", lambda x: x)
    config = tiny(sample__count=27, sample__batch_size=5)

    def floats(devices, start=0):
        mesh = make_mesh(jax.devices()[:devices])
        drawn = drawing.draw(config, *model_and_params, mesh, start=start, progress=False)
        return np.concatenate(list(drawn))

    expected = floats(4)
    assert expected.shape == (27, 8, 8, 1) and expected.dtype == np.float32
    for devices, start in ((1, 0), (2, 0), (3, 5), (2, 13), (1, 24), (4, 26)):
        np.testing.assert_array_equal(floats(devices, start), expected[start:])
    assert list(drawing.draw(config, *model_and_params, make_mesh(), start=27)) == []


@pytest.mark.parametrize("sampler, frames", [("ancestral", 0), ("ddim", 3)])
def test_one_program_draws_the_same_bits_with_any_number_of_steps(
    model_and_params, monkeypatch, sampler, frames
):
    """Beside the program of a process whose tables are only as long as it is."""
    monkeypatch.setattr(drawing, "to_uint8", lambda x: x)
    functions, make = [], drawing.sampling_function
    monkeypatch.setattr(
        drawing, "sampling_function", lambda *a: functions.append(make(*a)) or functions[-1]
    )

    def floats(steps, skip):
        config = tiny(sample__steps=steps, sample__skip=skip, sample__sampler=sampler)
        mesh = make_mesh(jax.devices()[:2])
        drawn = drawing.draw(config, *model_and_params, mesh, progress=False, frames=frames)
        return np.concatenate(list(drawn))

    asked = [("4", 0.0), ("7", 0.0), ("", 0.5)]
    make.cache_clear()
    found = [floats(*each) for each in asked]
    assert len(set(functions)) == 1 and functions[0]._cache_size() == 1
    monkeypatch.setattr(drawing, "padded", lambda process, length: process)
    for each, samples in zip(asked, found, strict=True):
        np.testing.assert_array_equal(samples, floats(*each))
    assert functions[0]._cache_size() == 1 + len(asked)


@pytest.mark.parametrize("devices, start", [(1, 0), (2, 0), (4, 13), (3, 26)])
def test_device_draws_the_same_neighbours_in_the_same_places(monkeypatch, devices, start):
    """So that XLA's sums, whose order may depend on the shape and the place, are the same."""
    seen = []

    def stand_in(shared, batch):
        seen.extend(np.asarray(shard.data).tolist() for shard in batch[0].addressable_shards)
        # Whole levels, and far enough from the next for rounding.
        return (batch[0][:, None, None, None] + 0.5) / 127.5 - jnp.ones((1, 8, 8, 1))

    monkeypatch.setattr(drawing, "sampling_function", lambda *_: stand_in)
    config, mesh = tiny(sample__count=27, sample__batch_size=5), make_mesh(jax.devices()[:devices])
    drawn = drawing.draw(config, build.model(config), {}, mesh, start=start, progress=False)
    levels = np.concatenate(list(drawn))[:, 0, 0, 0]
    assert levels.tolist() == list(range(start, 27))
    for share in seen:
        first = share[0] if share[0] < 26 else 30  # of filling only
        assert first % 5 == 0 and share == np.minimum(np.arange(first, first + 5), 26).tolist()


def test_fewer_samples_are_the_first_ones(model_and_params, eight):
    images, _ = draw(model_and_params, sample__count=3)
    assert_same_pictures(eight[:3], images)


def test_other_seed_gives_other_samples(model_and_params, eight):
    images, _ = draw(model_and_params, sample__seed=1)
    assert (images != eight).mean() > 0.3


def test_ddim_without_noise_differs_from_ddim_with_noise(model_and_params):
    quiet, _ = draw(model_and_params, sample__sampler="ddim")
    noisy, _ = draw(model_and_params, sample__sampler="ddim", sample__eta=1.0)
    assert (quiet != noisy).mean() > 0.1


def test_classes_are_taken_in_turn():
    model = build.model(tiny())
    assert classes_of(tiny(), model, 12).tolist() == [*range(10), 0, 1]
    assert classes_of(tiny(sample__classes=(3, 8)), model, 5).tolist() == [3, 8, 3, 8, 3]


def test_random_classes_are_the_chosen_ones_and_evenly_so():
    config = tiny(sample__class_choice="random", sample__classes=(3, 8, 8, 8))
    drawn = classes_of(config, build.model(config), 4000)
    assert drawn.dtype == np.int32 and set(drawn) == {3, 8}
    # The standard deviation of a share of a quarter among 4000 is 0.007.
    assert abs((drawn == 3).mean() - 0.25) < 0.03
    everything = classes_of(tiny(sample__class_choice="random"), build.model(config), 4000)
    np.testing.assert_allclose(np.bincount(everything) / 4000, 0.1, atol=0.02)


@pytest.mark.parametrize("choice", ["balanced", "random"])
def test_longer_run_begins_with_the_classes_of_a_shorter_one(choice):
    model = build.model(tiny())
    for classes in ((), (7,), (1, 4, 4)):
        config = tiny(sample__class_choice=choice, sample__classes=classes)
        long = classes_of(config, model, 101)
        for count in (1, 2, 7, 64):
            assert classes_of(config, model, count).tolist() == long[:count].tolist()


def test_other_seed_draws_other_classes():
    model = build.model(tiny())
    a, b = (
        classes_of(tiny(sample__class_choice="random", sample__seed=seed), model, 50)
        for seed in (0, 1)
    )
    assert a.tolist() != b.tolist()


def test_impossible_classes_are_refused():
    with pytest.raises(InputError, match="has 10; this model has classes 0 to 9"):
        classes_of(tiny(sample__classes=(1, 10)), build.model(tiny()), 4)
    unconditional = tiny(model__class_conditional=False, sample__classes=(1,))
    with pytest.raises(InputError, match="unconditional"):
        classes_of(unconditional, build.model(unconditional), 4)


GUIDED = {"model__label_dropout": 0.1, "sample__sampler": "ddim"}


def formula(shapes=None):
    """A network with values of its own for each class: (params, x, t, y, ...) -> [eps, v]."""

    def apply(params, x, t, y, dropout_keys, low_res):
        if shapes is not None:
            shapes.append((x.shape, t.shape, y.shape))
        assert dropout_keys is None and low_res is None
        y = params["strength"] * y[:, None, None, None]
        eps = (0.3 + 0.2 * y) * x + 0.01 * y
        return jnp.concatenate([eps, jnp.broadcast_to(0.1 * y, x.shape)], axis=-1)

    return Network(lambda key, shape: {"strength": jnp.ones(())}, apply)


def draw_formula(devices=1, shapes=None, **overrides):
    """Eight samples of classes 0 to 7 with the formula as network."""
    config = tiny(**{**GUIDED, **overrides})
    model = dataclasses.replace(build.model(config), network=formula(shapes))
    mesh = make_mesh(jax.devices()[:devices])
    params = {"strength": jnp.ones(())}
    return generate(config, model, params, mesh, progress=False)[0]


@pytest.mark.parametrize("sampler, scale", [("ddim", 2.5), ("ancestral", 2.5), ("ddim", 0.0)])
def test_guided_samples_are_those_of_the_combined_network(sampler, scale):
    config = tiny(**GUIDED, sample__guidance=scale)
    model = build.model(config)
    process = model.respaced("5", "sample.steps")
    network = formula().apply
    params, y = {"strength": jnp.ones(())}, jnp.arange(8)

    def combined(x, t):
        eps_c, v_c = jnp.split(network(params, x, t, y, None, None), 2, axis=-1)
        eps_u, _ = jnp.split(network(params, x, t, 0 * y + 10, None, None), 2, axis=-1)
        return jnp.concatenate([(1 - scale) * eps_u + scale * eps_c, v_c], axis=-1)

    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(y)
    noise = samplers.noise_per_sample(keys, (8, 8, 1))
    run = {"ddim": samplers.ddim, "ancestral": samplers.ancestral}[sampler]
    expected = run(combined, process, model.parametrization, noise(jnp.int32(5)), noise).x
    images = draw_formula(devices=4, sample__sampler=sampler, sample__guidance=scale)
    assert_same_pictures(to_uint8(expected), images)
    assert (images != draw_formula(sample__sampler=sampler)).mean() > 0.1


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_samples_of_a_skipped_beginning_and_a_fixed_variance_are_those_by_hand(variance):
    """Three of five steps, from N(0, I) at the third, in float64."""
    steps = np.array([0, 5, 10])
    bar = np.cumprod(1 - build.model(tiny()).betas)[steps]
    before = np.append(1.0, bar[:-1])
    beta = 1 - bar / before
    sigma2 = {"fixed_small": beta * (1 - before) / (1 - bar), "fixed_large": beta}[variance]
    keys = [jax.random.fold_in(jax.random.key(0), i) for i in range(8)]

    def noise(t):
        drawn = [jax.random.normal(jax.random.fold_in(key, t), (8, 8, 1)) for key in keys]
        return np.stack([np.asarray(one, np.float64) for one in drawn])

    x, y = noise(3), np.arange(8)[:, None, None, None]
    for t in (2, 1, 0):
        eps = (0.3 + 0.2 * y) * x + 0.01 * y
        x_0 = np.clip((x - np.sqrt(1 - bar[t]) * eps) / np.sqrt(bar[t]), -1, 1)
        of_x_0 = np.sqrt(before[t]) * beta[t] / (1 - bar[t])
        of_x_t = np.sqrt(1 - beta[t]) * (1 - before[t]) / (1 - bar[t])
        x = of_x_0 * x_0 + of_x_t * x + (np.sqrt(sigma2[t]) * noise(t) if t else 0.0)
    changes = {"sample__skip": 0.4, "sample__sampler": "ancestral"}
    images = draw_formula(**changes, sample__variance=variance)
    assert_same_pictures(to_uint8(x.astype(np.float32)), images)
    assert (images != draw_formula(**changes)).mean() > 0.1


def test_network_runs_on_both_halves_only_where_there_is_guidance():
    plain, guided = [], []
    draw_formula(shapes=plain)
    draw_formula(shapes=guided, sample__guidance=3.0)
    assert set(plain) == {((8, 8, 8, 1), (8,), (8,))}
    assert set(guided) == {((16, 8, 8, 1), (16,), (16,))}


def test_guidance_by_a_null_class_like_the_classes_changes_nothing():
    """The real network, every row of its class embedding being the same."""
    config = tiny(**GUIDED)
    model = build.model(config)
    params = jax.jit(lambda: model.network.init(jax.random.key(0), model.image_shape))()
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: p + 0.02 * rng.standard_normal(p.shape).astype("f"), params)
    table = params["class_embedding"]["embedding"]
    assert table.shape[0] == 11
    params["class_embedding"]["embedding"] = jnp.broadcast_to(table[:1], table.shape)
    expected, _ = draw((model, params), **GUIDED)
    for scale in (4.0, 0.0):
        images, _ = draw((model, params), **GUIDED, sample__guidance=scale)
        assert_same_pictures(expected, images)
