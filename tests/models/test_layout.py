"""Specs, and the heads that follow from them; interop has the layers of released models."""

import dataclasses
import re

import pytest

from iddpm_jax.models.layout import UNetSpec, layout

TINY = UNetSpec(
    width=32, channel_mult=(1, 2), num_res_blocks=1, attention_factors=(2,), num_heads=2
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 48}, "width 48 x channel_mult 1 is not a multiple of 32"),
        (
            {"width": 16, "channel_mult": (2, 3)},
            "width 16 x channel_mult 3 is not a multiple of 32",
        ),
        ({"num_heads": 3}, "3 heads do not divide the channels"),
        ({"num_heads": 1, "num_heads_upsample": 5}, "5 heads do not divide the channels"),
        ({"num_head_channels": 24}, "heads of 24 channels do not divide the 64 channels"),
        ({"num_heads": 0}, "num_heads must be at least 1"),
        ({"num_head_channels": -1}, "num_head_channels at least 0"),
        ({"attention_order": "v_first"}, "use one of heads_first, qkv_first"),
        ({"channel_mult": (0.5, 1)}, "width 32 x channel_mult 0.5 is not a multiple of 32"),
        ({"null_class": True}, "only a class-conditional network can have a null class"),
    ],
)
def test_impossible_spec_raises(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        dataclasses.replace(TINY, **changes)


def test_heads_need_to_divide_the_channels_at_attention_levels_only():
    # 3 divides the 96 channels of the second level and of the middle, not the 32 of the first.
    dataclasses.replace(TINY, channel_mult=(1, 3), num_heads=3)


def attention_heads(spec: UNetSpec) -> dict[str, int]:
    """Heads of every attention layer, by its name."""
    plan = layout(spec)
    layers = [layer for block in [*plan.encoder, plan.middle, *plan.decoder] for layer in block]
    return {layer.name: layer.heads for layer in layers if layer.kind == "attention"}


def test_channels_of_a_head_give_the_heads_of_every_level():
    spec = dataclasses.replace(
        TINY, attention_factors=(1, 2), num_heads_upsample=1, num_head_channels=16
    )
    # 32 channels at the first level, 64 at the second and in the middle.
    assert attention_heads(spec) == {
        "down_0_attention_0": 2,
        "down_1_attention_0": 4,
        "middle_attention": 4,
        **{f"up_1_attention_{i}": 4 for i in range(2)},
        **{f"up_0_attention_{i}": 2 for i in range(2)},
    }


def test_each_half_has_its_heads_where_their_channels_are_not_given():
    spec = dataclasses.replace(TINY, num_heads=2, num_heads_upsample=1)
    assert attention_heads(spec) == {
        "down_1_attention_0": 2,
        "middle_attention": 2,
        "up_1_attention_0": 1,
        "up_1_attention_1": 1,
    }
