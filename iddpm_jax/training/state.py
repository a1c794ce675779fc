"""The train state: one pytree that is all a run has to remember on the device."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from iddpm_jax.diffusion import importance
from iddpm_jax.models.unet import Network
from iddpm_jax.training.loss_scale import LossScale

Params = dict[str, Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """State of a run between two steps.

    Attributes:
        step: optimizer steps taken so far, int32 scalar.
        params: parameters, float32.
        ema: running averages of the parameters, by rate written as text, such as "0.9999".
        opt_state: of the optimizer.
        history: losses for importance sampling; None where timesteps are drawn evenly.
        loss_scale: for training in float16; None otherwise.
    """

    step: jax.Array
    params: Params
    ema: dict[str, Params]
    opt_state: optax.OptState
    history: importance.History | None
    loss_scale: LossScale | None = None

    def weights(self, ema_rate: float) -> Params:
        """The average with this rate, or the parameters themselves for 0."""
        return self.ema[str(ema_rate)] if ema_rate else self.params


def init_state(
    key: jax.Array,
    network: Network,
    image_shape: tuple[int, int, int],
    optimizer: optax.GradientTransformation,
    ema_rates: tuple[float, ...],
    history: importance.History | None,
    loss_scale: LossScale | None = None,
) -> TrainState:
    """The state of a run that has taken no step.

    Args:
        key: random key of the parameters.
        network: its init is used.
        image_shape: (H, W, C).
        optimizer: its init is used.
        ema_rates: rates of the averages, each of which starts as a copy of the parameters.
        history: an empty one for importance sampling, or None.
        loss_scale: a new one for float16, or None.

    Returns:
        TrainState.
    """
    params = network.init(key, image_shape)
    # Real copies: an average that shares its buffers with params would be donated twice.
    ema = {str(rate): jax.tree.map(jnp.copy, params) for rate in ema_rates}
    step = jnp.zeros((), jnp.int32)
    return TrainState(step, params, ema, optimizer.init(params), history, loss_scale)
