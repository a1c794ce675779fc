"""The residual block and the embedding of t against numpy float64."""

import flax.linen as nn
import float64_layers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import print_saved_residuals

from iddpm_jax.models.blocks import ResBlock, embed_time, recomputed
from iddpm_jax.models.layout import UNetSpec

SPEC = UNetSpec(width=32, channel_mult=(1, 2), num_res_blocks=1, attention_factors=())


class EmbedTime(nn.Module):
    """embed_time as a module of its own."""

    @nn.compact
    def __call__(self, t):
        return embed_time(SPEC, t)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def random_params(module: nn.Module, *inputs) -> dict:
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs))
    return float64_layers.random_params(shapes["params"])


@pytest.mark.parametrize("scale_shift", [True, False])
@pytest.mark.parametrize(
    ("resample", "channels", "size"),
    [
        ("", 32, (5, 4)),
        ("", 64, (5, 4)),
        ("down", 32, (4, 6)),
        ("down", 64, (5, 4)),  # the last row is averaged in pairs
        ("up", 32, (3, 2)),
        ("up", 64, (3, 2)),
    ],
)
def test_res_block_matches_float64(resample, channels, size, scale_shift):
    spec = UNetSpec(width=32, resblock_updown=True, scale_shift_norm=scale_shift)
    x, embedding = normal(0, 2, *size, 32), normal(1, 2, 128)
    block = ResBlock(spec, channels, 0, resample)
    params = random_params(block, x, embedding, None)
    out = jax.jit(block.apply)({"params": params}, x, embedding, None)
    assert ("skip" in params) == (channels != 32)
    expected = float64_layers.res_block(x, embedding, params, resample, scale_shift)
    assert out.shape == expected.shape
    np.testing.assert_allclose(out, expected, atol=2e-5)


@pytest.mark.parametrize("resample", ["", "down", "up"])
def test_resampling_in_a_res_block_has_no_parameters(resample):
    x, embedding = normal(0, 1, 4, 4, 32), normal(1, 1, 128)
    params = random_params(ResBlock(SPEC, 32, 0, resample), x, embedding, None)
    assert set(params) == {"norm_in", "conv_in", "embedding", "norm_out", "conv_out"}


def test_embedding_of_time_matches_float64():
    t = jnp.array([0.0, 1.0, 250.25, 999.0])
    params = random_params(EmbedTime(), t)
    out = EmbedTime().apply({"params": params}, t)
    assert out.shape == (4, 128)
    expected = float64_layers.embed_time(t, params, SPEC.width)
    # The angle itself, up to 999, is rounded to 3e-5.
    np.testing.assert_allclose(out, expected, atol=1e-4)


def test_fresh_block_is_its_skip_connection():
    x, embedding = jnp.ones((1, 4, 4, 32)), jnp.ones((1, 128))
    output, variables = ResBlock(UNetSpec(width=32), 32, 0).init_with_output(
        jax.random.key(0), x, embedding, None
    )
    assert not any(np.any(leaf) for leaf in variables["params"]["conv_out"].values())
    np.testing.assert_array_equal(output, x)


@pytest.mark.parametrize(
    "remat, kept",
    [
        # A convolution, four statistics, scale and shift, a dropout mask; the second convolution
        # is the last operation, which no derivative asks for.
        ("elementwise", ["bool[1,4,4,64]", "f32[1,128]", "f32[1,4,4,64]", *4 * ["f32[1,64]"]]),
        ("blocks", []),
    ],
)
def test_recomputed_block_keeps_only_what_is_costly(remat, kept, capsys):
    spec = UNetSpec(width=64, dropout=0.5)
    x, embedding = jnp.ones((1, 4, 4, 64)), jnp.ones((1, 256))
    keys = jax.random.split(jax.random.key(0), 1)
    block = recomputed(ResBlock, remat)(spec, 64, 0)
    params = block.init(jax.random.key(0), x, embedding, keys)
    print_saved_residuals(lambda p: block.apply(p, x, embedding, keys).sum(), params)
    lines = capsys.readouterr().out.splitlines()
    own = [line for line in lines if "from the argument" not in line and "a constant" not in line]
    assert sorted(line.split()[0] for line in own) == sorted(kept)
