"""Files of arrays: bit-exact round trips, files of other programs, one clean line for each refusal.

Tests that need torch are skipped where it is not installed.
"""

import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from iddpm_jax.errors import InputError
from iddpm_jax.interop.weights import SUFFIXES, read, write

TORCH_SUFFIXES = (".pt", ".pth", ".bin")
SINGLES = {"w": np.ones(3, np.float32)}


@pytest.fixture(autouse=True)
def silent(capfd):
    """The libraries print nothing of their own; pytest turns their warnings into errors."""
    yield
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def no_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)


@pytest.fixture(params=SUFFIXES)
def suffix(request):
    if request.param in TORCH_SUFFIXES:
        pytest.importorskip("torch")
    return request.param


def arrays_of_all_kinds() -> dict[str, np.ndarray]:
    """Names out of order, special values by their bits, and every layout in memory."""
    bits = [0x7FC12345, 0x7F812345, 0xFFC00001, 0x80000000, 0x00000001, 0x807FFFFF, 0x7F800000]
    grid = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    frozen = np.linspace(0, 1, 7, dtype=np.float32)
    frozen.setflags(write=False)
    return {
        "z.weight": grid,
        "special": np.array(bits, np.uint32).view(np.float32),
        "out.10.ünï": np.moveaxis(grid, 0, -1),
        "out.2": grid[::-1, :, ::2],
        "scalar": np.array(3.25, np.float32),
        "none": np.zeros((0, 3), np.float32),
        "a.weight": frozen,
        "again": frozen,
        "constant": np.broadcast_to(np.float32(0.5), (2, 2)),
    }


def assert_same(found: dict, expected: dict) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (np.float32, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name


def refusal(call, *args) -> str:
    """The one line of an InputError, which comes without warnings."""
    with warnings.catch_warnings(record=True) as others:
        warnings.simplefilter("always")
        with pytest.raises(InputError) as error:
            call(*args)
    assert others == []
    assert "\n" not in str(error.value)
    return str(error.value)


def damaged(path: Path) -> str:
    return f"{path} is truncated, damaged or not what its suffix says; fetch or save it again"


# Round trips


def test_every_bit_name_and_shape_survives_in_order(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    write(path, arrays_of_all_kinds(), {"step": "500000", "note": 'a "b"\nü'})
    found = read(path)
    assert_same(found.arrays, arrays_of_all_kinds())
    kept = {"step": "500000", "note": 'a "b"\nü', "format": "pt"}
    assert found.metadata == (kept if suffix == ".safetensors" else {})


def test_writing_again_gives_the_same_bytes(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    write(path, arrays_of_all_kinds(), {"a": "1", "b": "2", "c": "3", "d": "4"})
    first = path.read_bytes()
    write(path, arrays_of_all_kinds(), {"a": "1", "b": "2", "c": "3", "d": "4"})
    assert path.read_bytes() == first


def test_metadata_is_written_as_text(tmp_path):
    # Numbers would make a file that the library refuses.
    write(tmp_path / "w.safetensors", SINGLES, {"step": 5})
    assert read(tmp_path / "w.safetensors").metadata == {"step": "5", "format": "pt"}


def test_suffix_may_be_in_capitals(tmp_path):
    write(tmp_path / "W.SafeTensors", SINGLES, {})
    assert_same(read(tmp_path / "W.SafeTensors").arrays, SINGLES)


def test_written_file_is_as_open_to_others_as_any_new_file(tmp_path, suffix):
    write(tmp_path / f"weights{suffix}", SINGLES, {})
    (tmp_path / "other").touch()
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


# Other programs


def test_torch_loads_what_was_written_into_a_module(tmp_path, torch):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = torch.nn.Conv1d(3, 5, 1)
            self.norm = torch.nn.GroupNorm(1, 5)

    values = np.random.default_rng(0).standard_normal(100, np.float32)
    arrays = {
        "proj.weight": values[:15].reshape(1, 3, 5).T,
        "proj.bias": values[20:25],
        "norm.weight": values[30:35].astype(np.float16),
        "norm.bias": values[40:50:2],
    }
    write(tmp_path / "model.pt", arrays, {"step": "1"})
    state_dict = torch.load(tmp_path / "model.pt", weights_only=True)
    assert type(state_dict) is dict
    for tensor in state_dict.values():
        assert tensor.dtype == torch.float32 and tensor.is_contiguous()
        assert tensor.untyped_storage().nbytes() == 4 * tensor.numel()
    model = Model()
    model.load_state_dict(state_dict, strict=True)
    found = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    assert_same(found, {name: array.astype(np.float32) for name, array in arrays.items()})


def test_safetensors_library_reads_what_was_written(tmp_path):
    write(tmp_path / "w.safetensors", arrays_of_all_kinds(), {"step": "1"})
    found = load_file(tmp_path / "w.safetensors")
    assert_same({name: found[name] for name in arrays_of_all_kinds()}, arrays_of_all_kinds())


def test_arrays_of_safetensors_start_at_multiples_of_eight_bytes(tmp_path):
    for length in range(1, 9):
        write(tmp_path / "w.safetensors", {"n" * length: SINGLES["w"]}, {})
        header = (tmp_path / "w.safetensors").read_bytes()[:8]
        assert int.from_bytes(header, "little") % 8 == 0


@pytest.mark.parametrize("zipped", [True, False])
def test_file_of_torch_is_read(tmp_path, torch, zipped):
    state_dict = OrderedDict(
        b=torch.tensor([0.1, -0.0]),
        a=torch.nn.Parameter(torch.arange(6.0).reshape(2, 3).T),
        view=torch.arange(10.0)[3:5],
        negative=torch.tensor([1 + 2j]).conj().imag,  # a view with its sign yet to be changed
    )
    torch.save(state_dict, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    expected = {
        "b": np.array([0.1, -0.0], np.float32),
        "a": np.array([[0, 3], [1, 4], [2, 5]], np.float32),
        "view": np.array([3, 4], np.float32),
        "negative": np.array([-2], np.float32),
    }
    assert_same(read(tmp_path / "w.pt").arrays, expected)


def test_file_of_the_safetensors_library_is_read_in_its_order(tmp_path):
    path = tmp_path / "w.safetensors"
    arrays = {"z": np.ones(2, np.float32), "b": np.zeros(3, np.float16), "a": np.ones(1)}
    save_file(arrays, path, metadata={"step": "7"})
    found = read(path)
    # The library puts wide types first.
    expected = {name: arrays[name].astype(np.float32) for name in ("a", "z", "b")}
    assert_same(found.arrays, expected)
    assert found.metadata == {"step": "7"}
    save_file(arrays, path)
    assert read(path).metadata == {}


# Types of numbers


def half_precision() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """All numbers of two bytes but nan, by name of their type: their bits, their values."""
    bits = np.arange(2**16, dtype=np.uint16)
    values = {
        "float16": np.array(struct.unpack("<65536e", bits.astype("<u2").tobytes()), np.float32),
        "bfloat16": (bits.astype(np.uint32) << 16).view(np.float32),
    }
    kept = {name: ~np.isnan(array) for name, array in values.items()}
    return {name: bits[kept[name]] for name in kept}, {
        name: array[kept[name]] for name, array in values.items()
    }


def test_half_precision_of_safetensors_becomes_float32(tmp_path):
    bits, values = half_precision()
    types = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
    save_file({name: bits[name].view(types[name]) for name in bits}, tmp_path / "w.safetensors")
    found = read(tmp_path / "w.safetensors").arrays
    assert_same({name: found[name] for name in values}, values)


def test_half_precision_of_torch_becomes_float32(tmp_path, torch):
    bits, values = half_precision()
    types = {"float16": torch.float16, "bfloat16": torch.bfloat16}
    tensors = {name: torch.from_numpy(bits[name].view(np.int16)).view(types[name]) for name in bits}
    torch.save(tensors, tmp_path / "w.pt")
    assert_same(read(tmp_path / "w.pt").arrays, values)


def test_bfloat16_is_read_by_a_fresh_interpreter(tmp_path):
    # There numpy has not heard of the type from JAX.
    path = tmp_path / "w.safetensors"
    save_file({"w": np.ones(3, ml_dtypes.bfloat16)}, path)
    script = f"import pathlib; from iddpm_jax.interop.weights import read; read(pathlib.{path!r})"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_float64_becomes_float32_where_that_is_exact(tmp_path):
    path = tmp_path / "w.safetensors"
    exact = np.array([0.5, -0.0, np.nan, -np.inf, 2.0**-149])
    save_file({"w": exact}, path)
    assert_same(read(path).arrays, {"w": exact.astype(np.float32)})
    for value in (0.1, 1e300, 2.0**-150):
        save_file({"u": exact, "w": np.array([1.0, value])}, path)
        message = f"{path}: 'w' is float64 beyond float32; round it to float32"
        assert refusal(read, path) == message
        assert refusal(write, path, {"w": np.array(value)}, {}) == message


def test_integers_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"step": np.array(3)}, path)
    message = f"{path}: 'step' is I64; only floating-point weights can be used"
    assert refusal(read, path) == message
    assert refusal(write, path, {"step": np.array(3)}, {}) == message.replace("I64", "int64")


def test_tensors_that_are_no_plain_numbers_are_refused(tmp_path, torch):
    path = tmp_path / "w.pt"
    for dtype in ("int64", "bool", "complex64", "float8_e5m2"):
        torch.save({"w": torch.zeros(2).to(getattr(torch, dtype))}, path)
        message = f"{path}: 'w' is {dtype}; only floating-point weights can be used"
        assert refusal(read, path) == message
    for tensor in (torch.eye(3).to_sparse(), torch.zeros(3, device="meta")):
        torch.save({"w": tensor}, path)
        message = f"{path}: 'w' is sparse or has no values; save it as dense"
        assert refusal(read, path) == message


def test_quarter_precision_of_safetensors_is_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    header = json.dumps({"w": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    message = f"{path}: 'w' is F8_E4M3; only floating-point weights can be used"
    assert refusal(read, path) == message


# The prefix of DataParallel


def test_prefix_of_data_parallel_is_taken_off_once(tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    write(path, {"module.b": SINGLES["w"], "module.module.a": SINGLES["w"]}, {})
    assert list(read(path).arrays) == ["b", "module.a"]


def test_prefix_stays_where_not_every_name_has_it(tmp_path):
    path = tmp_path / "w.safetensors"
    write(path, {"module.b": SINGLES["w"], "modules.a": SINGLES["w"]}, {})
    assert list(read(path).arrays) == ["module.b", "modules.a"]


# Files that cannot be read


def test_unknown_suffix_is_refused(tmp_path):
    for name in ("model.npz", "model", "model.pt.zip"):
        path = tmp_path / name
        message = f"{path} has no suffix of weights; use one of .pt, .pth, .bin, .safetensors"
        assert refusal(read, path) == message
        assert refusal(write, path, SINGLES, {}) == message


def test_missing_file_and_folder_are_refused(tmp_path, no_torch):
    path = tmp_path / "model.pt"
    message = f"{path} cannot be read (No such file or directory); check the path"
    assert refusal(read, path) == message
    path.mkdir()
    assert refusal(read, path) == f"{path} cannot be read (Is a directory); check the path"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_empty_file_and_web_page_are_refused(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    path.touch()
    assert refusal(read, path) == f"{path} is empty; fetch or save it again"
    for page in (b"<!DOCTYPE html><html>", b"\n  <?xml version='1.0'?><Error>"):
        path.write_bytes(page)
        message = f"{path} is a web page (a failed download?); fetch the weights again"
        assert refusal(read, path) == message


def test_header_length_that_looks_like_a_web_page_is_read(tmp_path):
    path = tmp_path / "w.safetensors"
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    header += b" " * (ord("<") - len(header))
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert_same(read(path).arrays, {"w": np.zeros(1, np.float32)})


def test_file_without_arrays_is_refused(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    write(path, {}, {})
    assert refusal(read, path) == f"{path} holds no arrays; give a file of weights"


def test_torch_is_asked_for_where_it_is_missing(tmp_path, no_torch):
    path = tmp_path / "model.pt"
    path.write_bytes(b"PK")
    message = (
        f"{path} needs torch, which is not installed; pip install 'iddpm_jax[torch]', or use a "
        ".safetensors file (convert to it where torch is)"
    )
    assert refusal(read, path) == message
    assert refusal(write, path, SINGLES, {}) == message
    assert path.read_bytes() == b"PK"
    write(path.with_suffix(".safetensors"), SINGLES, {})
    assert_same(read(path.with_suffix(".safetensors")).arrays, SINGLES)


def test_truncated_safetensors_is_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    write(path, arrays_of_all_kinds(), {})
    whole = path.read_bytes()
    for size in (1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert refusal(read, path) == damaged(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_file_of_torch_is_refused(tmp_path, torch, zipped):
    path = tmp_path / "w.pt"
    tensors = {f"w{i}": torch.ones(1000) for i in range(3)}
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for size in (1, 3, 20, 100, 600, 5000, len(whole) // 2, len(whole) - 30, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert refusal(read, path) == damaged(path)


def test_records_of_the_wrong_size_are_refused(tmp_path, torch):
    path = tmp_path / "w.pt"
    torch.save({"w": torch.ones(1000)}, tmp_path / "whole.pt")
    with zipfile.ZipFile(tmp_path / "whole.pt") as whole, zipfile.ZipFile(path, "w") as short:
        for name in whole.namelist():
            data = whole.read(name)
            short.writestr(name, data[:100] if name.endswith("data/0") else data)
    assert refusal(read, path) == damaged(path)


def test_files_of_other_formats_are_refused(tmp_path, torch):
    path, other = tmp_path / "w.pt", tmp_path / "w.safetensors"
    np.savez(tmp_path / "w.npz", **SINGLES)
    write(other, SINGLES, {})
    for content in (
        (tmp_path / "w.npz").read_bytes(),
        other.read_bytes(),
        bytes(1000),
        b'{"error": "not found"}',
        b"version https://git-lfs.github.com/spec/v1\n",
        pickle.dumps({"w": 1}, protocol=2),
        pickle.dumps({"w": 1}, protocol=4),
    ):
        path.write_bytes(content)
        assert refusal(read, path) == damaged(path)
    write(path, SINGLES, {})
    other.write_bytes(path.read_bytes())
    assert refusal(read, other) == damaged(other)


# Files that hold something else


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_refused_and_not_run(tmp_path, torch, zipped):
    path, folder = tmp_path / "w.pt", tmp_path / "sprung"
    content = {"w": torch.ones(1), "trap": Trap(folder)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    message = (
        f"{path} holds code rather than weights only; nothing of it was run; save its state dict "
        "alone with torch.save"
    )
    assert refusal(read, path) == message
    assert not folder.exists()
    torch.load(path, weights_only=False)
    assert folder.exists()


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_bare_pickle_of_code_is_not_run(tmp_path, torch, protocol):
    path, folder = tmp_path / "w.pt", tmp_path / "sprung"
    path.write_bytes(pickle.dumps(Trap(folder), protocol))
    refusal(read, path)
    assert not folder.exists()
    pickle.loads(path.read_bytes())
    assert folder.exists()


def test_whole_model_is_refused_as_code(tmp_path, torch):
    path = tmp_path / "w.pt"
    torch.save(torch.nn.Linear(1, 1), path)
    assert refusal(read, path).startswith(f"{path} holds code rather than weights only; ")


def test_torchscript_is_refused(tmp_path, torch):
    path = tmp_path / "w.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(torch.nn.Linear(1, 1), torch.ones(1)), path)
    assert refusal(read, path) == (
        f"{path} is a TorchScript archive, a program rather than weights; save its state dict "
        "alone with torch.save"
    )


def test_optimizer_state_is_refused(tmp_path, torch):
    path = tmp_path / "opt500000.pt"
    weight = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), path)
    assert refusal(read, path) == (
        f"{path} is an optimizer's state, not weights; give model*.pt or ema_*.pt instead"
    )


def test_value_that_is_no_dict_is_refused(tmp_path, torch):
    path = tmp_path / "w.pt"
    for value, kind in ((torch.ones(1), "Tensor"), ([torch.ones(1)], "list")):
        torch.save(value, path)
        assert refusal(read, path) == (
            f"{path} holds a value of type {kind}, not tensors by name; save a state dict with "
            "torch.save"
        )


def test_dict_of_other_things_is_refused_with_its_keys(tmp_path, torch):
    path = tmp_path / "w.pt"
    state_dict = {"w": torch.ones(1)}
    for content, told in (
        ({"state_dict": state_dict}, "'state_dict' is of type dict (keys: 'state_dict')"),
        ({"ema": state_dict, "model": 1}, "'ema' is of type dict (keys: 'ema', 'model')"),
        ({**state_dict, "a\nb": None}, "'a\\nb' is of type NoneType (keys: 'w', 'a\\nb')"),
        ({7: torch.ones(1)}, "7 is of type Tensor (keys: 7)"),
        (dict.fromkeys("abcdef", 1), "'a' is of type int (keys: 'a', 'b', 'c', 'd', 'e', ...)"),
    ):
        torch.save(content, path)
        assert refusal(read, path) == (
            f"{path} holds more than tensors by name: {told}; save its state dict alone with "
            "torch.save"
        )


# Files that cannot be written


def assert_untouched(path: Path, call, reason: str) -> None:
    """A failing call is refused with the reason and leaves the folder as it was."""
    before = {other: other.read_bytes() for other in path.parent.iterdir()}
    assert refusal(call) == (
        f"{path} cannot be written ({reason}); give a folder that exists, has space and may be "
        "written to"
    )
    assert {other: other.read_bytes() for other in path.parent.iterdir()} == before


def test_full_disk_leaves_the_old_file(tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    write(path, SINGLES, {})
    arrays = {f"w{i}": np.ones(100_000, np.float32) for i in range(4)}

    def write_within_a_megabyte():
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
        try:
            write(path, arrays, {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert_untouched(path, write_within_a_megabyte, "File too large")


def test_failing_last_step_leaves_the_old_file(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"w{suffix}"
    write(path, SINGLES, {})

    def refuse(source, target):
        assert Path(source).is_relative_to(tmp_path)
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    arrays = {"other": SINGLES["w"]}
    assert_untouched(path, lambda: write(path, arrays, {}), "Permission denied")


def test_missing_folder_is_refused(tmp_path):
    path = tmp_path / "absent" / "w.safetensors"
    assert refusal(write, path, SINGLES, {}) == (
        f"{path} cannot be written (No such file or directory); give a folder that exists, has "
        "space and may be written to"
    )


def test_file_may_be_replaced_by_what_was_read_from_it(tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    write(path, arrays_of_all_kinds(), {})
    write(path, *read(path))
    assert_same(read(path).arrays, arrays_of_all_kinds())
