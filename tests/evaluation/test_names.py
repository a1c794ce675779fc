"""Names of results tell all that decides them."""

from types import SimpleNamespace

import pytest
from tiny_config import tiny

from iddpm_jax.evaluation.names import sample_folder


def folder_of(tmp_path, **changes):
    model = SimpleNamespace(spec=SimpleNamespace(dtype="float32"), low_res_shape=None)
    run = SimpleNamespace(config=tiny(**changes), model=model, state=SimpleNamespace(step=4))
    return sample_folder(tmp_path, run).name


@pytest.mark.parametrize(
    "changes, words",
    [
        ({}, "ancestral_5_ema0.9"),
        ({"sample__skip": 0.2}, "ancestral_5_skip0.2_ema0.9"),
        ({"sample__variance": "fixed_small"}, "ancestral_5_fixed-small_ema0.9"),
        (
            {"sample__variance": "fixed_large", "sample__skip": 0.25, "sample__steps": ""},
            "ancestral_20_skip0.25_fixed-large_ema0.9",
        ),
        ({"sample__sampler": "ddim", "sample__skip": 0.5}, "ddim_5_eta0_skip0.5_ema0.9"),
    ],
)
def test_folder_of_samples_is_named_after_steps_and_variance(tmp_path, changes, words):
    assert folder_of(tmp_path, **changes) == f"step00000004_{words}_seed0"
