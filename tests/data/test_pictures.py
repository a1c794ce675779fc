"""Kinds of picture files: grey, palette, transparent, 16 bit, animated, turned."""

import io

import numpy as np
import pytest
from PIL import Image

from iddpm_jax.data.pictures import check_channels, decode, shape_of
from iddpm_jax.errors import InputError


def file_of(image: Image.Image, form: str = "PNG", **options) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, form, **options)
    file.seek(0)
    return file


def pixels_of(image: Image.Image, form: str = "PNG", channels: int = 3, **options) -> np.ndarray:
    decoded = decode(file_of(image, form, **options), channels)
    assert decoded.mode == ("L" if channels == 1 else "RGB")
    return np.asarray(decoded)


@pytest.fixture(name="rng")
def make_rng():
    return np.random.default_rng(0)


def test_colour_and_grey_are_as_they_are(rng):
    colour = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(pixels_of(Image.fromarray(colour)), colour)
    grey = colour[..., 0]
    np.testing.assert_array_equal(pixels_of(Image.fromarray(grey), channels=1), grey)
    np.testing.assert_array_equal(pixels_of(Image.fromarray(grey)), np.stack([grey] * 3, -1))


def test_black_and_white_is_spread_to_all_levels():
    bits = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1")
    np.testing.assert_array_equal(pixels_of(bits, channels=1), [[0, 255], [255, 0]])


def test_transparent_becomes_white(rng):
    pixels = rng.integers(0, 256, (5, 7, 4), dtype=np.uint8)
    alpha = pixels[..., 3:] / 255
    expected = pixels[..., :3] * alpha + 255 * (1 - alpha)
    found = pixels_of(Image.fromarray(pixels))
    assert np.abs(found - expected).max() <= 1
    grey = Image.fromarray(pixels[..., [0, 3]])
    assert np.abs(pixels_of(grey, channels=1) - expected[..., 0]).max() <= 1


def test_palettes_are_resolved_and_may_be_transparent():
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    np.testing.assert_array_equal(
        pixels_of(image), [[[10, 20, 30], [40, 50, 60]], [[70, 80, 90], [40, 50, 60]]]
    )
    white = pixels_of(image, transparency=1)
    np.testing.assert_array_equal(white[:, 1], np.full((2, 3), 255))
    np.testing.assert_array_equal(white[:, 0], [[10, 20, 30], [70, 80, 90]])


def test_colour_named_transparent_becomes_white():
    image = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    np.testing.assert_array_equal(
        pixels_of(image, transparency=(1, 2, 3)), [[[255, 255, 255], [4, 5, 6]]]
    )


def test_sixteen_bit_grey_keeps_its_upper_eight():
    levels = np.arange(256, dtype=np.uint16) * 257
    image = Image.fromarray(levels.reshape(16, 16))
    np.testing.assert_array_equal(pixels_of(image, channels=1).ravel(), np.arange(256))
    assert shape_of(file_of(image)) == (16, 16, 1)


def test_printing_colours_become_screen_colours():
    ink = np.zeros((2, 2, 4), np.uint8)
    ink[0, 0] = (255, 0, 0, 0)  # cyan
    ink[1, 1] = (0, 0, 0, 255)  # black
    found = pixels_of(
        Image.frombytes("CMYK", (2, 2), ink.tobytes()).resize((32, 32), 0), "JPEG", quality=100
    )
    np.testing.assert_allclose(found[2, 2], (0, 255, 255), atol=3)
    np.testing.assert_allclose(found[2, 30], (255, 255, 255), atol=3)
    np.testing.assert_allclose(found[30, 30], (0, 0, 0), atol=3)


@pytest.mark.parametrize("form", ["GIF", "WEBP"])
def test_animation_gives_its_first_frame(form):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    found = pixels_of(frames[0], form, save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(found, np.broadcast_to([255, 0, 0], (4, 4, 3)), atol=3)


# How a picture must be turned for each way of holding a camera, as rows of its corners.
TURNED = {
    1: "ab/cd",
    2: "ba/dc",
    3: "dc/ba",
    4: "cd/ab",
    5: "ac/bd",
    6: "ca/db",
    7: "db/ca",
    8: "bd/ac",
}


@pytest.mark.parametrize("orientation, corners", TURNED.items())
@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_pictures_stand_upright(orientation, corners, form):
    levels = {"a": 10, "b": 80, "c": 160, "d": 240}
    pixels = np.array([[levels["a"], levels["b"]], [levels["c"], levels["d"]]], np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(pixels.repeat(16, 0).repeat(24, 1))
    found = pixels_of(image, form, channels=1, exif=exif)
    shape = (32, 48) if orientation < 5 else (48, 32)
    assert found.shape == shape and shape_of(file_of(image, form, exif=exif))[:2] == shape
    corner = found[:: found.shape[0] - 1, :: found.shape[1] - 1]
    expected = [[levels[letter] for letter in row] for row in corners.split("/")]
    np.testing.assert_allclose(corner, expected, atol=3)


@pytest.mark.parametrize(
    "exif", [b"garbage", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0"]
)
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_data_do_no_harm(form, exif):
    image, exif = Image.new("L", (8, 6), 99), b"Exif\0\0" + exif
    found = pixels_of(image, form, channels=1, exif=exif)
    np.testing.assert_array_equal(found, np.full((6, 8), 99))
    assert shape_of(file_of(image, form, exif=exif))[:2] == (6, 8)


@pytest.mark.parametrize("mode, channels", [("L", 1), ("LA", 1), ("1", 1), ("RGB", 3), ("P", 3)])
def test_shape_is_known_from_the_head(mode, channels):
    assert shape_of(file_of(Image.new(mode, (7, 5)))) == (5, 7, channels)


def test_other_channels_are_refused():
    for shape in ((), (4, 4, 1), (4, 4, 3)):
        check_channels(shape)
    with pytest.raises(InputError, match=r"not 4; change data\.image_shape"):
        check_channels((4, 4, 4))
