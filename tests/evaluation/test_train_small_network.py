"""Training the small feature networks: faults as they are named, files that load, seeds."""

import jax
import numpy as np
import pytest

from iddpm_jax import data
from iddpm_jax.evaluation.small_network import SPECS, network, read
from iddpm_jax.evaluation.train_small_network import FAULTS, RECIPES, add_faults, main, spoil

KEY = jax.random.key(0)


def spoilt(images: np.ndarray, **levels: float) -> np.ndarray:
    """Pictures with the named faults; spaces in names are underscores."""
    row = [levels.get(fault.replace(" ", "_"), 0.0) for fault in FAULTS]
    rows = np.tile(np.float32(row), (len(images), 1))
    return np.asarray(add_faults(KEY, np.float32(images), rows))


@pytest.fixture
def images():
    return data.load("emoji", "train").images[:16].astype(np.float32)


def test_no_fault_leaves_pictures_alone(images):
    np.testing.assert_allclose(spoilt(images), images, atol=1e-3)


def test_brightness_is_added_and_clipped(images):
    expected = np.clip(images - 40, 0, 255)
    np.testing.assert_allclose(spoilt(images, brightness=-0.5), expected, atol=1e-3)


def test_saturation_of_minus_one_is_grey(images):
    grey = np.broadcast_to(images.mean(axis=-1, keepdims=True), images.shape)
    np.testing.assert_allclose(spoilt(images, saturation=-1), grey, atol=1e-3)


def test_contrast_keeps_the_mean(images):
    found = spoilt(images, contrast=-0.5)
    np.testing.assert_allclose(found.mean(axis=(1, 2, 3)), images.mean(axis=(1, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(
        found.std(axis=(1, 2, 3)), 0.7 * images.std(axis=(1, 2, 3)), rtol=1e-4
    )


def test_blur_is_the_mean_of_nine_pixels(images):
    found = spoilt(images, blur=1)
    np.testing.assert_allclose(found[3, 5, 7], images[3, 4:7, 6:9].mean(axis=(0, 1)), rtol=1e-4)


def test_another_picture_shows_through(images):
    expected = 0.55 * images + 0.45 * np.roll(images, 1, axis=0)
    np.testing.assert_allclose(spoilt(images, another_picture=1), expected, atol=1e-3)


def test_noise_and_dead_pixels_have_their_strength():
    grey = np.full((16, 32, 32, 3), 127.5)
    np.testing.assert_allclose(spoilt(grey, noise=0.4).std(), 32, rtol=0.02)
    dead = spoilt(grey, dead_pixels=0.5)
    np.testing.assert_allclose(np.mean(dead != 127.5), 0.15, rtol=0.05)
    assert set(np.unique(dead)) == {0, 127.5, 255}


@pytest.mark.slow  # imports scikit-learn and draws everything once
def test_grey_pictures_have_no_saturation_to_learn():
    digits = data.load("digits", "train").images[:512].astype(np.float32)
    found, levels = spoil(KEY, digits, RECIPES["digits"])
    of_saturation = list(FAULTS).index("saturation")
    assert not levels[:, of_saturation].any()
    others = np.delete(np.asarray(levels), of_saturation, axis=1)
    np.testing.assert_allclose(np.mean(others != 0, axis=0), 0.25, atol=0.08)
    assert found.min() >= 0 and found.max() <= 255


@pytest.mark.slow
def test_training_writes_weights_that_load(tmp_path, capsys):
    file = tmp_path / "new" / "weights.npz"
    command = ["--data", "digits", "--steps", "3", "--seed", "5"]
    assert main([*command, "--target", str(file)]) == 0
    assert str(file) in capsys.readouterr().out
    first = network("digits", file)
    test = data.load("digits", "test")
    logits = np.asarray(first.apply(first.params, test.images.astype(np.float32)).logits)
    about = read(file, SPECS["digits"])[1]
    assert about["seed"] == 5 and "--steps 3" in about["command"]
    np.testing.assert_allclose(
        np.mean(logits.argmax(axis=1) == test.labels), about["accuracy"]["test"], atol=1e-6
    )
    assert main([*command, "--target", str(tmp_path / "again.npz")]) == 0
    for name, array in network("digits", tmp_path / "again.npz").params.items():
        np.testing.assert_array_equal(array, first.params[name])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "weights.npz", "--steps", "0"], "--steps 0 trains nothing"),
        (["--target", "weights.pt"], "give FILE.npz"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys):
    assert main(["--data", "digits", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
