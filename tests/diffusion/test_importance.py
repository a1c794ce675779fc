"""Importance sampling: recorded histories, a slow reference, unbiased weights."""

from collections import deque

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import cases, load
from scipy.stats import chi2

from iddpm_jax.diffusion import importance
from iddpm_jax.diffusion.importance import (
    History,
    draw_uniform,
    effective_sample_size,
    probabilities,
    warmed_up,
)

FILE = "06_schedule_samplers.npz"
UNIFORM = cases(FILE, "uniform")
MOMENT = cases(FILE, "loss_second_moment")
WORKERS = cases(FILE, "two_workers")
FLOAT32 = 2e-6
"""The recordings are float64; ours is float32."""

update = jax.jit(importance.update)
draw = jax.jit(importance.draw, static_argnames="batch")
draw_from = jax.jit(importance.draw_from, static_argnames="batch")


def _ids(some: list[tuple[str, dict]]) -> list[str]:
    return [name for name, _ in some]


def _get(name: str, key: str) -> np.ndarray:
    return load(FILE)[f"{name}/{key}"]


def _assert_same_history(history: History, losses: np.ndarray, counts: np.ndarray) -> None:
    """The recorded counts stop at a full row; the order within a row has no meaning."""
    size = history.losses.shape[1]
    np.testing.assert_array_equal(np.minimum(history.seen, size), counts)
    np.testing.assert_array_equal(warmed_up(history), counts == size)
    for t, count in enumerate(counts):
        ours, recorded = np.sort(history.losses[t]), np.sort(losses[t])
        assert count == size or (recorded == 0).sum() >= size - count
        np.testing.assert_allclose(ours, recorded, rtol=FLOAT32)


def _assert_weights(p: np.ndarray, drawn_t: np.ndarray, weights: np.ndarray) -> None:
    """Each recorded (t, weight) is what a draw of that t would come with."""
    t, ours = (np.asarray(a) for a in draw_from(jnp.asarray(p), jax.random.key(0), batch=4096))
    for step, weight in zip(drawn_t, weights, strict=True):
        found = ours[t == step]
        assert found.size or p[step] < 2e-3  # else too rare to come up
        np.testing.assert_allclose(found, weight, rtol=1e-5)


def test_every_kind_of_recording_is_used():
    # "error" is an unknown name of a sampler; here samplers are functions, not names.
    kinds = {"uniform", "loss_second_moment", "two_workers", "error"}
    assert {case["kind"] for _, case in cases(FILE)} <= kinds


@pytest.mark.parametrize("name, case", UNIFORM, ids=_ids(UNIFORM))
def test_uniform_draws_match_recording(name, case):
    p = np.asarray(probabilities(importance.init(case["T"])))
    np.testing.assert_allclose(p, _get(name, "probabilities"), rtol=FLOAT32)
    _assert_weights(p, _get(name, "drawn_t"), _get(name, "importance_weights"))
    t, weights = draw_uniform(jax.random.key(0), case["T"], 512)
    assert t.dtype == jnp.int32 and set(np.asarray(t).tolist()) == set(range(case["T"]))
    np.testing.assert_array_equal(weights, 1.0)


@pytest.mark.parametrize("name, case", MOMENT, ids=_ids(MOMENT))
def test_history_and_probabilities_match_recording(name, case):
    history = importance.init(case["T"], case["history_per_term"])
    updates = len(_get(name, "update_t"))
    for i in range(updates + 1):
        _assert_same_history(history, _get(name, "history")[i], _get(name, "counts")[i])
        assert bool(warmed_up(history).all()) == bool(_get(name, "warmed_up")[i])
        weights = _get(name, "weights")[i]
        p = np.asarray(probabilities(history, case["uniform_prob"]))
        np.testing.assert_allclose(p, weights / weights.sum(), rtol=FLOAT32)
        if i < updates:
            t = jnp.asarray(_get(name, "update_t")[i], jnp.int32)
            history = update(history, t, jnp.asarray(_get(name, "update_loss")[i], jnp.float32))
    np.testing.assert_allclose(p, _get(name, "final_probabilities"), rtol=FLOAT32)
    _assert_weights(p, _get(name, "drawn_t"), _get(name, "importance_weights"))


@pytest.mark.parametrize("name, case", WORKERS, ids=_ids(WORKERS))
def test_batches_of_several_workers_are_one_batch(name, case):
    history = importance.init(case["T"], case["history_per_term"])
    for t, losses in zip(_get(name, "local_t"), _get(name, "local_loss"), strict=True):
        history = update(history, jnp.asarray(t.ravel(), jnp.int32), jnp.asarray(losses.ravel()))
    _assert_same_history(history, _get(name, "history"), _get(name, "counts"))
    weights = _get(name, "weights")
    p = probabilities(history, case["uniform_prob"])
    np.testing.assert_allclose(p, weights / weights.sum(), rtol=FLOAT32)


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_update_keeps_the_last_losses_of_every_step(batch):
    """Against one queue a step; a batch of 64 has more than 5 repeats of a step."""
    T, size = 6, 5
    random = np.random.RandomState(batch)
    history = importance.init(T, size)
    queues, seen = [deque(maxlen=size) for _ in range(T)], np.zeros(T, int)
    for _ in range(12):
        t = random.choice(T, batch, p=[0.5, 0.2, 0.1, 0.1, 0.1, 0.0])
        losses = random.rand(batch).astype(np.float32)
        history = update(history, jnp.asarray(t, jnp.int32), jnp.asarray(losses))
        for step, loss in zip(t, losses, strict=True):
            queues[step].append(loss)
            seen[step] += 1
        np.testing.assert_array_equal(history.seen, seen)
        for step, queue in enumerate(queues):
            expected = np.sort(np.append(np.zeros(size - len(queue)), queue))
            np.testing.assert_array_equal(np.sort(history.losses[step]), expected)
    assert not warmed_up(history)[5]


def test_one_batch_equals_its_entries_one_by_one():
    random = np.random.RandomState(0)
    t, losses = jnp.asarray(random.randint(0, 3, 40), jnp.int32), jnp.asarray(random.rand(40))
    at_once = update(importance.init(3, 4), t, losses)
    singly = importance.init(3, 4)
    for i in range(40):
        singly = update(singly, t[i : i + 1], losses[i : i + 1])
    np.testing.assert_array_equal(at_once.seen, singly.seen)
    np.testing.assert_array_equal(at_once.losses, singly.losses)


def test_order_of_different_steps_in_a_batch_is_free():
    random = np.random.RandomState(0)
    t, losses = random.randint(0, 5, 30), random.rand(30)
    grouped = np.argsort(t, kind="stable")
    a = update(importance.init(5, 4), jnp.asarray(t), jnp.asarray(losses))
    b = update(importance.init(5, 4), jnp.asarray(t[grouped]), jnp.asarray(losses[grouped]))
    np.testing.assert_array_equal(a.losses, b.losses)
    np.testing.assert_array_equal(a.seen, b.seen)


def _full_history(T: int, size: int = 10) -> tuple[History, np.ndarray]:
    losses = np.random.RandomState(0).lognormal(size=(T, size)) * np.geomspace(10, 1e-3, T)[:, None]
    return History(jnp.asarray(losses, jnp.float32), jnp.full((T,), size, jnp.int32)), losses


@pytest.mark.parametrize("uniform", [0.0, 0.001, 0.5, 1.0])
def test_probabilities_follow_equation_18(uniform):
    T = 50
    history, losses = _full_history(T)
    root = np.sqrt((losses**2).mean(axis=1))
    expected = (1 - uniform) * root / root.sum() + uniform / T
    p = probabilities(history, uniform)
    np.testing.assert_allclose(p, expected, rtol=FLOAT32)
    np.testing.assert_allclose(np.asarray(p, np.float64).sum(), 1.0, atol=1e-6)


@pytest.mark.parametrize("T", [1, 7, 4000])
def test_probabilities_are_uniform_until_every_row_is_full(T):
    history, _ = _full_history(T)
    one_short = History(history.losses, history.seen.at[T // 2].add(-1))
    np.testing.assert_allclose(probabilities(one_short), 1 / T, rtol=1e-6)
    p = probabilities(history)
    np.testing.assert_allclose(np.asarray(p, np.float64).sum(), 1.0, atol=1e-6)


def test_history_of_zeros_stays_finite_and_uniform():
    history = History(jnp.zeros((8, 10)), jnp.full((8,), 10, jnp.int32))
    np.testing.assert_allclose(probabilities(history), 1 / 8, rtol=1e-6)
    t, weights = draw(history, jax.random.key(0), batch=64)
    assert t.min() >= 0 and t.max() < 8
    np.testing.assert_allclose(weights, 1.0, rtol=1e-6)


def test_step_with_no_loss_is_still_drawn():
    history, losses = _full_history(10)
    history = History(history.losses.at[3].set(0.0), history.seen)
    np.testing.assert_allclose(probabilities(history, 0.01)[3], 0.001, rtol=1e-6)


def test_weights_keep_the_mean_unbiased():
    """Sum over t of p_t w_t f_t is the plain mean of f, whatever p."""
    T = 20
    history, _ = _full_history(T)
    t, weights = (
        np.asarray(a) for a in draw(history, jax.random.key(1), batch=100_000, uniform=0.1)
    )
    p = np.asarray(probabilities(history, 0.1), np.float64)
    w = np.zeros(T)
    w[t] = weights
    assert set(t.tolist()) == set(range(T))
    f = np.random.RandomState(1).rand(T)
    np.testing.assert_allclose((p * w * f).sum(), f.mean(), rtol=1e-6)
    # And so is the average over draws, within 4 standard errors.
    error = (weights * f[t]).std() / np.sqrt(t.size)
    np.testing.assert_allclose((weights * f[t]).mean(), f.mean(), atol=4 * error)


@pytest.mark.parametrize("how", ["history", "uniform"])
def test_draws_have_the_stated_frequencies(how):
    T, n = 20, 100_000
    if how == "uniform":
        p = np.full(T, 1 / T)
        t, _ = draw_uniform(jax.random.key(3), T, n)
    else:
        history, losses = _full_history(T)
        root = np.sqrt((losses**2).mean(axis=1))
        p = 0.8 * root / root.sum() + 0.2 / T
        t, _ = draw(history, jax.random.key(3), batch=n, uniform=0.2)
    counts = np.bincount(t, minlength=T)
    assert ((counts - n * p) ** 2 / (n * p)).sum() < chi2.ppf(0.999, T - 1)


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_effective_sample_size_of_a_two_valued_p(share):
    """Half of the steps drawn `share` as often as the other half."""
    p = np.repeat([1.0, share], 5)
    p = p / p.sum()
    weights = 1 / (10 * p)
    expected = (p @ weights) ** 2 / (p @ weights**2)
    np.testing.assert_allclose(effective_sample_size(jnp.asarray(p)), expected, rtol=1e-6)
    np.testing.assert_allclose(expected, 4 * share / (1 + share) ** 2, rtol=1e-12)
