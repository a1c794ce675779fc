"""Fetching a file that the user asked for, with a bar."""

import urllib.request
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from iddpm_jax.errors import InputError


def fetch(url: str, folder: Path, otherwise: str) -> Path:
    """Download a file under a name that shows it has not been checked.

    Args:
        url: of the file.
        folder: where to put it; made if need be.
        otherwise: what the user can do where it cannot be had, for the message.

    Returns:
        Path of the file, "unchecked-" before its name: whoever has checked it renames it.

    Raises:
        InputError: it cannot be had or written.
    """
    name = PurePosixPath(url).name
    path = folder / f"unchecked-{name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=60) as source, path.open("wb") as target:
            total = int(source.headers.get("Content-Length", 0)) or None
            with tqdm(desc=name, total=total, unit="B", unit_scale=True) as progress:
                while block := source.read(1 << 20):
                    target.write(block)
                    progress.update(len(block))
    except OSError as error:
        raise InputError(f"{url} cannot be downloaded to {folder} ({error}); {otherwise}") from None
    return path
