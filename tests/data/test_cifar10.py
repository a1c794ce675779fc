"""CIFAR-10 from archives like the public ones to a data set that TFDS reads."""

import hashlib
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from iddpm_jax import data
from iddpm_jax.data import cifar10
from iddpm_jax.errors import InputError

BATCHES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
ROOT = Path(__file__).resolve().parent.parent.parent


def pictures(count: int = 4) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Random pictures [N, 32, 32, 3] and labels of every batch."""
    rng = np.random.default_rng(0)
    return {
        name: (
            rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8),
            rng.integers(0, 10, count).astype(np.uint8),
        )
        for name in BATCHES
    }


def rows(images: np.ndarray) -> np.ndarray:
    """As the archives have them: all red, all green, all blue."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)


def text(value: bytes) -> bytes:
    """A string of Python 2 in a pickle."""
    return b"T" + struct.pack("<i", len(value)) + value


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def python2_batch(images: np.ndarray, labels: np.ndarray) -> bytes:
    """What Python 2 and its numpy pickled, written opcode by opcode."""
    dtype = b"cnumpy\ndtype\n" + text(b"u1") + number(0) + number(1) + b"\x87R"
    dtype += b"(" + number(3) + text(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + number(0) + b"\x85"
    array += text(b"b") + b"\x87R(" + number(1) + number(len(images)) + number(3072) + b"\x86"
    array += dtype + b"\x89" + text(rows(images).tobytes()) + b"tb"
    numbers = b"](" + b"".join(number(int(label)) for label in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + numbers + b"u."


def archive(path: Path, files: dict[str, bytes], folder: str = "cifar-10-batches-bin") -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def binary_files() -> dict[str, bytes]:
    return {
        f"{name}.bin": np.concatenate([labels[:, None], rows(images)], 1).tobytes()
        for name, (images, labels) in pictures().items()
    } | {"batches.meta.txt": b"airplane\n", "readme.html": b"<html>"}


def python_files() -> dict[str, bytes]:
    files = {name: python2_batch(*content) for name, content in pictures().items()}
    return files | {"batches.meta": pickle.dumps({}, 2), "readme.html": b"<html>"}


@pytest.mark.parametrize("files", [binary_files, python_files])
def test_archive_gives_its_pictures(tmp_path, files):
    path = archive(tmp_path / "a.tar.gz", files())
    found = cifar10.read_archive(path)
    for split, names in (("train", BATCHES[:5]), ("test", BATCHES[5:])):
        images, labels = (np.concatenate([pictures()[n][i] for n in names]) for i in (0, 1))
        np.testing.assert_array_equal(found[split][0], images)
        np.testing.assert_array_equal(found[split][1], labels)
        assert found[split][0].dtype == np.uint8 and found[split][1].dtype == np.int32


def spoiled(path: Path, kind: str) -> None:
    files = binary_files()
    if kind == "incomplete":
        del files["data_batch_3.bin"]
    elif kind == "odd length":
        files["test_batch.bin"] = files["test_batch.bin"][:-1]
    elif kind == "label":
        files["test_batch.bin"] = bytes([10]) + files["test_batch.bin"][1:]
    elif kind == "empty batch":
        files["test_batch.bin"] = b""
    elif kind == "other files":
        files = {"notes.txt": b"hello"}
    archive(path, files)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "text":
        path.write_text("hello")
    elif kind == "missing":
        path.unlink()


@pytest.mark.parametrize(
    "kind",
    ["incomplete", "odd length", "label", "empty batch", "other files"]
    + ["truncated", "text", "missing"],
)
def test_anything_else_is_refused_in_one_line(tmp_path, kind):
    path = tmp_path / "a.tar.gz"
    spoiled(path, kind)
    with pytest.raises(InputError) as caught:
        cifar10.read_archive(path)
    message = str(caught.value)
    assert str(path) in message and "cifar-10-binary.tar.gz" in message and "\n" not in message


@pytest.mark.parametrize("call", ["posix\nsystem", "builtins\neval", "numpy\nload"])
def test_pickle_that_calls_is_not_obeyed(tmp_path, call):
    harm = f"c{call}\n".encode() + text(b"touch harm") + b"\x85R."
    path = archive(tmp_path / "a.tar.gz", python_files() | {"data_batch_1": b"\x80\x02" + harm})
    with pytest.raises(InputError, match=call.replace("\n", ".")):
        cifar10.read_archive(path)
    assert not Path("harm").exists()


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = cifar10.main([*map(str, arguments)])
    return code, *capsys.readouterr()


@pytest.mark.slow
def test_prepared_archive_is_read_by_name(tmp_path, capsys, monkeypatch):
    path = archive(tmp_path / "a.tar.gz", binary_files())
    code, out, err = run(capsys, "--archive", path, "--tfds-dir", tmp_path / "sets")
    assert code == 0 and "20 training and 4 test pictures" in out
    assert "not one of the published archives" in err
    for split, names in (("train", BATCHES[:5]), ("test", BATCHES[5:])):
        source = data.load("tfds:cifar10", split, tfds_dir=str(tmp_path / "sets"))
        assert source.image_shape == (32, 32, 3)
        assert source.class_names == tuple(cifar10.CLASS_NAMES) and len(source.class_names) == 10
        # The order is TFDS's own; each picture is there once, with its label.
        examples = [source[i] for i in range(len(source))]
        found = {e["image"].tobytes(): int(e["label"]) for e in examples}
        expected = {
            image.tobytes(): int(label)
            for name in names
            for image, label in zip(*pictures()[name], strict=True)
        }
        assert found == expected and len(examples) == len(expected)
        assert examples[0]["label"].dtype == np.int32
    version = tmp_path / "sets" / "cifar10" / "3.0.2"
    assert len(data.load(f"tfds:{version}", "train")) == 20
    small = data.load(f"tfds:{version}", "test", (8, 10, 1))
    assert small[0]["image"].shape == (8, 10, 1)

    # What is there is neither read again nor downloaded.
    monkeypatch.setattr(cifar10, "URL", "file:///none")
    for source in (["--archive", "none"], ["--download"]):
        code, out, _ = run(capsys, *source, "--tfds-dir", tmp_path / "sets")
        assert code == 0 and "there already" in out and "20 training" in out
    info = json.loads((version / "dataset_info.json").read_text())
    (version / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    code, _, err = run(capsys, "--download", "--tfds-dir", tmp_path / "sets")
    assert code == 2 and "tfrecord" in err and "--tfds-dir" in err


@pytest.mark.slow
def test_damaged_archive_leaves_nothing_that_could_be_read(tmp_path, capsys):
    spoiled(tmp_path / "a.tar.gz", "truncated")
    code, out, err = run(capsys, "--archive", tmp_path / "a.tar.gz", "--tfds-dir", tmp_path / "s")
    assert code == 2 and "error: " in err.splitlines()[-1] and "cannot be read as CIFAR-10" in err
    with pytest.raises(InputError, match="no such data set.*iddpm_jax.data.cifar10 --download"):
        data.load("tfds:cifar10", "train", tfds_dir=str(tmp_path / "s"))
    archive(tmp_path / "a.tar.gz", binary_files())
    assert run(capsys, "--archive", tmp_path / "a.tar.gz", "--tfds-dir", tmp_path / "s")[0] == 0


def test_missing_archive_ends_with_one_line(tmp_path, capsys):
    code, _, err = run(capsys, "--archive", tmp_path / "none", "--tfds-dir", tmp_path)
    assert (
        code == 2
        and err == f"error: --archive {tmp_path / 'none'} does not exist; check the path\n"
    )


def test_download_is_checked_and_kept(tmp_path, monkeypatch):
    source = archive(tmp_path / "source.tar.gz", binary_files())
    content = source.read_bytes()
    name = "cifar-10-binary.tar.gz"
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / name).write_bytes(content)
    monkeypatch.setattr(cifar10, "URL", (tmp_path / "web" / name).as_uri())
    with pytest.raises(InputError, match="not the published archive"):
        cifar10.download(tmp_path / "here")
    assert list((tmp_path / "here").iterdir()) == []
    monkeypatch.setitem(cifar10.MD5, hashlib.md5(content).hexdigest(), name)
    path = cifar10.download(tmp_path / "here")
    assert path == tmp_path / "here" / name and path.read_bytes() == content
    (tmp_path / "web" / name).unlink()
    assert cifar10.download(tmp_path / "here") == path  # not fetched again
    with pytest.raises(InputError, match="cannot be downloaded.*--archive"):
        cifar10.download(tmp_path / "there")


@pytest.mark.slow
def test_neither_preparing_nor_reading_asks_for_tensorflow(tmp_path):
    # A module of that name that fails: whoever imports it is found out.
    (tmp_path / "path" / "tensorflow").mkdir(parents=True)
    (tmp_path / "path" / "tensorflow" / "__init__.py").write_text("raise RuntimeError('imported')")
    path = archive(tmp_path / "a.tar.gz", binary_files())
    script = (
        "import sys\n"
        "from iddpm_jax import data\n"
        "from iddpm_jax.data import cifar10\n"
        f"assert cifar10.main(['--archive', {str(path)!r}, '--tfds-dir', {str(tmp_path)!r}]) == 0\n"
        f"source = data.load('tfds:cifar10', 'train', tfds_dir={str(tmp_path)!r})\n"
        "next(data.training_batches(source, 8, 0, False))\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    path = os.pathsep.join([str(tmp_path / "path"), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
