"""How noisy the gradient of each objective is at a checkpoint of a run (section 3.3)."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from iddpm_jax import build, data
from iddpm_jax.diffusion import importance
from iddpm_jax.diffusion.losses import OBJECTIVES, Objective
from iddpm_jax.errors import InputError
from iddpm_jax.evaluation.gradient_noise import Noise, Sums, estimate, group_sizes
from iddpm_jax.training.parallel import (
    check_batch,
    is_main_process,
    map_batch,
    mean_gradient,
    replicated,
    share_to_devices,
)
from iddpm_jax.training.runs import step_settings
from iddpm_jax.training.state import Params, TrainState
from iddpm_jax.training.step import StepSettings, draw_examples, make_loss

SAMPLERS = ("uniform", "importance")

Batch = dict[str, jax.Array]
Histories = dict[str, importance.History]


class Row(NamedTuple):
    """What was measured of one objective under one way of drawing t.

    Attributes:
        objective: of OBJECTIVES.
        timesteps: of SAMPLERS.
        p: probability of each step t [T].
        history: where p comes from: "run" or "fresh"; "" for even draws.
        sums: of the gradients.
        noise: what follows from them.
    """

    objective: str
    timesteps: str
    p: np.ndarray
    history: str
    sums: Sums
    noise: Noise


def objectives_of(model: build.Model) -> tuple[str, ...]:
    """Those that make sense: only a learned variance has something for L_hybrid to train."""
    learned = model.parametrization.learns_variance
    return OBJECTIVES if learned else tuple(name for name in OBJECTIVES if name != "l_hybrid")


def gradient_program(
    model: build.Model, objective: Objective, settings: StepSettings, mesh: Mesh
) -> Callable:
    """The compiled gradient of one batch, for any way of drawing t.

    Args:
        model, objective, settings: as in training.
        mesh: devices that share the batch.

    Returns:
        Function (params, total, p [T], key, batch) -> (total + gradient, scalars squared_norm, loss
        and loss_variance of the batch). The total is donated.
    """
    loss = make_loss(model.network, model.process, model.parametrization, objective)
    gradient = mean_gradient(loss, mesh, 1)

    def add(
        params: Params, total: Params, p: jax.Array, key: jax.Array, batch: Batch
    ) -> tuple[Params, dict[str, jax.Array]]:
        def draw_t(key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
            return importance.draw_from(p, key, count)

        examples = draw_examples(model.process, settings, mesh, key, batch, draw_t)
        grads, losses = gradient(params, examples)
        weighted = losses.loss * examples.weight
        found = {
            "squared_norm": optax.tree.norm(grads, squared=True),
            "loss": jnp.mean(weighted),
            "loss_variance": jnp.var(weighted),
        }
        return jax.tree.map(jnp.add, total, grads), found

    return jax.jit(add, donate_argnums=1, out_shardings=replicated(mesh))


def history_program(
    model: build.Model, objectives: list[Objective], settings: StepSettings, mesh: Mesh
) -> Callable:
    """The compiled function that takes in the losses of a batch at given steps.

    Args:
        model, settings, mesh: see gradient_program.
        objectives: each has a history of its own; XLA runs the network once for all of them.

    Returns:
        Function (params, histories by objective, t [B], key, batch) -> histories.
    """
    parts = model.network, model.process, model.parametrization
    losses = {o.name: make_loss(*parts, o) for o in objectives}
    values = map_batch(
        lambda params, examples: {n: loss(params, examples)[1].loss for n, loss in losses.items()},
        mesh,
    )

    def take_in(
        params: Params, histories: Histories, t: jax.Array, key: jax.Array, batch: Batch
    ) -> Histories:
        def draw_t(_: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
            return t, jnp.ones((count,), jnp.float32)

        found = values(params, draw_examples(model.process, settings, mesh, key, batch, draw_t))
        return {name: importance.update(histories[name], t, found[name]) for name in found}

    return jax.jit(take_in, out_shardings=replicated(mesh))


class Measurement:
    """The noise of the gradient at checkpoints of one run; programs are compiled once.

    Args:
        config: of the run; its gradients part is read.
        model: built from it.
        mesh: devices of all processes, which share each batch.

    Raises:
        InputError: float16, or a batch the devices cannot share.
    """

    def __init__(self, config: ConfigDict, model: build.Model, mesh: Mesh):
        self.settings = config.gradients
        check_batch(mesh, self.settings.batch_size, name="gradients.batch_size")
        if model.spec.dtype == "float16":
            raise InputError(
                "gradients in float16 need a loss scale, which would be part of what is measured; "
                "add --config.model.dtype=float32 (or bfloat16)"
            )
        self._config, self._model, self._mesh = config, model, mesh
        self.source = build.load_data(config, model, "train")
        step = step_settings(config, model)
        objectives = [Objective(name, config.loss.vlb_weight) for name in objectives_of(model)]
        self._gradient = {o.name: gradient_program(model, o, step, mesh) for o in objectives}
        sampled = [o for o in objectives if o.name != "l_simple"]
        self._sampled = [o.name for o in sampled]
        self._take_in = history_program(model, sampled, step, mesh)

    def rows(self, state: TrainState, describe: str, progress: bool = True) -> Iterator[Row]:
        """Measure every objective with t drawn evenly, and those with the bound by importance.

        All see the same images and noise. The parameters are those that training moves, not an
        average.

        Args:
            state: a checkpoint.
            describe: what to call it beside the bar.
            progress: show a bar.
        """
        T = self._model.process.T
        drawn = {
            name: SAMPLERS if name in self._sampled else ("uniform",) for name in self._gradient
        }
        plan = [(name, timesteps) for name, each in drawn.items() for timesteps in each]
        own = [name for name in self._sampled if self._own(state, name)]
        fresh = 0 if own == self._sampled else self._fill_batches
        with tqdm(
            total=(len(plan) * self.settings.batches + fresh) * self.settings.batch_size,
            desc=describe,
            unit="image",
            unit_scale=True,
            disable=not (progress and is_main_process()),
            leave=False,
        ) as bar:
            histories = self._filled(state.params, bar) if fresh else {}
            histories |= {name: state.history for name in own}
            for name, timesteps in plan:
                bar.set_postfix_str(f"{name}, t {timesteps}")
                p, source = np.full(T, 1 / T, np.float32), ""
                if timesteps == "importance":
                    source = "run" if name in own else "fresh"
                    share = self._config.loss.uniform_share
                    p = jax.device_get(importance.probabilities(histories[name], share))
                sums = self._sums(state.params, name, p, bar)
                yield Row(name, timesteps, p, source, sums, estimate(sums))

    def _own(self, state: TrainState, name: str) -> bool:
        """Whether the run itself knows the losses of this objective at every t."""
        if state.history is None or self._model.objective.name != name:
            return False
        return bool(importance.warmed_up(state.history).all())

    @property
    def _fill_batches(self) -> int:
        """Batches that show every t as often as a history remembers."""
        losses = self._model.process.T * self._config.loss.history_size
        return math.ceil(losses / self.settings.batch_size)

    def _filled(self, params: Params, bar: tqdm) -> Histories:
        """Histories of losses of these parameters alone."""
        T, b = self._model.process.T, self.settings.batch_size
        bar.set_postfix_str(f"{self._config.loss.history_size} losses of every t")

        def init() -> Histories:
            empty = importance.init(T, self._config.loss.history_size)
            return dict.fromkeys(self._sampled, empty)

        histories = jax.jit(init, out_shardings=replicated(self._mesh))()
        for i in range(self._fill_batches):
            t = ((i * b + np.arange(b)) % T).astype(np.int32)
            histories = self._take_in(params, histories, t, *self._drawn(1, i))
            bar.update(b)
        return histories

    def _sums(self, params: Params, name: str, p: np.ndarray, bar: tqdm) -> Sums:
        """Gradients of all batches, added up on the devices group by group."""
        program, b = self._gradient[name], self.settings.batch_size
        totals, scalars, first = [], [], 0
        for size in group_sizes(self.settings.batches).tolist():
            total = jax.tree.map(lambda a: jnp.zeros_like(a, device=a.sharding), params)
            for i in range(first, first + size):
                total, found = program(params, total, p, *self._drawn(0, i))
                scalars.append(found)
                bar.update(b)
            totals.append(jax.device_get(total))
            first += size
        scalars = jax.device_get(scalars)
        columns = {n: np.array([s[n] for s in scalars], np.float64) for n in scalars[0]}
        if not np.isfinite(columns["squared_norm"]).all():
            raise InputError(
                f"the gradient of {name} is not finite at this checkpoint; choose another one"
            )
        return Sums(b, gram=_gram(totals), **columns)

    def _drawn(self, use: int, number: int) -> tuple[jax.Array, Batch]:
        """Key and batch of this number; the same for all that is measured."""
        read, seed = self._config.data, self.settings.seed
        batch = data.independent_batch(
            self.source,
            self.settings.batch_size,
            (seed, use, number),
            read.random_flip,
            read.random_crop,
            jax.process_index(),
            jax.process_count(),
        )
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), use), number)
        return key, share_to_devices(self._mesh, batch)


def _gram(totals: list[Params]) -> np.ndarray:
    """<S_k, S_l> [K, K] in float64, array by array."""
    gram = np.zeros((len(totals), len(totals)))
    for arrays in zip(*map(jax.tree.leaves, totals), strict=True):
        rows = np.stack([a.ravel() for a in arrays]).astype(np.float64)
        gram += rows @ rows.T
    return gram
