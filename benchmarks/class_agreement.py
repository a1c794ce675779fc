"""Do sampled digits show the class they were asked for? Off-the-shelf classifiers answer.

python benchmarks/class_agreement.py runs/digits/samples/.../samples_100x8x8x1.npz

Both classifiers learn from the real training digits and are checked on the real test digits first.
"""

import argparse

import numpy as np
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC

from iddpm_jax import data


def main() -> None:
    """Print the share of agreement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("npz", help="samples with classes, as --mode sample writes them")
    with np.load(parser.parse_args().npz) as arrays:
        images, classes = arrays["arr_0"], arrays["arr_1"]

    def rows(pixels: np.ndarray) -> np.ndarray:
        return pixels.reshape(len(pixels), -1).astype(np.float64)

    train, test = data.load("digits", "train"), data.load("digits", "test")
    for classifier in (KNeighborsClassifier(3), SVC()):
        classifier.fit(rows(train.images), train.labels)
        real = classifier.score(rows(test.images), test.labels)
        sampled = classifier.score(rows(images), classes)
        name = type(classifier).__name__
        print(f"{name:22} real test digits {real:6.1%}   samples {sampled:6.1%}")


if __name__ == "__main__":
    main()
