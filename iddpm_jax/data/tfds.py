"""TensorFlow Datasets, read without TensorFlow. Imported when used: that takes seconds."""

import dataclasses
import functools
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from iddpm_jax.data import pictures
from iddpm_jax.data.protocol import example
from iddpm_jax.errors import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsSource:
    """A split of a prepared data set, read record by record.

    Attributes:
        records: random access to dictionaries of features, pictures in them still as files.
        image_key: which feature is the picture.
        label_key: which one its class, or None.
        class_names: by label.
        image_shape: (H, W, C) that every picture is prepared to.
        place: folder of the data set, for messages.
    """

    records: Sequence[dict[str, Any]]
    image_key: str
    label_key: str | None
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    place: str

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return example(*self.original(index), self.image_shape)

    def original(self, index: int) -> tuple[Image.Image, int]:
        """As Source.original."""
        try:
            record = self.records[int(index)]
            image = pictures.decode(io.BytesIO(record[self.image_key]), self.image_shape[2])
        except Exception as error:  # array_record, protobuf and Pillow each raise their own
            reason = " ".join(str(error).split())
            raise InputError(
                f"picture {index} of {self.place} cannot be read ({reason}); prepare the data "
                "set anew"
            ) from None
        return image, int(record[self.label_key]) if self.label_key else 0


@functools.cache
def load(address: str, split: str, image_shape: tuple[int, ...], tfds_dir: str) -> TfdsSource:
    """A split of a data set that TFDS has prepared in its array_record format.

    Args:
        address: a name, such as "cifar10" or "imagenet_resized/64x64", or a path to the folder of a
            prepared version, the one that holds dataset_info.json.
        split: "train", or "test" for the test or else the validation split.
        image_shape: (H, W, C) that every picture is prepared to; (): the data set's own.
        tfds_dir: where data sets lie; "": $TFDS_DATA_DIR or ~/tensorflow_datasets.

    Returns:
        TfdsSource.

    Raises:
        InputError: not prepared, in another format, or without pictures.
    """
    pictures.check_channels(image_shape)
    builder = _builder(address, tfds_dir)
    name = _split_name(split, list(builder.info.splits), str(builder.data_dir))
    image_key, label_key = _keys(builder)
    shape = image_shape or _own_shape(builder.info.features[image_key].shape, str(builder.data_dir))
    names = tuple(builder.info.features[label_key].names) if label_key else ()
    records = _records(builder, name, image_key)
    if not len(records):
        raise InputError(f"the {name} split in {builder.data_dir} is empty; prepare it anew")
    return TfdsSource(records, image_key, label_key, names, shape, str(builder.data_dir))


def _builder(address: str, tfds_dir: str) -> Any:
    import tensorflow_datasets as tfds

    folder = Path(address).expanduser()
    is_path = address.startswith(("/", ".", "~")) or (folder / "dataset_info.json").is_file()
    # Files alone, not the code that prepared them: much of that needs TensorFlow.
    where = tfds_dir or tfds.core.constants.DATA_DIR
    try:
        if is_path:
            return tfds.builder_from_directory(folder)
        data_dir = Path(tfds_dir).expanduser() if tfds_dir else None
        return tfds.core.load.read_only_builder.builder_from_files(address, data_dir=data_dir)
    except tfds.core.registered.DatasetNotFoundError:
        raise InputError(
            f"there is no such data set in {where}; {_how_to_prepare(address, where)}"
        ) from None
    except Exception as error:  # TFDS raises many kinds
        reason = " ".join(str(error).split())
        raise InputError(
            f"{folder if is_path else where} holds no such prepared data set ({reason}); give a "
            "name, or the folder of a version with its dataset_info.json"
        ) from None


def _how_to_prepare(name: str, where: str) -> str:
    if re.fullmatch(r"cifar10(:.*)?", name):
        return f"python -m iddpm_jax.data.cifar10 --download --tfds-dir {where} puts it there"
    also = " tensorflow_io" if name.startswith("lsun") else ""
    return (
        f"prepare it once, which needs pip install 'iddpm_jax[tf]'{also}: python -c \"import "
        f"tensorflow_datasets as tfds; tfds.builder('{name}', data_dir='{where}', "
        "file_format='array_record').download_and_prepare()\"; or set data.tfds_dir to where it is"
    )


def _split_name(split: str, there: list[str], place: str) -> str:
    for name in (split,) if split == "train" else ("test", "validation"):
        if name in there:
            return name
    raise InputError(
        f"{place} has no {split} split, only {', '.join(there) or 'none'}; use a data set with "
        "train, and test or validation"
    )


def _keys(builder: Any) -> tuple[str, str | None]:
    """Names of the features that are the picture and its class."""
    import tensorflow_datasets as tfds

    features = dict(builder.info.features.items())
    images = [k for k, f in features.items() if isinstance(f, tfds.features.Image)]
    labels = [k for k, f in features.items() if isinstance(f, tfds.features.ClassLabel)]
    if not images:
        raise InputError(f"{builder.data_dir} has no pictures, only {', '.join(features)}")
    label = next(iter(labels), None)
    return "image" if "image" in images else images[0], "label" if "label" in labels else label


def _own_shape(shape: tuple[int | None, ...], place: str) -> tuple[int, int, int]:
    if None in shape:
        raise InputError(
            f"{place} has pictures of several sizes; set data.image_shape, such as (256, 256, 3)"
        )
    height, width, channels = shape
    return height, width, 1 if channels == 1 else 3


def _records(builder: Any, split: str, image_key: str) -> Sequence[dict[str, Any]]:
    import tensorflow_datasets as tfds

    try:
        # Pictures are decoded here, by the same code as files in a folder.
        return builder.as_data_source(split=split, decoders={image_key: tfds.decode.SkipDecoding()})
    except NotImplementedError:
        raise InputError(
            f"{builder.data_dir} was prepared as {builder.info.file_format.value}, which needs "
            "TensorFlow to read; prepare it again in another folder, with "
            "file_format='array_record'"
        ) from None
