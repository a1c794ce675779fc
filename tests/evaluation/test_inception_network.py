"""Inception-v3 against numbers recorded from pytorch-fid and torch-fidelity, and against both."""

import json
from pathlib import Path

import golden_inception as golden
import jax
import numpy as np
import pytest

from iddpm_jax.evaluation import inception, inception_network
from iddpm_jax.evaluation.features import FeatureNetwork, Features, extract
from iddpm_jax.training.parallel import make_mesh

RECORDED = Path(__file__).resolve().parent.parent / "golden" / "11_inception.npz"
PEER_SIZES = (32, 64, 256, 320)
CASES = [(p, size) for p in inception_network.PREPROCESSING for size in golden.SIZES]

# Compiled once for all sizes: what follows the resizing is the same program.
prepare = jax.jit(inception_network.prepare, static_argnums=1)
features = jax.jit(inception_network.features)


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    with np.load(RECORDED) as file:
        return dict(file)


@pytest.fixture(scope="module")
def state(recorded) -> dict[str, np.ndarray]:
    entries = json.loads(str(recorded["entries"]))
    return {
        name: golden.weight(name, tuple(shape))
        for name, shape in entries
        if not name.endswith("num_batches_tracked")
    }


@pytest.fixture(scope="module")
def params(state) -> inception.Params:
    return jax.device_put(inception.from_pytorch(state))


def ours(params, size: int, preprocessing: str) -> Features:
    images = golden.images(size).astype(np.float32)
    return jax.device_get(features(params, prepare(images, preprocessing)))


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, relative to the largest feature."""
    assert found.shape == expected.shape
    return np.abs(found - expected).max() / np.abs(expected).max()


def test_names_and_shapes_are_those_of_pytorch_fid(state):
    shapes = inception_network.shapes()
    assert len(shapes) == 94
    kernels = {n.removesuffix(".conv.weight"): a.shape for n, a in state.items() if a.ndim == 4}
    assert {n: (s[3], s[2], s[0], s[1]) for n, s in shapes.items()} == kernels


@pytest.mark.slow
@pytest.mark.parametrize(("preprocessing", "size"), CASES)
def test_features_equal_recorded_ones(params, recorded, preprocessing, size):
    found = ours(params, size, preprocessing)
    assert (found.pool.shape, found.spatial.shape, found.logits.shape) == (
        (golden.COUNT, 2048),
        (golden.COUNT, 2023),
        (golden.COUNT, 1008),
    )
    key = f"{preprocessing}/{size}"
    assert error(found.pool[:, golden.POOL], recorded[f"{key}/pool"]) < 1e-5
    assert error(found.spatial[:, golden.SPATIAL], recorded[f"{key}/spatial"]) < 1e-5
    assert error(found.logits[:, golden.LOGITS], recorded[f"{key}/logits"]) < 1e-5


@pytest.mark.slow
def test_features_equal_pytorch_fid_and_torch_fidelity(params, state):
    torch = golden.import_peers()
    tensors = {name: torch.from_numpy(array) for name, array in state.items()}
    for preprocessing, peer in golden.peers(tensors).items():
        for size in PEER_SIZES:
            expected = peer(golden.images(size))
            for found, value in zip(ours(params, size, preprocessing), expected, strict=True):
                assert error(found, value) < 1e-5, (preprocessing, size)


@pytest.mark.parametrize("size", [(1, 8), (32, 64), (256, 256), (299, 299), (320, 500)])
def test_resizing_equals_torch(size):
    torch = pytest.importorskip("torch")
    images = np.random.default_rng(0).integers(0, 256, (2, *size, 3)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(images).permute(0, 3, 1, 2) / 255, (299, 299), mode="bilinear"
    )
    expected = (2 * expected - 1).permute(0, 2, 3, 1).numpy()
    # A processor without fused multiply-add would make torch round positions twice.
    np.testing.assert_allclose(prepare(images, "pytorch_fid"), expected, atol=1e-5)


def test_tensorflow_resizing_starts_at_the_first_pixel():
    # 598 -> 299 takes every second pixel, and 2 -> 299 mixes them up to half way, then stays.
    images = np.random.default_rng(0).integers(0, 256, (1, 598, 2, 3)).astype(np.float32)
    share = np.minimum(np.arange(299) * 2 / 299, 1)[None, None, :, None]
    first, second = images[:, ::2, :1], images[:, ::2, 1:]
    expected = ((1 - share) * first + share * second - 128) / 128
    np.testing.assert_allclose(prepare(images, "tensorflow"), expected, atol=1e-6)


def test_unknown_preprocessing_is_refused():
    with pytest.raises(ValueError, match="'clean'.*pytorch_fid"):
        inception_network.prepare(np.zeros((1, 8, 8, 3), np.float32), "clean")


@pytest.mark.slow
def test_grey_images_are_features_of_grey_colour_on_all_devices(params):
    grey = golden.images(8).repeat(2, axis=0)[..., :1]

    def apply(params, images):
        return inception_network.features(params, inception_network.prepare(images, "pytorch_fid"))

    network = FeatureNetwork("FID", 3, params, apply)
    found = extract(network, lambda index: grey[index], 4, make_mesh(), 4, progress=False)
    colour = np.repeat(grey[::2], 3, axis=-1).astype(np.float32)
    expected = features(params, prepare(colour, "pytorch_fid"))
    for a, b in zip(found, expected, strict=True):
        assert error(a, np.repeat(b, 2, axis=0)) < 1e-5
