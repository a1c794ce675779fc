"""Inception-v3 with weights from their names, and images by a rule; no files are needed."""

import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

SIZES = (1, 8, 32, 64, 256, 320)
COUNT = 2

POOL, SPATIAL, LOGITS = slice(0, None, 4), slice(0, None, 17), slice(0, None, 8)
"""Which features are recorded."""


def _random(key: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(f"inception/{key}".encode()))


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A parameter under pytorch-fid's name.

    A quarter of the mean of each kernel is taken off. So what images have in common does not drown
    what tells them apart; with all of it taken off, the layers would amplify rounding to 3e-5.
    """
    values = _random(name).randn(*shape)
    if name.endswith("running_var"):
        values = np.exp(0.5 * values)
    elif name.endswith("bn.weight"):
        values = 1 + 0.1 * values
    elif len(shape) == 1:
        values = 0.1 * values
    else:
        values = values.reshape(shape[0], -1)
        values -= 0.25 * values.mean(axis=1, keepdims=True)
        values = (values * np.sqrt(2.3 / values.shape[1])).reshape(shape)
    return values.astype(np.float32)


def images(size: int) -> np.ndarray:
    """uint8 [COUNT, size, size, 3]: four by four patches of a colour, and noise."""
    random = _random(f"images/{size}")
    patch = np.arange(size) * 4 // size
    patches = random.randint(0, 192, (COUNT, 4, 4, 3))[:, patch][:, :, patch]
    return (patches + random.randint(0, 64, (COUNT, size, size, 3))).astype(np.uint8)


def import_peers() -> Any:
    """torch, where pytorch-fid and torch-fidelity are too; the test is skipped elsewhere."""
    import pytest

    torch = pytest.importorskip("torch")
    try:
        import pytorch_fid.inception  # noqa: F401
        import torch_fidelity.feature_extractor_inceptionv3  # noqa: F401
    except (ImportError, RuntimeError) as error:  # the latter: torchvision of another torch
        pytest.skip(f"pytorch-fid and torch-fidelity cannot be imported: {error}")
    return torch


def peers(state: dict[str, Any]) -> dict[str, Callable[[np.ndarray], tuple[np.ndarray, ...]]]:
    """Their networks with the weights given, by the preprocessing that is theirs.

    Each takes uint8 images [N, H, W, 3] and gives pool [N, 2048], spatial [N, 2023] in the order of
    guided-diffusion's evaluator (rows, columns, channels) and logits without bias [N, 1008].
    """
    import torch

    fid, wrapper = _pytorch_fid(state)
    fidelity = _torch_fidelity(state)
    spatial = {}
    for name, network in (("pytorch_fid", fid), ("tensorflow", fidelity)):
        network.Mixed_6d.branch1x1.register_forward_hook(
            lambda _, __, output, name=name: spatial.update({name: output})
        )

    def flat(name: str) -> np.ndarray:
        return spatial[name][:, :7].permute(0, 2, 3, 1).flatten(1).numpy()

    @torch.no_grad()
    def pytorch_fid(images: np.ndarray) -> tuple[np.ndarray, ...]:
        (pool,) = wrapper(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
        pool = pool[:, :, 0, 0]
        return pool.numpy(), flat("pytorch_fid"), (pool @ fid.fc.weight.T).numpy()

    @torch.no_grad()
    def torch_fidelity(images: np.ndarray) -> tuple[np.ndarray, ...]:
        pool, logits = fidelity(torch.from_numpy(images).permute(0, 3, 1, 2))
        return pool.numpy(), flat("tensorflow"), logits.numpy()

    return {"pytorch_fid": pytorch_fid, "tensorflow": torch_fidelity}


def _pytorch_fid(state: dict[str, Any]) -> tuple[Any, Any]:
    """(the network, the same with its resizing and scaling); it would download its weights."""
    from pytorch_fid import inception

    with mock.patch.object(inception, "load_state_dict_from_url", lambda *_, **__: state):
        network = inception.fid_inception_v3().eval()
    with mock.patch.object(inception, "fid_inception_v3", lambda: network):
        return network, inception.InceptionV3().eval()


def _torch_fidelity(state: dict[str, Any]) -> Any:
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    with tempfile.TemporaryDirectory() as folder:
        torch.save(state, Path(folder) / "weights.pth")
        return FeatureExtractorInceptionV3(
            "inception", ["2048", "logits_unbiased"], str(Path(folder) / "weights.pth")
        )


def pytorch_state() -> dict[str, Any]:
    """The weights by the rule, under the names and in the shapes that pytorch-fid's network has."""
    import torch
    from pytorch_fid import inception
    from torchvision.models.inception import Inception3

    with (
        mock.patch.object(inception, "load_state_dict_from_url", lambda *_, **__: {}),
        mock.patch.object(Inception3, "load_state_dict", lambda *_: None),
    ):
        network = inception.fid_inception_v3()
    return {
        name: torch.from_numpy(weight(name, tuple(value.shape)))
        if value.is_floating_point()
        else value
        for name, value in network.state_dict().items()
    }
