"""Likelihoods in words."""

import numpy as np

from iddpm_jax.evaluation.likelihood import Bound, Likelihood
from iddpm_jax.evaluation.nll_table import summary, table

PRIOR = np.array([0.5, 1.5])


def likelihood(l_t, weight, **more):
    l_t = np.asarray(l_t, np.float32)
    draws = (np.nansum(l_t * weight, axis=1) + PRIOR)[:, None]
    return Likelihood(np.arange(l_t.shape[1]), weight, l_t, l_t, l_t, PRIOR, draws, **more)


def test_summary_is_a_line():
    found = summary(likelihood(np.ones((2, 3)), np.ones(3)))
    assert found == (
        "4.0000 +- 0.5000 bits/dim (prior 1.00000, L_0 1.0000; 2 images, 3 of 3 terms each)"
    )


def test_summary_leaves_out_a_decoder_term_that_no_image_has():
    found = likelihood([[np.nan, 1.0], [np.nan, 2.0]], np.full(2, 2))
    assert summary(found).startswith("4.0000 +- 1.5000 bits/dim (prior 1.00000; 2 images, 1 of 2")


def test_table_names_what_each_number_is():
    ones = np.ones(3)
    others = {
        "fixed_large": Bound(np.array([3.9, 4.9]), 1.2 * ones),
        "unclipped": Bound(np.array([3.6, 4.8]), ones),
    }
    more = {"others": others, "v": 0.5 * ones, "v_outside": 0.25 * ones}
    one = likelihood(np.ones((2, 3)), ones, **more)
    text = table({"0.99": one, "0": likelihood(np.full((2, 3), 2.0), ones)}, "learned_range", "f")
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert (
        lines[0] == "bits/dim of 2 images, 3 of 3 terms each, 1 draw of the noise, x_0 clipped, f"
    )
    assert lines[2] == "0.99 4.0000 0.5000 0.0000 1.00000 1.0000 2.0000"
    assert lines[3] == "parameters 7.0000 0.5000 0.0000 1.00000 2.0000 4.0000"
    assert "0.99: fixed_large - learned_range +0.4000 +- 0.0000" in lines
    assert "0.99: unclipped - clipped +0.2000 +- 0.1000" in lines
    assert "parameters - 0.99 +3.0000 +- 0.0000" in lines
    assert lines[-4] == "0.99, by step learned_range fixed_large (v + 1) / 2 v outside"
    assert lines[-3:] == [f"{t} 1.0000 1.2000 0.750 25.0%" for t in range(3)]
