"""TFDS data sets: what is read of them, and what is refused."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from iddpm_jax import data
from iddpm_jax.data import tfds as module
from iddpm_jax.errors import InputError

pytestmark = pytest.mark.slow  # the import alone may take 5 s


@pytest.fixture(autouse=True)
def forget():
    """A process opens a data set once; tests change theirs."""
    module.load.cache_clear()


def png(pixels: np.ndarray) -> io.BytesIO:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    file.seek(0)
    return file


def prepared(folder, shape=(None, None, 3), labels=(), splits=("train",), key="image", images=()):
    """A data set called pictures, with a version and a config; the folder of its version."""
    import tensorflow_datasets as tfds

    class Pictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "pictures"
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="small")]

        def _info(self):
            features = {key: tfds.features.Image(shape=shape)} if key else {"x": np.int32}
            if labels:
                features["number"] = np.int64
                features["kind"] = tfds.features.ClassLabel(names=labels)
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples() for split in splits}

        def _generate_examples(self):
            for i, image in enumerate(images):
                example = {key: png(image)} if key else {"x": i}
                if labels:
                    example |= {"number": 100 + i, "kind": i % len(labels)}
                yield i, example

    builder = Pictures(data_dir=str(folder), config="small")
    builder.download_and_prepare(file_format="array_record")
    return folder / "pictures" / "small" / "1.0.0"


def pictures(count: int, height: int = 5, width: int = 7) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(count)]


def refusal(*args, **kwargs) -> str:
    with pytest.raises(InputError) as caught:
        data.load(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_pictures_and_classes_are_read_by_name_or_path(tmp_path):
    images = pictures(6)
    version = prepared(tmp_path, (5, 7, 3), ("cat", "dog", "eel"), images=images)
    for name in (f"tfds:{version}", "tfds:pictures/small", "tfds:pictures/small:1.0.0"):
        source = data.load(name, "train", tfds_dir=str(tmp_path))
        assert len(source) == 6 and source.image_shape == (5, 7, 3)
        assert source.class_names == ("cat", "dog", "eel")
        for i in range(6):
            example = source[i]
            which = [j for j in range(6) if (images[j] == example["image"]).all()]
            assert len(which) == 1 and example["label"] == which[0] % 3
            assert example["label"].dtype == np.int32 and example["image"].dtype == np.uint8


def test_data_set_without_labels_has_no_classes(tmp_path):
    version = prepared(tmp_path, (5, 7, 3), images=pictures(3), key="picture")
    source = data.load(f"tfds:{version}", "train")
    assert source.class_names == () and source[2]["label"] == 0


def test_pictures_of_any_size_are_prepared(tmp_path):
    images = [np.full((h, w, 3), (10, 200, 30), np.uint8) for h, w in ((9, 20), (64, 33), (8, 8))]
    version = prepared(tmp_path, images=images)
    assert "set data.image_shape" in refusal(f"tfds:{version}", "train")
    source = data.load(f"tfds:{version}", "train", (8, 12, 3))
    for i in range(3):
        np.testing.assert_array_equal(
            source[i]["image"], np.broadcast_to([10, 200, 30], (8, 12, 3))
        )
    batches = data.training_batches(source, 3, 0, False, random_crop=0.8)
    assert next(batches)["image"].shape == (3, 8, 12, 3)
    assert "1 or 3 channels" in refusal(f"tfds:{version}", "train", (8, 8, 2))


@pytest.mark.parametrize("splits", [("train", "test"), ("train", "validation")])
def test_test_or_validation_is_for_testing(tmp_path, splits):
    version = prepared(tmp_path, (5, 7, 3), splits=splits, images=pictures(2))
    assert len(data.load(f"tfds:{version}", "test")) == 2


def test_missing_split_is_refused(tmp_path):
    version = prepared(tmp_path, (5, 7, 3), splits=("train",), images=pictures(2))
    assert "has no test split, only train" in refusal(f"tfds:{version}", "test")


def test_data_without_pictures_are_refused(tmp_path):
    version = prepared(tmp_path, key="", images=pictures(2))
    assert "has no pictures, only x" in refusal(f"tfds:{version}", "train")


def test_what_is_not_prepared_is_refused_with_the_command(tmp_path):
    text = refusal("tfds:imagenet_resized/64x64", "train", tfds_dir=str(tmp_path))
    for word in ("iddpm_jax[tf]", "'imagenet_resized/64x64'", "array_record", str(tmp_path)):
        assert word in text
    text = refusal("tfds:cifar10", "train", tfds_dir=str(tmp_path))
    assert f"python -m iddpm_jax.data.cifar10 --download --tfds-dir {tmp_path}" in text
    assert "dataset_info.json" in refusal(f"tfds:{tmp_path}", "train")


def test_other_formats_are_refused(tmp_path):
    version = prepared(tmp_path, (5, 7, 3), images=pictures(2))
    info = json.loads((version / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    (version / "dataset_info.json").write_text(json.dumps(info))
    text = refusal(f"tfds:{version}", "train")
    assert "tfrecord" in text and "array_record" in text


def test_damaged_picture_is_named(tmp_path):
    version = prepared(tmp_path, (5, 7, 3), images=pictures(2))
    source = data.load(f"tfds:{version}", "train")
    broken = module.TfdsSource([{"image": b"no"}], "image", None, (), (5, 7, 3), source.place)
    with pytest.raises(InputError, match=f"picture 0 of {version} cannot be read"):
        broken[0]
