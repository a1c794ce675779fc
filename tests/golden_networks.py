"""The recorded networks of golden file 07 and the published models, as specs and weights."""

import zlib

import jax
import numpy as np
from golden_cases import cases, manifest

from iddpm_jax.models.unet import UNetSpec

FILE = "07_unet.npz"
CASES = dict(cases(FILE, "unet"))
NAMES = list(CASES)

PUBLISHED = {
    "cifar10": UNetSpec(),
    "imagenet64": UNetSpec(channel_mult=(1, 2, 3, 4), attention_factors=(4, 8)),
    "imagenet64-conditional": UNetSpec(
        width=192, channel_mult=(1, 2, 3, 4), attention_factors=(4, 8), num_classes=1000
    ),
    "upsampler": UNetSpec(
        channels=6,
        width=192,
        channel_mult=(1, 1, 2, 2, 4, 4),
        num_res_blocks=2,
        attention_factors=(16, 32),
        num_classes=1000,
    ),
    "lsun": UNetSpec(
        channel_mult=(1, 1, 2, 2, 4, 4),
        num_res_blocks=2,
        attention_factors=(16,),
        num_heads=1,
        scale_shift_norm=False,
    ),
}
"""The models OpenAI released, by data set."""


def spec_of(name: str) -> UNetSpec:
    """The spec of a recorded network, from the official constructor's arguments."""
    arguments = CASES[name]["unet_kwargs"]
    # Super-resolution networks see the enlarged image beside x.
    inputs = 2 if CASES[name]["model_class"] == "SuperResModel" else 1
    return UNetSpec(
        channels=inputs * arguments["in_channels"],
        out_channels=arguments["out_channels"],
        width=arguments["model_channels"],
        channel_mult=tuple(arguments["channel_mult"]),
        num_res_blocks=arguments["num_res_blocks"],
        attention_factors=tuple(arguments["attention_resolutions"]),
        num_heads=arguments["num_heads"],
        num_heads_upsample=max(arguments["num_heads_upsample"], 0),
        num_classes=arguments["num_classes"] or 0,
        dropout=arguments["dropout"],
        scale_shift_norm=arguments["use_scale_shift_norm"],
        conv_resample=arguments["conv_resample"],
    )


def parameter_count(shapes: dict) -> int:
    """Number of scalars in a tree of arrays or shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def _draw(key: str, shape: tuple[int, ...]) -> np.ndarray:
    salt = manifest()["weight_rule"]["salt"]
    return np.random.RandomState(zlib.crc32(f"{salt}/{key}".encode())).randn(*shape)


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """An official parameter by the rule of section 4 of golden/README.md."""
    values = _draw(name, shape)
    if name == "label_emb.weight":
        values = 0.5 * values
    elif name.endswith(".bias"):
        values = 0.1 * values
    elif len(shape) == 1:
        values = 1.0 + 0.1 * values
    else:
        values = values / np.sqrt(np.prod(shape[1:]))
    return values.astype(np.float32)


def direction(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The direction that recorded projections of a parameter's gradient are taken along."""
    return _draw(f"direction/{name}", shape)


def state_dict(name: str) -> dict[str, np.ndarray]:
    """All weights of a recorded network under their official names."""
    return {entry: weight(entry, tuple(shape)) for entry, shape in CASES[name]["params"]}
