"""Inception's weights from files, and the program that fetches and converts them."""

import functools
import hashlib
import http.server
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from iddpm_jax.errors import InputError
from iddpm_jax.evaluation import inception, inception_network
from iddpm_jax.interop import weights

LAYERS = {"Conv2d_1a_3x3": (3, 3, 3, 4), "Mixed_5b.branch1x1": (1, 1, 4, 2)}
CLASSES = 5


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """A few layers, so that files are small; a cache of the test's own."""
    monkeypatch.setattr(inception_network, "shapes", lambda: LAYERS)
    monkeypatch.setattr(inception, "_FC", (6, CLASSES))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def published() -> dict[str, np.ndarray]:
    """Arrays as pytorch-fid names them."""
    rng = np.random.default_rng(0)
    arrays = {"fc.weight": rng.normal(size=(CLASSES, 6)), "fc.bias": rng.normal(size=CLASSES)}
    for layer, (height, width, inside, outside) in LAYERS.items():
        arrays[f"{layer}.conv.weight"] = rng.normal(size=(outside, inside, height, width))
        for kind in ("weight", "bias", "running_mean"):
            arrays[f"{layer}.bn.{kind}"] = rng.normal(size=outside)
        arrays[f"{layer}.bn.running_var"] = rng.uniform(0.001, 2, outside)
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def written(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    weights.write(path, arrays, {})
    return path


def torch_file(path: Path) -> Path:
    """As torch-fidelity saves it: with counters, which are whole numbers."""
    torch = pytest.importorskip("torch")
    state = {name: torch.from_numpy(array) for name, array in published().items()}
    for layer in LAYERS:
        state[f"{layer}.bn.num_batches_tracked"] = torch.tensor(7)
    torch.save(state, path)
    return path


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    code = inception.main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def assert_equal(found: inception.Params) -> None:
    expected = inception.from_pytorch(published())
    assert {layer: set(found[layer]) for layer in found} == {
        **{layer: {"kernel", "bias"} for layer in LAYERS},
        "fc": {"kernel"},
    }
    for layer in found:
        for kind, array in found[layer].items():
            assert array.dtype == np.float32
            np.testing.assert_array_equal(array, expected[layer][kind])


def test_batch_norm_is_multiplied_out():
    arrays, layer = published(), "Mixed_5b.branch1x1"
    pixels = np.random.default_rng(1).normal(size=(10, 4))
    gain, shift, mean, variance = (
        arrays[f"{layer}.bn.{kind}"].astype(np.float64)
        for kind in ("weight", "bias", "running_mean", "running_var")
    )
    convolved = pixels @ arrays[f"{layer}.conv.weight"][:, :, 0, 0].T.astype(np.float64)
    expected = (convolved - mean) / np.sqrt(variance + 0.001) * gain + shift
    params = inception.from_pytorch(arrays)[layer]
    found = pixels @ params["kernel"][0, 0].astype(np.float64) + params["bias"]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-5)


def test_safetensors_become_npz_that_say_the_same(tmp_path, capsys):
    source = written(tmp_path / "a.safetensors", published())
    assert_equal(inception.read(source))
    code, out, _ = run(capsys, "--source", source, "--target", tmp_path / "new" / "b.npz")
    assert code == 0 and "b.npz" in out
    assert_equal(inception.read(tmp_path / "new" / "b.npz"))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["b.npz"]


def test_counters_in_safetensors_are_left_out(tmp_path):
    counters = {f"{layer}.bn.num_batches_tracked": np.array(7) for layer in LAYERS}
    safetensors.numpy.save_file(published() | counters, tmp_path / "a.safetensors")
    assert_equal(inception.read(tmp_path / "a.safetensors"))


@pytest.mark.slow  # imports torch
def test_pth_is_read_without_its_counters(tmp_path):
    assert_equal(inception.read(torch_file(tmp_path / "weights.pth")))


def test_weights_lie_in_the_cache_by_default(tmp_path, capsys):
    with pytest.raises(InputError, match="--download.*fid.weights.*fid.network=digits"):
        inception.network(None, "pytorch_fid")
    assert run(capsys, "--source", written(tmp_path / "a.safetensors", published()))[0] == 0
    assert (tmp_path / "cache" / "iddpm_jax" / "inception.npz").exists()
    network = inception.network(None, "pytorch_fid")
    assert (network.distance, network.channels) == ("FID", 3)
    assert_equal(network.params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fc.weight": np.zeros((4, 6), np.float32)}, r"fc.weight is \[4, 6\], not \[5, 6\]"),
        ({"AuxLogits.fc.bias": np.zeros(1, np.float32)}, "AuxLogits.fc.bias is of no use"),
        ({"fc.bias": None}, "fc.bias is missing"),
        ({"fc.bias": np.full(CLASSES, np.nan, np.float32)}, "fc.bias is not finite"),
    ],
)
def test_another_network_is_refused(tmp_path, capsys, change, message):
    arrays = {n: a for n, a in (published() | change).items() if a is not None}
    path = written(tmp_path / "a.safetensors", arrays)
    with pytest.raises(InputError, match=f"not the Inception-v3 of FID: {message}"):
        inception.read(path)
    code, _, err = run(capsys, "--source", path, "--target", tmp_path / "b.npz")
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1
    assert not (tmp_path / "b.npz").exists()


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04cut", b"\x93NUMPY"])
def test_damaged_npz_is_refused(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as Inception's weights"):
        inception.read(tmp_path / "a.npz")


def test_npz_of_something_else_and_missing_files_are_refused(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", arr_0=np.zeros((2, 8, 8, 3), np.uint8), names=np.array("a"))
    with pytest.raises(InputError, match="not the Inception-v3 of FID"):
        inception.read(tmp_path / "a.npz")
    for name in ("none.npz", "none.safetensors"):
        with pytest.raises(InputError, match="No such file"):
            inception.read(tmp_path / name)
    with pytest.raises(InputError, match="no suffix.*npz.*pth"):
        inception.read(tmp_path / "inception.h5")
    assert run(capsys, "--source", "a.npz", "--target", "b.pth")[0] == 2


@pytest.fixture
def server(tmp_path):
    """Serves tmp_path / "web" on this machine."""
    (tmp_path / "web").mkdir()
    handler = functools.partial(_Quiet, directory=str(tmp_path / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.mark.slow  # imports torch
def test_download_is_checked_and_converted(tmp_path, capsys, monkeypatch, server):
    content = torch_file(tmp_path / "web" / "published.pth").read_bytes()
    monkeypatch.setattr(inception, "URL", f"{server}/published.pth")
    place = tmp_path / "cache" / "iddpm_jax"
    code, _, err = run(capsys, "--download")
    assert code == 2 and "not the published file" in err.splitlines()[-1]
    assert list(place.iterdir()) == []
    monkeypatch.setattr(inception, "SHA256_START", hashlib.sha256(content).hexdigest()[:8])
    code, out, _ = run(capsys, "--download")
    assert code == 0 and "inception.npz" in out
    assert_equal(inception.network(None, "tensorflow").params)
    assert [path.name for path in place.iterdir()] == ["inception.npz"]
    monkeypatch.setattr(inception, "URL", f"{server}/none.pth")
    code, _, err = run(capsys, "--download")
    assert code == 2 and "cannot be downloaded" in err and "--source" in err


def test_download_without_torch_says_so_before_it_fetches(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(inception, "URL", (tmp_path / "published.pth").as_uri())
    code, _, err = run(capsys, "--download")
    assert code == 2 and "needs torch" in err and err.count("\n") == 1
