"""The mesh, the rule that cuts the train state, and that neither changes what is computed."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from tiny_config import tiny

from iddpm_jax import build
from iddpm_jax.errors import InputError
from iddpm_jax.training import parallel, runs


class Device:
    """Stands for a device of one of several processes."""

    def __init__(self, process_index, id):
        self.process_index, self.id = process_index, id


def test_mesh_has_the_devices_of_a_process_side_by_side(monkeypatch):
    monkeypatch.setattr(parallel, "Mesh", lambda devices, *_, **__: devices)
    scattered = [Device(p, i) for i, p in enumerate([1, 0, 1, 0])]
    rows = parallel.make_mesh(scattered, fsdp=2)
    assert [[(d.process_index, d.id) for d in row] for row in rows] == [
        [(0, 1), (0, 3)],
        [(1, 0), (1, 2)],
    ]


def test_mesh_refuses_a_number_that_does_not_divide_its_devices():
    with pytest.raises(InputError, match="train.fsdp is 3, .* 4 devices"):
        parallel.make_mesh(fsdp=3)


@pytest.mark.parametrize(
    "shape, expected",
    [
        ((3, 3, 256, 512), PartitionSpec(None, None, None, "fsdp")),
        ((512, 256), PartitionSpec("fsdp")),
        ((1000, 333), PartitionSpec("fsdp")),
        ((129, 8192), PartitionSpec(None, "fsdp")),
        ((333, 335), PartitionSpec()),
        ((64, 64), PartitionSpec()),
        ((), PartitionSpec()),
    ],
)
def test_longest_axis_that_divides_is_cut(shape, expected):
    assert parallel.fsdp_sharding(parallel.make_mesh(fsdp=2), shape).spec == expected


def test_nothing_is_cut_for_one_device():
    assert parallel.fsdp_sharding(parallel.make_mesh(), (512, 512)).spec == PartitionSpec()


def test_places_hold_what_they_were_given():
    mesh = parallel.make_mesh(fsdp=2)
    batch = {"a": np.arange(24.0).reshape(8, 3), "b": np.arange(8), "c": None}
    for put in (parallel.to_devices, parallel.share_to_devices):
        found = put(mesh, batch)
        assert found["a"].sharding.spec == PartitionSpec(("data", "fsdp"))
        assert found["a"].addressable_shards[0].data.shape == (2, 3)
        jax.tree.map(np.testing.assert_array_equal, parallel.to_host(found), batch)


def ten_steps(devices, fsdp):
    """(state, last metrics) of ten steps with dropout; a layer is wide enough to be cut."""
    config = tiny(
        train__fsdp=fsdp,
        model__dropout=0.2,
        data__random_flip=True,
        loss__name="l_vlb",
        loss__timesteps="importance",
        loss__history_size=2,
        model__width=64,
    )
    model = build.model(config)
    mesh = parallel.make_mesh(jax.devices()[:devices], fsdp)
    state, step = (make(config, model, mesh) for make in (runs.new_state, runs.step_function))
    state, rng = state(), np.random.default_rng(0)
    for _ in range(10):
        image = rng.integers(0, 256, (16, *model.image_shape), np.uint8)
        batch = {"image": image, "label": rng.integers(0, 10, 16).astype(np.int32)}
        state, metrics = step(state, parallel.to_devices(mesh, batch))
    return state, jax.device_get(metrics)


@pytest.fixture(scope="module")
def alone():
    """The run on one device."""
    return ten_steps(1, 1)


def relative(found, expected):
    """Norm of the difference of two pytrees over the norm of the second."""

    def norm(tree):
        return np.sqrt(sum(np.sum(np.square(a, dtype=np.float64)) for a in jax.tree.leaves(tree)))

    return norm(jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), found, expected)) / norm(
        expected
    )


@pytest.mark.slow
@pytest.mark.parametrize("devices, fsdp", [(2, 1), (4, 1), (4, 2), (4, 4)])
def test_devices_change_results_by_rounding_only(alone, devices, fsdp):
    state, metrics = ten_steps(devices, fsdp)
    # The first steps of Adam turn rounding noise in near-zero gradients into full steps.
    assert relative(state.params, alone[0].params) < 1e-4
    assert relative(state.ema, alone[0].ema) < 1e-4
    np.testing.assert_array_equal(state.history.seen, alone[0].history.seen)
    for name, value in alone[1].items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_fsdp_cuts_parameters_averages_and_moments():
    state, _ = ten_steps(4, 2)
    for part in (state.params, state.ema, state.opt_state):
        large = [a for a in jax.tree.leaves(part) if a.size >= parallel.LEAST_SHARDED]
        assert large
        for a in large:
            assert a.addressable_shards[0].data.size == a.size // 2
    assert state.history.losses.sharding.is_fully_replicated
