"""The original's network and loops in PyTorch: eager as released, and what makes it faster."""

import numpy as np
import torch
from contest import Run, Workload

from contenders import torch_work
from contenders.original_network import OriginalUNet
from iddpm_jax import build


def eager(workload: Workload) -> Run:
    """As released: channels first, float32 or autocast, no compiler."""
    return _build(workload, torch.contiguous_format)


def channels_last(workload: Workload) -> Run:
    """Eager, channels last."""
    return _build(workload, torch.channels_last)


def compiled(workload: Workload) -> Run:
    """torch.compile."""
    return _build(workload, torch.contiguous_format, torch.compile)


def compiled_channels_last(workload: Workload) -> Run:
    """torch.compile, channels last."""
    return _build(workload, torch.channels_last, torch.compile)


def _build(workload: Workload, layout: torch.memory_format, compiler=lambda f: f) -> Run:
    config = torch_work.read(workload)
    network = OriginalUNet(build.model(config).spec)
    with np.load(workload.weights) as arrays:
        network.load_state_dict({name: torch.from_numpy(arrays[name]) for name in arrays})
    network.to(torch_work.device(), memory_format=layout)
    work = {"train": torch_work.train, "sample": torch_work.sample, "nll": torch_work.nll}
    return work[workload.kind](config, network, network, workload.batch_size, layout, compiler)
