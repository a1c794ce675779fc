"""Folders of pictures: labels, splits, kinds of files, and those that cannot be read."""

import numpy as np
import pytest
from golden_cases import cases
from PIL import Image

from iddpm_jax import data
from iddpm_jax.data import folder
from iddpm_jax.errors import InputError


@pytest.fixture(autouse=True)
def forget_listings():
    """A process lists a folder once; tests change theirs."""
    folder._scan.cache_clear()


def paint(root, names: list[str], size=(6, 4)) -> dict[str, np.ndarray]:
    """Random colour pictures of width x height, by name."""
    rng = np.random.default_rng(0)
    pixels = {}
    for name in names:
        pixels[name] = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[name]).save(root / name, lossless=True)
    return pixels


def load(root, split="train", shape=(), labels="auto", corrupt="fail"):
    return data.load(f"folder:{root}", split, shape, labels, corrupt)


def refusal(root, *args) -> str:
    with pytest.raises(InputError) as caught:
        load(root, *args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_labels_from_names_match_recording():
    ((_, case),) = cases("09_extras.npz", "file_labels")
    order, labels = data.labels_from_names(case["created"])
    assert order == case["order"]
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, case["labels"])


def test_every_tenth_in_order_is_for_testing(tmp_path):
    names = [f"{i:03d}.png" for i in range(25)]
    pixels = paint(tmp_path, names)
    test = load(tmp_path, "test")
    assert test.files == ("009.png", "019.png")
    train = load(tmp_path)
    assert train.files == tuple(n for n in names if n not in test.files)
    assert len(train) == 23 and train.image_shape == (4, 6, 3) and train.class_names == ()
    for source in (train, test):
        for i, name in enumerate(source.files):
            example = source[i]
            np.testing.assert_array_equal(example["image"], pixels[name])
            assert example["image"].dtype == np.uint8
            assert example["label"].dtype == np.int32 and example["label"] == 0


@pytest.mark.parametrize("test_name", ["test", "val", "validation"])
def test_subfolders_are_the_splits(tmp_path, test_name):
    paint(tmp_path, ["train/b/1.png", "train/a/1.png", "train/a/2.png", f"{test_name}/b/7.png"])
    train, test = load(tmp_path), load(tmp_path, "test")
    assert train.files == ("a/1.png", "a/2.png", "b/1.png")
    assert train.class_names == test.class_names == ("a", "b")
    assert [int(train[i]["label"]) for i in range(3)] == [0, 0, 1]
    # The one class of the test folder keeps the number it has in training.
    assert test.files == ("b/7.png",) and test[0]["label"] == 1


def test_class_of_the_test_folder_that_training_lacks_is_refused(tmp_path):
    paint(tmp_path, ["train/a/1.png", "train/b/1.png", "test/a/1.png", "test/c/1.png"])
    text = refusal(tmp_path, "test")
    assert "'c'" in text and "data.labels=none" in text
    assert load(tmp_path, "test", labels="none").class_names == ()


def test_folder_named_train_alone_is_a_class(tmp_path):
    paint(tmp_path, [f"{kind}/{i}.png" for kind in ("car", "train") for i in range(5)])
    assert load(tmp_path).class_names == ("car", "train")


@pytest.mark.parametrize(
    "names, labels, classes, numbers",
    [
        (["b/x/1_1.png", "b/2.png", "a/3_.png"], "auto", ("a", "b"), [0, 1, 1]),
        (["cat_1.png", "x/dog_1.png", "cat_2.png"], "auto", ("cat", "dog"), [0, 0, 1]),
        (["only/1.png", "only/2.png"], "auto", (), [0, 0]),
        (["only/1.png", "only/2.png"], "folders", ("only",), [0, 0]),
        (["a/1.png", "loose.png"], "auto", (), [0, 0]),
        (["b/cat_1.png", "a/dog_2.png"], "prefix", ("cat", "dog"), [1, 0]),
        (["b/cat_1.png", "a/dog_2.png"], "none", (), [0, 0]),
    ],
)
def test_classes_are_where_the_words_say(tmp_path, names, labels, classes, numbers):
    paint(tmp_path, names)
    source = load(tmp_path, labels=labels)
    assert source.class_names == classes
    assert [int(source[i]["label"]) for i in range(len(source))] == numbers


def test_picture_without_a_folder_for_its_class_is_refused(tmp_path):
    paint(tmp_path, ["a/1.png", "loose.png"])
    text = refusal(tmp_path, "train", (), "folders")
    assert "loose.png" in text and "data.labels" in text


def test_all_kinds_of_files_are_read_and_others_are_not(tmp_path):
    names = "a.PNG b.bmp c.webp d.gif e.jpg f.jpeg".split()
    paint(tmp_path, names)
    for other in ("notes.txt", ".hidden.png", ".folder/x.png", "g.npz"):
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).write_bytes(b"no picture")
    assert load(tmp_path).files == tuple(names)


def test_links_are_followed_but_not_in_circles(tmp_path):
    paint(tmp_path, ["elsewhere/1.png", "data/a/2.png"])
    (tmp_path / "data" / "b").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "data" / "a" / "again").symlink_to(tmp_path / "data", target_is_directory=True)
    (tmp_path / "data" / "a" / "3.png").symlink_to(tmp_path / "elsewhere" / "1.png")
    assert load(tmp_path / "data").files == ("a/2.png", "a/3.png", "b/1.png")


def test_pictures_are_prepared_to_the_shape_asked_for(tmp_path):
    paint(tmp_path, ["a.png"], size=(50, 40))
    pixels = np.full((40, 50, 3), (10, 200, 30), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for shape in ((16, 16, 3), (20, 25, 3), (60, 70, 3)):
        example = load(tmp_path, shape=shape)[0]
        np.testing.assert_array_equal(example["image"], np.broadcast_to([10, 200, 30], shape))
    # Luma of ITU-R 601.
    grey = load(tmp_path, shape=(8, 9, 1))[0]["image"]
    assert grey.shape == (8, 9, 1)
    np.testing.assert_array_equal(grey, round(0.299 * 10 + 0.587 * 200 + 0.114 * 30))


def test_grey_pictures_make_grey_data(tmp_path):
    for i in range(3):
        Image.fromarray(np.full((4, 4), i, np.uint8)).save(tmp_path / f"{i}.png")
    assert load(tmp_path).image_shape == (4, 4, 1)
    paint(tmp_path, ["9.png"], size=(4, 4))
    folder._scan.cache_clear()
    assert load(tmp_path).image_shape == (4, 4, 3)


def test_pictures_of_several_sizes_need_a_shape(tmp_path):
    paint(tmp_path, ["a.png"])
    paint(tmp_path, ["b.png"], size=(5, 5))
    text = refusal(tmp_path)
    for word in ("a.png 4x6", "b.png 5x5", "data.image_shape"):
        assert word in text
    assert load(tmp_path, shape=(4, 4, 3)).image_shape == (4, 4, 3)


def test_nothing_is_refused_in_words(tmp_path):
    assert "no folder" in refusal(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    assert "no folder" in refusal(tmp_path / "file")
    assert "no pictures (jpg, jpeg, png" in refusal(tmp_path)
    paint(tmp_path, [f"{i}.png" for i in range(9)])
    folder._scan.cache_clear()
    assert "9 pictures, and every tenth" in refusal(tmp_path, "test")
    assert "1 or 3 channels, not 2" in refusal(tmp_path, "train", (4, 4, 2))


def test_unknown_words_are_refused_with_the_known(tmp_path):
    paint(tmp_path, ["a/1.png"])
    assert "auto, folders, prefix, none" in refusal(tmp_path, "train", (), "folder")
    assert "fail, skip" in refusal(tmp_path, "train", (), "none", "ignore")


def corrupted(tmp_path, *broken: int) -> dict[str, np.ndarray]:
    names = [f"{i % 2}_{i}.png" for i in range(8)]
    pixels = paint(tmp_path, names)
    for name in (name for name in names if int(name[2]) in broken):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2] if name[2] != "0" else b"")
    return pixels


@pytest.mark.parametrize("broken", [0, 3])
def test_corrupt_file_is_named(tmp_path, broken):
    corrupted(tmp_path, broken)
    source = load(tmp_path, shape=(4, 6, 3))
    where = [name.endswith(f"_{broken}.png") for name in source.files].index(True)
    with pytest.raises(InputError) as caught:
        source[where]
    text = str(caught.value)
    assert str(tmp_path / source.files[where]) in text and "data.corrupt=skip" in text
    assert "\n" not in text


def test_skipped_file_is_replaced_by_the_next_and_counted(tmp_path, capsys):
    # In order: 0_0 0_2 0_4 0_6 1_1 1_3 1_5 1_7.
    pixels = corrupted(tmp_path, 6, 1, 7)
    source = load(tmp_path, shape=(4, 6, 3), corrupt="skip")
    for _ in range(2):
        for i, taken in enumerate("0_0 0_2 0_4 1_3 1_3 1_3 1_5 0_0".split()):
            np.testing.assert_array_equal(source[i]["image"], pixels[f"{taken}.png"])
            assert source[i]["label"] == int(taken[0])
    assert source.skipped == {"0_6.png", "1_1.png", "1_7.png"}
    warnings = capsys.readouterr().err.strip().splitlines()
    assert len(warnings) == 1 and "0_6.png" in warnings[0]


def test_folder_of_corrupt_files_alone_ends(tmp_path):
    corrupted(tmp_path, *range(8))
    source = load(tmp_path, shape=(4, 6, 3), corrupt="skip")
    with pytest.raises(InputError, match="none of the 8 pictures"):
        source[2]
    folder._scan.cache_clear()
    assert "0_0.png" in refusal(tmp_path)  # looking for their size
