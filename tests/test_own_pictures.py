"""configs/folder.py: a folder of anybody's pictures, named in one line."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from iddpm_jax import build, data
from iddpm_jax.data import folder
from iddpm_jax.errors import InputError

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "folder.py"
MODES = ("RGB", "RGBA", "L", "P", "1")


@pytest.fixture(autouse=True)
def forget_listings():
    """A process lists a folder once; tests make theirs anew."""
    folder._scan.cache_clear()


def paint(root: Path, count: int) -> None:
    """Pictures of several sizes and modes, half of them in a subfolder."""
    (root / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        width, height = rng.integers(20, 90, 2)
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).convert(MODES[i % len(MODES)])
        image.save(root / ("more" if i % 2 else ".") / f"my picture {i}.png")


def config_of(file: Path = CONFIG):
    return runpy.run_path(str(file))["get_config"]()


def source_of(config, split="train"):
    source = build.load_data(config, build.model(config), split)
    data.check_batch_size(source, config.train.batch_size)
    return source


def test_edited_line_is_all_it_takes(tmp_path):
    paint(tmp_path / "cats", 30)
    lines = CONFIG.read_text().splitlines()
    [place] = [i for i, line in enumerate(lines) if line.startswith("PICTURES = ")]
    lines[place] = f'PICTURES = "{tmp_path / "cats"}"'
    edited = tmp_path / "mine.py"
    edited.write_text("\n".join(lines))
    source = source_of(config_of(edited))
    assert len(source) == 27  # every tenth is for testing
    for i in range(len(source)):
        assert source[i]["image"].shape == (32, 32, 3)


def test_as_it_is_reads_pictures_beside_the_command(tmp_path, monkeypatch):
    paint(tmp_path / "pictures", 20)
    monkeypatch.chdir(tmp_path)
    assert len(source_of(config_of())) == 18


def test_broken_picture_is_replaced_by_another_with_a_warning(tmp_path, monkeypatch, capsys):
    paint(tmp_path / "pictures", 20)
    file = tmp_path / "pictures" / "my picture 2.png"
    file.write_bytes(file.read_bytes()[:60])
    monkeypatch.chdir(tmp_path)
    source = source_of(config_of())
    place = source.files.index(file.name)
    np.testing.assert_array_equal(source[place]["image"], source[place + 1]["image"])
    assert f"{file.name} cannot be read as a picture" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (None, ("there is no folder /", "/pictures", "--config.data.name=folder:PATH")),
        (0, ("has no pictures", "png")),
        (16, ("train.batch_size 16 is more than the 15 images", "train.batch_size=15")),
    ],
)
def test_folder_that_will_not_do_is_refused_in_words(tmp_path, monkeypatch, count, words):
    if count is not None:
        paint(tmp_path / "pictures", count)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        source_of(config_of())
    text = str(caught.value)
    assert "\n" not in text and all(word in text for word in words)


def test_pictures_of_other_sizes_can_be_asked_for():
    config = config_of()
    for size in (32, 64):
        config.data.image_shape = (size, size, 3)
        assert build.model(config).image_shape == (size, size, 3)
