"""--mode data: what is said and drawn of the data."""

import re

import numpy as np
import pytest
from PIL import Image
from tiny_config import tiny

from iddpm_jax import inspection
from iddpm_jax.data import folder as folders
from iddpm_jax.errors import InputError


def said(config, folder) -> str:
    return "\n".join(inspection.inspect(config, folder, seconds=0.2))


def painted(root, names: dict[str, tuple[int, int, int]]):
    """4x4 pictures of one colour each."""
    folders._scan.cache_clear()
    for name, colour in names.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), colour).save(root / name)
    return tiny(data__name=f"folder:{root}", train__batch_size=2, model__class_conditional=False)


def test_counts_classes_and_values_are_those_of_the_data(tmp_path):
    # Half of the values 0, a quarter 255 and 51 each: -1, 1 and -0.6.
    root = tmp_path / "pictures"
    half = {f"train/a/{i}.png": (0, 255, 0) for i in range(2)}
    half |= {f"train/b/{i}.png": (51, 0, 51) for i in range(1)} | {"train/b/9.png": (51, 255, 255)}
    config = painted(root, half | {"test/b/1.png": (255, 255, 255)})
    values = np.array([0, 255, 0] * 2 + [51, 0, 51] + [51, 255, 255]) / 127.5 - 1
    text = said(config, tmp_path / "out")
    assert "pictures of 4x4x3" in text
    assert "train: 4 pictures, 2 classes" in text and "classes: a 2, b 2" in text
    assert (
        f"values (in all 4): -1.000 to 1.000, mean {values.mean():.3f}, "
        f"standard deviation {values.std():.3f}" in text
    )
    assert "test: 1 pictures, 2 classes" in text and "classes: b 1, a 0" in text
    assert "values (in all 1): 1.000 to 1.000, mean 1.000, standard deviation 0.000" in text
    assert float(re.search(r"([\d,]+) images/s", text)[1].replace(",", "")) > 0


def test_pictures_are_drawn_with_their_classes(tmp_path):
    said(tiny(), tmp_path)
    for name in ("training.png", "test.png"):
        with Image.open(tmp_path / name) as image:
            assert image.mode == "RGB"
            # 8 x 8 pictures of 8x8, each 72 pixels and a line of text, and what is between.
            assert image.size == (8 * 73, 8 * (72 + 14 + 1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test.png", "training.png"]


def test_training_is_mirrored_and_cropped_and_evaluation_is_not(tmp_path):
    root = tmp_path / "pictures"
    config = painted(root, {f"{i:02d}.png": (0, 0, 0) for i in range(20)})
    ramp = np.arange(0, 80, 10, dtype=np.uint8)[None, :, None].repeat(4, 0).repeat(3, 2)
    for path in root.iterdir():
        Image.fromarray(ramp).save(path)
    config.data.update(image_shape=(4, 4, 3), random_flip=True, random_crop=1.0)
    said(config, tmp_path)
    scale = 72 // 4
    with Image.open(tmp_path / "test.png") as image:
        cell = np.asarray(image)[scale // 2, scale // 2 : 4 * scale : scale, 0]
        np.testing.assert_array_equal(cell, [20, 30, 40, 50])  # the middle
    with Image.open(tmp_path / "training.png") as image:
        pixels = np.asarray(image)[scale // 2 :: 73, :, 0]
        cells = pixels.reshape(8, 8, 73)[..., scale // 2 : 72 : scale].reshape(64, 4).astype(int)
    assert set(cells[:, 1] - cells[:, 0]) == {-10, 10}
    assert set(np.minimum(cells[:, 0], cells[:, 3])) == {0, 10, 20, 30, 40}


def test_small_images_of_super_resolution_are_drawn_beside_the_large(tmp_path):
    config = tiny(model__low_res_size=2, model__class_conditional=False)
    said(config, tmp_path)
    with Image.open(tmp_path / "test.png") as image:
        assert image.size == (8 * (2 * 72 + 1), 8 * 87)
        pixels = np.asarray(image)[..., 0].astype(float)
    small, large = pixels[:72, :72], pixels[:72, 72:144]
    # Each quarter of the small image is the mean of that quarter of the large.
    for rows in (slice(0, 36), slice(36, 72)):
        for columns in (slice(0, 36), slice(36, 72)):
            assert np.ptp(small[rows, columns]) == 0
            assert abs(small[rows, columns].mean() - large[rows, columns].mean()) <= 0.5


def test_many_classes_are_summed_up(tmp_path):
    names = {f"{c:02d}_{i}.png": (c, c, c) for c in range(30) for i in range(2 + (c == 7))}
    config = painted(tmp_path / "pictures", names)
    text = said(config, tmp_path)
    assert re.search(r"largest 07 \d, .*; smallest ", text)
    assert len(re.search("classes: (.*)", text)[1].split()) == 14


def test_files_that_are_skipped_are_counted(tmp_path):
    root = tmp_path / "pictures"
    config = painted(root, {f"{i:02d}.png": (i, i, i) for i in range(20)})
    (root / "05.png").write_bytes(b"no")
    (root / "09.png").write_bytes(b"no")
    with pytest.raises(InputError, match=r"0[59]\.png cannot be read"):
        said(config, tmp_path)
    config.data.corrupt = "skip"
    text = said(config, tmp_path)
    assert text.count("skipped so far: 1 (05.png)") == text.count("skipped so far: 1 (09.png)") == 1


def test_training_without_a_test_split_is_shown(tmp_path):
    config = painted(tmp_path / "pictures", {f"{i}.png": (i, i, i) for i in range(5)})
    text = said(config, tmp_path)
    assert "train: 5 pictures" in text and "test: none; data.name" in text
    assert (tmp_path / "training.png").exists() and not (tmp_path / "test.png").exists()


def test_names_that_are_long_are_shortened():
    images = np.zeros((2, 8, 8, 1), np.uint8)
    pixels = inspection.labelled(images, np.array([0, 1]), ("a name far too long to fit", "b"))
    assert pixels.shape == (87, 146, 3)
    strip = pixels[72:86]
    assert strip[:, :72].any() and strip[:, 73:].any()
    assert inspection.labelled(images, np.array([0, 0]), ()).shape == (73, 146, 3)
    assert inspection._strip("a very long name" * 10, 1).shape == (14, 1, 3)
