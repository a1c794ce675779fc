"""Super-resolution: which small images, of which class, and samples that belong to them.

The network here predicts x_0 by a formula of the small image, so that samples are known.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny_config import tiny

from iddpm_jax import build, data
from iddpm_jax.diffusion import samplers
from iddpm_jax.errors import InputError
from iddpm_jax.evaluation.generate import Base, base_of, generate
from iddpm_jax.evaluation.samples import preview, show, write
from iddpm_jax.images import grid, to_float, to_uint8
from iddpm_jax.models.unet import Network
from iddpm_jax.training.parallel import make_mesh

SUPER = {"model__low_res_size": 4, "diffusion__mean": "x_0"}


def small_pictures(count: int, shape=(4, 4, 1), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape)).astype(np.uint8)


def enlarged(small: np.ndarray | jax.Array) -> np.ndarray | jax.Array:
    """Every pixel of 4x4 pictures four times."""
    return small.repeat(2, axis=1).repeat(2, axis=2)


def formula(share_of_x: float = 0.0, brighter: float = 0.0) -> Network:
    """x_0 is the enlarged small image, with something of x_t and of the class."""

    def apply(params, x, t, y, dropout_keys, low_res):
        x_0 = enlarged(low_res) + share_of_x * x
        if y is not None:
            x_0 = x_0 + brighter * y[:, None, None, None]
        v = 0.5 * jnp.ones_like(x)
        return jnp.concatenate([x_0 + 0.0 * params["w"], v], axis=-1)

    return Network(lambda key, shape: {"w": jnp.zeros(())}, apply)


def draw(network: Network, base: Base, devices: int = 1, **overrides):
    """Samples from small images with a formula as network."""
    config = tiny(**{**SUPER, **overrides})
    model = dataclasses.replace(build.model(config), network=network)
    mesh = make_mesh(jax.devices()[:devices])
    return generate(config, model, {"w": jnp.zeros(())}, mesh, base, progress=False)


def assert_same_pictures(a, b):
    """Equal but for a rounding that falls on the other side of a level."""
    assert a.shape == b.shape and a.dtype == b.dtype == np.uint8
    assert np.abs(a.astype(int) - b.astype(int)).max() <= 1


def base_from(config) -> Base | None:
    return base_of(config, build.model(config))


def test_base_model_starts_from_nothing():
    assert base_from(tiny()) is None


def test_small_images_are_those_of_the_test_split():
    source = data.load("digits", "test")
    means = source.images.astype(np.float64).reshape(-1, 4, 2, 4, 2, 1).mean(axis=(2, 4))
    for count in (8, 1000):  # there are 359
        base = base_from(tiny(**SUPER, sample__count=count))
        # Means of four whole numbers are exact in float32, and so is where they round to.
        np.testing.assert_array_equal(base.images, np.rint(means)[:count])
        assert base.images.dtype == np.uint8
        np.testing.assert_array_equal(base.classes, source.labels[:count])


def test_small_images_are_those_of_the_file_and_all_of_them(tmp_path):
    images, classes = small_pictures(11), np.arange(11) % 10
    np.savez(tmp_path / "a.npz", images, classes)
    config = tiny(**SUPER, sample__base=str(tmp_path / "a.npz"), sample__count=3)
    base = base_from(config)
    np.testing.assert_array_equal(base.images, images)
    assert base.classes.tolist() == classes.tolist()
    drawn, told = draw(formula(), base, sample__count=3)
    assert drawn.shape == (11, 8, 8, 1) and told.tolist() == classes.tolist()


def test_what_a_base_model_wrote_is_taken(tmp_path):
    write(tmp_path / "a.npz", [small_pictures(6)], 6, np.arange(6, dtype=np.int32))
    base = base_from(tiny(**SUPER, sample__base=str(tmp_path / "a.npz")))
    np.testing.assert_array_equal(base.images, small_pictures(6))
    assert base.classes.tolist() == list(range(6))


@pytest.mark.parametrize(
    "arrays, words",
    [
        ([small_pictures(5, (8, 8, 1)), np.arange(5)], ["8x8x1", "4x4x1 to 8x8x1"]),
        ([small_pictures(5, (4, 4, 3)), np.arange(5)], ["4x4x3", "4x4x1"]),
        ([small_pictures(5)], ["no classes (arr_1)"]),
        ([small_pictures(5), np.arange(6, 11)], ["class 10", "0 to 9"]),
        ([small_pictures(5), np.arange(4)], ["arr_1", "5 pictures"]),
        ([small_pictures(5).astype(np.float32), np.arange(5)], ["float32", "uint8"]),
        ([], ["arr_0"]),
        (None, ["cannot be read"]),
        ("not an npz", ["cannot be read"]),
    ],
    ids="size channels no_classes class short float empty missing text".split(),
)
def test_impossible_file_of_small_images_is_refused(tmp_path, arrays, words):
    path = tmp_path / "a.npz"
    if isinstance(arrays, str):
        path.write_text(arrays)
    elif arrays is not None:
        np.savez(path, *arrays)
    with pytest.raises(InputError) as caught:
        base_from(tiny(**SUPER, sample__base=str(path)))
    text = str(caught.value)
    assert "\n" not in text
    for word in (str(path), *words):
        assert word in text


def test_unconditional_model_does_without_classes(tmp_path):
    np.savez(tmp_path / "a.npz", small_pictures(4))
    config = tiny(**SUPER, model__class_conditional=False, sample__base=str(tmp_path / "a.npz"))
    base = base_from(config)
    images, classes = draw(formula(), base, model__class_conditional=False)
    assert classes is None
    assert_same_pictures(images, enlarged(base.images))


def test_classes_are_carried_along_by_a_network_that_is_not_told_them():
    base = Base(small_pictures(3), np.array([7, 2, 7], np.int32))
    _, classes = draw(formula(), base, model__class_conditional=False)
    np.testing.assert_array_equal(classes, base.classes)


@pytest.mark.parametrize("sampler", ["ancestral", "ddim"])
def test_every_sample_belongs_to_its_small_image_and_class(sampler):
    """The last step draws no noise, so a sample is the network's x_0."""
    base = Base(small_pictures(11), np.random.default_rng(1).integers(0, 10, 11))
    images, classes = draw(formula(brighter=0.05), base, 4, sample__sampler=sampler)
    x_0 = enlarged(base.images).astype(np.float64) / 127.5 - 1
    x_0 = np.clip(x_0 + 0.05 * base.classes[:, None, None, None], -1, 1)
    assert_same_pictures(images, np.floor((x_0 + 1) * 127.5).astype(np.uint8))
    np.testing.assert_array_equal(classes, base.classes)


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_sample_does_not_depend_on_its_batch(noise):
    base = Base(small_pictures(11), np.arange(11) % 10)
    network = formula(share_of_x=0.2)
    settings = {"sample__low_res_noise": noise}
    expected, _ = draw(network, base, 1, sample__batch_size=16, **settings)
    for devices, batch in ((1, 3), (4, 4)):
        images, _ = draw(network, base, devices, sample__batch_size=batch, **settings)
        assert_same_pictures(expected, images)
    fewer, _ = draw(network, Base(base.images[:5], base.classes[:5]), **settings)
    assert_same_pictures(expected[:5], fewer)
    other, _ = draw(network, base, sample__seed=1, **settings)
    assert (other != expected).mean() > 0.3


def test_noise_on_small_images_has_the_strength_asked_for():
    """A grey picture comes back as the noise on it."""
    base = Base(np.full((64, 4, 4, 1), 127, np.uint8), np.zeros(64, np.int32))
    images, _ = draw(formula(), base, sample__low_res_noise=0.2, sample__batch_size=64)
    noise = images[:, ::2, ::2].astype(np.float64) / 127.5 - 1
    np.testing.assert_array_equal(enlarged(images[:, ::2, ::2]), images)
    # 1024 normal numbers: standard deviations of 0.006 of the mean and 0.0045 of the spread.
    assert abs(noise.mean()) < 0.03
    np.testing.assert_allclose(noise.std(), 0.2, atol=0.02)
    # Each has its own, and it is not the noise that sampling starts from.
    assert len({image.tobytes() for image in images}) == 64
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(64))
    for t in range(6):
        other = samplers.noise_per_sample(keys, (4, 4, 1))(jnp.int32(t))
        assert abs(np.corrcoef(noise.ravel(), np.ravel(other))[0, 1]) < 0.15


@pytest.mark.slow
def test_ddim_is_that_of_its_start_and_its_small_image():
    config = tiny(**SUPER)
    model = build.model(config)
    base = Base(small_pictures(8), np.arange(8))
    network, params = formula(share_of_x=0.3), {"w": jnp.zeros(())}
    low_res = to_float(base.images)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(8))
    start = samplers.noise_per_sample(keys, (8, 8, 1))(jnp.int32(5))
    expected = samplers.ddim(
        lambda x, t: network.apply(params, x, t, jnp.arange(8), None, low_res),
        model.respaced("5", "sample.steps"),
        model.parametrization,
        start,
        lambda t: 0.0 * start,
    ).x
    images, _ = draw(network, base, sample__sampler="ddim")
    assert_same_pictures(to_uint8(expected), images)
    for settings in ({}, {"sample__sampler": "ddim", "sample__eta": 1.0}):
        others, _ = draw(network, base, **settings)
        assert (others != images).mean() > 0.1


def test_guided_samples_are_between_and_beyond_the_two_predictions():
    """x_0 of class y is 0.02 y brighter: guided by 3 from 10, the null class, 3 (y - 10) + 10."""
    small = small_pictures(8) // 2 + 32
    base = Base(small, np.arange(8))
    settings = {"model__label_dropout": 0.1, "sample__guidance": 3.0}
    images, _ = draw(formula(brighter=0.02), base, 4, **settings)
    x_0 = enlarged(small) / 127.5 - 1 + 0.02 * (3 * (np.arange(8) - 10) + 10)[:, None, None, None]
    expected = np.floor((np.clip(x_0, -1, 1) + 1) * 127.5).astype(np.uint8)
    assert_same_pictures(images, expected)


def test_grid_has_small_images_left_of_their_samples():
    small = (
        np.array([[[10], [20]], [[30], [40]]], np.uint8)[None]
        + np.arange(5, dtype=np.uint8)[:, None, None, None]
    )
    images = 100 + np.arange(5, dtype=np.uint8)[:, None, None, None].repeat(4, 1).repeat(6, 2)
    shown = preview(images, np.arange(5), Base(small, np.arange(5)))
    left = small.repeat(2, axis=1).repeat(3, axis=2)
    pairs = [picture for pair in zip(left, images, strict=True) for picture in pair]
    np.testing.assert_array_equal(shown, grid(np.stack(pairs), 4))


def test_grid_of_sizes_that_do_not_divide_shows_the_nearest_pixel():
    small = small_pictures(1, (3, 2, 1))
    images = np.zeros((1, 8, 5, 1), np.uint8)
    shown = preview(images, None, Base(small, None))
    scale = 48 // 8
    assert shown.shape == (8 * scale + 1, 2 * (5 * scale + 1), 1)
    left = shown[: 8 * scale : scale, : 5 * scale : scale]
    rows, columns = [0, 0, 0, 1, 1, 1, 2, 2], [0, 0, 0, 1, 1]
    np.testing.assert_array_equal(left, small[0][rows][:, columns])


def test_files_hold_samples_alone_and_the_grid_both(tmp_path):
    base = Base(small_pictures(4), np.arange(4))
    images = small_pictures(4, (8, 8, 1), seed=1)
    path = tmp_path / "new" / "a.npz"
    write(path, [images], 4, base.classes)
    show(path, base.classes, base, single=False)
    with np.load(path) as arrays:
        np.testing.assert_array_equal(arrays["arr_0"], images)
        assert arrays["arr_1"].tolist() == [0, 1, 2, 3]
    with Image.open(path.with_name("grid.png")) as shown:
        pixels = np.asarray(shown)[..., None]
    np.testing.assert_array_equal(pixels, preview(images, base.classes, base))


@pytest.mark.slow
def test_real_network_looks_at_the_small_image():
    config = tiny(model__low_res_size=4)
    model = build.model(config)
    params = jax.jit(lambda: model.network.init(jax.random.key(0), model.image_shape))()
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: p + 0.02 * rng.standard_normal(p.shape).astype("f"), params)
    base = Base(small_pictures(8), np.arange(8))
    other = Base(base.images.copy(), base.classes)
    other.images[3:] = 255 - other.images[3:]
    images, others = (
        generate(config, model, params, make_mesh(), b, progress=False)[0] for b in (base, other)
    )
    assert_same_pictures(images[:3], others[:3])
    assert (images[3:] != others[3:]).mean() > 0.3
