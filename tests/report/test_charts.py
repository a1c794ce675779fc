"""Numbers for the page's script."""

import json

import numpy as np
import pytest

from iddpm_jax.report.charts import Chart, Series, as_json, line


def test_lines_have_five_digits_and_gaps_for_what_is_not_finite():
    found = line("a", np.array([1.0, 2.0, 1234567.0]), np.array([np.nan, 0.123456789, np.inf]))
    assert found == Series("a", [1, 2, 1234567], [None, 0.12346, None], "line")


def test_dots_are_where_something_was_measured():
    found = line("a", np.arange(4), np.array([np.nan, 5.0, np.nan, 6.0]), "dots")
    assert (found.x, found.y) == ([1, 3], [5, 6])


def test_json_cannot_end_its_element_and_comes_back_as_it_was():
    name = "</script><script>alert(1)</script><!-- & \u2028"
    chart = Chart("a", name, "t", "", [Series(name, [1], [None], "bold")])
    text = as_json([chart], [1000, 0])
    assert not set("<>&") & set(text)
    content = json.loads(text)
    assert content["times"] == [1000, 0]
    assert content["charts"]["a"]["title"] == name
    assert content["charts"]["a"]["series"] == [
        {"name": name, "x": [1], "y": [None], "style": "bold"}
    ]


def test_numbers_that_json_has_no_word_for_are_refused():
    with pytest.raises(ValueError, match="not JSON compliant"):
        as_json([Chart("a", "a", "t", "", [Series("a", [1], [float("nan")], "bold")])], [])
