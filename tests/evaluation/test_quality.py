"""--mode fid from the command line: what is compared, by what, and what is refused."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from iddpm_jax import data, main, runtime
from iddpm_jax.evaluation import inception

DIGITS = ("--config.fid.network=digits", "--config.fid.batch_size=128")


@pytest.fixture(name="cli")
def make_cli(monkeypatch, capsys):
    """Function (arguments) -> (exit code, stdout, stderr), in a JAX that has started."""
    monkeypatch.setattr(runtime, "configure", lambda *_: None)

    def call(*arguments):
        capsys.readouterr()
        code = main.main(["iddpm_jax.main", *map(str, arguments)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


@pytest.fixture(name="files", scope="module")
def write_files(tmp_path_factory):
    """Function name -> .npz: digits of the test split, the same with noise, of the training."""
    folder = tmp_path_factory.mktemp("pictures")
    test, train = (data.load("digits", split, ()).images for split in ("test", "train"))
    noise = np.random.default_rng(0).normal(0, 40, test.shape)
    noisy = np.clip(test + noise, 0, 255).astype(np.uint8)
    colour = np.repeat(test, 3, axis=-1)
    for name, images in (("test", test), ("noisy", noisy), ("train", train), ("colour", colour)):
        np.savez(folder / f"{name}.npz", images)
    return lambda name: folder / f"{name}.npz"


def scores_of(out: str) -> tuple[dict[str, dict], dict]:
    """(scores by name, all of the JSON file that the output names)."""
    path = Path(re.search(r"^scores +(.+)$", out, re.MULTILINE).group(1))
    found = json.loads(path.read_text())
    return {score["name"]: score for score in found["scores"]}, found


def compare(cli, samples, reference, *flags):
    code, out, err = cli(
        "--mode", "fid", "--samples", samples, "--reference", reference, *DIGITS, *flags
    )
    assert code == 0, err
    return scores_of(out)


def assert_refused(cli, arguments, *words):
    code, _, error = cli(*arguments)
    assert code == 2 and error.startswith("error: ") and error.count("\n") == 1, error
    for word in words:
        assert word in error


@pytest.mark.slow
def test_pictures_against_themselves_are_perfect(cli, files, tmp_path):
    scores, about = compare(cli, files("test"), files("test"), "--workdir", tmp_path)
    assert abs(scores["FD-digits"]["value"]) < 1e-6
    assert abs(scores["sFD-digits"]["value"]) < 1e-6
    assert scores["precision-digits"]["value"] == scores["recall-digits"]["value"] == 1
    assert about["samples_count"] == about["reference_count"] == 359
    assert not any(name in ("FID", "sFID", "IS", "KID") for name in scores)


@pytest.mark.slow
def test_noise_makes_every_score_worse(cli, files, tmp_path):
    clean, _ = compare(cli, files("test"), files("train"), "--workdir", tmp_path)
    noisy, _ = compare(cli, files("noisy"), files("train"), "--workdir", tmp_path)
    for name, score in clean.items():
        if name == "recall-digits":  # spread makes balls larger, and recall with them
            continue
        sign = 1 if score["better"] == "lower" else -1
        assert sign * (noisy[name]["value"] - score["value"]) > 0, name


@pytest.mark.slow
def test_statistics_of_the_data_give_the_distance_to_the_data(cli, files, tmp_path):
    config = ("--config", "configs/digits.py", "--workdir", tmp_path)
    stored = tmp_path / "statistics.npz"
    code, out, err = cli(*config, "--mode", "data", "--statistics", stored)
    assert code == 0 and str(stored) in out, err
    by_file, _ = compare(cli, files("test"), stored, "--workdir", tmp_path)
    code, out, err = cli(*config, "--mode", "fid", "--samples", files("test"))
    assert code == 0, err
    by_data, about = scores_of(out)
    assert about["reference"] == "the train split of digits"
    assert about["reference_count"] == 1438 and about["network"] == "digits"
    for name in ("FD-digits", "sFD-digits"):
        np.testing.assert_allclose(by_file[name]["value"], by_data[name]["value"], rtol=1e-9)
    assert "precision-digits" in by_data and "precision-digits" not in by_file


@pytest.mark.slow
def test_the_statistics_written_beside_the_scores_can_be_compared_again(cli, files, tmp_path):
    first, _ = compare(cli, files("test"), files("train"), "--workdir", tmp_path)
    stored = next((tmp_path / "fid").glob("*.npz"))
    second, _ = compare(cli, stored, files("train"), "--workdir", tmp_path)
    value = first["FD-digits"]["value"]
    np.testing.assert_allclose(second["FD-digits"]["value"], value, rtol=1e-9)


def test_results_of_two_files_lie_beside_the_samples(cli, files):
    compare(cli, files("test"), files("test"), "--config.fid.resamples=0")
    assert list(files("test").parent.glob("test_vs_test_digits_k3.json"))


@pytest.mark.parametrize(
    ("samples", "reference", "flags", "words"),
    [
        ("missing", "test", DIGITS, ["missing.npz"]),
        ("test", "missing", DIGITS, ["missing.npz"]),
        ("colour", "test", DIGITS, ["3 channels", "FD-digits", "fid.network"]),
        ("test", "test", ("--config.fid.network=vgg",), ["'vgg'", "inception, digits, emoji"]),
        ("test", "test", ("--config.fid.neighbours=0",), ["fid.neighbours is 0", "at least 1"]),
        ("test", "test", ("--config.fid.batch_size=6",), ["fid.batch_size 6", "4 devices"]),
    ],
)
def test_what_cannot_be_compared_is_refused(cli, files, samples, reference, flags, words):
    pair = ("--samples", files(samples), "--reference", files(reference))
    digits = () if "network" in flags[0] else DIGITS[:1]
    assert_refused(cli, ("--mode", "fid", *pair, *digits, *flags), *words)


def test_results_that_cannot_be_written_are_refused_before_features_are_made(cli, files, tmp_path):
    (tmp_path / "fid").write_text("in the way")
    pair = ("--samples", files("test"), "--reference", files("test"), "--workdir", tmp_path)
    assert_refused(cli, ("--mode", "fid", *pair, *DIGITS), str(tmp_path / "fid"), "written")


def test_statistics_of_another_network_are_refused(cli, files, tmp_path):
    stored = tmp_path / "other.npz"
    np.savez(stored, mu=np.zeros(4), sigma=np.eye(4), network="emoji")
    pair = ("--samples", files("test"), "--reference", stored)
    assert_refused(cli, ("--mode", "fid", *pair, *DIGITS), "'emoji'", "'digits'")


def test_inception_without_weights_says_where_to_get_them(cli, files, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pair = ("--samples", files("test"), "--reference", files("test"))
    module = inception.__name__
    assert_refused(cli, ("--mode", "fid", *pair), f"python -m {module} --download", "digits")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--mode", "fid", "--samples", "x.npz"], ["--workdir"]),
        (["--mode", "sample", "--workdir", "x", "--samples", "x.npz"], ["--mode fid"]),
        (["--mode", "fid", "--workdir", "x", "--statistics", "x.npz"], ["--mode data"]),
    ],
)
def test_flags_belong_to_their_modes(cli, flags, words):
    assert_refused(cli, flags, *words)
