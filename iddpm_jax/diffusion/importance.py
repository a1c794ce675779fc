"""Importance-sampled timesteps: p_t proportional to sqrt(E[L_t^2]) (section 3.3, equation 18)."""

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class History:
    """The last few losses seen at every step; part of the train state.

    Attributes:
        losses: [T, N] float32, each row a ring buffer of the last N unweighted losses at that step.
            The order within a row has no meaning: only the mean of squares is used.
        seen: [T] int32, number of losses seen so far at each step.
    """

    losses: jax.Array
    seen: jax.Array


def init(T: int, size: int = 10) -> History:
    """An empty history.

    Args:
        T: number of steps of the process.
        size: losses kept per step, N; the paper has 10.

    Returns:
        History of zeros.
    """
    return History(jnp.zeros((T, size), jnp.float32), jnp.zeros((T,), jnp.int32))


def warmed_up(history: History) -> jax.Array:
    """Whether each step has a full row of losses [T], bool."""
    return history.seen >= history.losses.shape[1]


def probabilities(history: History, uniform: float = 0.001) -> jax.Array:
    """p_t of the next draw: uniform until every row is full, then nearly sqrt(E[L_t^2]).

    Nichol & Dhariwal 2021, equation 18 and the text below it.

    Args:
        history: losses so far.
        uniform: share of probability spread evenly over all steps, so that none is starved.

    Returns:
        [T], summing to 1.
    """
    T = history.seen.shape[0]
    root_mean_square = jnp.sqrt(jnp.mean(history.losses**2, axis=1))
    # The smallest normal number keeps a history of zeros (a perfect model) at uniform, not NaN.
    total = jnp.sum(root_mean_square)
    weighted = jnp.where(total > 0, root_mean_square / jnp.maximum(total, 1e-38), 1.0 / T)
    mixed = (1.0 - uniform) * weighted + uniform / T
    return jnp.where(jnp.all(warmed_up(history)), mixed, 1.0 / T)


def draw_from(p: jax.Array, key: jax.Array, batch: int) -> tuple[jax.Array, jax.Array]:
    """Draw steps with given probabilities, and the weights that keep the loss unbiased.

    Args:
        p: probability of each step [T].
        key: random key.
        batch: number of draws, B.

    Returns:
        (t [B] int32, weights 1 / (T p_t) [B] float32).
    """
    T = p.shape[0]
    t = jax.random.choice(key, T, (batch,), p=p).astype(jnp.int32)
    return t, 1.0 / (T * p[t])


def draw(
    history: History, key: jax.Array, batch: int, uniform: float = 0.001
) -> tuple[jax.Array, jax.Array]:
    """Draw the steps of one batch.

    Nichol & Dhariwal 2021, equation 18.

    Args:
        history: losses so far.
        key: random key.
        batch: number of draws, B.
        uniform: see probabilities.

    Returns:
        (t [B] int32, weights 1 / (T p_t) [B] float32).
    """
    return draw_from(probabilities(history, uniform), key, batch)


def draw_uniform(key: jax.Array, T: int, batch: int) -> tuple[jax.Array, jax.Array]:
    """Draw steps evenly.

    Args:
        key: random key.
        T: number of steps of the process.
        batch: number of draws, B.

    Returns:
        (t [B] int32, weights [B], all 1).
    """
    return jax.random.randint(key, (batch,), 0, T), jnp.ones((batch,), jnp.float32)


def update(history: History, t: jax.Array, losses: jax.Array) -> History:
    """Take in the losses of one batch, as if they came one after another.

    Args:
        history: losses so far.
        t: step of each loss [B], int32; repeats allowed.
        losses: unweighted losses [B].

    Returns:
        History with the last N losses of every step.
    """
    T, size = history.losses.shape
    # rank: how many earlier entries of the batch have the same t.
    order = jnp.argsort(t, stable=True)
    sorted_t = t[order]
    rank_sorted = jnp.arange(t.shape[0]) - jnp.searchsorted(sorted_t, sorted_t, side="left")
    count = jnp.zeros((T,), jnp.int32).at[t].add(1)
    slot = (history.seen[sorted_t] + rank_sorted) % size
    # Of more than N losses at one step the last N stay; the others are sent out of bounds and
    # dropped.
    row = jnp.where(rank_sorted >= count[sorted_t] - size, sorted_t, T)
    kept = history.losses.at[row, slot].set(losses[order], mode="drop")
    return History(kept, history.seen + count)


def effective_sample_size(p: jax.Array) -> jax.Array:
    """Share of draws that count under weights 1 / (T p_t): (E[w])^2 / E[w^2] in (0, 1], 1 if even.

    Args:
        p: probability of each step [T].

    Returns:
        Scalar.
    """
    T = p.shape[0]
    # E_p[w] = 1 and E_p[w^2] = sum of 1 / (T^2 p).
    return 1.0 / jnp.sum(1.0 / (T * T * p))
