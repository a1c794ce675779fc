"""Folders of pictures: labels, splits, kinds of files, and those that cannot be read."""

import numpy as np
from golden_cases import cases

from iddpm_jax import data


def test_labels_from_names_match_recording():
    ((_, case),) = cases("09_extras.npz", "file_labels")
    order, labels = data.labels_from_names(case["created"])
    assert order == case["order"]
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, case["labels"])
