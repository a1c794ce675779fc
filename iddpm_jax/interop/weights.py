"""Files of named arrays: PyTorch's .pt and .safetensors; knows nothing of networks."""

import json
import os
import pickle
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np

from iddpm_jax.errors import InputError

SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")

# Before it, weights_only could be evaded (CVE-2025-32434, CVE-2026-24747).
SAFE_TORCH = (2, 10)

# What becomes float32, in the words of torch and numpy and in those of safetensors.
_DTYPES = ("float16", "bfloat16", "float32", "float64", "F16", "BF16", "F32", "F64")


class Weights(NamedTuple):
    """arrays: name -> float32, in the file's order; metadata: key -> text, only of .safetensors."""

    arrays: dict[str, np.ndarray]
    metadata: dict[str, str]


def read(path: Path, skip: tuple[str, ...] = ()) -> Weights:
    """The arrays of a file; no code in the file is run.

    Half precision becomes float32, float64 too where that changes no value. The "module." that
    DataParallel puts before every name is taken off.

    Args:
        path: file with one of SUFFIXES; all but .safetensors need torch.
        skip: ends of the names of what is left out, whatever its type.

    Returns:
        Weights.

    Raises:
        InputError: the file cannot be read, or holds something other than weights.
    """
    suffix = _suffix(path)
    _check_start(path)
    arrays, metadata = (_read_safetensors if suffix == ".safetensors" else _read_torch)(path, skip)
    if not arrays:
        raise InputError(f"{path} holds no arrays; give a file of weights")
    if all(name.startswith("module.") for name in arrays):
        arrays = {name.removeprefix("module."): array for name, array in arrays.items()}
    return Weights(arrays, metadata)


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata alone, without the arrays; none but of .safetensors files."""
    from safetensors import SafetensorError, safe_open

    if _suffix(path) != ".safetensors":
        return {}
    _check_start(path)
    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        raise _damaged(path) from None


def write(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write a file of float32 arrays, or leave what is there as it was.

    Args:
        path: file with one of SUFFIXES; all but .safetensors need torch. Replaced where it exists.
        arrays: name -> floating-point array, in the order to write.
        metadata: key -> text. A .safetensors file keeps it and adds format = "pt"; PyTorch's files
            have no place for it, so that it is dropped.

    Raises:
        InputError: the file cannot be written, or float32 cannot hold an array.
    """
    torch = None if _suffix(path) == ".safetensors" else _torch(path)
    # In C order and writable, as torch wants them; contiguous ones are not copied.
    arrays = {
        name: _float32(path, name, np.require(array, requirements="CW"))
        for name, array in arrays.items()
    }
    try:
        with tempfile.TemporaryDirectory(prefix=".weights-", dir=path.parent) as folder:
            part = Path(folder) / path.name
            with part.open("wb") as file:
                if torch:
                    torch.save({n: torch.from_numpy(a) for n, a in arrays.items()}, file)
                else:
                    file.writelines(_safetensors(arrays, metadata))
            os.replace(part, path)
    except (OSError, RuntimeError) as error:
        # torch's writer raises its own error while it handles the system's.
        system = error if isinstance(error, OSError) else error.__context__
        reason = getattr(system, "strerror", None) or "no space left?"
        raise InputError(
            f"{path} cannot be written ({reason}); give a folder that exists, has space and may be "
            "written to"
        ) from None


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{path} has no suffix of weights; use one of {', '.join(SUFFIXES)}")
    return suffix


def _torch(path: Path) -> ModuleType:
    try:
        import torch
    except ImportError:
        raise InputError(
            f"{path} needs torch, which is not installed; pip install 'iddpm_jax[torch]', or use "
            "a .safetensors file (convert to it where torch is)"
        ) from None
    return torch


def _check_start(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the path") from None
    if not start:
        raise InputError(f"{path} is empty; fetch or save it again")
    # A .safetensors file may start with "<" too, in its length; "{" is then the ninth byte.
    if start.lstrip().startswith(b"<") and start[8:9] != b"{":
        raise InputError(f"{path} is a web page (a failed download?); fetch the weights again")


def _damaged(path: Path) -> InputError:
    return InputError(
        f"{path} is truncated, damaged or not what its suffix says; fetch or save it again"
    )


def _check_dtype(path: Path, name: str, dtype: str) -> None:
    if dtype not in _DTYPES:
        raise InputError(f"{path}: {name!r} is {dtype}; only floating-point weights can be used")


def _float32(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    _check_dtype(path, name, array.dtype.name)
    if array.dtype == np.float32:
        return array
    with np.errstate(all="ignore"):
        cast = array.astype(np.float32)
        if array.dtype.itemsize > 4 and not np.array_equal(cast, array, equal_nan=True):
            raise InputError(f"{path}: {name!r} is float64 beyond float32; round it to float32")
    return cast


def check_torch(path: Path) -> ModuleType:
    """Torch, if it is there and reads files without running them."""
    torch = _torch(path)
    major, minor = map(int, torch.__version__.split(".")[:2])
    if (major, minor) < SAFE_TORCH:
        raise InputError(
            f"{path} is not read with torch {torch.__version__}, which a file can make run code; "
            "pip install --upgrade torch, or convert to .safetensors elsewhere"
        )
    return torch


def _read_torch(path: Path, skip: tuple[str, ...]) -> Weights:
    torch = check_torch(path)
    content = _load(torch, path)
    _check_content(torch, path, content)
    arrays = {}
    for name in list(content):
        tensor = content.pop(name)  # freed once it is converted
        if name.endswith(skip):
            continue
        _check_dtype(path, name, str(tensor.dtype).removeprefix("torch."))
        if tensor.layout != torch.strided or tensor.is_meta:
            raise InputError(f"{path}: {name!r} is sparse or has no values; save it as dense")
        if tensor.dtype == torch.bfloat16:  # unknown to numpy
            tensor = tensor.float()
        arrays[name] = _float32(path, name, tensor.numpy(force=True))
    return Weights(arrays, {})


def _load(torch: ModuleType, path: Path) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # In a mapped file, torch does not check that the records are whole.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except pickle.UnpicklingError as error:
        if "Unsupported operand" in str(error):  # not of torch.save at all
            raise _damaged(path) from None
        raise InputError(
            f"{path} holds code rather than weights only; nothing of it was run; save its state "
            "dict alone with torch.save"
        ) from None
    except Exception as error:  # damage makes torch raise anything
        if "TorchScript" not in str(error):
            raise _damaged(path) from None
        raise InputError(
            f"{path} is a TorchScript archive, a program rather than weights; save its state dict "
            "alone with torch.save"
        ) from None


def _check_content(torch: ModuleType, path: Path, content: object) -> None:
    if not isinstance(content, dict):
        raise InputError(
            f"{path} holds a value of type {type(content).__name__}, not tensors by name; save a "
            "state dict with torch.save"
        )
    if {"state", "param_groups"} <= set(content):
        raise InputError(
            f"{path} is an optimizer's state, not weights; give model*.pt or ema_*.pt instead"
        )
    for key, value in content.items():
        if not (isinstance(key, str) and isinstance(value, torch.Tensor)):
            keys = [f"{key!r:.60}" for key in content]
            raise InputError(
                f"{path} holds more than tensors by name: {key!r:.60} is of type "
                f"{type(value).__name__} (keys: {', '.join(keys[:5] + ['...'] * (len(keys) > 5))})"
                "; save its state dict alone with torch.save"
            )


def _read_safetensors(path: Path, skip: tuple[str, ...]) -> Weights:
    import ml_dtypes  # noqa: F401  (teaches numpy bfloat16)
    from safetensors import SafetensorError, safe_open

    arrays = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.offset_keys():
                if name.endswith(skip):
                    continue
                _check_dtype(path, name, file.get_slice(name).get_dtype())
                arrays[name] = _float32(path, name, file.get_tensor(name))
            return Weights(arrays, file.metadata() or {})
    except (SafetensorError, OSError):
        raise _damaged(path) from None


def _safetensors(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> Iterator[bytes]:
    """A .safetensors file in pieces. The library's writer sorts the names, so it cannot be used."""
    texts = {key: str(value) for key, value in metadata.items()}
    header: dict = {"__metadata__": texts | {"format": "pt"}}
    end = 0
    for name, array in arrays.items():
        start, end = end, end + array.nbytes
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for array in arrays.values():
        yield array.astype("<f4", copy=False).data
