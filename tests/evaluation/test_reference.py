"""Statistics in files: other evaluators', our own, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from iddpm_jax.errors import InputError
from iddpm_jax.evaluation import reference
from iddpm_jax.evaluation.fid import statistics


def made(size, seed=0):
    return statistics(np.random.default_rng(seed).standard_normal((30, size)))


def images(count=3):
    return np.random.default_rng(0).integers(0, 256, (count, 4, 5, 3)).astype(np.uint8)


def refusal(call, *arguments):
    with pytest.raises(InputError) as refused:
        call(*arguments)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_what_is_written_is_read(tmp_path):
    path, pool, spatial = tmp_path / "new" / "ours.npz", made(6), made(4)
    reference.write(path, pool, spatial, "digits", "", "test split of digits")
    found = reference.read(path)
    for ours, theirs in ((pool, found.pool), (spatial, found.spatial)):
        np.testing.assert_array_equal(ours.mu, theirs.mu)
        np.testing.assert_array_equal(ours.sigma, theirs.sigma)
        assert theirs.count == 30
    assert found[2:] == ("digits", "", "test split of digits", False)
    assert [file.name for file in path.parent.iterdir()] == ["ours.npz"]


def test_other_evaluators_can_read_ours(tmp_path):
    path, pool, spatial = tmp_path / "ours.npz", made(6), made(4)
    reference.write(path, pool, spatial, "inception", "tensorflow", "")
    with np.load(path) as arrays:  # no pickle allowed
        np.testing.assert_array_equal(arrays["mu"], pool.mu)
        np.testing.assert_array_equal(arrays["sigma_s"], spatial.sigma)
        assert "arr_0" not in arrays and str(arrays["network"]) == "inception"


def test_reference_batch_of_guided_diffusion_is_read(tmp_path):
    path, pool, spatial = tmp_path / "batch.npz", made(6), made(4)
    names = {"mu_s": spatial.mu, "sigma_s": spatial.sigma}
    np.savez(path, arr_0=images(), mu=pool.mu.astype(np.float32), sigma=pool.sigma, **names)
    found = reference.read(path)
    assert found.pictures and found.network == "" and found.pool.count is None
    assert found.pool.mu.dtype == np.float64
    np.testing.assert_allclose(found.pool.mu, pool.mu, rtol=1e-6)
    np.testing.assert_array_equal(found.spatial.sigma, spatial.sigma)


def test_statistics_of_pytorch_fid_are_read(tmp_path):
    path, pool = tmp_path / "fid.npz", made(6)
    np.savez_compressed(path, mu=pool.mu, sigma=pool.sigma)
    found = reference.read(path)
    np.testing.assert_array_equal(found.pool.sigma, pool.sigma)
    assert found.spatial is None and not found.pictures
    reference.check_made_by(found, path, "inception", "pytorch_fid")


def test_pictures_stay_on_disk_unless_compressed(tmp_path):
    np.savez(tmp_path / "stored.npz", mu=np.zeros(3), arr_0=images())
    np.savez_compressed(tmp_path / "small.npz", images())
    stored, small = (reference.pictures(tmp_path / f"{n}.npz") for n in ("stored", "small"))
    assert isinstance(stored, np.memmap) and not isinstance(small, np.memmap)
    np.testing.assert_array_equal(stored, images())
    np.testing.assert_array_equal(small, images())
    np.testing.assert_array_equal(stored[np.array([2, 0])], images()[[2, 0]])
    assert reference.read(tmp_path / "small.npz").pool is None


def test_pictures_of_another_order_are_read(tmp_path):
    np.savez(tmp_path / "turned.npz", np.asfortranarray(images()))
    np.testing.assert_array_equal(reference.pictures(tmp_path / "turned.npz"), images())


@pytest.mark.parametrize("content", [None, b"", b"not an archive", "cut", {"arr_0": np.ones(3)}])
def test_files_without_pictures_are_refused(tmp_path, content):
    path = tmp_path / "file.npz"
    if content == "cut":
        np.savez(path, images(200))
        path.write_bytes(path.read_bytes()[:5000])
    elif isinstance(content, dict):
        np.savez(path, **content)
    elif content is not None:
        path.write_bytes(content)
    assert str(path) in refusal(reference.pictures, path)


EYE = np.eye(3)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": EYE}, "neither statistics (mu and sigma) nor pictures"),
        ({"mu": EYE[0]}, "only one of mu and sigma"),
        ({"mu": EYE[0], "sigma": np.eye(4)}, "[3] and sigma float64 [4, 4]"),
        ({"mu": np.arange(3), "sigma": EYE}, "mu is int64"),
        ({"mu": np.array([0, np.nan, 0]), "sigma": EYE}, "not finite"),
        ({"mu": EYE[0], "sigma": EYE + np.triu(np.ones((3, 3)))}, "not symmetric"),
        ({"mu": EYE[0], "sigma": EYE, "mu_s": EYE[0]}, "only one of mu_s and sigma_s"),
        ({"mu": np.array([None] * 3), "sigma": EYE}, "cannot be read"),
    ],
)
def test_files_without_statistics_are_refused(tmp_path, arrays, words):
    np.savez(tmp_path / "file.npz", **arrays)
    assert words in refusal(reference.read, tmp_path / "file.npz")


@pytest.mark.parametrize("content", [None, b"", b"not an archive", "cut"])
def test_damaged_files_are_refused(tmp_path, content):
    path = tmp_path / "file.npz"
    if content == "cut":
        reference.write(path, made(20), None, "digits", "", "")
        path.write_bytes(path.read_bytes()[:-300])
    elif content is not None:
        path.write_bytes(content)
    assert "cannot be read as statistics or pictures" in refusal(reference.read, path)


@pytest.mark.parametrize(
    ("made_by", "wanted", "words"),
    [
        (("digits", ""), ("inception", "pytorch_fid"), "set --config.fid.network=digits"),
        (("", ""), ("digits", ""), "set --config.fid.network=inception"),
        (
            ("inception", "tensorflow"),
            ("inception", "pytorch_fid"),
            "set --config.fid.preprocessing=tensorflow",
        ),
    ],
)
def test_statistics_of_another_network_are_refused(made_by, wanted, words):
    saved = reference.Saved(made(3), None, *made_by, "", False)
    assert words in refusal(reference.check_made_by, saved, Path("r.npz"), *wanted)


def test_statistics_of_the_same_network_are_taken():
    saved = reference.Saved(made(3), None, "inception", "tensorflow", "", False)
    reference.check_made_by(saved, Path("r.npz"), "inception", "tensorflow")
