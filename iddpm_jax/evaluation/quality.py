"""--mode fid: two sets of pictures, one feature network, a table of scores."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from iddpm_jax import build
from iddpm_jax.errors import InputError
from iddpm_jax.evaluation import inception, reference, small_network
from iddpm_jax.evaluation.features import FeatureNetwork, Features, extract
from iddpm_jax.evaluation.fid import statistics
from iddpm_jax.evaluation.parts import Parts, hashed
from iddpm_jax.evaluation.reference import Saved
from iddpm_jax.evaluation.scores import Score, Settings, Side, scores, side
from iddpm_jax.training.parallel import is_main_process


class Subject(NamedTuple):
    """One of the two sets that are compared.

    Attributes:
        name: for people, such as "the train split of digits".
        word: as part of a file's name.
        count: pictures; 0 where there are statistics alone.
        read: indices [B] -> uint8 [B, H, W, C].
        saved: statistics that came with a file.
    """

    name: str
    word: str
    count: int
    read: Callable[[np.ndarray], np.ndarray]
    saved: Saved | None = None


def network_word(config: ConfigDict) -> str:
    """Which network makes the features: fid.network, "auto" being the data's own, if it has one."""
    if config.fid.network != "auto":
        return config.fid.network
    return config.data.name if config.data.name in small_network.SPECS else "inception"


def network_of(config: ConfigDict) -> FeatureNetwork:
    """The network that makes the features.

    Raises:
        InputError: its weights are not there, or are not its.
    """
    word, settings = network_word(config), config.fid
    if word == "inception":
        path = Path(settings.weights) if settings.weights else None
        return inception.network(path, settings.preprocessing)
    return small_network.network(word)


def of_file(path: Path, config: ConfigDict) -> Subject:
    """The pictures of an .npz, its statistics, or both.

    Raises:
        InputError: unreadable, or statistics of another network.
    """
    saved = reference.read(path)
    if saved.pool is not None:
        reference.check_made_by(saved, path, network_word(config), _preprocessing(config))
    images = reference.pictures(path) if saved.pictures else np.empty(0)
    word = f"{path.parent.name}_{path.stem}" if path.stem.startswith("samples_") else path.stem
    return Subject(str(path), word, len(images), lambda index: images[index], saved)


def of_data(config: ConfigDict) -> Subject:
    """A split of the config's data, fid.split.

    Raises:
        InputError: no such data.
    """
    name, split = config.data.name, config.fid.split
    source = build.load_data(config, build.model(config), split)

    def read(index: np.ndarray) -> np.ndarray:
        return np.stack([source[int(i)]["image"] for i in index])

    return Subject(f"the {split} split of {name}", f"{name}_{split}", len(source), read)


def measure(
    config: ConfigDict,
    network: FeatureNetwork,
    samples: Subject,
    reference_: Subject,
    mesh: Mesh,
    folder: Path,
) -> list[str]:
    """Compare samples with a reference, and keep what was found.

    Args:
        config: its fid part is read.
        network: from network_of.
        samples, reference_: from of_file or of_data.
        mesh: devices that share each batch.
        folder: for NAME.json, the scores, and NAME.npz, the statistics of the samples.

    Returns:
        Lines for people; none beside the main process.

    Raises:
        InputError: pictures that the network cannot take, too few, or nowhere to write.
    """
    settings = config.fid
    _make_folder(folder)
    sides, parts = [], []
    for role, subject in (("samples", samples), ("reference", reference_)):
        parts.append(_parts(folder, role, config, network, subject))
        sides.append(_side(config, network, subject, mesh, parts[-1]))
    if not is_main_process():
        return []
    chosen = Settings(**{key: settings[key] for key in Settings._fields})
    found = scores(*sides, network.distance, chosen)
    words = [samples.word, "vs", reference_.word, network_word(config), f"k{chosen.neighbours}"]
    if network_word(config) == "inception":
        words.insert(-1, settings.preprocessing)
    path = folder / f"{_word('_'.join(words))}.json"
    about = {
        "samples": samples.name,
        "samples_count": samples.count or sides[0].pool.count,
        "reference": reference_.name,
        "reference_count": reference_.count or sides[1].pool.count,
        "network": network_word(config),
        "preprocessing": _preprocessing(config),
        "settings": chosen._asdict(),
    }
    record = {**about, "scores": [score._asdict() for score in found]}
    path.write_text(json.dumps(record, indent=1) + "\n")
    lines = [*table(about, found), f"scores      {path}"]
    if sides[0].features is not None:
        path = path.with_suffix(".npz")
        _write(path, sides[0].features, config, samples)
        lines.append(f"statistics  {path}")
    for part in parts:
        part.remove()
    return lines


def write_statistics(config: ConfigDict, mesh: Mesh, path: Path) -> list[str]:
    """Write what `fid` compares with: statistics of fid.split of the data.

    Args:
        config: its data and fid parts are read.
        mesh: devices that share each batch.
        path: the .npz file.

    Returns:
        Lines for people.

    Raises:
        InputError: no such data, or nowhere to write.
    """
    subject = of_data(config)
    network = network_of(config)
    _make_folder(path.parent)
    parts = _parts(path.parent, "statistics", config, network, subject)
    features = _side(config, network, subject, mesh, parts).features
    if not is_main_process():
        return []
    _write(path, features, config, subject)
    parts.remove()
    return [f"statistics of {subject.count:,} pictures, {subject.name}: {path}"]


def table(about: dict, found: list[Score]) -> list[str]:
    """The scores, for people.

    Args:
        about: names and counts of both sides, the network.
        found: from scores.

    Returns:
        Lines.
    """
    width = max(len(score.name) for score in found)
    lines = [
        f"{_many(about['samples_count'])}{about['samples']}",
        f"against {_many(about['reference_count'])}{about['reference']}",
        f"by the features of {about['network']}{', ' * bool(about['preprocessing'])}"
        f"{about['preprocessing']}",
        "",
    ]
    for score in found:
        error = "" if score.error is None else f"+- {score.error:.4f}"
        lines.append(
            f"{score.name:{width}}  {score.value:9.4f} {error:11} {score.better} is better"
            + (f"; {score.note}" if score.note else "")
        )
    origins = [(score.error_from, score.name) for score in found if score.error_from]
    for origin in dict.fromkeys(origin for origin, _ in origins):
        names = ", ".join(name for other, name in origins if other == origin)
        lines.append(f"+- of {names}: standard error, {origin}")
    return [*lines, ""]


def _many(count: int | None) -> str:
    return "" if count is None else f"{count:,} pictures: "


def _preprocessing(config: ConfigDict) -> str:
    """How images are prepared; the small networks know one way only."""
    return config.fid.preprocessing if network_word(config) == "inception" else ""


def _parts(
    folder: Path, role: str, config: ConfigDict, network: FeatureNetwork, subject: Subject
) -> Parts:
    """Where the features of a set lie until all of them are there."""
    few = np.unique(np.linspace(0, subject.count - 1, 16).astype(int)) if subject.count else []
    made_by = {
        "network": [network_word(config), _preprocessing(config)],
        "weights": hashed(*jax.tree.leaves(network.params)),
        "images": [subject.name, subject.count, hashed(subject.read(few)) if subject.count else ""],
    }
    return Parts(folder / f"{role}_{_word(subject.word)}.parts", made_by)


def _side(
    config: ConfigDict, network: FeatureNetwork, subject: Subject, mesh: Mesh, parts: Parts
) -> Side:
    features = None
    if subject.count:
        size = config.fid.batch_size
        features = extract(network, subject.read, subject.count, mesh, size, parts=parts)
    return side(features, subject.saved)


def _make_folder(folder: Path) -> None:
    """Make a folder for results, or features might be made for nothing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror})") from None


def _word(text: str) -> str:
    """As part of a file's name, which file systems have limited room for."""
    return re.sub(r"[^\w.-]+", "-", text)[:200]


def _write(path: Path, features: Features, config: ConfigDict, subject: Subject) -> None:
    pool, spatial = statistics(features.pool), statistics(features.spatial)
    word, preprocessing = network_word(config), _preprocessing(config)
    reference.write(path, pool, spatial, word, preprocessing, subject.name)
