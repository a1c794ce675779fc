"""What a workdir holds: the same numbers as on disk, and a line for what is not there."""

import jax.numpy as jnp
import numpy as np
from made_up import full, opened
from synthetic import stored_run

from iddpm_jax.diffusion.importance import History
from iddpm_jax.report.collect import binned, collect, last_of_bins


def series(found, group, chart):
    """Name -> (x, y) of a chart."""
    [chosen] = [c for c in found.charts[group] if c.name == chart]
    return {s.name: (s.x, s.y) for s in chosen.series}


def test_curves_are_the_rows_of_the_run(tmp_path):
    found = collect(tmp_path / "run", full(tmp_path / "run"))
    vlb = series(found, "curves", "l_vlb")
    assert vlb["all t"] == ([2, 4], [5, 2.5])
    assert vlb["4th (most noise)"] == ([2, 4], [0.4, 0.4])
    assert vlb["measured, test split"] == ([4], [5])
    assert series(found, "curves", "l_simple")["3rd"] == ([2, 4], [None, 0.3])
    assert series(found, "curves", "gradient_norm") == {"L2 norm": ([2, 4], [6, 12])}
    assert series(found, "curves", "images_per_second") == {"images/s": ([2, 4], [50, 50])}
    assert found.missing == {}


def test_terms_of_the_bound_are_those_of_all_steps(tmp_path):
    run = full(tmp_path / "run")
    found = collect(tmp_path / "run", run)
    assert "_20steps_" in found.bound.file
    with np.load((tmp_path / "run" / found.bound.file).with_suffix(".npz")) as arrays:
        mean = arrays["l_t"].astype(np.float64).mean(axis=0)
    t, terms = series(found, "bound", "terms")["the model's own variance"]
    np.testing.assert_allclose(terms, mean, rtol=1e-4)
    assert t == list(range(1, 21))
    _, sums = series(found, "bound", "sums")["fixed, beta"]
    np.testing.assert_allclose(sums, 1.5 * np.cumsum(mean), rtol=1e-4)


def test_weights_follow_the_history(tmp_path):
    run = full(tmp_path / "run")
    found = collect(tmp_path / "run", run)
    losses = np.asarray(run.state.history.losses, np.float64)
    p = np.sqrt((losses**2).mean(axis=1))
    p = 0.999 * p / p.sum() + 0.001 / 20
    weights = series(found, "importance", "weights")
    np.testing.assert_allclose(weights["T p_t"][1], 20 * p, rtol=1e-4)
    np.testing.assert_allclose(weights["weight 1 / (T p_t)"][1], 1 / (20 * p), rtol=1e-4)
    share = 1 / np.sum(1 / (400 * p))
    assert found.notes["importance"] == (
        "20 of 20 steps have a full history of 10 losses. The effective sample size is "
        f"{share:.1%} of the draws."
    )


def test_history_that_is_not_full_is_said(tmp_path):
    stored = stored_run(tmp_path / "run", loss__timesteps="importance")
    history = History(jnp.ones((20, 10)), jnp.arange(20, dtype=jnp.int32))
    found = collect(tmp_path / "run", opened(stored.config, history))
    assert found.notes["importance"].startswith(
        "10 of 20 steps have a full history of 10 losses; t is drawn evenly until all are."
    )


def test_every_result_is_listed_and_broken_ones_are_named(tmp_path):
    run = full(tmp_path / "run")
    (tmp_path / "run" / "nll" / "broken.json").write_text('{"bits_per_dim": 1')
    (tmp_path / "run" / "fid" / "older.json").write_text('{"scores": []}')
    (tmp_path / "run" / "fid" / "list.json").write_text("[]")
    found = collect(tmp_path / "run", run)
    assert len(found.likelihoods) == 2 and len(found.scores) == 1
    assert {found.likelihoods[0].step, found.scores[0].step} == {4}
    assert set(found.missing) == {"broken.json", "older.json", "list.json"}
    facts = dict(found.facts)
    assert facts["FD-digits"] == "1.5 ± 0.25" and facts["training step"] == "4"
    assert facts["images seen"] == "64"


def test_bare_workdir_gets_a_line_for_everything(tmp_path):
    found = collect(tmp_path / "run", opened(stored_run(tmp_path / "run").config))
    assert found.charts == {} and found.likelihoods == found.scores == []
    for group, word in (
        ("curves", "metrics.jsonl"),
        ("bits/dim", "--mode nll"),
        ("importance", "--config.loss.timesteps=importance"),
        ("scores", "--mode fid"),
    ):
        assert word in found.missing[group]


def test_long_curves_are_means_of_neighbours():
    t, value = np.arange(1, 4001), np.arange(4000.0)
    value[2000] = np.nan
    x, y = binned(t, value)
    assert 200 < len(x) <= 400 and x[0] == 1 and y[0] == 0
    # The mean of t and of the value are over the same neighbours.
    np.testing.assert_allclose(y, x - 1, rtol=1e-12)
    assert np.all(np.diff(x) > 0) and (x[-1], y[-1]) != (4000, 3999)
    x, y = last_of_bins(t, np.cumsum(np.ones(4000)))
    assert (x[-1], y[-1]) == (4000, 4000) and np.array_equal(x, y)
