"""The recorded networks of golden file 07 and the listed ones of file 10, as specs and weights."""

import functools
import json
import zlib

import jax
import numpy as np
from golden_cases import FOLDER, cases, manifest

from iddpm_jax.models.classifier import ClassifierSpec
from iddpm_jax.models.layout import UNetSpec

FILE = "07_unet.npz"
CASES = dict(cases(FILE, "unet"))
NAMES = list(CASES)

_GUIDED_DEFAULTS = {
    "num_head_channels": -1,
    "resblock_updown": False,
    "use_new_attention_order": False,
    "classifier_width": 128,
    "classifier_depth": 2,
    "classifier_attention_resolutions": "32,16,8",
    "classifier_use_scale_shift_norm": True,
    "classifier_resblock_updown": True,
}
"""The flags that guided-diffusion adds, where a listing does not say otherwise."""

_MULTIPLIERS = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
}
"""By image size, as the official script_util.py has them; super-resolution differs at 512."""


def spec_of(name: str) -> UNetSpec:
    """The spec of a recorded network, from the official constructor's arguments."""
    arguments = CASES[name]["unet_kwargs"]
    return UNetSpec(
        channels=arguments["in_channels"],
        super_resolution=CASES[name]["model_class"] == "SuperResModel",
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


@functools.cache
def _state_dicts() -> dict:
    return json.loads((FOLDER / "10_state_dicts.json").read_text())


def listings() -> dict[str, dict]:
    """The released models: flags, number of parameters, names and shapes in the official order."""
    return _state_dicts()["listings"]


def spec_of_listing(listing: dict) -> UNetSpec | ClassifierSpec:
    """The spec of a released model, from the flags of the official scripts."""
    model = listing["model"]
    script = "super_resolution" if model == "SuperResModel" else "image_model"
    flags = {**_state_dicts()["defaults"][script], **_GUIDED_DEFAULTS, **listing["flags"]}
    if model == "EncoderUNetModel":
        return _classifier_spec(flags)
    super_resolution = model == "SuperResModel"
    size = flags["large_size" if super_resolution else "image_size"]
    return UNetSpec(
        super_resolution=super_resolution,
        out_channels=6 if flags["learn_sigma"] else 3,
        width=flags["num_channels"],
        channel_mult=_MULTIPLIERS[min(size, 256) if super_resolution else size],
        num_res_blocks=flags["num_res_blocks"],
        attention_factors=_factors(size, flags["attention_resolutions"]),
        num_heads=flags["num_heads"],
        num_heads_upsample=max(flags["num_heads_upsample"], 0),
        num_head_channels=max(flags["num_head_channels"], 0),
        attention_order="qkv_first" if flags["use_new_attention_order"] else "heads_first",
        num_classes=1000 if flags["class_cond"] else 0,
        dropout=flags["dropout"],
        scale_shift_norm=flags["use_scale_shift_norm"],
        resblock_updown=flags["resblock_updown"],
    )


def _classifier_spec(flags: dict) -> ClassifierSpec:
    size = flags["image_size"]
    encoder = UNetSpec(
        width=flags["classifier_width"],
        channel_mult=_MULTIPLIERS[size],
        num_res_blocks=flags["classifier_depth"],
        attention_factors=_factors(size, flags["classifier_attention_resolutions"]),
        num_head_channels=64,
        scale_shift_norm=flags["classifier_use_scale_shift_norm"],
        resblock_updown=flags["classifier_resblock_updown"],
    )
    return ClassifierSpec(encoder, image_size=size, num_classes=1000)


def _factors(size: int, resolutions: str) -> tuple[int, ...]:
    return tuple(size // int(resolution) for resolution in resolutions.split(","))


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
