"""Inception-v3's weights, from the files that people have, for FID.

python -m iddpm_jax.evaluation.inception --download
python -m iddpm_jax.evaluation.inception --source FILE.pth --target FILE.npz

The first puts them where FID looks for them. Only .pt and .pth files need torch.
"""

import argparse
import hashlib
import os
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import numpy as np

from iddpm_jax import downloads, runtime
from iddpm_jax.errors import InputError
from iddpm_jax.evaluation import inception_network
from iddpm_jax.evaluation.features import FeatureNetwork
from iddpm_jax.interop import weights

URL = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth"
)
SHA256_START = "6726825d"
"""Of the file at URL, which has it in its name."""

COMMAND = "python -m iddpm_jax.evaluation.inception"

_BATCH_NORM_EPS = 1e-3
_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")
_FC = (2048, inception_network.CLASSES)

Params = dict[str, dict[str, np.ndarray]]
"""layer -> {"kernel", "bias"}, and "fc" -> {"kernel"}; see inception_network.features."""


def network(path: Path | None, preprocessing: str) -> FeatureNetwork:
    """Inception-v3 with weights from a file.

    Args:
        path: pytorch-fid's or torch-fidelity's .pth (the same as .safetensors too), or .npz from
            this module; None: where --download puts it.
        preprocessing: one of inception_network.PREPROCESSING.

    Returns:
        Network of "FID", for colour images of any size.

    Raises:
        InputError: no file, a damaged one, or another network's.
    """
    if path is None:
        path = default_path()
        if not path.exists():
            raise InputError(
                f"Inception's weights are not in {path}; get them with {COMMAND} --download, give "
                "a file as --config.fid.weights, or use --config.fid.network=digits or emoji, "
                "which need none"
            )

    def apply(params, images):
        prepared = inception_network.prepare(images, preprocessing)
        return inception_network.features(params, prepared)

    return FeatureNetwork("FID", channels=3, params=read(path), apply=apply)


def default_path() -> Path:
    """Where --download puts the weights."""
    return runtime.cache_folder() / "inception.npz"


def read(path: Path) -> Params:
    """Weights of a file, checked by name and shape.

    Args:
        path: as in network.

    Returns:
        Params of inception_network.features; batch norm is multiplied out.

    Raises:
        InputError: no file, a damaged one, or another network's.
    """
    if path.suffix.lower() == ".npz":
        arrays = _read_npz(path)
        _check(path, arrays, _converted_shapes())
        names = [name.rpartition(".") for name in arrays]
        params: Params = {layer: {} for layer, _, _ in names}
        for layer, _, kind in names:
            params[layer][kind] = arrays[f"{layer}.{kind}"]
        return params
    if path.suffix.lower() not in weights.SUFFIXES:
        kinds = ", ".join((".npz", *weights.SUFFIXES))
        raise InputError(f"{path} has no suffix of Inception's weights; use one of {kinds}")
    # Counters of batches seen in training, which torch-fidelity's file has, are not of use here.
    arrays = weights.read(path, skip=(".num_batches_tracked",)).arrays
    _check(path, arrays, _published_shapes())
    return from_pytorch(arrays)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or "truncated, damaged or no .npz"
        raise InputError(
            f"{path} cannot be read as Inception's weights ({reason}); give another file, or get "
            f"it again with {COMMAND} --download"
        ) from None


def _converted_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, kernel in inception_network.shapes().items():
        shapes |= {f"{layer}.kernel": kernel, f"{layer}.bias": kernel[-1:]}
    return shapes | {"fc.kernel": _FC}


def _published_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, (height, width, inside, outside) in inception_network.shapes().items():
        shapes[f"{layer}.conv.weight"] = (outside, inside, height, width)
        shapes |= {f"{layer}.bn.{kind}": (outside,) for kind in _BATCH_NORM}
    return shapes | {"fc.weight": _FC[::-1], "fc.bias": _FC[1:]}


def _check(
    path: Path, arrays: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuse another network; torchvision's own is the likely one."""
    wrong = [f"{name} is missing" for name in expected if name not in arrays]
    wrong += [f"{name} is of no use" for name in arrays if name not in expected]
    wrong += [
        f"{name} is {list(arrays[name].shape)}, not {list(shape)}"
        for name, shape in expected.items()
        if name in arrays and arrays[name].shape != shape
    ]
    wrong += [
        f"{name} is {array.dtype}, not float32"
        for name, array in arrays.items()
        if array.dtype != np.float32
    ]
    # Of arrays that cannot be asked, the line above has said what is wrong.
    wrong += [
        f"{name} is not finite"
        for name, array in arrays.items()
        if array.dtype == np.float32 and not np.isfinite(array).all()
    ]
    if wrong:
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise InputError(
            f"{path} is not the Inception-v3 of FID: {wrong[0]}{more}; give "
            f"{PurePosixPath(URL).name} or get it with {COMMAND} --download (torchvision's own "
            "Inception has other weights)"
        )


def from_pytorch(arrays: Mapping[str, np.ndarray]) -> Params:
    """Params from the arrays of pytorch-fid's names and shapes; batch norm is multiplied out.

    Args:
        arrays: "Mixed_5b.branch1x1.conv.weight" [out, in, h, w], ".bn.weight" [out], ...

    Returns:
        Params of inception_network.features.
    """
    params: Params = {"fc": {"kernel": np.ascontiguousarray(arrays["fc.weight"].T)}}
    for layer in inception_network.shapes():
        kernel = arrays[f"{layer}.conv.weight"].transpose(2, 3, 1, 0).astype(np.float64)
        gain, shift, mean, variance = (
            arrays[f"{layer}.bn.{kind}"].astype(np.float64) for kind in _BATCH_NORM
        )
        scale = gain / np.sqrt(variance + _BATCH_NORM_EPS)
        bias = shift - mean * scale
        params[layer] = {
            "kernel": np.ascontiguousarray(kernel * scale, dtype=np.float32),
            "bias": bias.astype(np.float32),
        }
    return params


def write(path: Path, params: Params) -> None:
    """Write .npz, or leave what is there as it was.

    Raises:
        InputError: the file cannot be written.
    """
    arrays = {f"{layer}.{kind}": array for layer in params for kind, array in params[layer].items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".inception-", dir=path.parent) as folder:
            part = Path(folder) / "inception.npz"
            np.savez(part, **arrays)
            os.replace(part, path)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror}); give a folder that has space and may be "
            "written to"
        ) from None


def download(target: Path) -> None:
    """Fetch pytorch-fid's file, check its sum, and convert it.

    Args:
        target: .npz to write.

    Raises:
        InputError: it cannot be had or written, is not what was published, or torch is missing.
    """
    weights.check_torch(Path(PurePosixPath(URL).name))  # before 95 MB, not after
    part = downloads.fetch(URL, target.parent, "give a file that you have as --source")
    try:
        with part.open("rb") as file:
            if not hashlib.file_digest(file, "sha256").hexdigest().startswith(SHA256_START):
                raise InputError(
                    f"what came from {URL} is not the published file (by its SHA-256); try again"
                )
        write(target, read(part))
    finally:
        part.unlink(missing_ok=True)


def main(argv: list[str] | None = None) -> int:
    """Command line; exit code 0, 2 for bad input, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--source", type=Path, help="pytorch-fid's or torch-fidelity's .pth, or .safetensors"
    )
    source.add_argument("--download", action="store_true", help=f"fetch {URL} (95 MB)")
    parser.add_argument(
        "--target", type=Path, default=default_path(), help=f".npz to write ({default_path()})"
    )
    args = parser.parse_args(argv)
    try:
        if args.target.suffix != ".npz":
            raise InputError(f"--target {args.target} must end in .npz")
        if args.download:
            download(args.target)
        else:
            write(args.target, read(args.source))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    print(f"Inception's weights are in {args.target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
