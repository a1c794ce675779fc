"""Pictures with labels: sources by name, and the order in which training sees them."""

from iddpm_jax.data.folder import labels_from_names
from iddpm_jax.data.npz import read_npz
from iddpm_jax.data.pipeline import (
    check_batch_size,
    independent_batch,
    padded_chunks,
    training_batches,
)
from iddpm_jax.data.protocol import ArraySource, Source
from iddpm_jax.data.sources import load

__all__ = [
    "ArraySource",
    "Source",
    "check_batch_size",
    "independent_batch",
    "labels_from_names",
    "load",
    "padded_chunks",
    "read_npz",
    "training_batches",
]
