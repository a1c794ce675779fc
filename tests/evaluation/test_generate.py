"""Samples: independent of batch and devices, by class, written as evaluators expect."""

import jax
import numpy as np
import pytest
from PIL import Image
from tiny_config import tiny

from iddpm_jax import build
from iddpm_jax.errors import InputError
from iddpm_jax.evaluation.generate import classes_of, generate, write
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


@pytest.mark.parametrize("devices, batch", [(4, 4), (1, 8), (2, 2)])
def test_sample_depends_on_seed_and_index_alone(model_and_params, eight, devices, batch):
    images, _ = draw(model_and_params, devices, sample__batch_size=batch)
    assert_same_pictures(eight, images)


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


def test_impossible_classes_are_refused():
    with pytest.raises(InputError, match="has 10; this model has classes 0 to 9"):
        classes_of(tiny(sample__classes=(1, 10)), build.model(tiny()), 4)
    unconditional = tiny(model__class_conditional=False, sample__classes=(1,))
    with pytest.raises(InputError, match="unconditional"):
        classes_of(unconditional, build.model(unconditional), 4)


def test_files_hold_images_and_classes(tmp_path):
    images = np.arange(6 * 4 * 5 * 3, dtype=np.uint8).reshape(6, 4, 5, 3)
    written = write(tmp_path, images, np.array([0, 1, 0, 1, 0, 1]), single=True)
    assert written["npz"].name == "samples_6x4x5x3.npz"
    with np.load(written["npz"]) as arrays:
        np.testing.assert_array_equal(arrays["arr_0"], images)
        assert arrays["arr_1"].tolist() == [0, 1, 0, 1, 0, 1]
    with Image.open(written["png"] / "000003_class1.png") as single:
        np.testing.assert_array_equal(np.asarray(single), images[3])
    with Image.open(written["grid"]) as grid:
        width, height = grid.size
    assert width < height  # two classes across, three pictures of each
