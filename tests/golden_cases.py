"""Recorded numbers of the official implementation: reading, naming and comparing them.

IDDPM_GOLDEN names another folder of the same layout (manifest.json and .npz files) to test against.
"""

import functools
import json
import os
from pathlib import Path

import numpy as np

FOLDER = Path(os.environ.get("IDDPM_GOLDEN", Path(__file__).resolve().parent / "golden"))

EXACT = 1e-12
OUTPUT = 2e-5
SAMPLER = 5e-5
GRADIENT = 1e-4
SMALL = 2e-4
"""Relative tolerances of section 6 of golden/README.md. SMALL: values near 0, as prior_bpd is."""


@functools.cache
def manifest() -> dict:
    """The index of all recordings."""
    return json.loads((FOLDER / "manifest.json").read_text())


@functools.cache
def load(file: str) -> dict[str, np.ndarray]:
    """All arrays of a file by key."""
    with np.load(FOLDER / file) as arrays:
        return {key: arrays[key] for key in arrays.files}


def cases(file: str, kind: str | None = None) -> list[tuple[str, dict]]:
    """(name, parameters) of the cases of a file, all or of one kind."""
    every = manifest()["files"][file]["cases"].items()
    return [(name, case) for name, case in every if kind is None or case.get("kind") == kind]


def tolerance(file: str, key: str, r: float) -> float:
    """20 times the recording's own rounding error, plus r times its largest magnitude."""
    rounding = manifest()["files"][file].get("float32_error", {}).get(key, [0.0])[0]
    recorded = np.abs(load(file)[key].astype(np.float64))
    finite = recorded[np.isfinite(recorded)]
    return 20.0 * rounding + r * (finite.max() if finite.size else 0.0)


def assert_close(file: str, key: str, value, r: float) -> None:
    """Fail unless value has the shape of the recording and is within tolerance of it everywhere."""
    recorded = load(file)[key]
    assert np.shape(value) == recorded.shape, f"{key}: {np.shape(value)}, not {recorded.shape}"
    atol = tolerance(file, key, r)
    np.testing.assert_allclose(value, recorded, rtol=0.0, atol=atol, err_msg=f"{file}: {key}")


def to_nhwc(images: np.ndarray) -> np.ndarray:
    """[..., C, H, W] as recorded -> [..., H, W, C]."""
    return np.moveaxis(images, -3, -1)


def to_nchw(images) -> np.ndarray:
    """[..., H, W, C] -> [..., C, H, W] as recorded."""
    return np.moveaxis(np.asarray(images), -1, -3)
