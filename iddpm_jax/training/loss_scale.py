"""Dynamic loss scale: keeps float16 gradients between underflow and overflow."""

import dataclasses

import jax
import jax.numpy as jnp

INITIAL = 20.0
GROWTH = 0.001
BACKOFF = 1.0
FLOOR = 0.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LossScale:
    """State of the scale.

    As OpenAI's fp16 training, but saved with the run and floored, so that a run cannot sink below
    an unscaled loss.

    Attributes:
        log2: base-2 logarithm of the factor on the loss, float32 scalar.
    """

    log2: jax.Array

    @property
    def factor(self) -> jax.Array:
        """What the loss is multiplied by and the gradient divided by."""
        return jnp.exp2(self.log2)


def init() -> LossScale:
    """The scale before the first step, 2**20."""
    return LossScale(jnp.float32(INITIAL))


def update(scale: LossScale, finite: jax.Array) -> LossScale:
    """The scale after a step.

    Args:
        scale: before it.
        finite: whether the gradient was finite, bool scalar.

    Returns:
        0.001 higher (log2) after a good step, 1 lower after a bad one, at least 0.
    """
    log2 = jnp.where(finite, scale.log2 + GROWTH, scale.log2 - BACKOFF)
    return LossScale(jnp.maximum(log2, FLOOR))
