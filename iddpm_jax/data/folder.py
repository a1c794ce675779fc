"""Folders of pictures, read when asked for."""

import dataclasses
import functools
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from iddpm_jax.data import pictures
from iddpm_jax.data.protocol import example, is_test
from iddpm_jax.errors import InputError

LABELS = ("auto", "folders", "prefix", "none")
CORRUPT = ("fail", "skip")

_TEST_FOLDERS = ("test", "val", "validation")


@dataclasses.dataclass(frozen=True, eq=False)
class FolderSource:
    """A split of a folder; nothing but names and labels is held in memory.

    Attributes:
        root: the folder.
        files: of the pictures, relative to it, in their order.
        labels: int32 [N].
        class_names: by label.
        image_shape: (H, W, C) that every picture is prepared to.
        corrupt: "fail", or "skip" to take the next picture for one that cannot be read.
        skipped: files that could not be read so far.
    """

    root: Path
    files: tuple[str, ...]
    labels: np.ndarray
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    corrupt: str
    skipped: set[str] = dataclasses.field(default_factory=set)
    _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock, repr=False)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return example(*self.original(index), self.image_shape)

    def original(self, index: int) -> tuple[Image.Image, int]:
        """As Source.original, with the picture that stands in for a corrupt one."""
        for i in range(index, index + len(self)):
            file = self.files[i % len(self)]
            try:
                image = pictures.decode(self.root / file, self.image_shape[2])
                return image, int(self.labels[i % len(self)])
            except Exception as error:  # Pillow and its decoders each raise their own
                reason = " ".join(str(error).split())
                if self.corrupt == "fail":
                    raise InputError(
                        f"{self.root / file} cannot be read as a picture ({reason}); remove it, or "
                        "set data.corrupt=skip to do without such files"
                    ) from None
                self._skip(file, reason)
        raise InputError(f"none of the {len(self)} pictures in {self.root} can be read")

    def _skip(self, file: str, reason: str) -> None:
        with self._lock:
            first = not self.skipped
            self.skipped.add(file)
        if first:
            tqdm.write(
                f"warning: {self.root / file} cannot be read as a picture ({reason}); the next one "
                "is taken for it, and for others like it",
                file=sys.stderr,
            )


def load(
    address: str, split: str, image_shape: tuple[int, ...], labels: str, corrupt: str
) -> FolderSource:
    """A split of a folder of pictures.

    With subfolders train and test (or val, or validation) these are the splits; else every tenth
    picture, in the order of their names, is for testing.

    Args:
        address: path of the folder.
        split: "train" or "test".
        image_shape: (H, W, C) that every picture is prepared to; (): as the pictures are, which
            must then be alike.
        labels: a class is the first subfolder ("folders"), the file's name up to the first
            underscore ("prefix", OpenAI's rule) or nothing ("none"); "auto" takes subfolders if all
            pictures lie in several, else prefixes if all have one.
        corrupt: "fail" or "skip".

    Returns:
        FolderSource.

    Raises:
        InputError: no such folder, no pictures, no such labels, or an unknown word.
    """
    for key, word, words in (("labels", labels, LABELS), ("corrupt", corrupt, CORRUPT)):
        if word not in words:
            raise InputError(f"data.{key} {word!r} is unknown; use one of {', '.join(words)}")
    pictures.check_channels(image_shape)
    root = Path(address).expanduser()
    if not root.is_dir():
        raise InputError(
            f"there is no folder {root.absolute()}; give a folder of pictures, as in "
            "--config.data.name=folder:PATH"
        )
    train, test = root / "train", _test_folder(root)
    if train.is_dir() and test is not None:
        listing, root = _scan(train, labels), train
        if split == "test":
            listing, root = _as_in(listing, train, _scan(test, listing.rule), test), test
        files, numbers = listing.files, listing.labels
    else:
        listing = _scan(root, labels)
        files, numbers = listing.files, listing.labels
        chosen = is_test(10, len(files)) if split == "test" else ~is_test(10, len(files))
        if not chosen.any():
            raise InputError(
                f"{root} has {len(files)} pictures, and every tenth is for testing, so there is "
                "none; give 10 or more, or subfolders train and test"
            )
        files = tuple(file for file, kept in zip(files, chosen, strict=True) if kept)
        numbers = numbers[chosen]
    shape = image_shape or _common_shape(root, files, corrupt)
    return FolderSource(root, files, numbers, listing.class_names, shape, corrupt)


def _test_folder(root: Path) -> Path | None:
    return next((root / name for name in _TEST_FOLDERS if (root / name).is_dir()), None)


class _Listing(NamedTuple):
    """The pictures of a folder in their order, labels [N], names of classes, and the rule of it."""

    files: tuple[str, ...]
    labels: np.ndarray
    class_names: tuple[str, ...]
    rule: str


def _as_in(train: _Listing, train_root: Path, test: _Listing, test_root: Path) -> _Listing:
    """The test folder's listing, with the numbers that training gives to the classes."""
    unknown = sorted(set(test.class_names) - set(train.class_names))
    if unknown:
        raise InputError(
            f"{test_root} has a class {unknown[0]!r} that {train_root} has not; give both the same "
            "classes, or set data.labels=none"
        )
    labels = test.labels
    if test.class_names:
        number = {name: i for i, name in enumerate(train.class_names)}
        labels = np.array([number[name] for name in test.class_names], np.int32)[labels]
    return test._replace(labels=labels, class_names=train.class_names)


@functools.cache
def _scan(root: Path, labels: str) -> _Listing:
    """List a folder, once in a process."""
    walk = tqdm(_walk(root), desc=f"listing {root}", unit=" files", delay=2, leave=False)
    files = ordered(walk)
    if not files:
        raise InputError(
            f"{root} has no pictures ({', '.join(s[1:] for s in pictures.SUFFIXES)}), not in its "
            "subfolders either; give another folder"
        )
    rule = _rule(files) if labels == "auto" else labels
    if rule == "none":
        return _Listing(tuple(files), np.zeros(len(files), np.int32), (), rule)
    if rule == "prefix":
        classes = [_prefix(file) for file in files]
    else:
        classes = [file.partition("/")[0] for file in files]
        loose = next((file for file in files if "/" not in file), None)
        if loose:
            raise InputError(
                f"{root / loose} lies in no subfolder, so it has no class; move it, or set "
                "data.labels to prefix or none"
            )
    names, numbers = numbered(classes)
    return _Listing(tuple(files), numbers, names, rule)


def _rule(files: Sequence[str]) -> str:
    """Where the classes seem to be."""
    if all("/" in file for file in files) and len({file.partition("/")[0] for file in files}) > 1:
        return "folders"
    return "prefix" if all("_" in file.rpartition("/")[2] for file in files) else "none"


def _walk(root: Path) -> Iterator[str]:
    """Every file that is not hidden, relative to root; links are followed, but not in circles."""

    def inside(prefix: str, above: frozenset[str]) -> Iterator[str]:
        real = os.path.realpath(root / prefix)
        if real in above:
            return
        with os.scandir(root / prefix) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    yield from inside(f"{prefix}{entry.name}/", above | {real})
                elif entry.is_file():
                    yield prefix + entry.name

    try:
        yield from inside("", frozenset())
    except OSError as error:
        raise InputError(f"{error.filename} cannot be listed ({error.strerror})") from None


def _common_shape(root: Path, files: Sequence[str], corrupt: str) -> tuple[int, int, int]:
    """Shape of the pictures, from the heads of a few; grey only if all of these are."""
    shapes = {}
    for i in np.unique(np.linspace(0, len(files) - 1, 16).astype(int)):
        try:
            shapes[files[i]] = pictures.shape_of(root / files[i])
        except Exception as error:  # as in FolderSource.original
            if corrupt == "fail":
                raise InputError(
                    f"{root / files[i]} cannot be read as a picture "
                    f"({' '.join(str(error).split())}); remove it, or set data.corrupt=skip"
                ) from None
    if not shapes:
        raise InputError(f"{root}: not one of 16 pictures can be read; check the files")
    file, (height, width, _) = next(iter(shapes.items()))
    for other, (rows, columns, _) in shapes.items():
        if (rows, columns) != (height, width):
            raise InputError(
                f"{root} has pictures of several sizes ({file} {height}x{width}, {other} "
                f"{rows}x{columns}); set data.image_shape, such as (64, 64, 3)"
            )
    return height, width, max(channels for *_, channels in shapes.values())


# Paths are strings with slashes here: with millions of files, Path objects take their time.
def ordered(paths: Iterable[str]) -> list[str]:
    """The pictures among files, in the order they are read."""
    found = (path for path in paths if path.lower().endswith(pictures.SUFFIXES))
    # By parts: a folder's own files and its subfolders together, each subfolder in its place.
    return sorted(found, key=lambda path: path.split("/"))


def _prefix(file: str) -> str:
    """OpenAI's class of a file."""
    return file.rpartition("/")[2].split("_")[0]


def numbered(classes: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """(sorted names, index among them of each class int32 [N])."""
    names = tuple(sorted(set(classes)))
    number = {name: i for i, name in enumerate(names)}
    return names, np.array([number[name] for name in classes], np.int32)


def labels_from_names(paths: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """OpenAI's rule: the class is the file name up to the first underscore.

    Args:
        paths: files of any kind, relative to one folder.

    Returns:
        (the pictures among them in the order they are read, label of each: index of its class among
        the sorted names).
    """
    files = ordered(paths)
    return files, numbered([_prefix(file) for file in files])[1]
