"""Respacing: the recorded choices of steps, and the processes that visit them."""

import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import EXACT, assert_close, cases, load
from toy_model import TABLES

from iddpm_jax.diffusion.process import coefficients
from iddpm_jax.diffusion.respacing import (
    padded,
    respace,
    respaced_betas,
    skip_beginning,
    space_timesteps,
)
from iddpm_jax.diffusion.reverse import Parametrization
from iddpm_jax.diffusion.samplers import ancestral, ddim
from iddpm_jax.diffusion.schedules import make_betas

FILE = "02_respacing.npz"
SELECTIONS = cases(FILE, "space_timesteps")
PROCESSES = cases(FILE, "spaced_process")


def test_every_kind_of_recording_is_used():
    assert len(SELECTIONS) + len(PROCESSES) == len(cases(FILE))


@pytest.mark.parametrize("name, case", SELECTIONS, ids=[f"{n}-{c['spec']}" for n, c in SELECTIONS])
def test_selection_matches_recording(name, case):
    if case["spec"] == "":
        # The official function fails and its callers put all steps instead; ours means all steps.
        np.testing.assert_array_equal(space_timesteps(case["T"], ""), np.arange(case["T"]))
    elif case["error"]:
        with pytest.raises(ValueError):
            space_timesteps(case["T"], case["spec"])
    else:
        chosen = space_timesteps(case["T"], case["spec"])
        assert chosen.dtype == np.int64
        np.testing.assert_array_equal(chosen, load(FILE)[f"{name}/steps"])


@pytest.mark.parametrize("name, case", PROCESSES, ids=[f"{n}-{c['spec']}" for n, c in PROCESSES])
def test_respaced_process_matches_recording(name, case):
    betas = make_betas(case["schedule"], case["T"])
    chosen = space_timesteps(case["T"], case["spec"])
    if case["error"]:
        # One step is the official code's IndexError; ours has a meaning, tested below.
        if len(chosen) != 1:
            with pytest.raises(ValueError):
                respace(betas, case["spec"])
        return
    process = respace(betas, case["spec"])
    np.testing.assert_array_equal(process.timesteps, load(FILE)[f"{name}/timestep_map"])
    tables = coefficients(respaced_betas(betas, chosen))
    for official, ours in TABLES.items():
        assert_close(FILE, f"{name}/{official}", tables[ours], EXACT)
        recorded = load(FILE)[f"{name}/{official}"]
        np.testing.assert_allclose(getattr(process, ours), recorded, rtol=1e-6, atol=1e-37)


def test_respaced_process_keeps_alpha_bar_of_the_kept_steps():
    betas = make_betas("cosine", 1000)
    kept = np.array([3, 10, 500, 999])
    process = respace(betas, kept)
    assert process.T == 4
    np.testing.assert_allclose(process.alpha_bar, np.cumprod(1 - betas)[kept], rtol=1e-6)


@pytest.mark.parametrize(
    "rescale, expected, dtype",
    [(False, [0, 1333, 2666, 3999], np.int32), (True, [0, 333.25, 666.5, 999.75], np.float32)],
)
def test_network_is_fed_the_original_time(rescale, expected, dtype):
    process = respace(make_betas("cosine", 4000), "4", rescale_timesteps=rescale)
    assert process.model_t.dtype == dtype
    np.testing.assert_allclose(process.model_t, expected, rtol=1e-6)


def test_all_steps_give_the_original_process():
    betas = make_betas("linear", 50)
    np.testing.assert_allclose(respaced_betas(betas, np.arange(50)), betas, rtol=1e-11)


@pytest.mark.parametrize("step", [0, 499, 999])
def test_process_of_one_step_works(step):
    betas = make_betas("linear", 1000)
    process = respace(betas, np.array([step]))
    alpha_bar = np.cumprod(1 - betas)[step]
    np.testing.assert_allclose(process.beta, [1 - alpha_bar], rtol=1e-6)
    np.testing.assert_array_equal(process.beta_tilde, [0.0])
    # No step 1 to repeat: both clipped log-variances fall back on beta.
    for table in (process.log_beta_tilde, process.log_fixed_large):
        np.testing.assert_allclose(table, [np.log(1 - alpha_bar)], rtol=1e-6)

    x_t = jnp.asarray(np.random.RandomState(0).randn(2, 3, 3, 1), jnp.float32)
    # With one step every sampler returns the predicted x_0.
    expected = (np.asarray(x_t) - np.sqrt(1 - alpha_bar) * 0.5) / np.sqrt(alpha_bar)
    for sampler in (ancestral, ddim):
        samples = sampler(
            lambda x, model_t: jnp.full_like(x, 0.5),
            process,
            Parametrization("eps", "fixed_small"),
            x_t,
            lambda t: jnp.ones_like(x_t),
            transform=None,
        )
        np.testing.assert_allclose(
            samples.x, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max()
        )


@pytest.mark.parametrize(
    "spec, message",
    [
        ("ten", "not understood"),
        ("20,21", "cannot take 21 steps"),
        ("ddim30", "no whole stride"),
        ("0", "keeps no step"),
        (np.array([0, 40]), "ascend within 0 to 39"),
        (np.array([3, 3]), "ascend"),
        (np.array([5, 3]), "ascend"),
        (np.array([-1, 3]), "ascend"),
        (np.array([], np.int64), "keeps no step"),
    ],
    ids=str,
)
def test_impossible_choice_says_why(spec, message):
    with pytest.raises(ValueError, match=message):
        respace(make_betas("linear", 40), spec)


@pytest.mark.parametrize(
    "count, skip, left", [(10, 0.0, 10), (10, 0.2, 8), (10, 0.55, 4), (3, 0.3, 2), (5, 0.99, 1)]
)
def test_beginning_that_is_skipped_is_a_share_of_the_steps(count, skip, left):
    np.testing.assert_array_equal(skip_beginning(7 * np.arange(count), skip), 7 * np.arange(left))


@pytest.mark.parametrize("skip", [-0.1, 1.0, float("nan")])
def test_skipping_less_than_nothing_or_all_is_refused(skip):
    with pytest.raises(ValueError, match="skip is"):
        skip_beginning(np.arange(10), skip)


def test_process_without_its_beginning_has_the_same_steps():
    """All tables of the steps that are left, but for what lies beyond the last."""
    betas = make_betas("linear", 400)
    whole = respace(betas, "40", rescale_timesteps=True)
    part = respace(betas, "40", rescale_timesteps=True, skip=0.25)
    assert part.T == 30
    for name, table in vars(part).items():
        beyond = name.endswith("_next")
        left = slice(None, 29 if beyond else 30)
        np.testing.assert_array_equal(table[left], getattr(whole, name)[left], err_msg=name)
    np.testing.assert_array_equal(part.model_t, part.timesteps * np.float32(2.5))
    for name, table in vars(respace(betas, "40", True, skip=0.0)).items():
        np.testing.assert_array_equal(table, getattr(whole, name), err_msg=name)


def test_padded_tables_begin_with_the_process_and_repeat_its_last_entry():
    process = respace(make_betas("cosine", 50), "7", rescale_timesteps=True)
    long = padded(process, 50)
    assert long.T == 50
    for name in ("timesteps", "model_t", "beta", "alpha_bar_next", "log_beta_tilde"):
        short, table = getattr(process, name), getattr(long, name)
        assert table.dtype == short.dtype
        np.testing.assert_array_equal(table, [*short, *[short[-1]] * 43])
    with pytest.raises(ValueError, match="7 steps does not fit into 6"):
        padded(process, 6)
