"""Bits/dim: the terms one by one, subsets without bias, the whole split once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_config import tiny

from iddpm_jax import build, data
from iddpm_jax.diffusion.losses import bound_term, prior_term
from iddpm_jax.diffusion.process import q_sample
from iddpm_jax.diffusion.reverse import Parametrization, clip_x_0
from iddpm_jax.evaluation import nll
from iddpm_jax.evaluation.likelihood import Likelihood
from iddpm_jax.evaluation.nll import evaluate, evaluate_all, made_by, measure
from iddpm_jax.evaluation.parts import Parts
from iddpm_jax.evaluation.terms import steps_of_images
from iddpm_jax.models.unet import Network
from iddpm_jax.training.parallel import make_mesh

# Nearly all of it compiles a training step, a sampler or a likelihood.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model_and_params():
    """A fresh network: it predicts eps = 0 and v = 0, which keeps the terms tame."""
    model = build.model(tiny())
    return model, jax.jit(lambda: model.network.init(jax.random.key(0), model.image_shape))()


@pytest.fixture(scope="module")
def whole(model_and_params):
    """Every term of every test image, on four devices."""
    return evaluate(tiny(nll__terms=0), *model_and_params, make_mesh(), progress=False)


def test_every_image_and_term_is_there_once(whole):
    assert whole.l_t.shape == whole.x_0_mse.shape == whole.eps_mse.shape == (359, 20)
    assert np.isfinite(whole.l_t).all() and (whole.weight == 1).all()
    assert whole.t.tolist() == list(range(20))
    np.testing.assert_allclose(whole.per_image, whole.l_t.sum(axis=1) + whole.prior, rtol=1e-5)
    np.testing.assert_allclose(whole.bits_per_dim, whole.per_image.mean())


def test_flips_are_for_training_only(model_and_params, whole):
    config = tiny(nll__terms=0, data__random_flip=True)
    flipping = evaluate(config, *model_and_params, make_mesh(), progress=False)
    np.testing.assert_array_equal(flipping.l_t, whole.l_t)


def test_entry_equals_the_bound_term_of_its_image_and_step(model_and_params, whole):
    model, params = model_and_params
    source = data.load("digits", "test")
    i, t = 17, 7
    x_0 = source[i]["image"][None].astype("f") / 127.5 - 1
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), i), t)
    eps = jax.random.normal(key, x_0.shape[1:])[None]
    steps = jnp.array([t])
    x_t = q_sample(model.process, x_0, steps, eps)
    y = source[i]["label"][None]
    output = model.network.apply(params, x_t, jnp.asarray(model.process.model_t)[steps], y)
    l_t, reverse = bound_term(
        model.process, model.parametrization, output, x_0, x_t, steps, clip_x_0
    )
    np.testing.assert_allclose(whole.l_t[i, t], l_t[0], rtol=1e-4)
    np.testing.assert_allclose(whole.x_0_mse[i, t], ((reverse.x_0 - x_0) ** 2).mean(), rtol=1e-4)
    np.testing.assert_allclose(whole.prior[i], prior_term(model.process, x_0)[0], rtol=1e-4)


def test_devices_and_batch_size_do_not_matter(model_and_params, whole):
    mesh = make_mesh(jax.devices()[:1])
    config = tiny(nll__terms=0, nll__batch_size=700)
    again = evaluate(config, *model_and_params, mesh, progress=False)
    np.testing.assert_allclose(again.l_t, whole.l_t, rtol=1e-4, atol=1e-6)


def test_subset_has_the_same_entries_and_an_honest_error(model_and_params, whole):
    part = evaluate(tiny(nll__terms=6), *model_and_params, make_mesh(), progress=False)
    known = ~np.isnan(part.l_t)
    assert (known.sum(axis=1) == 6).all()
    np.testing.assert_allclose(part.l_t[known], whole.l_t[known], rtol=1e-4, atol=1e-6)
    difference = part.bits_per_dim - whole.bits_per_dim
    assert abs(difference) < 4 * part.standard_error
    assert part.standard_error > whole.standard_error


def test_part_of_a_split_has_the_entries_of_the_whole(model_and_params, whole):
    few = evaluate(tiny(nll__terms=0), *model_and_params, make_mesh(), False, count=5)
    chosen = [0, 71, 143, 215, 287]  # 359 images / 5, from the first
    np.testing.assert_allclose(few.l_t, whole.l_t[chosen], rtol=1e-4, atol=1e-6)
    sampled = evaluate(tiny(nll__terms=2), *model_and_params, make_mesh(), False, count=5)
    steps, _ = steps_of_images(359, 20, 2, 0)
    expected = np.take_along_axis(whole.l_t[chosen], steps[chosen], axis=1)
    found = np.take_along_axis(sampled.l_t, steps[chosen], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert np.isfinite(sampled.l_t).sum() == 10


@pytest.mark.parametrize("K, terms", [(10, 7), (20, 6), (250, 100), (1000, 1), (5, 9), (8, 0)])
def test_subset_estimate_is_unbiased(K, terms):
    steps, weight = steps_of_images(4000, K, terms, seed=1)
    assert (np.diff(steps, axis=1) > 0).all()
    assert steps.shape == (4000, min(terms or K, K))
    values = np.linspace(1.0, 2.0, K) ** 3
    estimates = (values * weight)[steps].sum(axis=1)
    assert abs(estimates.mean() - values.sum()) < 5 * estimates.std() / np.sqrt(4000) + 1e-9
    # Each part's steps are equally likely, and stand for as many steps as the part has.
    np.testing.assert_allclose(1 / weight.astype(float) @ np.ones(K), steps.shape[1])


def test_respaced_process_has_as_many_terms_as_steps(model_and_params):
    config = tiny(nll__steps="4", nll__terms=0)
    result = evaluate(config, *model_and_params, make_mesh(), progress=False)
    assert result.l_t.shape == (359, 4)
    assert result.t.tolist() == [0, 6, 13, 19]


def test_super_resolution_is_told_the_area_average_and_the_class():
    """A network that predicts x_0 as the enlarged small image, a little brighter by class."""

    def apply(params, x, t, y, dropout_keys, low_res):
        x_0 = low_res.repeat(2, axis=1).repeat(2, axis=2) + 0.01 * y[:, None, None, None]
        return jnp.concatenate([x_0, 0.0 * x], axis=-1)

    network = Network(lambda key, shape: {}, apply)
    config = tiny(model__low_res_size=4, diffusion__mean="x_0", nll__terms=1, nll__batch_size=360)
    model = dataclasses.replace(build.model(config), network=network)
    result = evaluate(config, model, {}, make_mesh(), progress=False)

    source = data.load("digits", "test")
    x_0 = source.images.astype(np.float64) / 127.5 - 1
    means = x_0.reshape(359, 4, 2, 4, 2, 1).mean(axis=(2, 4)).repeat(2, axis=1).repeat(2, axis=2)
    predicted = np.clip(means + 0.01 * source.labels[:, None, None, None], -1, 1)
    expected = ((predicted - x_0) ** 2).mean(axis=(1, 2, 3))
    # The prediction is the same at every t.
    found = np.nansum(result.x_0_mse, axis=1)
    assert ((~np.isnan(result.x_0_mse)).sum(axis=1) == 1).all()
    np.testing.assert_allclose(found, expected, rtol=1e-4)

    i = 5
    (t,) = np.flatnonzero(~np.isnan(result.l_t[i]))
    steps = jnp.array([t])
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), i), t)
    x = x_0[i][None].astype(np.float32)
    x_t = q_sample(model.process, x, steps, jax.random.normal(key, x.shape[1:])[None])
    output = jnp.concatenate([predicted[i][None].astype(np.float32), 0.0 * x], axis=-1)
    l_t, _ = bound_term(model.process, model.parametrization, output, x, x_t, steps, clip_x_0)
    np.testing.assert_allclose(result.l_t[i, t], l_t[0], rtol=1e-4)


@pytest.fixture(scope="module")
def cheap():
    """A model whose network is one line, with two sets of parameters."""

    def apply(params, x, t, y, dropout_keys, low_res):
        v = params["v"] + 0.1 * jnp.sin(3.0 * x)
        return jnp.concatenate([params["eps"] * x, v], axis=-1)

    model = dataclasses.replace(build.model(tiny()), network=Network(lambda *_: {}, apply))
    one, two = ({"eps": jnp.float32(a), "v": jnp.float32(b)} for a, b in ((0.9, 0.8), (0.8, 0.5)))
    return model, {"0.9": one, "0": two}


def assert_same(one, other, rtol=0.0):
    for field in dataclasses.fields(Likelihood):
        a, b = getattr(one, field.name), getattr(other, field.name)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol, err_msg=field.name)


def test_several_draws_begin_with_the_one(cheap):
    model, weights = cheap
    one, four = (
        evaluate(tiny(nll__draws=draws), model, weights["0"], make_mesh(), False, count=50)
        for draws in (1, 4)
    )
    np.testing.assert_allclose(four.draws[:, 0], one.per_image, rtol=1e-5)
    assert four.draws.shape == (50, 4) and one.draws.shape == (50, 1)
    assert (np.ptp(four.draws, axis=1) > 0).all()
    np.testing.assert_allclose(np.nansum(four.l_t * four.weight, 1) + four.prior, four.per_image)

    # One pair by hand: the noise of draw d > 0 is that of draw 0 folded with d.
    i = 3
    t = np.flatnonzero(~np.isnan(four.l_t[i]))[:1]
    source, row = data.load("digits", "test"), 3 * 359 // 50
    x_0 = source[row]["image"][None].astype("f") / 127.5 - 1
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), row), t[0])
    expected = []
    for d in range(4):
        key_d = jax.random.fold_in(key, d) if d else key
        x_t = q_sample(model.process, x_0, t, jax.random.normal(key_d, x_0.shape[1:])[None])
        output = model.network.apply(weights["0"], x_t, t, None, None, None)
        l_t, _ = bound_term(model.process, model.parametrization, output, x_0, x_t, t, clip_x_0)
        expected.append(l_t[0])
    np.testing.assert_allclose(four.l_t[i, t[0]], np.mean(expected), rtol=1e-4)


def test_averages_of_one_pass_equal_those_measured_alone(cheap):
    model, weights = cheap
    both = evaluate_all(tiny(), model, weights, make_mesh(), progress=False)
    assert list(both) == ["0.9", "0"]
    for name, params in weights.items():
        assert_same(both[name], evaluate(tiny(), model, params, make_mesh(), progress=False))
    assert both["0"].bits_per_dim != both["0.9"].bits_per_dim


@pytest.mark.parametrize("clip", [True, False])
def test_other_bounds_are_those_of_other_models(cheap, clip):
    """Clipped or not, and the same eps under fixed variances."""
    model, weights = cheap
    config, params = tiny(nll__terms=0, nll__clip_x_0=clip), weights["0"]
    found = evaluate(config, model, params, make_mesh(), False, count=30)
    config.nll.clip_x_0 = not clip
    otherwise = evaluate(config, model, params, make_mesh(), False, count=30)
    name = "unclipped" if clip else "clipped"
    assert sorted(found.others) == sorted([name, "fixed_small", "fixed_large"])
    np.testing.assert_allclose(found.others[name].total, otherwise.per_image, rtol=1e-5)
    np.testing.assert_allclose(found.others[name].l_t, otherwise.mean_l_t, rtol=1e-5)

    config.nll.clip_x_0 = clip
    half = Network(model.network.init, lambda *args: model.network.apply(*args)[..., :1])
    for variance in ("fixed_small", "fixed_large"):
        fixed = dataclasses.replace(
            model, network=half, parametrization=Parametrization("eps", variance)
        )
        alone = evaluate(config, fixed, params, make_mesh(), False, count=30)
        np.testing.assert_allclose(found.others[variance].total, alone.per_image, rtol=1e-5)
        np.testing.assert_allclose(found.others[variance].l_t, alone.mean_l_t, rtol=1e-5)
        assert alone.v is None and variance not in alone.others


def test_v_is_the_mean_of_what_the_network_says(cheap):
    model, weights = cheap
    params = {"eps": jnp.float32(1.0), "v": jnp.float32(-0.95)}
    found = evaluate(tiny(nll__terms=0), model, params, make_mesh(), False, count=100)
    # At the end x_t is standard normal: v = -0.95 + 0.1 sin(3 x).
    x = np.random.default_rng(0).standard_normal(200_000)
    v = -0.95 + 0.1 * np.sin(3 * x)
    np.testing.assert_allclose(found.v[-1], v.mean(), atol=0.01)
    np.testing.assert_allclose(found.v_outside[-1], (abs(v) > 1).mean(), atol=0.02)


def test_evaluation_goes_on_where_it_was_killed(cheap, tmp_path, monkeypatch):
    model, weights = cheap
    config = tiny(nll__batch_size=8, nll__draws=2)  # 32 images between two saves
    args = (config, model, weights, make_mesh())
    whole = evaluate_all(*args, progress=False)
    paths = {name: tmp_path / f"{name}.npz" for name in weights}

    append, saved = Parts.append, []

    def killed(self, arrays):
        if len(saved) == 5:
            raise KeyboardInterrupt
        saved.append(len(arrays["prior"]))
        append(self, arrays)

    monkeypatch.setattr(Parts, "append", killed)
    with pytest.raises(KeyboardInterrupt):
        measure(*args, paths)
    assert saved == [32] * 5 and len(list(tmp_path.glob("*.parts/*.npz"))) == 5

    appended = []
    monkeypatch.setattr(
        Parts, "append", lambda self, a: (appended.append(len(a["prior"])), append(self, a))
    )
    found = measure(*args, paths)
    assert sum(appended) == 359 - 160
    for name in weights:
        assert_same(found[name], whole[name])
        with np.load(paths[name]) as arrays:
            assert arrays["bits_per_dim"] == whole[name].bits_per_dim
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("0.9.json", "0.9.npz", "0.json", "0.npz"),
    ]


def test_only_what_decides_a_row_pins_the_parts(cheap):
    model, weights = cheap
    config = tiny()
    before = made_by(config, model, weights)
    assert made_by(tiny(nll__batch_size=64, sample__seed=3), model, weights) == before
    for key, value in (("seed", 1), ("terms", 3), ("draws", 2), ("split", "train")):
        assert made_by(tiny(**{f"nll__{key}": value}), model, weights) != before
    moved = {**weights, "0": {**weights["0"], "v": jnp.float32(0.50001)}}
    assert made_by(config, model, moved) != before
    assert made_by(config, model, {"0": weights["0"]}) != before


def test_a_network_that_gives_no_numbers_has_no_bound(cheap):
    model, weights = cheap
    params = {"eps": jnp.float32(np.nan), "v": jnp.float32(0)}
    found = evaluate(tiny(), model, params, make_mesh(), False, count=8)
    assert np.isnan(found.bits_per_dim) and np.isnan(found.monte_carlo_error)


def test_one_program_measures_the_same_bits_with_any_number_of_steps(model_and_params, monkeypatch):
    def measured(steps):
        config = tiny(nll__steps=steps, nll__terms=0)
        return evaluate(config, *model_and_params, make_mesh(), progress=False, count=8)

    functions, make = [], nll.terms_function
    make.cache_clear()
    monkeypatch.setattr(
        nll, "terms_function", lambda *a: functions.append(make(*a)) or functions[-1]
    )
    found = {steps: measured(steps) for steps in ("4", "7")}
    assert functions[0]._cache_size() == 1
    monkeypatch.setattr(nll, "padded", lambda process, length: process)
    for steps, likelihood in found.items():
        np.testing.assert_array_equal(likelihood.l_t, measured(steps).l_t)
