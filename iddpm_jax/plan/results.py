"""What was measured before: numbers of compiled programs, kept on disk by all that decides them."""

import hashlib
import importlib.metadata
import json
from pathlib import Path

import jax
from ml_collections import ConfigDict

import iddpm_jax
from iddpm_jax import config as configs

# These change nothing in a program.
_IRRELEVANT = (
    "data.name data.random_flip nll. seed sample.seed sample.count sample.classes sample.png "
    "sample.class_choice sample.base sample.ema_rate train.steps train.keep_checkpoints "
    "train.learning_rate "
    "train.log_every_steps train.sample_every_steps train.checkpoint_every_steps"
).split()
# Folders and files of the package that programs come from.
_CODE = (
    *("models", "diffusion", "training", "evaluation/generate.py", "build.py"),
    *("plan/programs.py", "plan/hlo.py"),
)


def libtpu_version() -> str | None:
    """Version of libtpu, or None where it is not installed."""
    try:
        return importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        return None


def key(config: ConfigDict, program: str, topology: str, source: str) -> dict:
    """All that decides the numbers of a program.

    Args:
        config: with the type of the network settled.
        program: its name.
        topology: of the slice.
        source: which compiler.

    Returns:
        Plain dict.
    """
    skip = tuple(_IRRELEVANT) + (("sample.",) if program == "train" else ("train.", "loss."))
    settings = {k: v for k, v in configs.flat(config) if not k.startswith(skip)}
    return {
        "program": program,
        "topology": topology,
        "source": source,
        "jax": jax.__version__,
        "iddpm_jax": iddpm_jax.__version__,
        "code": _code_hash(),
        "config": json.loads(json.dumps(settings)),
    }


def load(folder: Path, wanted: dict) -> dict | None:
    """Numbers stored for a key, or None.

    Args:
        folder: of all stored numbers.
        wanted: from key.
    """
    try:
        stored = json.loads(_path(folder, wanted).read_text())
        return stored["numbers"] if stored["key"] == wanted else None
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or half written
        return None


def save(folder: Path, wanted: dict, numbers: dict) -> None:
    """Store numbers under a key; a folder that cannot be written costs only the memory of them."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"key": wanted, "numbers": numbers}, indent=1)
        _path(folder, wanted).write_text(text + "\n")
    except OSError:
        pass


def _path(folder: Path, wanted: dict) -> Path:
    digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:16]
    return folder / f"{wanted['program']}_{wanted['topology'].replace(':', '-')}_{digest}.json"


def _code_hash() -> str:
    root, digest = Path(iddpm_jax.__file__).parent, hashlib.sha256()
    for name in _CODE:
        path = root / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
