"""Losses: recorded values and gradients, where gradients stop, the bound against numpy."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import GRADIENT, OUTPUT, SMALL, assert_close, cases, load, to_nchw
from toy_model import (
    images,
    parametrization_of,
    process_of,
    spec_of,
    steps,
    toy_network,
    transform_of,
)

from iddpm_jax.diffusion.losses import (
    OBJECTIVES,
    Objective,
    bound_term,
    mean_flat,
    prior_term,
    training_losses,
)
from iddpm_jax.diffusion.process import eps_from_x_0, make_process, q_sample
from iddpm_jax.diffusion.reverse import MEANS, Parametrization
from iddpm_jax.diffusion.schedules import make_betas

FILE = "03_diffusion.npz"
KINDS = ("group", "forward", "p_mean_variance", "training_losses", "vb_terms", "prior_bpd")
LOSSES = cases(FILE, "training_losses")
BOUND = cases(FILE, "vb_terms")
PRIOR = cases(FILE, "prior_bpd")
LOOPS = cases(FILE, "calc_bpd_loop")


def _ids(some: list[tuple[str, dict]]) -> list[str]:
    return [name for name, _ in some]


def _objective(case: dict, T: int) -> tuple[Objective, float, float]:
    """Ours, and the factors that turn our loss and L_t into what the official code reports."""
    learned = case["var_type"].startswith("learned")
    return {
        "mse": (Objective("l_hybrid", 1 / T) if learned else Objective("l_simple"), 1.0, 1.0),
        "rescaled_mse": (
            Objective("l_hybrid", 0.001) if learned else Objective("l_simple"),
            1.0,
            T / 1000,
        ),
        "kl": (Objective("l_vlb"), 1 / T, 1.0),
        "rescaled_kl": (Objective("l_vlb"), 1.0, 1.0),
    }[case["loss_type"]]


def _in_fives(function: Callable, *arrays: np.ndarray):
    """Results of a function of batches, five at a time like the recorded groups.

    Outside jit every operation compiles once for each shape; one shape makes that once in all.
    """
    count = len(arrays[0])
    padded = [np.concatenate([a, np.repeat(np.asarray(a)[-1:], -count % 5, 0)]) for a in arrays]
    parts = [
        function(*(jnp.asarray(a[i : i + 5]) for a in padded)) for i in range(0, len(padded[0]), 5)
    ]
    return jax.tree.map(lambda *part: np.concatenate(part)[:count], *parts)


def test_every_kind_of_recording_is_used():
    assert {case["kind"] for _, case in cases(FILE)} <= {*KINDS, "calc_bpd_loop"}


@functools.cache
def _losses_and_gradient(group: str, mean_type: str, var_type: str, objective: Objective):
    """At the toy network's output; two official words for one objective differ by a factor."""
    case, spec = {"mean_type": mean_type, "var_type": var_type}, spec_of(group)
    process, parametrization = process_of(spec), parametrization_of(case)
    x_0, eps = (images(FILE, f"{group}/in/{k}") for k in ("x_start", "noise"))
    t = steps(FILE, f"{group}/in/t")
    x_t = q_sample(process, x_0, t, eps)
    output = toy_network(case, spec)(x_t, jnp.asarray(process.model_t)[t])

    def total(output):
        losses = training_losses(process, parametrization, objective, output, x_0, x_t, t, eps)
        return losses.loss.sum(), losses

    gradient, losses = jax.grad(total, has_aux=True)(output)
    return losses, gradient


@pytest.mark.parametrize("name, case", LOSSES, ids=_ids(LOSSES))
def test_loss_and_gradient_match_recording(name, case):
    group = case["group"]
    objective, loss_factor, l_t_factor = _objective(case, process_of(spec_of(group)).T)
    losses, gradient = _losses_and_gradient(group, case["mean_type"], case["var_type"], objective)
    terms = np.stack([losses.loss * loss_factor, losses.l_simple, losses.l_t * l_t_factor])
    # The official code leaves out (as NaN) what does not enter its loss; ours always has it.
    assert np.isfinite(terms).all()
    terms[np.isnan(load(FILE)[f"{name}/terms"])] = np.nan
    assert_close(FILE, f"{name}/terms", terms, OUTPUT)
    assert_close(FILE, f"{name}/grad_model_output", loss_factor * to_nchw(gradient), GRADIENT)


@pytest.mark.parametrize("name, case", BOUND, ids=_ids(BOUND))
def test_bound_terms_match_recording(name, case):
    spec = spec_of(case["group"])
    process, network = process_of(spec), toy_network(case, spec)

    def terms(x_0, x_t, t):
        output = network(x_t, jnp.asarray(process.model_t)[t])
        parametrization = parametrization_of(case)
        return bound_term(process, parametrization, output, x_0, x_t, t, transform_of(case))[0]

    x_0, x_t = (images(FILE, f"{case['inputs']}/{k}") for k in ("x_start", "x_t"))
    l_t = _in_fives(terms, x_0, x_t, steps(FILE, f"{case['inputs']}/t"))
    assert_close(FILE, name, l_t, OUTPUT)


@pytest.mark.parametrize("name, case", PRIOR, ids=_ids(PRIOR))
def test_prior_term_matches_recording(name, case):
    process = process_of(spec_of(case["group"]))
    x_0 = images(FILE, f"{case['inputs']}/x_start")
    assert_close(FILE, name, _in_fives(lambda x_0: prior_term(process, x_0), x_0), SMALL)


@pytest.mark.parametrize("name, case", LOOPS, ids=_ids(LOOPS))
def test_whole_bound_matches_recording(name, case):
    """All steps at once: recorded columns go from the last step to the first."""
    spec = spec_of(case["group"])
    process, network = process_of(spec), toy_network(case, spec)

    def row(x_0, noise, t):
        x_t = q_sample(process, x_0, t, noise)
        output = network(x_t, jnp.asarray(process.model_t)[t])
        l_t, reverse = bound_term(
            process, parametrization_of(case), output, x_0, x_t, t, transform_of(case)
        )
        eps = eps_from_x_0(process, x_t, t, reverse.x_0)
        x_0_error, eps_error = mean_flat((reverse.x_0 - x_0) ** 2), mean_flat((eps - noise) ** 2)
        return {"vb": l_t, "xstart_mse": x_0_error, "mse": eps_error}

    x_0, noise = (np.asarray(images(FILE, f"{name}/{k}")) for k in ("x_start", "noise"))
    (batch, *shape), T = x_0.shape, process.T
    t = np.repeat(np.arange(T - 1, -1, -1), batch)
    table = _in_fives(row, np.tile(x_0, (T, 1, 1, 1)), noise.reshape(T * batch, *shape), t)
    table = {key: value.reshape(T, batch).T for key, value in table.items()}
    for key, value in table.items():
        assert_close(FILE, f"{name}/{key}", value, OUTPUT)
    prior = _in_fives(lambda x_0: prior_term(process, x_0), x_0)
    assert_close(FILE, f"{name}/prior_bpd", prior, SMALL)
    assert_close(FILE, f"{name}/total_bpd", table["vb"].sum(axis=1) + prior, OUTPUT)


T = 5
BETAS = make_betas("cosine", T)
PROCESS = make_process(BETAS)
ALPHA_BAR = np.cumprod(1 - BETAS)
PREV = np.append(1.0, ALPHA_BAR[:-1])
BETA_TILDE = BETAS * (1 - PREV) / (1 - ALPHA_BAR)


def _batch(channels: int) -> tuple[jax.Array, ...]:
    """One image for each t: (x_0 on the 8-bit grid, eps, x_t, t, output)."""
    random = np.random.RandomState(0)
    x_0 = jnp.asarray(random.randint(0, 256, (T, 3, 4, 3)) / 127.5 - 1, jnp.float32)
    eps = jnp.asarray(random.randn(*x_0.shape), jnp.float32)
    t = jnp.arange(T)
    output = jnp.asarray(random.randn(T, 3, 4, channels), jnp.float32)
    return x_0, eps, q_sample(PROCESS, x_0, t, eps), t, output


def _gradient(objective: Objective, parametrization: Parametrization) -> np.ndarray:
    x_0, eps, x_t, t, output = _batch(parametrization.output_channels(3))

    def total(output):
        return training_losses(
            PROCESS, parametrization, objective, output, x_0, x_t, t, eps
        ).loss.sum()

    return np.asarray(jax.grad(total)(output))


@pytest.mark.parametrize("mean", MEANS)
def test_hybrid_trains_the_mean_by_l_simple_alone(mean):
    parametrization = Parametrization(mean, "learned_range")
    simple = _gradient(Objective("l_simple"), parametrization)
    hybrid = _gradient(Objective("l_hybrid", 0.5), parametrization)
    vlb = _gradient(Objective("l_vlb"), parametrization)
    np.testing.assert_array_equal(hybrid[..., :3], simple[..., :3])
    np.testing.assert_array_equal(simple[..., 3:], 0.0)
    # The variance is trained by the bound, in its share.
    np.testing.assert_allclose(hybrid[..., 3:], 0.5 * vlb[..., 3:], rtol=1e-5, atol=1e-7)
    assert (np.abs(vlb[..., 3:]) > 0).any(axis=(1, 2, 3)).all()
    # L_vlb lets the mean be trained by the bound.
    assert (np.abs(vlb[..., :3]) > 0).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize("variance", ["fixed_small", "learned_range"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_objective_is_the_sum_it_says(name, variance):
    parametrization = Parametrization("eps", variance)
    x_0, eps, x_t, t, output = _batch(parametrization.output_channels(3))
    objective = Objective(name, 0.25)
    losses = training_losses(PROCESS, parametrization, objective, output, x_0, x_t, t, eps)
    squares = (np.asarray(output, np.float64)[..., :3] - np.asarray(eps)) ** 2
    np.testing.assert_allclose(losses.l_simple, squares.mean(axis=(1, 2, 3)), rtol=1e-6)
    l_simple, l_t = (np.asarray(a, np.float64) for a in (losses.l_simple, losses.l_t))
    expected = {
        "l_simple": l_simple,
        "l_hybrid": l_simple + 0.25 * T * l_t,
        "l_vlb": T * l_t,
    }[name]
    np.testing.assert_allclose(losses.loss, expected, rtol=1e-6)


def test_default_objective_is_the_papers():
    assert Objective() == Objective("l_hybrid", 0.001)


def test_unknown_objective_lists_the_legal_words():
    with pytest.raises(ValueError, match="l_simple, l_hybrid, l_vlb"):
        Objective("mse")


def test_half_precision_output_is_computed_in_float32():
    parametrization = Parametrization("eps", "learned_range")
    x_0, eps, x_t, t, output = _batch(6)
    rounded = output.astype(jnp.bfloat16)
    arguments = (PROCESS, parametrization, Objective())
    half = training_losses(*arguments, rounded, x_0, x_t, t, eps)
    full = training_losses(*arguments, rounded.astype(jnp.float32), x_0, x_t, t, eps)
    for a, b in zip(half, full, strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_array_equal(a, b)


def test_perfect_mean_leaves_the_kl_of_the_variances():
    x_0, eps, x_t, t, _ = _batch(3)
    small, _ = bound_term(PROCESS, Parametrization("eps", "fixed_small"), eps, x_0, x_t, t)
    np.testing.assert_allclose(small[1:], 0.0, atol=1e-5)
    large, _ = bound_term(PROCESS, Parametrization("eps", "fixed_large"), eps, x_0, x_t, t)
    ratio = BETA_TILDE[1:] / BETAS[1:]
    expected = 0.5 * (ratio - 1 - np.log(ratio)) / np.log(2)
    np.testing.assert_allclose(large[1:], expected, rtol=1e-4, atol=1e-5)


def test_terms_of_the_bound_match_numpy():
    """Every L_t from equations 4 to 7 written out in float64, variances learned."""
    x_0, eps, x_t, t, output = _batch(6)
    l_t, _ = bound_term(PROCESS, Parametrization("eps", "learned_range"), output, x_0, x_t, t)
    losses = training_losses(
        PROCESS, Parametrization("eps"), Objective("l_vlb"), output, x_0, x_t, t, eps
    )
    np.testing.assert_allclose(losses.l_t, l_t, rtol=1e-6)

    x_0, x_t, output = (np.asarray(a, np.float64) for a in (x_0, x_t, output))
    expected = []
    for i in range(T):
        predicted = (x_t[i] - np.sqrt(1 - ALPHA_BAR[i]) * output[i, ..., :3]) / np.sqrt(
            ALPHA_BAR[i]
        )
        of_x_0 = np.sqrt(PREV[i]) * BETAS[i] / (1 - ALPHA_BAR[i])
        of_x_t = np.sqrt(1 - BETAS[i]) * (1 - PREV[i]) / (1 - ALPHA_BAR[i])
        share = (output[i, ..., 3:] + 1) / 2
        log_variance = share * np.log(BETAS[i]) + (1 - share) * np.log(BETA_TILDE[max(i, 1)])
        mean, std = of_x_0 * predicted + of_x_t * x_t[i], np.exp(0.5 * log_variance)
        if i:
            gap = of_x_0 * (x_0[i] - predicted)
            ratio = BETA_TILDE[i] / std**2
            nats = 0.5 * (ratio - 1 - np.log(ratio) + gap**2 / std**2)
        else:
            upper, lower = ((x_0[i] - mean + s / 255) / std for s in (1, -1))
            upper = np.where(x_0[i] > 0.999, np.inf, upper)
            lower = np.where(x_0[i] < -0.999, -np.inf, lower)
            ends = [np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)) / 2 for z in (upper, lower)]
            nats = -np.log(np.maximum(ends[0] - ends[1], 1e-12))
        expected.append(nats.mean() / np.log(2))
    np.testing.assert_allclose(l_t, expected, rtol=2e-5)


def test_prior_term_is_the_kl_to_a_standard_normal():
    process = make_process(np.array([0.3, 0.4]))
    x_0 = jnp.asarray(np.linspace(-1, 1, 180).reshape(5, 3, 4, 3), jnp.float32)
    alpha_bar = 0.7 * 0.6
    kl = 0.5 * (1 - alpha_bar + alpha_bar * np.asarray(x_0) ** 2 - 1 - np.log(1 - alpha_bar))
    expected = kl.mean(axis=(1, 2, 3)) / np.log(2)
    np.testing.assert_allclose(prior_term(process, x_0), expected, rtol=1e-6)


def test_bound_is_at_least_the_entropy_of_the_data():
    """Pixels of independent fair values have 8 bits each; no model's bound goes below that."""
    random = np.random.RandomState(1)
    x_0 = jnp.asarray(random.randint(0, 256, (64, 8, 8, 1)) / 127.5 - 1, jnp.float32)
    betas = make_betas("cosine", 50)
    process = make_process(betas)
    parametrization = Parametrization("x_0", "fixed_large")

    @jax.jit
    def term(t, eps):
        t = jnp.full((64,), t)
        x_t = q_sample(process, x_0, t, eps)
        # The best guess under a Gaussian with the data's variance, 1/3.
        alpha_bar = jnp.asarray(process.alpha_bar)[t][:, None, None, None]
        guess = jnp.sqrt(alpha_bar) / 3 / (alpha_bar / 3 + 1 - alpha_bar) * x_t
        return bound_term(process, parametrization, guess, x_0, x_t, t)[0].mean()

    total = prior_term(process, x_0).mean()
    for t in range(50):
        total += term(t, jnp.asarray(random.randn(*x_0.shape), jnp.float32))
    assert 8.0 < total < 9.0
