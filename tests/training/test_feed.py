"""A split that stays on the devices: what each step draws from it, and what is refused."""

import jax
import numpy as np
import pytest
from tiny_config import tiny

from iddpm_jax import build, data
from iddpm_jax.checks import check
from iddpm_jax.errors import InputError
from iddpm_jax.training import feed, loop, runs
from iddpm_jax.training.parallel import batch_sharding, make_mesh


class Lazy:
    """Pictures that are made when they are asked for; number i has i at its left, 255 - i right."""

    class_names = ()

    def __init__(self, count: int, broken: int | None = None):
        self._count, self._broken, self.image_shape = count, broken, (2, 2, 1)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if index == self._broken:
            raise InputError(f"picture {index} cannot be read")
        image = np.array([[index, 255 - index]] * 2, np.uint8)[..., None]
        return {"image": image, "label": np.int32(index)}


def drawn(count, batch_size, steps, seed=0, flip=False, devices=4):
    """Batches of the first steps, on the host."""
    mesh = make_mesh(jax.devices()[:devices])
    split = next(feed.Split(Lazy(count), mesh, num_threads=3))
    draw = jax.jit(feed.drawing(seed, batch_size, flip, mesh))
    batches = [draw(split, np.int32(step)) for step in range(steps)]
    assert all(
        a.sharding.is_equivalent_to(batch_sharding(mesh), a.ndim) for a in batches[0].values()
    )
    return jax.device_get(batches)


def labels(batches):
    return [batch["label"].tolist() for batch in batches]


def test_a_pass_shows_every_image_once_and_the_next_has_another_order():
    found = labels(drawn(24, 8, 6))
    first, second = sum(found[:3], []), sum(found[3:], [])
    assert sorted(first) == sorted(second) == list(range(24))
    assert first != second and first != list(range(24))


def test_what_is_left_of_a_pass_waits_for_another():
    found = labels(drawn(27, 8, 30))
    passes = [sum(found[i : i + 3], []) for i in range(0, 30, 3)]
    assert all(len(set(one)) == 24 for one in passes)
    assert set(sum(passes, [])) == set(range(27))


def test_images_keep_their_labels_and_half_of_them_are_flipped():
    batches = drawn(100, 20, 20, flip=True)
    image = np.concatenate([batch["image"] for batch in batches])[:, :, :, 0]
    label = np.concatenate([batch["label"] for batch in batches])
    flipped = image[:, 0, 0] == 255 - label
    assert (image[:, 0, 0] == np.where(flipped, 255 - label, label)).all()
    assert (image[:, 0, 1] == np.where(flipped, label, 255 - label)).all()
    assert 0.4 < flipped.mean() < 0.6
    of_zero = flipped[label == 0]  # not the same in every pass
    assert 0 < of_zero.sum() < len(of_zero)
    assert not any((batch["image"][:, 0, 0, 0] != batch["label"]).any() for batch in drawn(9, 4, 4))


@pytest.mark.parametrize("devices", [1, 2])
def test_batches_depend_on_seed_and_step_but_not_on_the_devices(devices):
    expected = drawn(24, 8, 4, flip=True)
    for a, b in zip(expected, drawn(24, 8, 4, flip=True, devices=devices), strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])
        np.testing.assert_array_equal(a["label"], b["label"])
    assert labels(expected) != labels(drawn(24, 8, 4, seed=1, flip=True))


def test_key_of_the_order_is_no_steps_key():
    assert feed.ORDER > np.iinfo(np.int32).max


def test_split_in_memory_and_one_that_is_read_are_the_same_arrays():
    source = data.load("digits", "train")
    lazy = next(feed.Split(Lazy(24), make_mesh(), num_threads=2))
    assert lazy["label"].tolist() == list(range(24)) and lazy["image"].dtype == np.uint8
    held = next(feed.Split(source, make_mesh()))
    np.testing.assert_array_equal(held["image"], source.images)
    np.testing.assert_array_equal(held["label"], source.labels)
    assert all(a.sharding.is_fully_replicated for a in (*lazy.values(), *held.values()))


def test_picture_that_cannot_be_read_is_named():
    with pytest.raises(InputError, match="picture 7 cannot be read"):
        feed.Split(Lazy(24, broken=7), make_mesh(), num_threads=2)


def test_split_that_fills_a_device_is_refused(monkeypatch):
    class Small:
        def memory_stats(self):
            return {"bytes_limit": 24 * 8 * 2 - 1}

    class Mesh:
        local_devices = (Small(),)

    with pytest.raises(InputError, match=r"data\.resident would put .* leave it out"):
        feed.Split(Lazy(24), Mesh())


def test_fewer_images_than_a_batch_are_refused():
    config = tiny(data__resident=True, train__batch_size=4000)
    with pytest.raises(InputError, match=r"train\.batch_size 4000 is more than"):
        feed.open_feed(config, build.model(config), make_mesh())


def test_random_crops_are_refused():
    with pytest.raises(InputError, match=r"data\.resident .* data\.random_crop"):
        check(tiny(data__resident=True, data__random_crop=0.8))


def trained(workdir, **overrides):
    """The state after a run, on the host."""
    config = tiny(data__resident=True, data__random_flip=True, **overrides)

    def no(*_):
        raise AssertionError("neither samples nor bits/dim were asked for")

    state = loop.train(config, build.model(config), make_mesh(), workdir, loop.Hooks(no, no))
    return config, jax.device_get(state)


def assert_same_moments(a, b):
    """To rounding; parameters differ more, as Adam follows it where the exact gradient is zero."""
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6),
        a.opt_state,
        b.opt_state,
    )


@pytest.mark.slow
def test_run_on_a_split_resumes_exactly_and_in_one_call_as_step_by_step(tmp_path):
    config, expected = trained(tmp_path / "straight", train__steps=4)
    trained(tmp_path / "stopped", train__steps=2)
    _, continued = trained(tmp_path / "stopped", train__steps=4)
    jax.tree.map(np.testing.assert_array_equal, expected, continued)
    _, in_twos = trained(tmp_path / "twos", train__steps=4, train__steps_per_dispatch=2)
    assert_same_moments(expected, in_twos)
    # The same steps on the same batches, given to the plain step by hand.
    model, mesh = build.model(config), make_mesh()
    split = next(feed.open_feed(config, model, mesh))
    draw = jax.jit(feed.drawing(config.seed, config.train.batch_size, True, mesh))
    state, step = runs.new_state(config, model, mesh)(), runs.step_function(config, model, mesh)
    for i in range(4):
        state, _ = step(state, draw(split, np.int32(i)))
    assert_same_moments(expected, jax.device_get(state))
