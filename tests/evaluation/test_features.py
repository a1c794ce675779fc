"""Features of images: batches, devices, grey images, and going on after an interruption."""

import jax
import numpy as np
import pytest

from iddpm_jax.errors import InputError
from iddpm_jax.evaluation.features import FeatureNetwork, Features, extract
from iddpm_jax.evaluation.parts import Parts
from iddpm_jax.training.parallel import make_mesh

IMAGES = np.random.default_rng(0).integers(0, 256, (11, 4, 4, 3), np.uint8)


def apply(params, images):
    flat = images.reshape(len(images), -1)
    return Features(flat @ params["w"], flat[:, :5], images.mean(axis=(1, 2)))


NETWORK = FeatureNetwork("FD-test", 3, {"w": np.ones((48, 2), np.float32)}, apply)


def expected(images):
    flat = images.reshape(len(images), -1).astype(np.float64)
    return np.repeat(flat.sum(axis=1, keepdims=True), 2, axis=1), flat[:, :5]


@pytest.mark.parametrize("devices, batch", [(1, 4), (2, 4), (4, 16)])
def test_every_image_counts_once_whatever_the_batches(devices, batch):
    mesh = make_mesh(jax.devices()[:devices])
    found = extract(NETWORK, lambda i: IMAGES[i], len(IMAGES), mesh, batch, False)
    pool, spatial = expected(IMAGES)
    np.testing.assert_allclose(found.pool, pool, rtol=1e-6)
    np.testing.assert_array_equal(found.spatial, spatial)
    assert found.logits.shape == (11, 3)


def test_grey_images_are_repeated_for_a_network_of_colour():
    grey = IMAGES[..., :1]
    found = extract(NETWORK, lambda i: grey[i], len(grey), make_mesh(), 4, False)
    np.testing.assert_allclose(found.pool, expected(np.repeat(grey, 3, axis=-1))[0], rtol=1e-6)


def test_other_channels_are_refused_before_the_first_batch():
    with pytest.raises(InputError, match="2 channels, and the network of FD-test takes 3"):
        extract(NETWORK, lambda i: IMAGES[i, ..., :2], len(IMAGES), make_mesh(), 4, False)


def test_interrupted_extraction_goes_on_to_the_same_features(tmp_path):
    asked = []

    def read(index):
        asked.append(index.tolist())
        if len(asked) == 4:  # the first looks at the channels alone
            raise KeyboardInterrupt
        return IMAGES[index]

    def run(parts):
        return extract(NETWORK, read, len(IMAGES), make_mesh(), 4, False, parts)

    with pytest.raises(KeyboardInterrupt):
        run(Parts(tmp_path, {"made": "by"}))
    parts = Parts(tmp_path, {"made": "by"})
    assert parts.done == 8
    found = run(parts)
    assert asked[5:] == [[8, 9, 10, 10]]
    whole = extract(NETWORK, lambda i: IMAGES[i], len(IMAGES), make_mesh(), 4, False)
    for name in Features._fields:
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))
