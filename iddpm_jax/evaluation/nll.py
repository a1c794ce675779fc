"""Bits per dimension of a data split: the prior and every term L_t of the bound (section 2.1)."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from iddpm_jax import build, data
from iddpm_jax.diffusion.losses import bound_term, mean_flat, prior_term
from iddpm_jax.diffusion.process import eps_from_x_0, q_sample
from iddpm_jax.diffusion.reverse import Parametrization, clip_x_0
from iddpm_jax.images import area_average, to_float
from iddpm_jax.training.parallel import (
    check_batch,
    is_main_process,
    map_batch,
    to_devices,
    to_host,
)
from iddpm_jax.training.state import Params

TABLES = ("l_t", "x_0_mse", "eps_mse")


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """The bound of every image, in bits/dim.

    Attributes:
        t: original index of each step of the process in use [K], ascending.
        weight: number of terms that an evaluated one stands for [K]; 1 where all were evaluated.
        l_t: terms L_0 ... L_{K-1} [N, K]; NaN where a term was not evaluated.
        x_0_mse, eps_mse: squared errors of the predicted x_0 and eps [N, K].
        prior: L_T [N].
    """

    t: np.ndarray
    weight: np.ndarray
    l_t: np.ndarray
    x_0_mse: np.ndarray
    eps_mse: np.ndarray
    prior: np.ndarray

    @property
    def per_image(self) -> np.ndarray:
        """Bound of each image [N]; an unbiased estimate where some terms are missing."""
        return np.nansum(self.l_t * self.weight, axis=1, dtype=np.float64) + self.prior

    @property
    def bits_per_dim(self) -> float:
        """Mean over the images."""
        return float(self.per_image.mean())

    @property
    def standard_error(self) -> float:
        """Of bits_per_dim, from the spread between images; 0 for a single image."""
        count = len(self.prior)
        return float(self.per_image.std(ddof=1) / np.sqrt(count)) if count > 1 else 0.0

    @property
    def decoder(self) -> float | None:
        """Mean of L_0, -log p(x_0 | x_1), bits/dim; None if it was evaluated for no image."""
        known = self.l_t[~np.isnan(self.l_t[:, 0]), 0]
        return float(known.mean()) if known.size else None

    def save(self, path: Path, settings: dict) -> None:
        """Write as .npz: the attributes, total (per image), bits_per_dim, standard_error, settings.

        Args:
            path: its folder is made if missing.
            settings: what the numbers were made with, stored as JSON.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            path,
            **dataclasses.asdict(self),
            settings=json.dumps(settings),
            total=self.per_image,
            bits_per_dim=self.bits_per_dim,
            standard_error=self.standard_error,
        )


def steps_of_images(count: int, K: int, terms: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which terms are evaluated for each image.

    Args:
        count: number of images.
        K: number of steps of the process.
        terms: how many per image; 0 means all. Fewer are stratified: the process is cut into that
            many parts of K / terms steps, rounded, and one step is drawn from each for each image.
        seed: of the draw.

    Returns:
        (steps [count, K or terms], ascending in each row; size of the part of each step [K]).
    """
    parts = K if terms == 0 else min(terms, K)
    edges = np.arange(parts + 1) * K // parts
    sizes = np.diff(edges)
    rng = np.random.default_rng(seed)
    steps = edges[:-1] + rng.integers(0, sizes, (count, parts))
    return steps, np.repeat(sizes, sizes)


@functools.cache
def _terms_function(
    network: Callable,
    parametrization: Parametrization,
    clip: bool,
    low_res_shape: tuple[int, int, int] | None,
    mesh: Mesh,
) -> Callable:
    """Compiled (params, process, key), (image, label, index, t) -> entries of TABLES [B]."""
    transform = clip_x_0 if clip else None

    def terms(shared: tuple, batch: tuple) -> tuple[jax.Array, ...]:
        params, process, key = shared
        image, y, index, t = batch
        x_0 = to_float(image)

        def noise(i: jax.Array, t: jax.Array) -> jax.Array:
            image_key = jax.random.fold_in(key, i)
            return jax.random.normal(jax.random.fold_in(image_key, t), x_0.shape[1:])

        eps = jax.vmap(noise)(index, t)
        x_t = q_sample(process, x_0, t, eps)
        low_res = area_average(x_0, *low_res_shape[:2]) if low_res_shape else None
        output = network(params, x_t, process.model_t[t], y, None, low_res)
        l_t, reverse = bound_term(process, parametrization, output, x_0, x_t, t, transform)
        predicted_eps = eps_from_x_0(process, x_t, t, reverse.x_0)
        return l_t, mean_flat((reverse.x_0 - x_0) ** 2), mean_flat((predicted_eps - eps) ** 2)

    return map_batch(terms, mesh)


_prior_function = jax.jit(lambda process, images: prior_term(process, to_float(images)))


def evaluate(
    config: ConfigDict,
    model: build.Model,
    params: Params,
    mesh: Mesh,
    progress: bool = True,
    count: int | None = None,
) -> Likelihood:
    """The variational bound of a whole split or a part of it, each image once.

    Nichol & Dhariwal 2021, equations 4 to 7. A super-resolution model is given each image's own
    small version.

    Args:
        config: its nll part is read.
        model: the model.
        params: its parameters, or an average of them.
        mesh: devices that share each batch.
        progress: show a bar.
        count: images, spread evenly over the split; None for all, as for more than there are.

    Returns:
        Likelihood of every image, whichever others are measured. Noise depends on the seed, the
        image and the index of the step in the process in use.

    Raises:
        InputError: impossible steps, or a batch the devices cannot share.
    """
    settings = config.nll
    progress = progress and is_main_process()
    check_batch(mesh, settings.batch_size)
    process = model.respaced(settings.steps, "nll.steps")
    source = build.load_data(config, model, settings.split)
    chosen = min(count or len(source), len(source))
    chosen = np.arange(chosen) * len(source) // chosen
    examples = [source[i] for i in chosen]
    images = np.stack([e["image"] for e in examples])
    labels = np.stack([e["label"] for e in examples]) if model.class_conditional else None
    steps, weight = steps_of_images(len(source), process.T, settings.terms, settings.seed)
    steps, index = steps[chosen], chosen.astype(np.int32)

    function = _terms_function(
        model.network.apply,
        model.parametrization,
        settings.clip_x_0,
        model.low_res_shape,
        mesh,
    )
    shared = (params, process, jax.random.key(settings.seed))
    tables = {name: np.full((len(images), process.T), np.nan, np.float32) for name in TABLES}
    with tqdm(
        total=steps.size,
        desc="bits/dim",
        unit="term",
        disable=not progress,
        leave=False,
    ) as bar:
        for pair, real in data.padded_chunks(steps.size, settings.batch_size):
            i, t = pair // steps.shape[1], steps.reshape(-1)[pair]
            y = None if labels is None else labels[i]
            batch = to_devices(mesh, (images[i], y, index[i], t.astype(np.int32)))
            for name, values in zip(TABLES, to_host(function(shared, batch)), strict=True):
                tables[name][i[:real], t[:real]] = values[:real]
            bar.update(real)
    prior = [
        jax.device_get(_prior_function(process, images[i]))[:real]
        for i, real in data.padded_chunks(len(images), settings.batch_size)
    ]
    return Likelihood(np.asarray(process.timesteps), weight, prior=np.concatenate(prior), **tables)


def summary(likelihood: Likelihood) -> str:
    """One line for people."""
    K = len(likelihood.t)
    known = int((~np.isnan(likelihood.l_t)).sum(axis=1).mean())
    decoder = "" if likelihood.decoder is None else f", L_0 {likelihood.decoder:.4f}"
    return (
        f"{likelihood.bits_per_dim:.4f} +- {likelihood.standard_error:.4f} bits/dim "
        f"(prior {likelihood.prior.mean():.5f}{decoder}; "
        f"{len(likelihood.prior)} images, {known} of {K} terms each)"
    )
