"""One optimizer step, in the global view: results do not depend on the number of devices."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from iddpm_jax.diffusion import importance
from iddpm_jax.diffusion.losses import Losses, Objective, training_losses
from iddpm_jax.diffusion.process import Process, q_sample
from iddpm_jax.diffusion.reverse import Parametrization
from iddpm_jax.images import to_float
from iddpm_jax.models.unet import Network
from iddpm_jax.training.parallel import batch_sharding, mean_gradient
from iddpm_jax.training.state import Params, TrainState

Metrics = dict[str, jax.Array]
QUARTILES = 4


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """What a step needs besides the model.

    Attributes:
        seed: of timesteps, noise and dropout.
        microbatches: see parallel.mean_gradient.
        ema_rates: decay per step of each average.
        uniform_share: see importance.probabilities.
        class_conditional: whether labels are given to the network.
        dropout: whether the network has dropout.
    """

    seed: int
    microbatches: int
    ema_rates: tuple[float, ...]
    uniform_share: float
    class_conditional: bool
    dropout: bool


class Examples(NamedTuple):
    """A batch as the loss sees it; every field has the leading axis [B] or is None."""

    x_0: jax.Array
    x_t: jax.Array
    t: jax.Array
    eps: jax.Array
    weight: jax.Array
    y: jax.Array | None
    dropout_key: jax.Array | None


def make_train_step(
    network: Network,
    process: Process,
    parametrization: Parametrization,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    learning_rate: optax.Schedule,
    settings: StepSettings,
    mesh: Mesh,
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, Metrics]]:
    """The compiled training step.

    Draw t, diffuse, predict, take the loss and its gradient, update parameters, averages and
    history.

    Args:
        network, process, parametrization, objective, optimizer, settings: what to train, and how.
        learning_rate: the optimizer's, only to be reported.
        mesh: devices that share the batch.

    Returns:
        Function (state, {"image": uint8 [B, H, W, C], "label": int32 [B]}) -> (state, metrics). The
        state it is given is donated: do not use it again. All metrics are float32 scalars or
        vectors of the four quartiles of t.
    """

    def loss(params: Params, e: Examples) -> tuple[jax.Array, Losses]:
        output = network.apply(params, e.x_t, jnp.asarray(process.model_t)[e.t], e.y, e.dropout_key)
        losses = training_losses(
            process, parametrization, objective, output, e.x_0, e.x_t, e.t, e.eps
        )
        return jnp.mean(losses.loss * e.weight), losses

    gradient = mean_gradient(loss, mesh, settings.microbatches)

    def draw_examples(state: TrainState, batch: dict[str, jax.Array]) -> Examples:
        key = jax.random.fold_in(jax.random.key(settings.seed), state.step)
        key_t, key_eps, key_dropout = jax.random.split(key, 3)
        x_0 = to_float(batch["image"])
        count = x_0.shape[0]
        if state.history is None:
            t, weight = importance.draw_uniform(key_t, process.T, count)
        else:
            t, weight = importance.draw(state.history, key_t, count, settings.uniform_share)
        eps = jax.lax.with_sharding_constraint(
            jax.random.normal(key_eps, x_0.shape), batch_sharding(mesh)
        )
        return Examples(
            x_0,
            q_sample(process, x_0, t, eps),
            t,
            eps,
            weight,
            batch["label"] if settings.class_conditional else None,
            jax.random.split(key_dropout, count) if settings.dropout else None,
        )

    def train_step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, Metrics]:
        examples = draw_examples(state, batch)
        grads, losses = gradient(state.params, examples)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = {
            str(rate): optax.incremental_update(params, state.ema[str(rate)], 1.0 - rate)
            for rate in settings.ema_rates
        }
        metrics = _metrics(process.T, examples, losses)
        metrics["gradient_norm"] = optax.tree.norm(grads)
        metrics["learning_rate"] = jnp.float32(learning_rate(state.step))
        history = state.history
        if history is not None:
            p = importance.probabilities(history, settings.uniform_share)
            metrics["warmed_up"] = jnp.mean(importance.warmed_up(history), dtype=jnp.float32)
            metrics["effective_sample_size"] = importance.effective_sample_size(p)
            history = importance.update(history, examples.t, losses.loss)
        return TrainState(state.step + 1, params, ema, opt_state, history), metrics

    return jax.jit(train_step, donate_argnums=0)


def _metrics(T: int, examples: Examples, losses: Losses) -> Metrics:
    """Batch estimates over evenly drawn t, whatever the sampler; the bound in bits/dim."""
    weight = examples.weight
    quartile = jax.nn.one_hot(examples.t * QUARTILES // T, QUARTILES)
    share = weight @ quartile
    return {
        "loss": jnp.mean(losses.loss * weight),
        "l_simple": jnp.mean(losses.l_simple * weight),
        "l_vlb": T * jnp.mean(losses.l_t * weight),
        "quartile_weight": share,
        "l_simple_quartile_sum": (losses.l_simple * weight) @ quartile,
        "l_vlb_quartile_sum": T * (losses.l_t * weight) @ quartile,
    }
