"""The forward process: beta_tilde / beta, alpha_bar, and pictures of it (figures 1, 5 and 3)."""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from iddpm_jax import build
from iddpm_jax.diffusion.process import coefficients, make_process, q_sample
from iddpm_jax.diffusion.schedules import SCHEDULES, make_betas
from iddpm_jax.errors import InputError
from iddpm_jax.figures.drawing import COLOURS, DASHES, NARROW, WIDTH, Figure
from iddpm_jax.figures.results import Missing
from iddpm_jax.images import to_float, to_uint8

LENGTHS = (100, 1000, 4000)
"""Numbers of steps that figure 1 compares, beside the run's own."""

PICTURES = 9
"""In a strip, the clean one included."""


def betas_by_schedule(T: int) -> dict[str, np.ndarray]:
    """Betas [T] of each schedule, linear first; it is left out where it has too few steps."""
    names = [name for name in SCHEDULES if name != "linear" or T > 20]
    return {name: make_betas(name, T) for name in names}


def beta_tilde(T: int) -> Figure:
    """beta_tilde_t / beta_t for processes of several lengths (figure 1).

    Args:
        T: length of the run's process, which is drawn beside LENGTHS.
    """
    numbers = {}
    for length in sorted({*LENGTHS, T}):
        numbers[f"u_{length}"] = np.arange(1, length + 1) / length
        for name, betas in betas_by_schedule(length).items():
            tables = coefficients(betas)
            numbers[f"{name}_{length}"] = tables["beta_tilde"] / tables["beta"]

    def draw(canvas):
        panels = canvas.subplots(1, len(SCHEDULES), sharey=True)
        for axes, schedule in zip(panels, SCHEDULES, strict=True):
            for i, length in enumerate(sorted({*LENGTHS, T})):
                if f"{schedule}_{length}" not in numbers:
                    continue
                # At t = 1 beta_tilde is 0, which has no place on a logarithmic axis.
                u, ratio = numbers[f"u_{length}"][1:], numbers[f"{schedule}_{length}"][1:]
                axes.plot(u, ratio, color=COLOURS[i], ls=DASHES[i], label=f"$T$ = {length:,}")
            axes.set(xscale="log", title=schedule, xlabel="diffusion step ($t/T$)")
        panels[0].set_ylabel(r"$\tilde{\beta}_t\,/\,\beta_t$")
        panels[1].legend(loc="lower right")

    caption = (
        "The ratio of beta_tilde_t, the variance of q(x_{t-1} | x_t, x_0), to beta_t at every "
        "diffusion step, for processes of several lengths T (the paper's figure 1). The two "
        "choices of a fixed variance differ only near t = 0, and the less the longer the process. "
        "t/T is logarithmic, and t = 1, where beta_tilde is 0, is left out."
    )
    return Figure(numbers, caption, (WIDTH, 2.5), draw)


def alpha_bar(T: int) -> Figure:
    """alpha_bar_t of both schedules (figure 5).

    Args:
        T: number of steps of the run.
    """
    numbers = {"u": np.arange(1, T + 1) / T}
    schedules = betas_by_schedule(T)
    for name, betas in schedules.items():
        numbers[name] = coefficients(betas)["alpha_bar"]

    def draw(canvas):
        axes = canvas.subplots()
        for i, name in enumerate(schedules):
            axes.plot(numbers["u"], numbers[name], color=COLOURS[i], ls=DASHES[i], label=name)
        axes.set(xlabel="diffusion step ($t/T$)", ylabel=r"$\bar{\alpha}_t$", xlim=(0, 1))
        axes.set_ylim(0, 1.02)
        axes.legend()

    caption = (
        f"alpha_bar_t, the share of the signal's variance that is left after t steps, with the "
        f"linear and the cosine schedule (the paper's figure 5), T = {T}."
    )
    return Figure(numbers, caption, (NARROW, 2.6), draw)


def forward_process(config: ConfigDict, model: build.Model) -> Figure:
    """One test image at equally spaced steps of either schedule (figure 3).

    Args:
        config: its data part and seed are read.
        model: built from it.

    Raises:
        Missing: the data are not at hand.
    """
    try:
        source = build.load_data(config, model, "test")
        image = source[0]["image"]
    except InputError as error:
        raise Missing(str(error)) from None
    T = config.diffusion.T
    strips = betas_by_schedule(T)
    # The paper's t, whose 0 is the image itself.
    t = np.unique(np.linspace(0, T, PICTURES).round().astype(int))
    eps = jax.random.normal(jax.random.key(config.seed), image.shape)
    numbers = {"t": t, "eps": np.asarray(eps)}
    for name, betas in strips.items():
        numbers[name] = np.concatenate([image[None], to_uint8(_noised(betas, t[1:], image, eps))])

    def draw(canvas):
        rows = canvas.subplots(len(strips), 1, squeeze=False)[:, 0]
        for axes, name in zip(rows, strips, strict=True):
            _draw_strip(axes, numbers[name], t)
            axes.set_ylabel(name)
        axes.set_xlabel("diffusion step $t$")

    caption = (
        "Latents x_t of the first test image at equally spaced t from 0 (the image) to T, with the "
        "linear (top) and the cosine schedule (bottom), as in the paper's figure 3. All have the "
        "same noise, and values beyond [-1, 1] are cut off for display."
    )
    height = 0.45 + len(strips) * (0.1 + 0.7 * image.shape[0] / image.shape[1])
    return Figure(numbers, caption, (WIDTH, height), draw)


def _noised(betas: np.ndarray, t: np.ndarray, image: np.ndarray, eps: jax.Array) -> np.ndarray:
    """x_t for the paper's t [K] of one image; [K, H, W, C]."""
    x_0 = jnp.broadcast_to(to_float(image), (len(t), *image.shape))
    noise = jnp.broadcast_to(eps, x_0.shape)
    return np.asarray(q_sample(make_process(betas), x_0, jnp.asarray(t - 1), noise))


def _draw_strip(axes, pictures: np.ndarray, t: np.ndarray) -> None:
    """Pictures side by side, uint8 [K, H, W, C], each above its t."""
    count, height, width, channels = pictures.shape
    for i, picture in enumerate(pictures):
        shown = picture if channels == 3 else picture[..., :1].repeat(3, axis=-1)
        axes.imshow(shown, extent=(1.05 * i, 1.05 * i + 1, 0, height / width))
    axes.set(xlim=(0, 1.05 * count - 0.05), ylim=(0, height / width), yticks=[])
    axes.set_xticks(1.05 * np.arange(count) + 0.5, [f"{n:,}" for n in t])
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
