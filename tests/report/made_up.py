"""A workdir with made-up results and samples, and a run that opens it; nothing is compiled."""

import dataclasses
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from synthetic import add_curves, add_likelihood, add_scores, curve_row, stored_run

from iddpm_jax import build
from iddpm_jax.diffusion.importance import History
from iddpm_jax.evaluation import film, names, samples
from iddpm_jax.models.unet import Network
from iddpm_jax.training.parallel import make_mesh
from iddpm_jax.training.runs import Run

COUNT = 20


def opened(config: ConfigDict, history: History | None = None) -> Run:
    """A run whose network is a formula: eps is half of x_t."""

    def half(params, x, t, y, dropout_keys, low_res):
        return jnp.concatenate([0.5 * x * params["one"], jnp.zeros_like(x)], axis=-1)

    model = dataclasses.replace(build.model(config), network=Network(lambda *_: None, half))
    params = {"one": jnp.ones(())}
    state = SimpleNamespace(step=4, params=params, history=history, weights=lambda rate: params)
    return Run(config, model, make_mesh(), state)


def add_samples(folder, run: Run) -> np.ndarray:
    """20 samples and their film in the run's sample folder; frames [6, 2, 20, 8, 8, 1]."""
    ways = np.random.default_rng(0).integers(0, 256, (6, 2, COUNT, 8, 8, 1)).astype(np.uint8)
    to = names.sample_folder(folder, run)
    samples.write(to / f"samples_{COUNT}x8x8x1.npz", [ways[-1, 0]], COUNT, np.arange(COUNT) % 10)
    times = film.times_of(np.arange(0, 20, 4), 5)
    frames = [film.picture(*pair, t, 10, None) for t, pair in zip(times, ways, strict=True)]
    film.write(to / "film.png", frames)
    return ways


def full(folder, **changes) -> Run:
    """A workdir in which nothing is missing, and its run."""
    stored = stored_run(folder, loss__timesteps="importance", sample__count=COUNT, **changes)
    for steps in (20, 10):
        add_likelihood(stored, steps)
    add_scores(stored, "ddim", "10", {"FD-digits": 1.5, "precision-digits": 0.75}, 0.25)
    state = {"effective_sample_size": 0.5, "warmed_up": 1.0}
    rows = [
        curve_row(n, 10.0 / n, gradient_norm=3.0 * n, images_per_second=50.0, **state)
        for n in (2, 4)
    ]
    add_curves(stored, [{**rows[0], "l_simple_q2": None}, {**rows[1], "test_bits_per_dim": 5.0}])
    losses = jnp.asarray(np.random.default_rng(1).random((20, 10)), jnp.float32)
    run = opened(stored.config, History(losses, jnp.full(20, 10, jnp.int32)))
    add_samples(folder, run)
    return run
