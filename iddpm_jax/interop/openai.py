"""OpenAI's parameter names and layouts <-> ours; the names follow from the network's layout."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np

from iddpm_jax.models.unet import Layer, UNetSpec, layout, make_network

# Within one layer: our parameter group -> the official module, by kind of layer.
_PARTS = {
    "res": {
        "norm_in": "in_layers.0",
        "conv_in": "in_layers.2",
        "embedding": "emb_layers.1",
        "norm_out": "out_layers.0",
        "conv_out": "out_layers.3",
        "skip": "skip_connection",
    },
    "attention": {"norm": "norm", "qkv": "qkv", "proj": "proj_out"},
}

# Our parameter -> the official one, within a module.
_LEAVES = {"scale": "weight", "kernel": "weight", "embedding": "weight", "bias": "bias"}

# Linear maps that the official code writes as convolutions of one pixel.
_WINDOWS = {"skip": (1, 1), "qkv": (1,), "proj": (1,)}


def _layer_pairs(prefix: str, layer: Layer) -> Iterator[tuple[tuple[str, ...], str]]:
    if layer.kind in _PARTS:
        for ours, official in _PARTS[layer.kind].items():
            yield (layer.name, ours), f"{prefix}.{official}"
    else:
        yield (layer.name,), prefix + {"conv": "", "down": ".op", "up": ".conv"}[layer.kind]


def module_names(spec: UNetSpec) -> dict[tuple[str, ...], str]:
    """Our parameter groups -> official module names, in the official order.

    Args:
        spec: shape of the network.

    Returns:
        Path in the parameter tree -> dotted name, for every module the network might have; a
        residual block's "skip" is listed whether or not its channels change.
    """
    plan = layout(spec)
    pairs = [
        (("time_embedding_in",), "time_embed.0"),
        (("time_embedding_out",), "time_embed.2"),
        (("class_embedding",), "label_emb"),
    ]
    for part, blocks in (
        ("input_blocks", plan.encoder),
        ("middle_block", [plan.middle]),
        ("output_blocks", plan.decoder),
    ):
        for i, block in enumerate(blocks):
            for j, layer in enumerate(block):
                prefix = f"{part}.{j}" if part == "middle_block" else f"{part}.{i}.{j}"
                pairs.extend(_layer_pairs(prefix, layer))
    pairs += [(("norm_out",), "out.0"), (("conv_out",), "out.2")]
    return dict(pairs)


class _Entry(NamedTuple):
    """One parameter: where it is, its shape here and its shape in an official state dict."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    official_shape: tuple[int, ...]


def _flatten(params: dict) -> dict[tuple[str, ...], jax.Array]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {tuple(key.key for key in path): leaf for path, leaf in leaves}


def _entries(spec: UNetSpec) -> dict[str, _Entry]:
    """Official name -> entry, for exactly the parameters of the spec's network."""
    init = make_network(spec).init
    params = _flatten(jax.eval_shape(lambda: init(jax.random.key(0), (8, 8, spec.channels))))
    entries = {}
    for group, module in module_names(spec).items():
        for leaf, suffix in _LEAVES.items():
            path = (*group, leaf)
            if path in params:
                shape = official = params[path].shape
                if leaf == "kernel":
                    *window, fan_in, fan_out = shape
                    official = (fan_out, fan_in, *(window or _WINDOWS.get(group[-1], ())))
                entries[f"{module}.{suffix}"] = _Entry(path, shape, official)
    return entries


def _check_names(expected: Iterable, given: Iterable, holder: str) -> None:
    missing, extra = sorted(set(expected) - set(given)), sorted(set(given) - set(expected))
    for verb, names in (("lacks", missing), ("has superfluous", extra)):
        if names:
            listed = ", ".join(str(name) for name in names[:5])
            raise ValueError(f"{holder} {verb} {listed} ({len(names)} such entries)")


def from_state_dict(spec: UNetSpec, state_dict: Mapping[str, np.ndarray]) -> dict:
    """Our parameters from an official state dict.

    Args:
        spec: shape of the network; channels counts its input, so 2 C for super-resolution.
        state_dict: official name -> array in PyTorch's layout.

    Returns:
        Nested dict of numpy arrays, as Network.init gives.

    Raises:
        ValueError: names or shapes are not those of the spec's network.
    """
    entries = _entries(spec)
    _check_names(entries, state_dict, "the state dict")
    params: dict = {}
    for name, (path, shape, official_shape) in entries.items():
        array = np.asarray(state_dict[name])
        if array.shape != official_shape:
            raise ValueError(f"{name} has shape {array.shape}, the spec says {official_shape}")
        if path[-1] == "kernel":
            array = np.moveaxis(array, (0, 1), (-1, -2)).reshape(shape)
        group = params
        for part in path[:-1]:
            group = group.setdefault(part, {})
        group[path[-1]] = array
    return params


def to_state_dict(spec: UNetSpec, params: dict) -> dict[str, np.ndarray]:
    """The inverse of from_state_dict.

    Args:
        spec: shape of the network.
        params: nested dict of arrays, as Network.init gives.

    Returns:
        Official name -> array in PyTorch's layout, in the official order.

    Raises:
        ValueError: the parameters' names are not those of the spec's network.
    """
    entries = _entries(spec)
    arrays = _flatten(params)
    paths = {entry.path: name for name, entry in entries.items()}
    _check_names(
        ("/".join(path) for path in paths), ("/".join(path) for path in arrays), "the tree"
    )
    state_dict = {}
    for name, (path, _, official_shape) in entries.items():
        array = np.asarray(arrays[path])
        if path[-1] == "kernel":
            array = np.moveaxis(array, (-1, -2), (0, 1)).reshape(official_shape)
        state_dict[name] = array
    return state_dict


def step_from_filename(name: str) -> int:
    """Training step in an official checkpoint's file name, model123456.pt -> 123456.

    Args:
        name: file name or path.

    Returns:
        The step; 0 where the name does not follow that form.
    """
    match = re.search(r"model(\d+)\.pt$", name)
    return int(match.group(1)) if match else 0
