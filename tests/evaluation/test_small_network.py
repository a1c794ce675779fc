"""The small feature networks: what is recorded of them holds, and their distances rank pictures."""

import json

import numpy as np
import pytest
from float64_layers import conv3, silu

from iddpm_jax import data
from iddpm_jax.errors import InputError
from iddpm_jax.evaluation import small_network
from iddpm_jax.evaluation.features import Features, extract
from iddpm_jax.evaluation.small_network import SPECS, network, read, write
from iddpm_jax.training.parallel import make_mesh

NAMES = ("digits", "emoji")


def features_of(name: str, images: np.ndarray, batch_size: int = 128) -> Features:
    """By the network in the package, on four devices."""
    pixels = np.asarray(images).round().clip(0, 255).astype(np.uint8)
    return extract(
        network(name), lambda i: pixels[i], len(pixels), make_mesh(), batch_size, progress=False
    )


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Frechet distance of two sets of features, by the eigenvalues of the covariances' product."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    of_a, of_b = np.cov(a.T), np.cov(b.T)
    overlap = np.sqrt(np.maximum(np.linalg.eigvals(of_a @ of_b).real, 0)).sum()
    return np.square(a.mean(0) - b.mean(0)).sum() + np.trace(of_a + of_b) - 2 * overlap


@pytest.fixture(scope="module", params=NAMES)
def real(request):
    """(name, features of the training pictures, test split)."""
    source = data.load(request.param, "train")
    return (
        request.param,
        features_of(request.param, source.images),
        data.load(request.param, "test"),
    )


def recorded(name: str) -> dict:
    return read(small_network.packaged(name), SPECS[name])[1]


@pytest.mark.parametrize("name", NAMES)
def test_weights_in_the_package_are_small_and_say_how_they_came_to_be(name):
    file = small_network.packaged(name)
    assert file.stat().st_size < 450_000
    about = recorded(name)
    assert about["data"] == name and f"--data {name}" in about["command"]
    assert about["accuracy"]["test"] > {"digits": 0.97, "emoji": 0.6}[name]


def test_features_equal_the_networks_definition_in_float64(real):
    name, *_, test = real
    spec, net = SPECS[name], network(name)
    params = {key: array.astype(np.float64) for key, array in net.params.items()}
    x = test.images[:6] / 127.5 - 1
    for i, (_, stride) in enumerate(spec.layers):
        layer = {"kernel": params[f"conv{i}.weight"], "bias": params[f"conv{i}.bias"]}
        before, x = x.shape[1], silu(conv3(x, layer)[:, ::stride, ::stride])
        if before > x.shape[1] == 4:
            spatial = x[..., :4].reshape(6, 64) * params["spatial.scale"]
    pool = x.mean(axis=(1, 2))
    found = net.apply(net.params, test.images[:6].astype(np.float32))
    expected = Features(pool * params["pool.scale"], spatial, pool @ params["classes.weight"])
    for of_network, by_hand in zip(found, expected, strict=True):
        np.testing.assert_allclose(of_network, by_hand, atol=3e-5 * np.abs(by_hand).max())


def test_test_pictures_get_the_class_as_often_as_recorded(real):
    name, _, test = real
    share = np.mean(features_of(name, test.images).logits.argmax(axis=1) == test.labels)
    assert abs(share - recorded(name)["accuracy"]["test"]) <= 1 / len(test)


def test_features_of_training_pictures_have_variance_1_and_full_rank(real):
    _, train, test = real
    for kind in (train.pool, train.spatial):
        assert kind.shape[1] == 64 < len(test) / 2
        covariance = np.cov(kind.T.astype(np.float64))
        np.testing.assert_allclose(np.trace(covariance), 64, rtol=2e-3)
        assert np.linalg.eigvalsh(covariance)[0] > 1e-5


def test_features_depend_on_the_picture_alone(real):
    name, _, test = real
    some = test.images[:21]
    together = features_of(name, some, 24)
    backwards = features_of(name, some[::-1], 4)
    for a, b in zip(together, backwards, strict=True):
        np.testing.assert_allclose(a, b[::-1], atol=1e-5 * np.abs(a).max())


def test_unspoilt_test_pictures_are_near_the_training_pictures(real):
    name, train, test = real
    # 64 is the distance of a model whose pictures all have the mean's features.
    assert distance(features_of(name, test.images).pool, train.pool) < 3


def _noise(x: np.ndarray, level: float, rng: np.random.Generator) -> np.ndarray:
    return x + 64 * level * rng.normal(size=x.shape)


def _dead_pixels(x: np.ndarray, level: float, rng: np.random.Generator) -> np.ndarray:
    return np.where(rng.random(x.shape) < 0.4 * level, 255 * rng.integers(2, size=x.shape), x)


def _bright(x: np.ndarray, level: float, rng: np.random.Generator) -> np.ndarray:
    # Towards the middle, away from the background.
    return x + 64 * level * np.where(np.median(x) > 127, -1, 1)


def _blur(x: np.ndarray, level: float, rng: np.random.Generator) -> np.ndarray:
    near = (np.roll(x, 1, 1) + np.roll(x, -1, 1) + np.roll(x, 1, 2) + np.roll(x, -1, 2)) / 4
    return x + level * (near - x)


def _mixture(x: np.ndarray, level: float, rng: np.random.Generator) -> np.ndarray:
    return x + level / 2 * (x[rng.permutation(len(x))] - x)


def _swapped_blocks(x: np.ndarray, level: float, rng: np.random.Generator) -> np.ndarray:
    """Sixteen blocks, of which 8 level pairs change places; no network was trained on that."""
    size = x.shape[1] // 4
    blocks = x.reshape(len(x), 4, size, 4, size, -1).transpose(0, 1, 3, 2, 4, 5)
    blocks = blocks.reshape(len(x), 16, size, size, -1).copy()
    for picture in blocks:
        chosen = rng.permutation(16)[: round(16 * level)]
        picture[chosen] = picture[np.roll(chosen, len(chosen) // 2)]
    blocks = blocks.reshape(len(x), 4, 4, size, size, -1).transpose(0, 1, 3, 2, 4, 5)
    return blocks.reshape(x.shape)


@pytest.mark.parametrize("spoil", [_noise, _dead_pixels, _bright, _blur, _mixture, _swapped_blocks])
def test_distances_grow_with_every_fault(real, spoil):
    name, train, test = real
    x = test.images.astype(np.float64)
    levels = (0, 0.25, 0.5, 1)
    spoilt = [spoil(x, level, np.random.default_rng(0)) for level in levels]
    found = features_of(name, np.concatenate(spoilt))
    pools, maps = (np.split(features, len(levels)) for features in (found.pool, found.spatial))
    distances = [distance(pool, train.pool) for pool in pools]
    assert np.all(np.diff(distances) > 0), distances
    assert distances[-1] > 3 * distances[0]
    of_places = [distance(spatial, train.spatial) for spatial in maps[1:]]
    assert np.all(np.diff(of_places) > 0), of_places


def test_distance_grows_as_classes_are_missing(real):
    name, train, test = real
    whole = features_of(name, test.images).pool
    distances = [distance(whole[test.labels >= k], train.pool) for k in (0, 2, 4, 6)]
    assert np.all(np.diff(distances) > 0), distances


def test_a_plain_picture_has_the_same_features_at_any_size(real):
    name, *_ = real
    height, width, channels = SPECS[name].image_shape
    plain = np.full((2, height, width, channels), 77)
    larger = np.full((2, 2 * height + 3, 3 * width, channels), 77)
    for a, b in zip(features_of(name, plain, 4), features_of(name, larger, 4), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(a).max())


def test_pictures_enlarged_keep_their_class():
    test = data.load("digits", "test")
    large = test.images.repeat(4, axis=1).repeat(4, axis=2)
    share = np.mean(features_of("digits", large).logits.argmax(axis=1) == test.labels)
    assert share > 0.95


def test_larger_pictures_are_averaged_not_sampled():
    large = data.load("digits", "test").images[:16].repeat(2, axis=1).repeat(2, axis=2) / 2 + 60
    chessboard = 1 - 2 * (np.indices((16, 16)).sum(axis=0) % 2)
    smooth, fine = (features_of("digits", large + k * chessboard[..., None]) for k in (0, 30))
    np.testing.assert_allclose(smooth.pool, fine.pool, atol=0.02)


def test_grey_pictures_go_through_the_colour_network():
    grey = data.load("emoji", "test").images[:8].mean(axis=-1, keepdims=True)
    colour = features_of("emoji", grey.repeat(3, axis=-1), 8)
    np.testing.assert_allclose(features_of("emoji", grey, 8).pool, colour.pool, rtol=1e-6)


def test_distances_have_names_of_their_own():
    assert [network(name).distance for name in NAMES] == ["FD-digits", "FD-emoji"]


def test_unknown_network_is_refused():
    with pytest.raises(InputError, match="no small network 'cifar10'; choose one of digits, emoji"):
        network("cifar10")


def test_another_networks_weights_are_refused():
    with pytest.raises(InputError, match="trained on the same data set"):
        network("digits", small_network.packaged("emoji"))


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 cut short"])
def test_broken_files_are_refused(tmp_path, content):
    file = tmp_path / "weights.npz"
    file.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as a small feature network"):
        network("digits", file)


def test_missing_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        network("digits", tmp_path / "nothing.npz")
    np.savez(tmp_path / "samples.npz", np.zeros((2, 8, 8, 1), np.uint8))
    with pytest.raises(InputError, match="about"):
        network("digits", tmp_path / "samples.npz")


def test_weights_that_are_not_finite_are_refused(tmp_path):
    params = dict(network("digits").params)
    params["conv1.bias"] = np.full_like(params["conv1.bias"], np.nan)
    write(tmp_path / "weights.npz", params, {})
    with pytest.raises(InputError, match="conv1.bias is not finite"):
        network("digits", tmp_path / "weights.npz")


def test_what_is_written_is_read(tmp_path):
    params, about = network("digits").params, {"seed": 3, "data": "digits"}
    write(tmp_path / "weights.npz", params, about)
    again, same = read(tmp_path / "weights.npz", SPECS["digits"])
    assert json.dumps(same) == json.dumps(about)
    assert set(again) == set(params)
    for name, array in params.items():
        np.testing.assert_array_equal(again[name], array)
