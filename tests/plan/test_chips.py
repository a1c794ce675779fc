"""The table of chips, and what is refused as a slice."""

import pytest

from iddpm_jax.errors import InputError
from iddpm_jax.plan.chips import CHIPS, topology


@pytest.mark.parametrize("name", CHIPS)
def test_figures_have_the_right_size(name):
    # A wrong unit would be off by 8 or 1000.
    chip = CHIPS[name]
    assert 1e14 < chip.flops < 1e16
    assert 16e9 < chip.hbm < 200e9
    assert 5e11 < chip.hbm_bandwidth < 1e13
    assert 2e10 < chip.link_bandwidth < 5e11
    # No chip has a peak that its memory can feed at less than 100 FLOPs a byte.
    assert 100 < chip.flops / chip.hbm_bandwidth < 1000


@pytest.mark.parametrize(
    "name, chips, devices, links",
    [
        ("v5e:1x1", 1, 1, 0),
        ("v5e:2x2", 4, 4, 2),
        ("v5e:2x4", 8, 8, 3),
        ("v6e:16x16", 256, 256, 4),
        ("v5p:2x2x2", 8, 8, 3),
        ("v5p:4x4x4", 64, 64, 6),
        ("v4:2x2x1", 4, 8, 2),
    ],
)
def test_slices_have_their_chips_and_links(name, chips, devices, links):
    found = topology(name)
    assert (found.chips, found.devices, found.links) == (chips, devices, links)


@pytest.mark.parametrize(
    "name, words",
    [
        ("v9:2x2", ["'v9:2x2'", "v4, v5e, v5p, v6e"]),
        ("", ["no chip"]),
        ("v5e", ["v5e", "2x2, 2x4"]),
        ("v5e:3x3", ["'v5e:3x3'", "2x2, 2x4", "16x16"]),
        ("v5e:2x2x1", ["2x2, 2x4"]),
        ("v4:2x2", ["2x2x1, 2x2x2"]),
        ("v4:16x16x24", ["2x2x1"]),
    ],
)
def test_other_slices_are_refused_with_those_there_are(name, words):
    with pytest.raises(InputError) as refusal:
        topology(name)
    assert "\n" not in str(refusal.value)
    for word in words:
        assert word in str(refusal.value)
