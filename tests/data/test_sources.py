"""Data sets by name, and their fixed splits."""

from importlib import resources

import numpy as np
import pytest
from sklearn.datasets import load_digits

from iddpm_jax import data
from iddpm_jax.errors import InputError

EMOJI_CLASSES = (
    "Activities",
    "Animals & Nature",
    "Flags",
    "Food & Drink",
    "Objects",
    "People & Body",
    "Smileys & Emotion",
    "Symbols",
    "Travel & Places",
)


def whole(name: str) -> tuple[np.ndarray, np.ndarray]:
    """All images and labels of a built-in set, before it is split."""
    if name == "digits":
        digits = load_digits()
        return np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None], digits.target
    with resources.files("iddpm_jax").joinpath("assets/emoji32.npz").open("rb") as file:
        arrays = np.load(file)
        return arrays["images"], arrays["labels"]


@pytest.mark.parametrize(
    "name, train, test, shape, classes",
    [
        ("digits", 1438, 359, (8, 8, 1), tuple("0123456789")),
        ("emoji", 1716, 190, (32, 32, 3), EMOJI_CLASSES),
    ],
)
def test_built_in_set_is_as_described(name, train, test, shape, classes):
    for split, count in (("train", train), ("test", test)):
        source = data.load(name, split)
        assert len(source) == count
        assert source.image_shape == shape
        assert source.class_names == classes
        example = source[count - 1]
        assert example["image"].shape == shape and example["image"].dtype == np.uint8
        assert example["label"].shape == () and example["label"].dtype == np.int32
        assert set(source.labels) == set(range(len(classes)))


@pytest.mark.parametrize("name, n", [("digits", 5), ("emoji", 10)])
def test_every_nth_picture_and_no_other_is_for_testing(name, n):
    images, labels = whole(name)
    is_test = np.zeros(len(images), bool)
    is_test[n - 1 :: n] = True
    for split, chosen in (("train", ~is_test), ("test", is_test)):
        source = data.load(name, split)
        np.testing.assert_array_equal(source.images, images[chosen])
        np.testing.assert_array_equal(source.labels, labels[chosen])


def test_digits_have_17_levels_from_black_to_white():
    levels = np.unique(data.load("digits", "train").images)
    np.testing.assert_array_equal(levels, np.round(np.arange(17) * 255 / 16))


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(InputError, match="'cats'.*digits, emoji"):
        data.load("cats", "train")


@pytest.mark.parametrize("name", ["npz", "tfds", "folder:", "npz/a.npz"])
def test_unknown_kind_of_data_is_refused(name):
    with pytest.raises(InputError, match="digits, emoji, npz:FILE, .* or tfds:FOLDER"):
        data.load(name, "train")


def test_larger_pictures_are_averaged_down_and_rounded():
    emoji, small = data.load("emoji", "test"), data.load("emoji", "test", (16, 16, 3))
    means = emoji.images.astype(np.float64).reshape(190, 16, 2, 16, 2, 3).mean(axis=(2, 4))
    assert small.image_shape == (16, 16, 3) and small.images.dtype == np.uint8
    # Sums of four whole numbers: the mean is exact in float32, so is where it rounds to.
    np.testing.assert_array_equal(small.images, np.rint(means))
    np.testing.assert_array_equal(small.labels, emoji.labels)
    assert small.class_names == emoji.class_names


def test_averaged_pictures_keep_their_originals():
    emoji, small = data.load("emoji", "test"), data.load("emoji", "test", (16, 16, 3))
    for source in (emoji, small):
        picture, label = source.original(5)
        np.testing.assert_array_equal(np.asarray(picture), emoji.images[5])
        assert label == emoji.labels[5]
    digit, _ = data.load("digits", "test").original(3)
    assert digit.mode == "L" and digit.size == (8, 8)


def test_averaging_keeps_every_level_of_a_plain_picture(tmp_path):
    images = np.arange(256, dtype=np.uint8)[:, None, None, None].repeat(9, 1).repeat(9, 2)
    np.savez(tmp_path / "train.npz", images)
    for size in (1, 3, 4, 7):
        small = data.load(f"npz:{tmp_path}", "train", (size, size, 1))
        np.testing.assert_array_equal(small.images, images[:, :size, :size])


@pytest.mark.parametrize("shape", [(32, 32, 3), (16, 16, 1), (64, 64, 3), (16, 8, 3), (33, 33, 3)])
def test_pictures_of_other_proportions_or_channels_are_left_alone(shape):
    assert data.load("emoji", "test", shape) is data.load("emoji", "test")
