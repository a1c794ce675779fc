"""One optimizer step, in the global view: results do not depend on the number of devices."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from iddpm_jax.diffusion import importance
from iddpm_jax.diffusion.losses import Losses, Objective, training_losses
from iddpm_jax.diffusion.process import Process, q_sample
from iddpm_jax.diffusion.reverse import Parametrization
from iddpm_jax.images import area_average, to_float
from iddpm_jax.models.unet import Network
from iddpm_jax.training import loss_scale
from iddpm_jax.training.parallel import batch_sharding, mean_gradient, replicated
from iddpm_jax.training.state import Params, TrainState

Metrics = dict[str, jax.Array]
DrawSteps = Callable[[jax.Array, int], tuple[jax.Array, jax.Array]]
"""(key, count) -> (t [count], weight [count]); see importance.draw."""

QUARTILES = 4


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """What a step needs besides the model.

    Attributes:
        seed: of timesteps, noise and dropout.
        microbatches: see parallel.mean_gradient.
        ema_rates: decay per step of each average.
        uniform_share: see importance.probabilities.
        num_classes: classes that the network is told, 0 for none; also the index of the null class.
        label_dropout: share of examples whose class is replaced by the null class.
        dropout: whether the network has dropout.
        low_res_shape: (h, w, C) of the small images of super-resolution, or None.
        low_res_noise: largest standard deviation of the noise on them.
    """

    seed: int
    microbatches: int
    ema_rates: tuple[float, ...]
    uniform_share: float
    num_classes: int = 0
    label_dropout: float = 0.0
    dropout: bool = False
    low_res_shape: tuple[int, int, int] | None = None
    low_res_noise: float = 0.0


class Examples(NamedTuple):
    """A batch as the loss sees it; every field has the leading axis [B] or is None."""

    x_0: jax.Array
    x_t: jax.Array
    t: jax.Array
    eps: jax.Array
    weight: jax.Array
    y: jax.Array | None
    dropout_key: jax.Array | None
    low_res: jax.Array | None


def make_loss(
    network: Network, process: Process, parametrization: Parametrization, objective: Objective
) -> Callable[[Params, Examples], tuple[jax.Array, Losses]]:
    """The function that training takes the gradient of.

    Args:
        network, process, parametrization, objective: what to train.

    Returns:
        Function (params, Examples) -> (mean of the weighted losses, Losses of each example).
    """

    def loss(params: Params, e: Examples) -> tuple[jax.Array, Losses]:
        model_t = jnp.asarray(process.model_t)[e.t]
        output = network.apply(params, e.x_t, model_t, e.y, e.dropout_key, e.low_res)
        losses = training_losses(
            process, parametrization, objective, output, e.x_0, e.x_t, e.t, e.eps
        )
        return jnp.mean(losses.loss * e.weight), losses

    return loss


def draw_examples(
    process: Process,
    settings: StepSettings,
    mesh: Mesh,
    key: jax.Array,
    batch: dict[str, jax.Array],
    draw_t: DrawSteps,
) -> Examples:
    """All that is random in a step but the choice of images: t, noise, dropout, hidden classes.

    Args:
        process: noise process with T steps.
        settings: of the step.
        mesh: devices that share the batch.
        key: random key of this step.
        batch: {"image": uint8 [B, H, W, C], "label": int32 [B]}.
        draw_t: draws the steps of the batch and their weights.

    Returns:
        Examples [B].
    """
    key_t, key_eps, key_dropout, key_y, key_low_res = jax.random.split(key, 5)
    x_0 = to_float(batch["image"])
    count = x_0.shape[0]
    t, weight = draw_t(key_t, count)
    eps = jax.lax.with_sharding_constraint(
        jax.random.normal(key_eps, x_0.shape), batch_sharding(mesh)
    )
    return Examples(
        x_0,
        q_sample(process, x_0, t, eps),
        t,
        eps,
        weight,
        _hide_labels(key_y, batch["label"], settings) if settings.num_classes else None,
        jax.random.split(key_dropout, count) if settings.dropout else None,
        _shrink(key_low_res, x_0, settings) if settings.low_res_shape else None,
    )


def make_train_step(
    network: Network,
    process: Process,
    parametrization: Parametrization,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    learning_rate: optax.Schedule,
    settings: StepSettings,
    mesh: Mesh,
    state_sharding: Any = None,
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, Metrics]]:
    """The compiled training step.

    Draw t, diffuse, predict, take the loss and its gradient, update parameters, averages and
    history. Under a loss scale, a step whose gradient is not finite changes nothing but the scale.

    Args:
        network, process, parametrization, objective, optimizer, settings: what to train, and how.
        learning_rate: the optimizer's, only to be reported.
        mesh: devices that share the batch.
        state_sharding: where the state lives, a TrainState of shardings; None for all of it on
            every device.

    Returns:
        Function (state, {"image": uint8 [B, H, W, C], "label": int32 [B]}) -> (state, metrics). The
        state it is given is donated: do not use it again. All metrics are float32 scalars or
        vectors of the four quartiles of t.
    """

    gradient = mean_gradient(
        make_loss(network, process, parametrization, objective), mesh, settings.microbatches
    )

    def draw_t(history: importance.History | None) -> DrawSteps:
        if history is None:
            return lambda key, count: importance.draw_uniform(key, process.T, count)
        return lambda key, count: importance.draw(history, key, count, settings.uniform_share)

    def train_step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(settings.seed), state.step)
        examples = draw_examples(process, settings, mesh, key, batch, draw_t(state.history))
        scaled, scale = examples, state.loss_scale
        if scale is not None:
            scaled = examples._replace(weight=examples.weight * scale.factor)
        grads, losses = gradient(state.params, scaled)
        if scale is not None:
            grads = jax.tree.map(lambda g: g / scale.factor, grads)
        opt_state = _scheduled_at(state.step, state.opt_state)
        updates, opt_state = optimizer.update(grads, opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = {
            str(rate): optax.incremental_update(params, state.ema[str(rate)], 1.0 - rate)
            for rate in settings.ema_rates
        }
        metrics = _metrics(process.T, examples, losses)
        metrics["gradient_norm"] = _norm(grads)
        metrics["learning_rate"] = jnp.float32(learning_rate(state.step))
        history = state.history
        if history is not None:
            p = importance.probabilities(history, settings.uniform_share)
            metrics["warmed_up"] = jnp.mean(importance.warmed_up(history), dtype=jnp.float32)
            metrics["effective_sample_size"] = importance.effective_sample_size(p)
            history = importance.update(history, examples.t, losses.loss)
        new = TrainState(state.step + 1, params, ema, opt_state, history, None)
        if scale is not None:
            finite = jnp.isfinite(metrics["gradient_norm"])
            old = dataclasses.replace(state, loss_scale=None)
            new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
            scale_after = loss_scale.update(scale, finite)
            new = dataclasses.replace(new, step=state.step + 1, loss_scale=scale_after)
            metrics["skipped"] = 1.0 - finite
            metrics["log2_loss_scale"] = scale.log2
        return new, metrics

    everywhere = replicated(mesh)
    return jax.jit(
        train_step, donate_argnums=0, out_shardings=(state_sharding or everywhere, everywhere)
    )


def several_steps(step: Callable, state_sharding: TrainState, mesh: Mesh) -> Callable:
    """Steps one after the other in one call, without the host between them.

    Args:
        step: from make_train_step.
        state_sharding: where the state lives.
        mesh: devices that share each batch.

    Returns:
        Compiled function (state, batches [K, B, ...]) -> (state after K steps, metrics [K, ...]).
        The state it is given is donated.
    """

    def steps(state: TrainState, batches: dict[str, jax.Array]) -> tuple[TrainState, Metrics]:
        return jax.lax.scan(step, state, batches)

    return jax.jit(steps, donate_argnums=0, out_shardings=(state_sharding, replicated(mesh)))


def steps_on_split(
    step: Callable, draw: Callable, count: int, state_sharding: TrainState, mesh: Mesh
) -> Callable:
    """Steps one after the other in one call, each on a batch that it draws from a split.

    Args:
        step: from make_train_step.
        draw: (split [N, ...], step) -> batch [B, ...].
        count: steps in a call, K.
        state_sharding: where the state lives.
        mesh: devices that share each batch.

    Returns:
        Compiled function (state, split [N, ...]) -> (state after K steps, metrics [K, ...]; for one
        step, without that axis). The state it is given is donated.
    """

    def steps(state: TrainState, split: dict[str, jax.Array]) -> tuple[TrainState, Metrics]:
        def one(state: TrainState, _: None = None) -> tuple[TrainState, Metrics]:
            return step(state, draw(split, state.step))

        return one(state) if count == 1 else jax.lax.scan(one, state, length=count)

    return jax.jit(steps, donate_argnums=0, out_shardings=(state_sharding, replicated(mesh)))


def _scheduled_at(step: jax.Array, opt_state: optax.OptState) -> optax.OptState:
    """The optimizer's state with the learning rate's schedule at the run's own step.

    Its own count would start at 0 after a conversion, and stand still in a step that is not taken.
    """

    def is_schedule(part: object) -> bool:
        return isinstance(part, optax.ScaleByScheduleState)

    return jax.tree.map(
        lambda part: part._replace(count=step) if is_schedule(part) else part,
        opt_state,
        is_leaf=is_schedule,
    )


def _norm(tree: Params) -> jax.Array:
    """Global L2 norm. Products of arrays with themselves: a CPU would write squares to memory."""
    squares = [jnp.vdot(a, a, precision="highest") for a in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares))


def _hide_labels(key: jax.Array, label: jax.Array, settings: StepSettings) -> jax.Array:
    """Replace a share of the labels [B] by the null class (Ho & Salimans 2022, algorithm 1)."""
    if not settings.label_dropout:
        return label
    hidden = jax.random.bernoulli(key, settings.label_dropout, label.shape)
    return jnp.where(hidden, settings.num_classes, label)


def _shrink(key: jax.Array, x_0: jax.Array, settings: StepSettings) -> jax.Array:
    """The small image of each example [B, h, w, C], with noise of a random strength if asked for.

    The noise is Gaussian conditioning augmentation (Ho et al. 2021, "Cascaded Diffusion Models",
    section 4), of which the network is not told the strength.
    """
    small = area_average(x_0, *settings.low_res_shape[:2])
    if not settings.low_res_noise:
        return small
    key_std, key_noise = jax.random.split(key)
    std = jax.random.uniform(key_std, (len(small), 1, 1, 1), maxval=settings.low_res_noise)
    return small + std * jax.random.normal(key_noise, small.shape)


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
