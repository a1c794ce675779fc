"""What PyTorch peers have in common: training step, sampling and terms of the bound.

As the original does them: AdamW, a running average and the norm of the gradient after each step,
one network call for each step of a sampler, in a Python loop.
"""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from contest import Run, Workload
from ml_collections import ConfigDict

from iddpm_jax import config as configs
from iddpm_jax.diffusion.schedules import make_betas

Predict = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


def read(workload: Workload) -> ConfigDict:
    """The workload's config."""
    return configs.loads(workload.config, Path("workload"))


def device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def wait() -> None:
    """Until the device has done all it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def half_precision(config: ConfigDict) -> torch.autocast:
    """Autocast to bfloat16 where the config says so."""
    enabled = config.model.dtype == "bfloat16"
    return torch.autocast(device().type, torch.bfloat16, enabled=enabled)


class Process:
    """A noise process of K of the T steps, as tensors [K]."""

    def __init__(self, config: ConfigDict, steps: int | None = None):
        settings = config.diffusion
        betas = make_betas(settings.schedule, settings.T)
        kept = np.linspace(0, settings.T - 1, steps or settings.T).round().astype(int)
        alpha_bar = np.cumprod(1 - betas)[kept]
        before = np.append(1.0, alpha_bar[:-1])
        betas = 1 - alpha_bar / before
        tilde = betas * (1 - before) / (1 - alpha_bar)
        tilde[0] = tilde[1]
        self.K, self.T = len(kept), settings.T
        scale = 1000 / settings.T if settings.rescale_timesteps else 1
        tables = {
            "model_t": kept * scale,
            "signal": np.sqrt(alpha_bar),
            "noise": np.sqrt(1 - alpha_bar),
            "x_0_weight": betas * np.sqrt(before) / (1 - alpha_bar),
            "x_t_weight": (1 - before) * np.sqrt(1 - betas) / (1 - alpha_bar),
            "log_beta": np.log(betas),
            "log_tilde": np.log(tilde),
        }
        self._tables = {k: torch.tensor(v, dtype=torch.float32) for k, v in tables.items()}
        self._tables = {k: v.to(device()) for k, v in self._tables.items()}

    def at(self, name: str, t: torch.Tensor) -> torch.Tensor:
        """Entries of a table for t [B] -> [B, 1, 1, 1]."""
        return self._tables[name][t][:, None, None, None]

    def reverse(
        self, output: torch.Tensor, x: torch.Tensor, t: torch.Tensor, clip: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log-variance of p(x_{t-1} | x_t), variances between beta_tilde and beta."""
        eps, v = output.chunk(2, dim=1)
        share = (v + 1) / 2
        log_variance = share * self.at("log_beta", t) + (1 - share) * self.at("log_tilde", t)
        x_0 = (x - self.at("noise", t) * eps) / self.at("signal", t)
        if clip:
            x_0 = x_0.clamp(-1, 1)
        return self.mean(x_0, x, t), log_variance

    def mean(self, x_0: torch.Tensor, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Mean of q(x_{t-1} | x_t, x_0)."""
        return self.at("x_0_weight", t) * x_0 + self.at("x_t_weight", t) * x

    def l_t(
        self, output: torch.Tensor, x_0: torch.Tensor, x: torch.Tensor, t: torch.Tensor, clip: bool
    ) -> torch.Tensor:
        """The term L_t of the bound [B], bits/dim."""
        mean, log_variance = self.reverse(output, x, t, clip)
        q_mean, q_log_variance = self.mean(x_0, x, t), self.at("log_tilde", t)
        kl = -1 + log_variance - q_log_variance + torch.exp(q_log_variance - log_variance)
        kl = 0.5 * (kl + (q_mean - mean) ** 2 * torch.exp(-log_variance))
        decoder = -_log_likelihood(x_0, mean, 0.5 * log_variance)
        nats = torch.where(t == 0, decoder.flatten(1).mean(1), kl.flatten(1).mean(1))
        return nats / math.log(2)


def _log_likelihood(x: torch.Tensor, mean: torch.Tensor, log_std: torch.Tensor) -> torch.Tensor:
    """Log-probability of 8-bit pixels under a Gaussian, its CDF by the original's tanh formula."""

    def cdf(z: torch.Tensor) -> torch.Tensor:
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

    scale = torch.exp(-log_std)
    above, below = cdf(scale * (x - mean + 1 / 255)), cdf(scale * (x - mean - 1 / 255))
    first, last = above.clamp(min=1e-12).log(), (1 - below).clamp(min=1e-12).log()
    middle = (above - below).clamp(min=1e-12).log()
    return torch.where(x < -0.999, first, torch.where(x > 0.999, last, middle))


def hybrid_loss(
    process: Process,
    predict: Predict,
    vlb_weight: float,
    x_0: torch.Tensor,
    t: torch.Tensor,
    eps: torch.Tensor,
    y: torch.Tensor | None,
) -> torch.Tensor:
    """L_hybrid of each image [B]."""
    x = process.at("signal", t) * x_0 + process.at("noise", t) * eps
    output = predict(x, process._tables["model_t"][t], y).float()
    mean_part, v = output.chunk(2, dim=1)
    frozen = torch.cat([mean_part.detach(), v], dim=1)
    l_t = process.l_t(frozen, x_0, x, t, clip=False)
    l_simple = ((eps - mean_part) ** 2).flatten(1).mean(1)
    return l_simple + vlb_weight * process.T * l_t


def batch(config: ConfigDict, count: int, layout: torch.memory_format) -> tuple:
    """(images [B, C, H, W] in [-1, 1], classes [B] or None), the same for all contenders."""
    height, width, channels = config.data.image_shape
    pixels = np.random.default_rng(0).integers(0, 256, (count, height, width, channels), np.uint8)
    x = torch.tensor(pixels).permute(0, 3, 1, 2).to(device()).float() / 127.5 - 1
    y = torch.arange(count, device=device()) % max(1, config.data.num_classes)
    return x.contiguous(memory_format=layout), y if config.model.class_conditional else None


def size(network: torch.nn.Module, *arguments: torch.Tensor) -> dict[str, float]:
    """What a network holds and does, without doing it.

    Args:
        network: on the device "meta".
        arguments: of a forward pass for one image, there too.

    Returns:
        "parameters" and "gflops_forward_per_image", two for each multiply-add of convolutions and
        other products of matrices.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    # Attention as two products, which the counter knows on every device.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        network(*arguments)
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "gflops_forward_per_image": counter.get_total_flops() / 1e9,
    }


def train(
    config: ConfigDict,
    network: torch.nn.Module,
    predict: Predict,
    count: int,
    layout: torch.memory_format,
    compiler: Callable = lambda f: f,
) -> Run:
    """Optimizer steps of L_hybrid on one batch.

    Args:
        config: of the workload.
        network: its parameters are trained.
        predict: calls it.
        count: batch size.
        layout: memory format of images.
        compiler: torch.compile, or nothing.
    """
    process = Process(config)
    x_0, y = batch(config, count, layout)
    predict = compiler(predict)

    def loss() -> torch.Tensor:
        t = torch.randint(process.K, (count,), device=x_0.device)
        eps = torch.randn_like(x_0)
        return hybrid_loss(process, predict, config.loss.vlb_weight, x_0, t, eps, y).mean()

    return optimizer_steps(config, network, loss)


def optimizer_steps(
    config: ConfigDict, network: torch.nn.Module, loss: Callable[[], torch.Tensor]
) -> Run:
    """Optimizer steps on any loss: gradient and its norm, AdamW, running averages.

    Args:
        config: of the workload.
        network: its parameters are trained.
        loss: draws t and noise, and gives a mean over the batch.
    """
    parameters = list(network.parameters())
    averages = [copy.deepcopy(parameters) for _ in config.train.ema_rates]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0)
    network.train()

    def run(times: int) -> None:
        for _ in range(times):
            optimizer.zero_grad(set_to_none=True)
            with half_precision(config):
                value = loss()
            value.backward()
            torch.nn.utils.get_total_norm([p.grad for p in parameters])
            optimizer.step()
            with torch.no_grad():
                for rate, average in zip(config.train.ema_rates, averages, strict=True):
                    torch._foreach_lerp_(average, parameters, 1 - rate)
        wait()

    return run


def sample(
    config: ConfigDict,
    network: torch.nn.Module,
    predict: Predict,
    count: int,
    layout: torch.memory_format,
    compiler: Callable = lambda f: f,
) -> Run:
    """Ancestral sampling of a batch; arguments as train."""
    process = Process(config, int(config.sample.steps))
    like, y = batch(config, count, layout)
    network.eval()
    predict = compiler(predict)

    def run(times: int) -> None:
        for _ in range(times):
            x = torch.randn_like(like)
            for index in reversed(range(process.K)):
                with torch.no_grad(), half_precision(config):
                    t = torch.full((count,), index, device=x.device)
                    output = predict(x, process._tables["model_t"][t], y).float()
                    mean, log_variance = process.reverse(output, x, t, clip=True)
                    x = mean + (index > 0) * torch.exp(0.5 * log_variance) * torch.randn_like(x)
            ((x + 1) * 127.5).clamp(0, 255).to(torch.uint8).cpu()

    return run


def nll(
    config: ConfigDict,
    network: torch.nn.Module,
    predict: Predict,
    count: int,
    layout: torch.memory_format,
    compiler: Callable = lambda f: f,
) -> Run:
    """Terms of the bound, L_t of a batch for one t after the other; arguments as train."""
    process = Process(config)
    x_0, y = batch(config, count, layout)
    network.eval()
    predict = compiler(predict)

    def run(times: int) -> None:
        for index in range(times):
            with torch.no_grad(), half_precision(config):
                t = torch.full((count,), index % process.K, device=x_0.device)
                eps = torch.randn_like(x_0)
                x = process.at("signal", t) * x_0 + process.at("noise", t) * eps
                output = predict(x, process._tables["model_t"][t], y).float()
                l_t = process.l_t(output, x_0, x, t, clip=config.nll.clip_x_0)
                mse = ((output.chunk(2, dim=1)[0] - eps) ** 2).flatten(1).mean(1)
            l_t.cpu(), mse.cpu()

    return run
