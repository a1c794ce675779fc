"""diffusers' UNet2DModel and DDPMScheduler, the same network layer for layer.

UNet2DModel takes one number of channels for the heads of all levels, where the config has a number
of heads; the heads are set after it is built. Its loss is that of torch_work, as diffusers has none
that trains a variance; its loop of sampling is the one of diffusers' own pipelines.
"""

from collections.abc import Callable

import torch
from contest import Run, Workload
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.models.attention_processor import Attention
from ml_collections import ConfigDict

from contenders import torch_work
from iddpm_jax import build
from iddpm_jax.models.layout import UNetSpec

SCHEDULES = {"cosine": "squaredcos_cap_v2", "linear": "linear"}


def eager(workload: Workload) -> Run:
    """As installed: channels first, no compiler."""
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


def describe(workload: Workload) -> dict[str, float]:
    """Size of the network; see torch_work.size."""
    model = build.model(torch_work.read(workload))
    height, width, channels = model.image_shape
    with torch.device("meta"):
        x, t, y = torch.zeros(1, channels, height, width), torch.zeros(1), torch.zeros(1).int()
        network = make_network(model.spec, model.image_shape)
        return torch_work.size(network, x, t, y if model.spec.num_classes else None)


def make_network(spec: UNetSpec, image_shape: tuple[int, int, int]) -> UNet2DModel:
    """The twin of our network; not for super-resolution, resblock_updown or plain resampling.

    Args:
        spec: shape of ours.
        image_shape: (H, W, C).

    Returns:
        UNet2DModel with as many parameters, in float32.
    """
    channels = [spec.level_channels(mult) for mult in spec.channel_mult]
    attended = [2**level in spec.attention_factors for level in range(len(channels))]
    network = UNet2DModel(
        sample_size=image_shape[:2],
        in_channels=spec.channels,
        out_channels=spec.out_channels,
        down_block_types=["AttnDownBlock2D" if a else "DownBlock2D" for a in attended],
        up_block_types=["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attended)],
        block_out_channels=channels,
        layers_per_block=spec.num_res_blocks,
        dropout=spec.dropout,
        attention_head_dim=spec.num_head_channels or min(channels),
        attn_norm_num_groups=32,  # else the middle's attention has no norm under "scale_shift"
        resnet_time_scale_shift="scale_shift" if spec.scale_shift_norm else "default",
        num_class_embeds=spec.class_rows or None,
    )
    if not spec.num_head_channels:
        for attention in network.modules():
            if isinstance(attention, Attention):
                attention.heads = spec.num_heads
    return network


def _build(
    workload: Workload, layout: torch.memory_format, compiler: Callable = lambda f: f
) -> Run:
    config = torch_work.read(workload)
    model = build.model(config)
    network = make_network(model.spec, model.image_shape)
    network.to(torch_work.device(), memory_format=layout)

    def predict(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor:
        return network(x, t, y, return_dict=False)[0]

    work = {"train": torch_work.train, "sample": _sample, "nll": torch_work.nll}
    return work[workload.kind](config, network, predict, workload.batch_size, layout, compiler)


def _sample(
    config: ConfigDict,
    network: UNet2DModel,
    predict: torch_work.Predict,
    count: int,
    layout: torch.memory_format,
    compiler: Callable,
) -> Run:
    """Ancestral sampling of a batch by DDPMScheduler; arguments as torch_work.train."""
    settings = config.diffusion
    scheduler = DDPMScheduler(
        num_train_timesteps=settings.T,
        beta_start=0.1 / settings.T,  # 1e-4 and 0.02 at T = 1000
        beta_end=20 / settings.T,
        beta_schedule=SCHEDULES[settings.schedule],
        variance_type="learned_range",
        timestep_spacing="linspace",  # as ours: both ends are kept
    )
    scheduler.set_timesteps(int(config.sample.steps))
    scale = 1000 / settings.T if settings.rescale_timesteps else 1
    like, y = torch_work.batch(config, count, layout)
    network.eval()
    predict = compiler(predict)

    def run(times: int) -> None:
        for _ in range(times):
            x = torch.randn_like(like)
            for t in scheduler.timesteps:
                with torch.no_grad(), torch_work.half_precision(config):
                    output = predict(x, t * scale, y).float()
                x = scheduler.step(output, t, x, return_dict=False)[0]
            ((x + 1) * 127.5).clamp(0, 255).to(torch.uint8).cpu()

    return run
