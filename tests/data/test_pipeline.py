"""The order in which training sees a source, flips, crops, and shares of processes."""

import json
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from iddpm_jax import data
from iddpm_jax.errors import InputError


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


class Numbered:
    """Counts what is read; pictures are wide, so that a crop shows where it was taken."""

    image_shape, class_names = (2, 2, 1), ("any",)

    def __init__(self, count: int):
        self.count, self.read = count, []

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        self.read.append(int(index))
        return {"image": np.full((2, 2, 1), index, np.uint8), "label": np.int32(index)}

    def original(self, index: int) -> tuple[Image.Image, int]:
        self.read.append(int(index))
        return Image.fromarray(np.arange(20, dtype=np.uint8)[None].repeat(2, 0)), int(index)


def of_processes(processes: int, count: int, position: dict | None = None, **options):
    """(global batches put together from all processes, position of each process)."""
    parts, positions = [], []
    for process in range(processes):
        batches = data.training_batches(
            Numbered(30), 8, 3, True, process=process, processes=processes, **options
        )
        if position is not None:
            batches.set_state(position)
        parts.append(take(batches, count))
        positions.append(batches.get_state())
    joined = [
        {key: np.concatenate([part[i][key] for part in parts]) for key in ("image", "label")}
        for i in range(count)
    ]
    return joined, positions


@pytest.mark.parametrize("random_crop", [0.0, 1.0])
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_same_global_batches(processes, random_crop):
    whole, (position,) = of_processes(1, 9, random_crop=random_crop)
    joined, positions = of_processes(processes, 9, random_crop=random_crop)
    assert_same_batches(joined, whole)
    assert positions == [position] * processes


@pytest.mark.parametrize("before, after", [(1, 2), (2, 1), (2, 4)])
def test_position_holds_for_another_number_of_processes(before, after):
    expected, _ = of_processes(1, 12, random_crop=1.0)
    _, positions = of_processes(before, 5, random_crop=1.0)
    position = json.loads(json.dumps(positions[-1]))
    assert_same_batches(of_processes(after, 7, position, random_crop=1.0)[0], expected[5:])


def test_process_reads_its_own_share_only():
    shares = []
    for process in range(2):
        source = Numbered(40)
        options = {"process": process, "processes": 2, "num_threads": 1, "prefetch": 1}
        batches = data.training_batches(source, 40, 0, False, **options)
        next(batches)
        shares.append(set(next(batches)["label"].tolist()))
        # Two batches of 20, and what was read ahead: one in the making, one waiting.
        assert len(source.read) <= 20 * 4
    assert shares[0] | shares[1] == set(range(40)) and not shares[0] & shares[1]


@pytest.mark.parametrize("num_threads, prefetch", [(1, 1), (4, 2), (3, 16)])
def test_threads_and_reading_ahead_change_nothing(num_threads, prefetch):
    expected, _ = of_processes(1, 8)
    assert_same_batches(of_processes(1, 8, num_threads=num_threads, prefetch=prefetch)[0], expected)


def test_random_crop_moves_anew_in_every_pass():
    batches = data.training_batches(Numbered(10), 10, 0, False, random_crop=1.0)
    lefts = np.zeros((40, 10), int)
    for i, batch in enumerate(take(batches, 40)):
        image = batch["image"]
        # Windows of a ramp: neighbours differ by one, rows are alike.
        np.testing.assert_array_equal(image[..., 1, :], image[..., 0, :] + 1)
        lefts[i, batch["label"]] = image[:, 0, 0, 0]
    assert set(lefts.ravel()) == set(range(19))
    assert all(len(set(column)) > 10 for column in lefts.T)


def test_random_crop_of_arrays_starts_from_the_pictures_before_averaging():
    images = np.arange(40, dtype=np.uint8)[None, None, :, None].repeat(4, 1)
    source = data.ArraySource(images[:, :2, :20], np.zeros(1, np.int32), (), originals=images)
    batch = next(data.training_batches(source, 1, 0, False, random_crop=0.5))
    assert batch["image"].shape == (1, 2, 20, 1)
    # A ramp of 40 levels in 40 columns, cut to half its size and then to 20 of 20 to 40 columns.
    assert 17 < batch["image"][0, 0, -1, 0].astype(int) - batch["image"][0, 0, 0, 0] < 40


def test_random_crop_of_other_channels_is_refused():
    source = data.ArraySource(np.zeros((3, 4, 4, 2), np.uint8), np.zeros(3, np.int32), ())
    with pytest.raises(InputError, match=r"data\.random_crop.*1 or 3 channels, not 2"):
        data.training_batches(source, 2, 0, False, random_crop=0.8)


def test_batch_that_processes_cannot_share_is_refused():
    with pytest.raises(InputError, match=r"train\.batch_size 9 .* 2 processes"):
        data.training_batches(numbered(12), 9, 0, False, process=1, processes=2)


def test_unreadable_picture_reaches_the_reader_as_it_is():
    class Broken(Numbered):
        def __getitem__(self, index: int):
            if index == 7:
                raise InputError("a.png cannot be read")
            return super().__getitem__(index)

    batches = data.training_batches(Broken(12), 4, 0, False)
    with pytest.raises(InputError) as caught:
        take(batches, 6)
    assert str(caught.value) == "a.png cannot be read"


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


def test_independent_batches_draw_with_replacement_and_evenly():
    source = numbered(12)
    batches = [data.independent_batch(source, 24, (3, i), False) for i in range(200)]
    assert any(len(set(batch["label"].tolist())) < 12 for batch in batches)  # e^-11 else
    counts = np.bincount(np.concatenate([batch["label"] for batch in batches]), minlength=12)
    # Of 4800 draws 400 each, with standard deviation 19.
    assert np.abs(counts - 400).max() < 80
    for batch in batches[:5]:
        np.testing.assert_array_equal(batch["image"], source.images[batch["label"]])
        assert batch["label"].dtype == np.int32


def test_independent_batches_follow_their_seed_and_are_shared_by_processes():
    source = numbered(40)
    whole = data.independent_batch(source, 8, (3, 5), True)
    parts = [data.independent_batch(source, 8, (3, 5), True, 0.0, i, 2) for i in range(2)]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in whole}
    assert_same_batches([joined], [whole])
    other = data.independent_batch(source, 8, (3, 6), True)
    assert not np.array_equal(other["label"], whole["label"])


def test_independent_batches_are_flipped_half_of_the_time():
    batch = data.independent_batch(numbered(12), 400, (0,), True)
    flipped = batch["image"][:, 0, 0, 0] == 255
    assert 150 < flipped.sum() < 250
