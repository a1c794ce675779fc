"""denoising-diffusion-pytorch: its Unet, its loss and its loop of sampling.

As near to the config as its constructor allows. Its Unet has two residual blocks in every level,
in encoder and decoder alike, whatever the config says; the encoder's work at the width of the level
above; levels without attention have linear attention; and it takes no classes. So a comparison has
to look at the work as well: describe().
"""

from collections.abc import Callable

import torch
from contest import Run, Workload
from denoising_diffusion_pytorch import LearnedGaussianDiffusion, Unet
from ml_collections import ConfigDict

from contenders import torch_work
from iddpm_jax import build
from iddpm_jax.models.layout import UNetSpec

LINEAR_HEADS, LINEAR_HEAD_CHANNELS = 4, 32
"""Of linear attention, as its constructor has them unless told otherwise."""


def eager(workload: Workload) -> Run:
    """As installed: no compiler."""
    return _build(workload)


def compiled(workload: Workload) -> Run:
    """torch.compile."""
    return _build(workload, torch.compile)


def describe(workload: Workload) -> dict[str, float]:
    """Size of the network; see torch_work.size."""
    model = build.model(torch_work.read(workload))
    height, width, channels = model.image_shape
    with torch.device("meta"):
        x, t = torch.zeros(1, channels, height, width), torch.zeros(1)
        return torch_work.size(make_network(model.spec), x, t)


def make_network(spec: UNetSpec) -> Unet:
    """The nearest that Unet can be to our network.

    Args:
        spec: shape of ours.

    Returns:
        Unet of the same widths, with full attention of as many heads at the same levels.
    """
    channels = [spec.level_channels(mult) for mult in spec.channel_mult]
    attended = [2**level in spec.attention_factors for level in range(len(channels))]
    # The middle, which always has full attention, takes its heads from the last level.
    full = [*attended[:-1], True]
    heads = [
        (c // spec.num_head_channels if spec.num_head_channels else spec.num_heads)
        if is_full
        else LINEAR_HEADS
        for c, is_full in zip(channels, full, strict=True)
    ]
    head_channels = [
        c // h if is_full else LINEAR_HEAD_CHANNELS
        for c, h, is_full in zip(channels, heads, full, strict=True)
    ]
    return Unet(
        dim=spec.width,
        dim_mults=tuple(spec.channel_mult),
        channels=spec.channels,
        learned_variance=True,
        dropout=spec.dropout,
        attn_heads=tuple(heads),
        attn_dim_head=tuple(head_channels),
        full_attn=tuple(attended),
    )


def _build(workload: Workload, compiler: Callable = lambda f: f) -> Run:
    config = torch_work.read(workload)
    model = build.model(config)
    network = make_network(model.spec).to(torch_work.device())
    if workload.kind == "nll":  # it has no code for this
        layout = torch.contiguous_format

        def predict(x: torch.Tensor, t: torch.Tensor, _: torch.Tensor | None) -> torch.Tensor:
            return network(x, t)

        return torch_work.nll(config, network, predict, workload.batch_size, layout, compiler)
    work = {"train": _train, "sample": _sample}
    return work[workload.kind](config, network, workload.batch_size, compiler)


def _diffusion(
    config: ConfigDict, network: Unet, steps: int, compiler: Callable
) -> LearnedGaussianDiffusion:
    height, width, _ = config.data.image_shape
    diffusion = LearnedGaussianDiffusion(
        network,
        vb_loss_weight=config.loss.vlb_weight * config.diffusion.T,  # it adds a single term L_t
        image_size=(height, width),
        timesteps=steps,
        objective="pred_noise",
        beta_schedule=config.diffusion.schedule,
    )
    diffusion.model = compiler(network)
    return diffusion.to(torch_work.device())


def _train(config: ConfigDict, network: Unet, count: int, compiler: Callable) -> Run:
    """Optimizer steps of torch_work on its loss."""
    diffusion = _diffusion(config, network, config.diffusion.T, compiler)
    x_0, _ = torch_work.batch(config, count, torch.contiguous_format)
    images = (x_0 + 1) / 2
    return torch_work.optimizer_steps(config, network, lambda: diffusion(images))


def _sample(config: ConfigDict, network: Unet, count: int, compiler: Callable) -> Run:
    """Its ancestral sampling of a process of so many steps.

    Fewer steps than a process has it takes by DDIM, which fails under learned variances (NameError
    in version 2.3.4); each step costs the same.
    """
    diffusion = _diffusion(config, network, int(config.sample.steps), compiler)
    diffusion.eval()

    def run(times: int) -> None:
        for _ in range(times):
            with torch_work.half_precision(config):
                images = diffusion.sample(count)
            (images * 255).clamp(0, 255).to(torch.uint8).cpu()

    return run
