"""Data sets, their fixed splits, and the order in which training sees them."""

import json
import zipfile
from importlib import resources
from itertools import islice

import numpy as np
import pytest
from golden_cases import cases
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


def numbered(count: int) -> data.ArraySource:
    """Pictures that know their number, as their label does, and their left from their right."""
    images = np.zeros((count, 2, 3, 1), np.uint8)
    images[:, :, 0, 0] = np.arange(count)[:, None]
    images[:, :, 2, 0] = 255
    return data.ArraySource(images, np.arange(count, dtype=np.int32), ("any",))


def take(batches, count: int) -> list[dict[str, np.ndarray]]:
    return list(islice(batches, count))


def labels_of(batches, count: int) -> np.ndarray:
    return np.concatenate([batch["label"] for batch in take(batches, count)])


def assert_same_batches(some, others):
    assert len(some) == len(others)
    for a, b in zip(some, others, strict=True):
        np.testing.assert_array_equal(a["label"], b["label"])
        np.testing.assert_array_equal(a["image"], b["image"])


def whole(name: str) -> tuple[np.ndarray, np.ndarray]:
    """All images and labels of a built-in set, before it is split."""
    if name == "digits":
        digits = load_digits()
        return np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None], digits.target
    with resources.files("iddpm_jax").joinpath("assets/emoji32.npz").open("rb") as file:
        arrays = np.load(file)
        return arrays["images"], arrays["labels"]


def test_labels_from_names_match_recording():
    ((_, case),) = cases("09_extras.npz", "file_labels")
    order, labels = data.labels_from_names(case["created"])
    assert order == case["order"]
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, case["labels"])


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


@pytest.mark.parametrize("batch_size", [4, 5, 12])
def test_every_pass_is_a_new_permutation(batch_size):
    batches = data.training_batches(numbered(12), batch_size, seed=0, random_flip=False)
    passes = labels_of(batches, 60 // batch_size).reshape(5, 12)
    np.testing.assert_array_equal(np.sort(passes, axis=1), [np.arange(12)] * 5)
    assert len({tuple(order) for order in passes}) == 5


def test_batches_are_whole_and_keep_image_and_label_together():
    source = numbered(12)
    for batch in take(data.training_batches(source, 5, seed=1, random_flip=False), 6):
        assert batch["image"].shape == (5, 2, 3, 1) and batch["image"].dtype == np.uint8
        assert batch["label"].shape == (5,) and batch["label"].dtype == np.int32
        np.testing.assert_array_equal(batch["image"], source.images[batch["label"]])


@pytest.mark.parametrize("random_flip", [False, True])
def test_same_seed_gives_the_same_batches(random_flip):
    def first(seed):
        return take(data.training_batches(numbered(40), 8, seed, random_flip), 12)

    assert_same_batches(first(3), first(3))
    assert not np.array_equal(first(3)[0]["label"], first(4)[0]["label"])


@pytest.mark.parametrize("random_flip, seen", [(False, 7), (True, 0), (True, 7)])
def test_position_continues_exactly(random_flip, seen):
    def start():
        return data.training_batches(numbered(30), 7, seed=5, random_flip=random_flip)

    batches = start()
    take(batches, seen)
    # As a checkpoint keeps it: JSON.
    position = json.loads(json.dumps(batches.get_state()))
    expected = take(batches, 9)

    fresh = start()
    fresh.set_state(position)
    assert_same_batches(take(fresh, 9), expected)

    gone_on = start()
    take(gone_on, 11)  # and threads have read further than that
    gone_on.set_state(position)
    assert_same_batches(take(gone_on, 9), expected)


def test_reading_the_position_changes_nothing():
    batches = data.training_batches(numbered(30), 7, seed=5, random_flip=True)
    watched = []
    for _ in range(8):
        batches.get_state()
        watched.append(next(batches))
    again = data.training_batches(numbered(30), 7, seed=5, random_flip=True)
    assert_same_batches(watched, take(again, 8))


def test_random_flip_mirrors_about_half_left_to_right():
    source = numbered(64)
    mirrored = np.zeros((10, 64), bool)
    batches = data.training_batches(source, 64, seed=0, random_flip=True)
    for epoch, batch in enumerate(take(batches, 10)):
        originals = source.images[batch["label"]]
        flipped = (batch["image"] != originals).any(axis=(1, 2, 3))
        expected = np.where(flipped[:, None, None, None], originals[:, :, ::-1], originals)
        np.testing.assert_array_equal(batch["image"], expected)
        mirrored[epoch, batch["label"]] = flipped
    # 640 fair coins: the standard deviation of their share is 0.02.
    assert 0.4 < mirrored.mean() < 0.6
    # Every picture is seen both ways sooner or later: the coin is thrown anew in every pass.
    ever = mirrored.any(axis=0) & ~mirrored.all(axis=0)
    assert ever.mean() > 0.9


def test_batch_larger_than_the_data_is_refused():
    with pytest.raises(InputError, match=r"train\.batch_size 13 .* 12 images"):
        data.training_batches(numbered(12), 13, seed=0, random_flip=False)


@pytest.mark.parametrize("count, size", [(10, 4), (8, 4), (3, 5), (1, 1), (7, 1), (0, 3)])
def test_padded_chunks_cover_every_index_once(count, size):
    real = []
    for indices, kept in data.padded_chunks(count, size):
        assert indices.shape == (size,) and indices.dtype == np.int64
        assert 1 <= kept <= size
        assert (indices[kept:] == count - 1).all()
        real.extend(indices[:kept])
    assert real == list(range(count))


def pictures(count: int, shape=(4, 6, 3), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape)).astype(np.uint8)


def test_npz_gives_its_pictures_and_classes(tmp_path):
    images, classes = pictures(5), np.array([3, 0, 0, 7, 1], np.int64)
    np.savez(tmp_path / "with.npz", images, classes)
    np.savez_compressed(tmp_path / "without.npz", images)
    found, labels = data.read_npz(tmp_path / "with.npz")
    np.testing.assert_array_equal(found, images)
    assert found.dtype == np.uint8 and labels.dtype == np.int32
    assert labels.tolist() == [3, 0, 0, 7, 1]
    found, labels = data.read_npz(tmp_path / "without.npz")
    np.testing.assert_array_equal(found, images)
    assert labels is None


def npz_refusal(path, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        data.read_npz(path)
    text = str(caught.value)
    assert "\n" not in text
    for word in (str(path), *words):
        assert word in text


@pytest.mark.parametrize(
    "images",
    [
        pictures(5).astype(np.float32),
        pictures(5).astype(np.int64),
        pictures(5)[0],
        pictures(5)[..., None],
        pictures(5)[:0],
        pictures(5)[:, :0],
        np.array(None),
    ],
    ids=["float", "int64", "3-axes", "5-axes", "no-pictures", "no-pixels", "object"],
)
def test_npz_of_something_else_than_pictures_is_refused(tmp_path, images):
    np.savez(tmp_path / "a.npz", images)
    npz_refusal(tmp_path / "a.npz", "arr_0", "uint8 [N, H, W, C]")


@pytest.mark.parametrize(
    "classes",
    [
        np.zeros(4, int),
        np.zeros((5, 1), int),
        np.array([0, 1, 2, 3, -1]),
        np.array([0, 1, 2, 3, 2**31]),
        np.zeros(5),
        np.zeros(5, bool),
        np.array(["a"] * 5),
    ],
    ids=["too-few", "2-axes", "negative", "beyond-int32", "float", "bool", "words"],
)
def test_npz_with_impossible_classes_is_refused(tmp_path, classes):
    np.savez(tmp_path / "a.npz", pictures(5), classes)
    npz_refusal(tmp_path / "a.npz", "arr_1", "5 pictures")


def broken(path, kind: str) -> None:
    """A file that is no .npz of pictures, or a folder, or nothing at all."""
    if kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("hello")
    elif kind == "empty":
        path.touch()
    elif kind == "npy":
        np.save(path.with_suffix(".npy"), pictures(5))
        path.with_suffix(".npy").rename(path)
    elif kind == "other names":
        np.savez(path, images=pictures(5))
    elif kind == "bytes":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("arr_0", b"no array")
    elif kind in ("truncated", "damaged"):
        np.savez_compressed(path, pictures(50))
        whole = path.read_bytes()
        damaged = whole[:100] + bytes(16) + whole[116:]
        path.write_bytes(whole[: len(whole) // 2] if kind == "truncated" else damaged)


@pytest.mark.parametrize(
    "kind",
    "missing folder text empty npy bytes truncated damaged".split() + ["other names"],
)
def test_unreadable_npz_is_refused_in_one_line(tmp_path, kind):
    broken(tmp_path / "a.npz", kind)
    npz_refusal(tmp_path / "a.npz", "uint8 [N, H, W, C]")


def test_npz_file_gives_every_tenth_picture_to_testing(tmp_path):
    images, classes = pictures(34), np.arange(34) % 3
    np.savez(tmp_path / "a.npz", images, classes)
    is_test = np.isin(np.arange(34), [9, 19, 29])
    for split, chosen in (("train", ~is_test), ("test", is_test)):
        source = data.load(f"npz:{tmp_path / 'a.npz'}", split)
        np.testing.assert_array_equal(source.images, images[chosen])
        np.testing.assert_array_equal(source.labels, classes[chosen])
        assert source.labels.dtype == np.int32
        assert source.class_names == ("0", "1", "2") and source.image_shape == (4, 6, 3)


def test_npz_without_classes_has_none(tmp_path):
    np.savez(tmp_path / "a.npz", pictures(20))
    source = data.load(f"npz:{tmp_path / 'a.npz'}", "train")
    assert source.class_names == ()
    assert source[17]["label"] == 0 and source[17]["label"].dtype == np.int32


def test_npz_file_with_no_picture_for_testing_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", pictures(9))
    assert len(data.load(f"npz:{tmp_path / 'a.npz'}", "train")) == 9
    with pytest.raises(InputError, match=r"9 pictures.*every tenth.*test\.npz"):
        data.load(f"npz:{tmp_path / 'a.npz'}", "test")


def test_npz_folder_has_a_file_for_each_split(tmp_path):
    for split, count in (("train", 7), ("test", 3)):
        np.savez(tmp_path / f"{split}.npz", pictures(count, seed=count), np.arange(count))
        source = data.load(f"npz:{tmp_path}", split)
        np.testing.assert_array_equal(source.images, pictures(count, seed=count))
        assert source.labels.tolist() == list(range(count))
    (tmp_path / "test.npz").unlink()
    data._load.cache_clear()  # a process reads a file once
    with pytest.raises(InputError, match=r"test\.npz cannot be read"):
        data.load(f"npz:{tmp_path}", "test")


@pytest.mark.parametrize("name", ["npz", "tfds:cifar10", "npz/a.npz"])
def test_unknown_kind_of_data_is_refused(name):
    with pytest.raises(InputError, match="digits, emoji, npz:FILE or npz:FOLDER"):
        data.load(name, "train")


def test_larger_pictures_are_averaged_down_and_rounded():
    emoji, small = data.load("emoji", "test"), data.load("emoji", "test", (16, 16, 3))
    means = emoji.images.astype(np.float64).reshape(190, 16, 2, 16, 2, 3).mean(axis=(2, 4))
    assert small.image_shape == (16, 16, 3) and small.images.dtype == np.uint8
    # Sums of four whole numbers: the mean is exact in float32, so is where it rounds to.
    np.testing.assert_array_equal(small.images, np.rint(means))
    np.testing.assert_array_equal(small.labels, emoji.labels)
    assert small.class_names == emoji.class_names


def test_averaging_keeps_every_level_of_a_plain_picture(tmp_path):
    images = np.arange(256, dtype=np.uint8)[:, None, None, None].repeat(9, 1).repeat(9, 2)
    np.savez(tmp_path / "train.npz", images)
    for size in (1, 3, 4, 7):
        small = data.load(f"npz:{tmp_path}", "train", (size, size, 1))
        np.testing.assert_array_equal(small.images, images[:, :size, :size])


@pytest.mark.parametrize("shape", [(32, 32, 3), (16, 16, 1), (64, 64, 3), (16, 8, 3), (33, 33, 3)])
def test_pictures_of_other_proportions_or_channels_are_left_alone(shape):
    assert data.load("emoji", "test", shape) is data.load("emoji", "test")
