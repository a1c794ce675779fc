"""One optimizer step: devices, microbatches, averages, history, metrics."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_config import tiny

from iddpm_jax import build, data
from iddpm_jax.diffusion import importance
from iddpm_jax.diffusion.losses import training_losses
from iddpm_jax.diffusion.process import q_sample
from iddpm_jax.errors import InputError
from iddpm_jax.training.parallel import check_batch, make_mesh, replicated, to_devices
from iddpm_jax.training.runs import new_state, step_function
from iddpm_jax.training.state import init_state
from iddpm_jax.training.step import StepSettings, make_train_step

# Nearly all of it compiles a training step, a sampler or a likelihood.
pytestmark = pytest.mark.slow

RATES = (0.5, 0.9)


def perturbed(params):
    """Away from the zero initialisation, under which most gradients vanish."""
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    return tree.unflatten([p + 0.05 * rng.standard_normal(p.shape).astype("f") for p in leaves])


def run(devices: int, microbatches: int = 1, steps: int = 3, warm: bool = True, **overrides):
    """(initial params, state, metrics of the last step, traces) of plain gradient descent."""
    config = tiny(**overrides)
    model = build.model(config)
    mesh = make_mesh(jax.devices()[:devices])
    # Adam would blow rounding noise in tiny gradients up to full steps.
    optimizer = optax.sgd(0.01)
    history = importance.init(model.process.T, 2)
    if warm:
        rows = jnp.asarray(np.random.default_rng(1).uniform(1, 3, (20, 2)), jnp.float32)
        history = importance.History(rows, jnp.full((20,), 2, jnp.int32))
    state = init_state(
        jax.random.key(0), model.network, model.image_shape, optimizer, RATES, history
    )
    params = perturbed(state.params)
    state = init_like(state, params)
    step = make_train_step(
        model.network,
        model.process,
        model.parametrization,
        model.objective,
        optimizer,
        optax.constant_schedule(0.01),
        StepSettings(
            3,
            microbatches,
            RATES,
            0.001,
            10,
            config.model.label_dropout,
            config.model.dropout > 0,
            model.low_res_shape,
            config.train.low_res_noise,
        ),
        mesh,
    )
    before = jax.device_get(params)
    state = jax.device_put(state, replicated(mesh))
    batches = data.training_batches(data.load("digits", "train"), 16, 0, False)
    for _ in range(steps):
        state, metrics = step(state, to_devices(mesh, next(batches)))
    return before, jax.device_get(state), jax.device_get(metrics), step._cache_size()


def init_like(state, params):
    ema = {name: jax.tree.map(jnp.array, params) for name in state.ema}
    return type(state)(state.step, params, ema, state.opt_state, state.history)


@pytest.fixture(scope="module")
def one_device():
    """Three steps on one device, with importance sampling and dropout."""
    return run(1, model__dropout=0.2, loss__name="l_hybrid")


def assert_close(result, expected):
    """Results of run, equal but for rounding."""
    _, state, metrics, _ = result
    _, expected_state, expected_metrics, _ = expected
    for a, b in zip(jax.tree.leaves(expected_state), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(b, a, rtol=2e-4, atol=2e-5 * max(1.0, np.abs(a).max()))
    for name, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=2e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("devices, microbatches", [(4, 1), (2, 4), (4, 4)])
def test_step_on_more_devices_or_microbatches_gives_the_same(one_device, devices, microbatches):
    result = run(devices, microbatches, model__dropout=0.2, loss__name="l_hybrid")
    assert_close(result, one_device)


def test_super_resolution_with_hidden_labels_on_more_devices_gives_the_same():
    conditions = {
        "model__label_dropout": 0.5,
        "model__low_res_size": 4,
        "train__low_res_noise": 0.3,
    }
    one, four = (run(devices, **conditions) for devices in (1, 4))
    assert_close(four, one)
    before, state, _, _ = one
    # The rows of the labels seen and of the null class have moved.
    table, old = state.params["class_embedding"]["embedding"], before["class_embedding"]
    assert table.shape[0] == 11 and not np.array_equal(table[10], old["embedding"][10])


def test_step_changes_every_parameter_of_a_perturbed_network(one_device):
    before, state, _, _ = one_device
    unchanged = [
        jax.tree_util.keystr(path)
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(state.params), strict=True
        )
        # With one channel a group, a norm takes out any bias in front of it.
        if np.array_equal(a, b) and path[-1].key != "bias"
    ]
    assert not unchanged


def test_step_traces_once_in_ten_steps():
    *_, traces = run(4, steps=10)
    assert traces == 1


def test_step_averages_parameters_at_every_rate():
    before, after, _, _ = run(1, steps=1)
    for rate in RATES:
        expected = jax.tree.map(lambda a, b, r=rate: r * a + (1 - r) * b, before, after.params)
        for a, b in zip(
            jax.tree.leaves(expected), jax.tree.leaves(after.ema[str(rate)]), strict=True
        ):
            np.testing.assert_allclose(b, a, rtol=1e-6, atol=1e-7)


def test_step_puts_sixteen_losses_into_the_history():
    _, state, _, _ = run(4, steps=1, warm=False)
    assert state.history.seen.sum() == 16
    assert np.count_nonzero(state.history.losses) == np.minimum(state.history.seen, 2).sum()


def test_step_reports_what_the_losses_say():
    """The metrics against the loss functions called directly on the same draws."""
    config = tiny(loss__name="l_hybrid", seed=3)
    model, mesh = build.model(config), make_mesh()
    state = new_state(config, model, mesh)()
    batch = next(data.training_batches(data.load("digits", "train"), 16, 0, False))
    params = jax.device_get(state.params)
    _, metrics = step_function(config, model, mesh)(state, to_devices(mesh, batch))

    key = jax.random.fold_in(jax.random.key(3), 0)
    key_t, key_eps, _ = jax.random.split(key, 3)
    t, _ = importance.draw_uniform(key_t, 20, 16)
    x_0 = batch["image"].astype("f") / 127.5 - 1
    eps = jax.random.normal(key_eps, x_0.shape)
    x_t = q_sample(model.process, x_0, t, eps)
    output = model.network.apply(params, x_t, jnp.asarray(model.process.model_t)[t], batch["label"])
    losses = training_losses(
        model.process, model.parametrization, model.objective, output, x_0, x_t, t, eps
    )
    np.testing.assert_allclose(metrics["l_simple"], losses.l_simple.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["l_vlb"], 20 * losses.l_t.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["loss"], losses.loss.mean(), rtol=1e-4)
    quartile = np.asarray(t) * 4 // 20
    for q in range(4):
        inside = np.asarray(losses.l_simple)[quartile == q]
        np.testing.assert_allclose(
            metrics["l_simple_quartile_sum"][q], inside.sum(), rtol=1e-4, atol=1e-6
        )
        assert metrics["quartile_weight"][q] == len(inside)


def test_batch_that_devices_cannot_share_is_refused():
    with pytest.raises(InputError, match="18 is not divisible by 4 devices x 2 microbatches"):
        check_batch(make_mesh(), 18, 2)
