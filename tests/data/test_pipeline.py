"""The order in which training sees a source, flips, crops, and shares of processes."""

import json
from itertools import islice

import numpy as np
import pytest

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
