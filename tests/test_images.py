"""Pictures between files and arrays, against recordings, exact arithmetic and Pillow."""

import jax
import numpy as np
import pytest
from golden_cases import OUTPUT, assert_close, cases, load, to_nchw, to_nhwc
from PIL import Image

from iddpm_jax.images import (
    area_average,
    enlarge,
    grid,
    prepare,
    random_crop,
    to_float,
    to_uint8,
    write_png,
)

FILE = "09_extras.npz"
AREA = cases(FILE, "area_downsample")
PREPARED = cases(FILE, "image_prepare")


@pytest.fixture(name="rng")
def make_rng():
    return np.random.default_rng(0)


def test_recordings_are_there():
    assert AREA and PREPARED


def test_to_uint8_matches_recording():
    pixels = to_uint8(load(FILE)["to_uint8/x"])
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, load(FILE)["to_uint8/y"])


@pytest.mark.parametrize(
    "x, pixel", [(-1, 0), (-7, 0), (1, 255), (7, 255), (0, 127), (0.9999, 254), (-0.9999, 0)]
)
def test_to_uint8_clamps_and_truncates(x, pixel):
    assert to_uint8(np.array([x])) == pixel


@pytest.mark.parametrize("convert", [to_float, jax.jit(to_float)], ids=["plain", "jit"])
def test_to_float_spans_minus_one_to_one(convert):
    levels = np.arange(256, dtype=np.uint8)
    x = np.asarray(convert(levels))
    assert x.dtype == np.float32
    assert x[0] == -1 and x[255] == 1
    np.testing.assert_allclose(x, np.arange(256) / 127.5 - 1, rtol=0, atol=2**-23)


@pytest.mark.parametrize("convert", [to_float, jax.jit(to_float)], ids=["plain", "jit"])
def test_round_trip_loses_at_most_the_last_level(convert):
    levels = np.arange(256, dtype=np.uint8)
    x = np.asarray(convert(levels))
    back = to_uint8(x)
    # Truncation is the recorded rule: where float32 rounds down, the level below comes back.
    lost = levels.astype(int) - back
    assert set(lost) <= {0, 1}
    # Half a level is room for any rounding.
    np.testing.assert_array_equal(to_uint8(x + 0.5 / 127.5), levels)


@pytest.mark.parametrize("name, case", AREA, ids=[name for name, _ in AREA])
def test_area_average_matches_recording(name, case):
    x = to_nhwc(load(FILE)[f"{name}/x"])
    assert_close(FILE, f"{name}/y", to_nchw(area_average(x, case["size"], case["size"])), OUTPUT)


def test_area_average_of_other_shapes_is_the_mean_of_each_bin(rng):
    x = rng.normal(size=(2, 8, 6, 1)).astype(np.float32)
    bins = x.astype(np.float64).reshape(2, 2, 4, 2, 3, 1)
    averaged = area_average(x, 2, 2)
    assert averaged.dtype == np.float32
    np.testing.assert_allclose(averaged, bins.mean(axis=(2, 4)), atol=1e-6)


@pytest.mark.parametrize("name, case", PREPARED, ids=[name for name, _ in PREPARED])
def test_prepare_matches_recording(name, case):
    pixels = load(FILE)[f"{name}/pixels"]
    prepared = prepare(Image.fromarray(pixels), case["resolution"], case["resolution"])
    assert prepared.dtype == np.uint8
    scaled = prepared.astype(np.float32) / 127.5 - 1
    np.testing.assert_array_equal(to_nchw(scaled), load(FILE)[f"{name}/prepared"])


def test_prepare_leaves_a_picture_of_the_right_size_alone(rng):
    pixels = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
    np.testing.assert_array_equal(prepare(Image.fromarray(pixels), 12, 12), pixels)


def test_prepare_halves_by_averages_from_exactly_twice_the_size(rng):
    pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    doubled = np.kron(pixels, np.ones((2, 2, 1), np.uint8))
    np.testing.assert_array_equal(prepare(Image.fromarray(doubled), 16, 16), pixels)


def test_prepare_enlarges_a_small_picture():
    pixels = np.full((5, 9, 3), 77, np.uint8)
    np.testing.assert_array_equal(
        prepare(Image.fromarray(pixels), 16, 16), np.full((16, 16, 3), 77, np.uint8)
    )


@pytest.mark.parametrize("size", [(6, 10), (12, 20), (17, 20), (12, 31), (48, 80)])
def test_prepare_to_a_rectangle_keeps_the_middle(size):
    # A ramp to the right that is the same in all rows: what is left lies around its middle.
    ramp = np.linspace(0, 250, size[1])[None].repeat(size[0], 0)
    prepared = prepare(Image.fromarray(np.rint(ramp).astype(np.uint8)), 6, 10)
    assert prepared.shape == (6, 10)
    # Columns are as far apart as the picture is scaled, but for edges and rounding.
    step = 250 / (size[1] - 1) * min(size[0] / 6, size[1] / 10)
    expected = 125 + step * (np.arange(10) - 4.5)
    assert np.abs(prepared.astype(float) - expected)[:, 1:-1].max() < step * 0.75 + 1


def test_prepare_of_grey_is_prepare_of_each_colour(rng):
    pixels = rng.integers(0, 256, (23, 31), dtype=np.uint8)
    colour = prepare(Image.fromarray(pixels[..., None].repeat(3, -1)), 8, 9)
    grey = prepare(Image.fromarray(pixels), 8, 9)
    np.testing.assert_array_equal(colour, np.stack([grey] * 3, -1))


def test_random_crop_of_everything_is_a_window_of_the_prepared_picture(rng):
    pixels = rng.integers(0, 256, (8, 20), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    seen = set()
    for _ in range(200):
        cropped = random_crop(picture, 8, 8, 1.0, rng)
        left = [i for i in range(13) if (pixels[:, i : i + 8] == cropped).all()]
        assert len(left) == 1
        seen.update(left)
    assert seen == set(range(13))


def test_random_crop_keeps_at_least_the_share_asked_for(rng):
    # Two ramps, down and right: the corners of the result say where the window was.
    rows, columns = np.meshgrid(np.arange(240), np.arange(240), indexing="ij")
    picture = Image.fromarray(np.stack([rows, columns, 0 * rows], -1).astype(np.uint8))
    shares, tops = [], []
    for _ in range(300):
        cropped = random_crop(picture, 30, 30, 0.5, rng).astype(float)
        height, width = (np.ptp(cropped[5:25, 5:25, i]) * 30 / 19 / 240 for i in (0, 1))
        assert abs(height - width) < 0.03
        shares.append(height)
        tops.append(cropped[0, 0, 0])
    # Sizes from 30 to 60 cut down to 30: from all to half of the picture.
    assert 0.48 < min(shares) < 0.52 and 0.96 < max(shares) < 1.03
    assert min(tops) < 10 and max(tops) > 90


@pytest.mark.parametrize("size, smallest", [((5, 9), 0.8), ((40, 33), 0.3), ((64, 200), 0.9)])
@pytest.mark.parametrize("shape", [(16, 16), (12, 20), (21, 8)])
def test_random_crop_has_the_size_asked_for(rng, size, smallest, shape):
    picture = Image.fromarray(np.full((*size, 3), 77, np.uint8))
    for _ in range(20):
        np.testing.assert_array_equal(
            random_crop(picture, *shape, smallest, rng), np.full((*shape, 3), 77, np.uint8)
        )


@pytest.mark.parametrize("height, width", [(8, 10), (6, 7), (4, 5), (20, 5)])
def test_enlarging_takes_the_nearest_pixel(rng, height, width):
    images = rng.integers(0, 256, (3, 4, 5, 3)).astype(np.uint8)
    large = enlarge(images, height, width)
    assert large.shape == (3, height, width, 3)
    for y in range(height):
        for x in range(width):
            expected = images[:, y * 4 // height, x * 5 // width]
            np.testing.assert_array_equal(large[:, y, x], expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_places_pictures_row_by_row(rng, channels):
    images = rng.integers(1, 256, (5, 4, 6, channels), dtype=np.uint8)
    pixels = grid(images, columns=3, scale=2)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (2 * 9, 3 * 13, channels)
    for i, image in enumerate(images):
        top, left = 9 * (i // 3), 13 * (i % 3)
        cell = pixels[top : top + 8, left : left + 12]
        np.testing.assert_array_equal(cell, np.kron(image, np.ones((2, 2, 1), np.uint8)))


def test_grid_is_black_between_and_in_unused_places(rng):
    images = rng.integers(1, 256, (5, 4, 4, 3), dtype=np.uint8)
    pixels = grid(images, columns=3, scale=1)
    assert not pixels[4::5].any() and not pixels[:, 4::5].any()
    assert not pixels[5:, 10:].any()
    assert (pixels > 0).sum() == images.size


@pytest.mark.parametrize(
    "count, size, columns, scale",
    [(1, 8, 1, 6), (4, 8, 2, 6), (5, 8, 3, 6), (10, 32, 4, 1), (3, 100, 2, 1), (2, 17, 2, 2)],
)
def test_grid_is_about_square_and_enlarges_small_pictures(count, size, columns, scale):
    pixels = grid(np.full((count, size, size, 1), 9, np.uint8))
    rows = int(np.ceil(count / columns))
    assert pixels.shape == (rows * (size * scale + 1), columns * (size * scale + 1), 1)


@pytest.mark.parametrize("channels, mode", [(1, "L"), (3, "RGB")])
def test_png_reads_back_the_same(rng, tmp_path, channels, mode):
    pixels = rng.integers(0, 256, (7, 5, channels), dtype=np.uint8)
    path = tmp_path / "new" / "folder" / "picture.png"
    write_png(path, pixels)
    with Image.open(path) as picture:
        assert picture.mode == mode
        np.testing.assert_array_equal(np.asarray(picture).reshape(pixels.shape), pixels)
