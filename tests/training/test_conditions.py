"""What training tells the network besides x_t: classes, sometimes kept back, and small images.

The networks here predict x_0 by a formula, so the loss of an example says what they were given. The
importance history holds the loss of every example of a step.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from iddpm_jax.diffusion import importance
from iddpm_jax.diffusion.losses import Objective
from iddpm_jax.diffusion.respacing import respace
from iddpm_jax.diffusion.reverse import Parametrization
from iddpm_jax.diffusion.schedules import make_betas
from iddpm_jax.models.unet import Network
from iddpm_jax.training.parallel import make_mesh, to_devices
from iddpm_jax.training.state import init_state
from iddpm_jax.training.step import StepSettings, make_train_step

T = 20
NULL = 10


def step_of(network, optimizer, devices=1, schedule=None, **settings):
    """A compiled step with L_simple on x_0, and its mesh."""
    mesh = make_mesh(jax.devices()[:devices])
    return mesh, make_train_step(
        network,
        respace(make_betas("cosine", T), ""),
        Parametrization("x_0", "fixed_large"),
        Objective("l_simple"),
        optimizer,
        schedule or optax.constant_schedule(0.1),
        StepSettings(0, 1, (), 0.001, **settings),
        mesh,
    )


def one_step(predict, images, labels, devices=1, **settings):
    """(losses of the examples in any order, metrics) of a step with L_simple on x_0.

    Args:
        predict: (x_t, y, low_res) -> x_0.
        images: uint8 [B, H, W, C].
        labels: [B].
        settings: fields of StepSettings.
    """

    def apply(params, x, t, y, dropout_keys, low_res):
        return predict(x, y, low_res) + 0.0 * params["w"]

    network = Network(lambda key, shape: {"w": jnp.zeros(())}, apply)
    optimizer = optax.sgd(0.1)
    mesh, step = step_of(network, optimizer, devices, **settings)
    # Room for all losses of one t: so many are never there, and t stays evenly drawn.
    history = importance.init(T, len(images))
    state = init_state(jax.random.key(0), network, images.shape[1:], optimizer, (), history)
    batch = {"image": images, "label": np.asarray(labels, np.int32)}
    state, metrics = step(state, to_devices(mesh, batch))
    history = jax.device_get(state.history)
    losses = np.concatenate(
        [row[:seen] for row, seen in zip(history.losses, history.seen, strict=True)]
    )
    assert len(losses) == len(images)
    return losses, jax.device_get(metrics)


def plain(labels: np.ndarray) -> np.ndarray:
    """4x4 pictures that show their label, a decimal digit, by their brightness."""
    return (labels * 25).astype(np.uint8)[:, None, None, None].repeat(4, 1).repeat(4, 2)


def say_class(x, y, low_res):
    """The class that the network is told, times 100."""
    assert low_res is None
    return jnp.broadcast_to(100.0 * y[:, None, None, None], x.shape)


def told_and_true(losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Class that the network was told and that of the picture, out of (100 y - x_0)^2, |x_0| <= 1.

    As told 0 leaves the sign of x_0 open, label 0 is not used.
    """
    difference = np.sqrt(losses.astype(np.float64))
    told = np.rint(difference / 100).astype(int)
    x_0 = told * 100 - difference
    return told, np.rint((x_0 * 127.5 + 127.5) / 25).astype(int)


LABELS = np.arange(512) % 9 + 1


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_label_dropout_puts_the_null_class_in_place_of_its_share_of_labels(rate):
    losses, _ = one_step(say_class, plain(LABELS), LABELS, num_classes=NULL, label_dropout=rate)
    told, true = told_and_true(losses)
    np.testing.assert_array_equal(np.bincount(true), np.bincount(LABELS))
    hidden = told == NULL
    np.testing.assert_array_equal(told[~hidden], true[~hidden])
    if rate in (0.0, 1.0):
        assert hidden.mean() == rate
    else:
        # 512 fair coins: the standard deviation of their share is 0.022.
        assert abs(hidden.mean() - rate) < 0.09
        # No class is hidden always or never.
        share = np.bincount(true, hidden)[1:] / np.bincount(LABELS)[1:]
        assert share.min() > 0.15 and share.max() < 0.85


def test_unconditional_network_is_told_no_class():
    def predict(x, y, low_res):
        assert y is None and low_res is None
        return x

    one_step(predict, plain(LABELS), LABELS)


def test_label_dropout_and_noise_on_small_images_leave_timesteps_and_noise_alone():
    """The squared error of x_t as x_0 depends on t and eps, and on nothing else that is drawn."""
    images = np.random.default_rng(0).integers(0, 256, (64, 4, 4, 1)).astype(np.uint8)

    def errors(**settings):
        return one_step(lambda x, y, low_res: x, images, LABELS[:64], num_classes=NULL, **settings)

    expected, metrics = errors()
    for settings in (
        {"label_dropout": 0.5},
        {"low_res_shape": (2, 2, 1), "low_res_noise": 0.3, "label_dropout": 1.0},
    ):
        losses, again = errors(**settings)
        np.testing.assert_array_equal(losses, expected)
        np.testing.assert_array_equal(again["quartile_weight"], metrics["quartile_weight"])
    assert len(set(expected)) == 64


def enlarge(x: jax.Array, low_res: jax.Array) -> jax.Array:
    """Every pixel of the small images repeated to the size of x."""
    factor = x.shape[1] // low_res.shape[1]
    return low_res.repeat(factor, axis=1).repeat(factor, axis=2)


@pytest.mark.parametrize("devices", [1, 4])
def test_small_image_is_the_area_average_of_the_example(devices):
    images = np.random.default_rng(0).integers(0, 256, (32, 8, 12, 3)).astype(np.uint8)
    losses, _ = one_step(
        lambda x, y, low_res: enlarge(x, low_res),
        images,
        LABELS[:32],
        devices,
        low_res_shape=(2, 3, 3),
    )
    x_0 = images.astype(np.float64) / 127.5 - 1
    means = x_0.reshape(32, 2, 4, 3, 4, 3).mean(axis=(2, 4))
    expected = ((means.repeat(4, 1).repeat(4, 2) - x_0) ** 2).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(np.sort(losses), np.sort(expected), rtol=1e-5)


def test_noise_on_small_images_has_evenly_drawn_strength():
    """In plain pictures nothing but the noise is lost: the loss of each is its mean square."""
    images = plain(LABELS)[:, :1, :1].repeat(32, 1).repeat(32, 2)
    losses, _ = one_step(
        lambda x, y, low_res: enlarge(x, low_res),
        images,
        LABELS,
        low_res_shape=(16, 16, 1),
        low_res_noise=0.4,
    )
    # The root mean square of 256 normal numbers is 1 with a standard deviation of 0.044.
    std = np.sort(np.sqrt(losses.astype(np.float64))) / 0.4
    assert std.max() < 1.2
    # Kolmogorov's distance from the even distribution; 0.1% of fair draws are above 0.086.
    distance = np.abs(std - (np.arange(512) + 0.5) / 512).max()
    assert distance < 0.11


def test_noise_differs_between_pixels_and_examples():
    """Black pictures, predicted as white where their noise is above 0: four coins for each."""
    losses, _ = one_step(
        lambda x, y, low_res: enlarge(x, jnp.sign(low_res + 1.0)),
        plain(0 * LABELS),
        LABELS,
        low_res_shape=(2, 2, 1),
        low_res_noise=0.4,
    )
    heads = np.bincount(np.rint(losses).astype(int), minlength=5)
    assert heads.shape == (5,)
    # 512 draws of a binomial: standard deviations of at most 11.
    np.testing.assert_allclose(heads, 512 * np.array([1, 4, 6, 4, 1]) / 16, atol=44)


def test_history_takes_losses_without_their_weights():
    # A network that is off by 7 everywhere: every example's loss is 49, whatever its weight.
    def apply(params, x, t, y, dropout_keys, low_res):
        return jnp.full_like(x, 6.0) + 0.0 * params["w"]

    network = Network(lambda key, shape: {"w": jnp.zeros(())}, apply)
    optimizer = optax.sgd(0.1)
    # Full from the start, and far from even, so that the weights are far from 1.
    losses = np.arange(1.0, T + 1, dtype=np.float32)[:, None]
    history = importance.History(jnp.asarray(losses), jnp.ones(T, jnp.int32))
    state = init_state(jax.random.key(0), network, (4, 4, 1), optimizer, (), history)
    mesh, step = step_of(network, optimizer)
    images = np.zeros((64, 4, 4, 1), np.uint8)  # x_0 = -1
    batch = {"image": images, "label": np.zeros(64, np.int32)}
    state, metrics = step(state, to_devices(mesh, batch))
    after = np.asarray(state.history.losses)
    drawn = after != losses
    assert drawn.any() and not np.isclose(metrics["loss"], 49.0, rtol=1e-3)
    np.testing.assert_allclose(after[drawn], 49.0, rtol=1e-6)


@pytest.mark.parametrize("begin", [0, 7])
def test_learning_rate_follows_the_step_of_the_run(begin):
    # Converted weights come with a step, but with an optimizer that has taken none.
    def apply(params, x, t, y, dropout_keys, low_res):
        return params["w"] * jnp.ones_like(x)

    network = Network(lambda key, shape: {"w": jnp.float32(5.0)}, apply)
    schedule = optax.linear_schedule(0.1, 0.0, 10)
    optimizer = optax.adamw(schedule, weight_decay=0.0)
    state = init_state(jax.random.key(0), network, (4, 4, 1), optimizer, (), None)
    state = dataclasses.replace(state, step=jnp.int32(begin))
    mesh, step = step_of(network, optimizer, schedule=schedule)
    batch = {"image": np.zeros((8, 4, 4, 1), np.uint8), "label": np.zeros(8, np.int32)}
    for now in (begin, begin + 1):
        before = float(state.params["w"])
        state, metrics = step(state, to_devices(mesh, batch))
        # Adam's first steps on one steady gradient are as long as the rate.
        rate = 0.1 * (1 - now / 10)
        np.testing.assert_allclose(metrics["learning_rate"], rate, rtol=1e-5)
        np.testing.assert_allclose(before - float(state.params["w"]), rate, rtol=0.02)
