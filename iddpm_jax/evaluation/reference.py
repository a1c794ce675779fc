"""Statistics of features in .npz files, as evaluators exchange them.

guided-diffusion's reference batches hold pictures (arr_0) and statistics of two kinds of features
(mu, sigma, mu_s, sigma_s); pytorch-fid's files hold mu and sigma. Ours add which network made them,
because distances between features of two networks mean nothing.
"""

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from iddpm_jax.data import read_npz
from iddpm_jax.errors import InputError
from iddpm_jax.evaluation.fid import Statistics


class Saved(NamedTuple):
    """What a file holds.

    Attributes:
        pool: of features of the whole image; None where there are none.
        spatial: of features that know places; None where there are none.
        network: that made them, such as "inception"; "" where the file does not say.
        preprocessing: of the images before the network; "" likewise.
        source: the images, in words; "" likewise.
        pictures: whether there are pictures, for `pictures` to read.
    """

    pool: Statistics | None
    spatial: Statistics | None
    network: str
    preprocessing: str
    source: str
    pictures: bool


def read(path: Path) -> Saved:
    """What a file holds, without reading its pictures.

    Args:
        path: an .npz file.

    Returns:
        Saved.

    Raises:
        InputError: unreadable, neither statistics nor pictures, or statistics that cannot be.
    """
    names = ("mu", "sigma", "mu_s", "sigma_s", "count", "network", "preprocessing", "source")
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            found = {name: arrays[name] for name in names if name in arrays}
            pictures = "arr_0" in arrays
    except Exception as error:  # numpy, zipfile and zlib each raise their own
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path} cannot be read as statistics or pictures ({reason}); give an .npz with mu and "
            "sigma, or with arr_0, uint8 [N, H, W, C]"
        ) from None
    count = int(found["count"]) if "count" in found else None
    pool, spatial = (_statistics(path, found, end, count) for end in ("", "_s"))
    if pool is None and not pictures:
        raise InputError(
            f"{path} has neither statistics (mu and sigma) nor pictures (arr_0); give a file of "
            "samples, or of statistics"
        )
    words = (str(found.get(name, "")) for name in ("network", "preprocessing", "source"))
    return Saved(pool, spatial, *words, pictures)


def check_made_by(saved: Saved, path: Path, network: str, preprocessing: str) -> None:
    """Refuse statistics of another network, or of images prepared in another way.

    A file that does not say is taken for Inception's, as those of other programs are.

    Args:
        saved: statistics.
        path: where they are from.
        network: what they will be compared with, as fid.network names it.
        preprocessing: likewise, as fid.preprocessing names it.

    Raises:
        InputError: names both.
    """
    theirs = saved.network or "inception"
    if theirs != network:
        raise InputError(
            f"{path} has statistics of the network {theirs!r}, which mean nothing to {network!r}; "
            f"set --config.fid.network={theirs}, or give pictures"
        )
    if saved.preprocessing not in ("", preprocessing):
        raise InputError(
            f"{path} has statistics of images prepared as {saved.preprocessing!r}, not as "
            f"{preprocessing!r}; set --config.fid.preprocessing={saved.preprocessing}, or give "
            "pictures"
        )


def write(
    path: Path,
    pool: Statistics,
    spatial: Statistics | None,
    network: str,
    preprocessing: str,
    source: str,
) -> None:
    """Write statistics so that `read` and the evaluators named above can read them.

    Args:
        path: an .npz file; its folder is made if missing.
        pool, spatial: of the same images.
        network, preprocessing, source: as in Saved.
    """
    arrays = {"mu": pool.mu, "sigma": pool.sigma}
    if spatial is not None:
        arrays |= {"mu_s": spatial.mu, "sigma_s": spatial.sigma}
    if pool.count is not None:
        arrays["count"] = np.int64(pool.count)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished.npz")
    np.savez(unfinished, **arrays, network=network, preprocessing=preprocessing, source=source)
    unfinished.replace(path)


def pictures(path: Path) -> np.ndarray:
    """The pictures of a file, left on disk where it is not compressed.

    Args:
        path: an .npz file with arr_0.

    Returns:
        uint8 [N, H, W, C]; read-only.

    Raises:
        InputError: unreadable, or not pictures.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo("arr_0.npy")
        mapped = _mapped(path, member) if member.compress_type == zipfile.ZIP_STORED else None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        mapped = None  # read_npz says what is wrong
    if mapped is not None and mapped.dtype == np.uint8 and mapped.ndim == 4:
        return mapped
    return read_npz(path)[0]


def _mapped(path: Path, member: zipfile.ZipInfo) -> np.ndarray:
    """An array within an archive as a map of the file."""
    with path.open("rb") as file:
        file.seek(member.header_offset)
        header = file.read(30)  # ends in the lengths of two fields that precede the content
        file.seek(sum(int.from_bytes(header[i : i + 2], "little") for i in (26, 28)), 1)
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = read_header(file)
        order = "F" if fortran else "C"
        return np.memmap(file, dtype, "r", file.tell(), shape, order)


def _statistics(
    path: Path, found: dict[str, np.ndarray], end: str, count: int | None
) -> Statistics | None:
    mu, sigma = (found.get(name + end) for name in ("mu", "sigma"))
    if mu is None and sigma is None:
        return None
    if mu is None or sigma is None:
        raise InputError(f"{path} has only one of mu{end} and sigma{end}; give a file with both")
    kinds = mu.dtype.kind + sigma.dtype.kind
    if kinds != "ff" or mu.ndim != 1 or not mu.size or sigma.shape != 2 * mu.shape:
        raise InputError(
            f"{path}: mu{end} is {mu.dtype} {list(mu.shape)} and sigma{end} {sigma.dtype} "
            f"{list(sigma.shape)}; they must be floats [D] and [D, D]"
        )
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise InputError(f"{path}: mu{end} or sigma{end} is not finite; the file is damaged")
    if not np.allclose(sigma, sigma.T, rtol=1e-4, atol=1e-6 * np.abs(sigma).max()):
        raise InputError(f"{path}: sigma{end} is not symmetric; covariances are")
    return Statistics(mu.astype(np.float64), sigma.astype(np.float64), count)
