"""Results on disk as they come."""

import numpy as np
import pytest

from iddpm_jax import data
from iddpm_jax.evaluation.parts import Parts, told_apart


def rows(first, count):
    return {"a": np.arange(first, first + count), "b": np.ones((count, 2), np.uint8)}


def test_rows_come_back_in_order_after_a_restart(tmp_path):
    parts = Parts(tmp_path / "parts", {"seed": 0})
    parts.append(rows(0, 3))
    parts.append(rows(3, 2))
    again = Parts(tmp_path / "parts", {"seed": 0})
    assert again.done == 5
    again.append(rows(5, 1))
    np.testing.assert_array_equal(again.read()["a"], np.arange(6))
    assert again.read()["b"].shape == (6, 2)


def test_rows_of_other_settings_are_removed(tmp_path):
    Parts(tmp_path, {"seed": 0}).append(rows(0, 3))
    assert Parts(tmp_path, {"seed": 1}).done == 0
    assert Parts(tmp_path, {"seed": 0}).done == 0


@pytest.mark.parametrize("damage", ["cut", "empty", "missing"])
def test_a_damaged_part_and_all_after_it_are_made_again(tmp_path, damage):
    parts = Parts(tmp_path, {})
    for first in (0, 2, 4):
        parts.append(rows(first, 2))
    file = sorted(tmp_path.glob("rows_from_*"))[1]
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-40] if damage == "cut" else b"")
    again = Parts(tmp_path, {})
    assert again.done == 2
    again.append(rows(2, 4))
    np.testing.assert_array_equal(Parts(tmp_path, {}).read()["a"], np.arange(6))


def test_a_file_left_unfinished_does_not_count(tmp_path):
    Parts(tmp_path, {}).append(rows(0, 2))
    (tmp_path / "unfinished.npz").write_bytes(b"half")
    assert Parts(tmp_path, {}).done == 2


def test_without_a_folder_rows_stay_in_memory():
    parts = Parts(None, {})
    assert parts.read() == {}
    parts.append(rows(0, 2))
    parts.remove()
    assert parts.done == 2
    np.testing.assert_array_equal(parts.read()["a"], [0, 1])


def test_parts_come_one_by_one(tmp_path):
    for folder in (None, tmp_path):
        parts = Parts(folder, {"seed": 0})
        parts.append(rows(0, 3))
        parts.append(rows(3, 2))
        assert [part["a"].tolist() for part in parts] == [[0, 1, 2], [3, 4]]
        assert [set(part) for part in parts] == [{"a", "b"}] * 2


def test_the_first_array_counts_the_rows(tmp_path):
    for first in (0, 2):
        Parts(tmp_path, {}).append({**rows(first, 2), "sum": np.full(1, first)})
    parts = Parts(tmp_path, {})
    assert [part["sum"].tolist() for part in parts] == [[0], [2]]
    assert parts.done == 4


def test_what_comes_goes_to_disk_after_some_seconds_and_when_interrupted(tmp_path):
    def coming(parts, files):
        for first in range(5):
            files.append(len(list(tmp_path.glob("rows_from_*"))))
            yield rows(first, 1)
        raise KeyboardInterrupt

    for seconds, seen in ((0, [0, 1, 2, 3, 4]), (1000, [0] * 5)):
        parts, files = Parts(tmp_path, {"seconds": seconds}), []
        with pytest.raises(KeyboardInterrupt):
            parts.extend(coming(parts, files), seconds)
        assert files == seen
        again = Parts(tmp_path, {"seconds": seconds})
        np.testing.assert_array_equal(again.read()["a"], np.arange(5))


def test_data_are_told_apart_by_their_size_and_pictures():
    images = np.zeros((20, 2, 2, 1), np.uint8)
    changed = images.copy()
    changed[-1, 0, 0] = 1
    found = [
        told_apart(data.ArraySource(each, np.zeros(len(each), np.int32), ("any",)))
        for each in (images, images.copy(), changed, images[:19])
    ]
    assert found[0] == found[1]
    assert found[0] != found[2] and found[0] != found[3]
