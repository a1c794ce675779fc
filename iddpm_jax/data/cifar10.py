"""CIFAR-10 from its public archive to a TFDS data set, without TensorFlow.

python -m iddpm_jax.data.cifar10 --download
python -m iddpm_jax.data.cifar10 --archive cifar-10-binary.tar.gz

Then `tfds:cifar10` reads it. It has the name, version, features and order of TFDS's own CIFAR-10.
"""

import argparse
import hashlib
import pickle
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from iddpm_jax import downloads
from iddpm_jax.errors import InputError

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = {
    "c32a1d4ab5d03f1284b67883e8d87530": "cifar-10-binary.tar.gz",
    "c58f30108f718f92721af3b95e74349a": "cifar-10-python.tar.gz",
}
"""Published sums of the archives."""

CLASS_NAMES = "airplane automobile bird cat deer dog frog horse ship truck".split()

_BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
_PIXELS = 3 * 32 * 32


def read_archive(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The pictures of a cifar-10-binary.tar.gz or cifar-10-python.tar.gz.

    Args:
        path: of the archive.

    Returns:
        {"train", "test"}: (uint8 [N, 32, 32, 3], labels int32 [N]), in the archive's order.

    Raises:
        InputError: no such archive, or a damaged or incomplete one.
    """
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in tqdm(archive, desc=f"reading {path.name}", unit=" files", leave=False):
                batch = PurePosixPath(member.name)
                file = archive.extractfile(member)
                if file is None or not batch.name.startswith(("data_batch_", "test_batch")):
                    continue
                read = _read_binary if batch.suffix == ".bin" else _read_pickle
                found[batch.stem] = read(file)
    except Exception as error:  # tarfile, zlib, pickle and numpy each raise their own
        raise _not_the_archive(path, error) from None
    missing = [name for names in _BATCHES.values() for name in names if name not in found]
    if missing:
        raise _not_the_archive(path, f"it lacks {', '.join(missing)}")
    return {
        split: tuple(np.concatenate([found[name][i] for name in names]) for i in (0, 1))
        for split, names in _BATCHES.items()
    }


def _not_the_archive(path: Path, reason: object) -> InputError:
    return InputError(
        f"{path} cannot be read as CIFAR-10 ({' '.join(str(reason).split())}); give "
        f"{' or '.join(MD5.values())}, whole, or use --download"
    )


def _read_binary(file: IO[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Records of a label and 3 x 32 x 32 pixels."""
    records = np.frombuffer(file.read(), np.uint8).reshape(-1, 1 + _PIXELS)
    return _checked(records[:, 1:], records[:, 0])


def _read_pickle(file: IO[bytes]) -> tuple[np.ndarray, np.ndarray]:
    batch = _ArraysOnly(file, encoding="bytes").load()
    return _checked(batch[b"data"], np.asarray(batch[b"labels"]))


def _checked(pixels: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if pixels.dtype != np.uint8 or pixels.shape != (len(labels), _PIXELS) or not len(labels):
        raise ValueError(f"a batch has {len(labels)} labels for {pixels.shape} pixels")
    if labels.min() < 0 or labels.max() >= len(CLASS_NAMES):
        raise ValueError(f"a label is {labels.max()}; there are {len(CLASS_NAMES)} classes")
    images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return images, labels.astype(np.int32)


class _ArraysOnly(pickle.Unpickler):
    """Builds arrays and nothing else: a pickle could otherwise run any code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy.core.multiarray", "_reconstruct"):
            return np.zeros(1).__reduce__()[0]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not an array")


def download(folder: Path) -> Path:
    """Fetch the archive and check its sum; one that is there already is kept.

    Args:
        folder: where to put it.

    Returns:
        Path of the archive.

    Raises:
        InputError: it cannot be had, or is not what was published.
    """
    path = folder / PurePosixPath(URL).name
    if path.exists() and MD5.get(md5(path)) == path.name:
        return path
    part = downloads.fetch(URL, folder, "fetch it otherwise, and give --archive")
    if MD5.get(md5(part)) != path.name:
        part.unlink()
        raise InputError(f"what came from {URL} is not the published archive; try again")
    return part.rename(path)


def md5(path: Path) -> str:
    """MD5 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def prepare(find_archive: Callable[[], Path], tfds_dir: str) -> tuple[Path, dict[str, int]]:
    """Write the data set, unless it is there.

    Args:
        find_archive: gives the path of an archive, if one is needed; see read_archive.
        tfds_dir: where data sets lie; "": $TFDS_DATA_DIR or ~/tensorflow_datasets.

    Returns:
        (folder of the data set, pictures in it by split).

    Raises:
        InputError: an archive that cannot be read, a folder that cannot be written, or one that has
            the data set in another format.
    """
    builder = _builder(find_archive, tfds_dir)
    if builder.data_path.exists():
        if builder.info.file_format.value != "array_record":
            raise InputError(
                f"{builder.data_dir} has CIFAR-10 as {builder.info.file_format.value}, which needs "
                "TensorFlow to read; give another --tfds-dir, and set data.tfds_dir to it"
            )
        print("the data set is there already")
    try:
        builder.download_and_prepare(file_format="array_record")
    except OSError as error:
        raise InputError(f"{builder.data_dir} cannot be written ({error})") from None
    return Path(builder.data_dir), {k: v.num_examples for k, v in builder.info.splits.items()}


def _builder(find_archive: Callable[[], Path], tfds_dir: str) -> Any:
    import tensorflow_datasets as tfds

    class Cifar10(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Features and keys of TFDS's own builder, whose examples TensorFlow would encode."""

        name = "cifar10"
        VERSION = tfds.core.Version("3.0.2")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                description="CIFAR-10, prepared by iddpm_jax from the public archive.",
                features=tfds.features.FeaturesDict(
                    {
                        "id": tfds.features.Text(),
                        "image": tfds.features.Image(shape=(32, 32, 3)),
                        "label": tfds.features.ClassLabel(names=CLASS_NAMES),
                    }
                ),
                supervised_keys=("image", "label"),
                homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
            )

        def _split_generators(self, dl_manager):
            arrays = read_archive(find_archive())
            return {split: self._generate_examples(split, *arrays[split]) for split in arrays}

        def _generate_examples(
            self, split: str, images: np.ndarray, labels: np.ndarray
        ) -> Iterator[tuple[int, dict[str, Any]]]:
            for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                # Arrays need TensorFlow to encode, pictures do not.
                record = {"image": Image.fromarray(image), "label": int(label)}
                yield i, {"id": f"{split}_{i:05d}", **record}

    return Cifar10(data_dir=str(Path(tfds_dir).expanduser()) if tfds_dir else None)


def main(argv: list[str] | None = None) -> int:
    """Command line; exit code 0, 2 for bad input, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m iddpm_jax.data.cifar10", description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--archive", type=Path, help=f"{' or '.join(MD5.values())}")
    source.add_argument("--download", action="store_true", help=f"fetch {URL} (170 MB)")
    parser.add_argument(
        "--tfds-dir", default="", help="as data.tfds_dir: $TFDS_DATA_DIR or ~/tensorflow_datasets"
    )
    args = parser.parse_args(argv)

    def find_archive() -> Path:
        archive = args.archive or download(_data_dir(args.tfds_dir) / "downloads")
        if not archive.is_file():
            raise InputError(f"--archive {archive} does not exist; check the path")
        if md5(archive) not in MD5:
            print(f"{archive} is not one of the published archives (by its MD5)", file=sys.stderr)
        return archive

    try:
        folder, counts = prepare(find_archive, args.tfds_dir)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    print(f"{counts['train']:,} training and {counts['test']:,} test pictures in {folder}")
    print("python -m iddpm_jax.main --config configs/cifar10.py reads them as tfds:cifar10")
    return 0


def _data_dir(tfds_dir: str) -> Path:
    import tensorflow_datasets as tfds

    return Path(tfds_dir or tfds.core.constants.DATA_DIR).expanduser()


if __name__ == "__main__":
    sys.exit(main())
