"""Pictures in .npz files: what they give, and what is refused."""

import zipfile

import numpy as np
import pytest

from iddpm_jax import data
from iddpm_jax.data import sources
from iddpm_jax.errors import InputError


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
    sources._array.cache_clear()  # a process reads a file once
    with pytest.raises(InputError, match=r"test\.npz cannot be read"):
        data.load(f"npz:{tmp_path}", "test")
