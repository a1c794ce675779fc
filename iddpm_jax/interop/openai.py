"""OpenAI's parameter names and layouts <-> ours; the names follow from the network's layout."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import NamedTuple

import jax
import numpy as np

from iddpm_jax.models.classifier import ClassifierSpec, make_classifier
from iddpm_jax.models.layout import Layer, UNetSpec, layout
from iddpm_jax.models.unet import make_network

Spec = UNetSpec | ClassifierSpec


# Within one layer: our parameter group -> the official module, by kind of layer.
_RES = {
    "norm_in": "in_layers.0",
    "conv_in": "in_layers.2",
    "embedding": "emb_layers.1",
    "norm_out": "out_layers.0",
    "conv_out": "out_layers.3",
    "skip": "skip_connection",
}
_PARTS = {
    **dict.fromkeys(("res", "res_down", "res_up"), _RES),
    "attention": {"norm": "norm", "qkv": "qkv", "proj": "proj_out"},
}
_SUFFIXES = {"conv": "", "down": ".op", "up": ".conv"}

# Our parameter -> the official one, within a module.
_LEAVES = {
    "scale": "weight",
    "kernel": "weight",
    "embedding": "weight",
    "bias": "bias",
    "positional_embedding": "positional_embedding",
}

# Arrays whose first axis is the input here and the second there.
_TRANSPOSED = ("kernel", "positional_embedding")

# Linear maps that the official code writes as convolutions of one pixel.
_WINDOWS = {"skip": (1, 1), "qkv": (1,), "proj": (1,)}


def _layer_pairs(prefix: str, layer: Layer) -> Iterator[tuple[tuple[str, ...], str]]:
    if layer.kind in _PARTS:
        for ours, official in _PARTS[layer.kind].items():
            yield (layer.name, ours), f"{prefix}.{official}"
    else:
        yield (layer.name,), prefix + _SUFFIXES[layer.kind]


def module_names(spec: Spec) -> dict[tuple[str, ...], str]:
    """Our parameter groups -> official module names, in the official order.

    Args:
        spec: shape of the network, a UNet or a classifier.

    Returns:
        Path in the parameter tree -> dotted name, for every module the network might have; a
        residual block's "skip" is listed whether or not its channels change.
    """
    is_classifier = isinstance(spec, ClassifierSpec)
    plan = layout(spec.encoder if is_classifier else spec)
    pairs = [
        (("time_embedding_in",), "time_embed.0"),
        (("time_embedding_out",), "time_embed.2"),
        (("class_embedding",), "label_emb"),
    ]
    for part, blocks in (
        ("input_blocks", plan.encoder),
        ("middle_block", [plan.middle]),
        ("output_blocks", [] if is_classifier else plan.decoder),
    ):
        for i, block in enumerate(blocks):
            for j, layer in enumerate(block):
                prefix = f"{part}.{j}" if part == "middle_block" else f"{part}.{i}.{j}"
                pairs.extend(_layer_pairs(prefix, layer))
    pairs.append((("norm_out",), "out.0"))
    if is_classifier:
        pairs += [(("pool",), "out.2"), (("pool", "qkv"), "out.2.qkv_proj")]
        pairs.append((("pool", "proj"), "out.2.c_proj"))
    else:
        pairs.append((("conv_out",), "out.2"))
    return dict(pairs)


class _Entry(NamedTuple):
    """One parameter: where it is, its shape here and its shape in an official state dict."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    official_shape: tuple[int, ...]


def _flatten(params: dict) -> dict[tuple[str, ...], jax.Array]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {tuple(key.key for key in path): leaf for path, leaf in leaves}


def shapes(spec: Spec) -> dict:
    """Our parameters' shapes, without computing them."""
    if isinstance(spec, ClassifierSpec):
        shape = (spec.image_size, spec.image_size, spec.encoder.channels)
        network = make_classifier(spec)
    else:
        shape = (8, 8, spec.channels)  # any size gives the same parameters
        network = make_network(spec)
    return jax.eval_shape(lambda: network.init(jax.random.key(0), shape))


def _entries(spec: Spec) -> dict[str, _Entry]:
    """Official name -> entry, for exactly the parameters of the spec's network."""
    params = _flatten(shapes(spec))
    entries = {}
    for group, module in module_names(spec).items():
        for leaf, suffix in _LEAVES.items():
            path = (*group, leaf)
            if path in params:
                shape = official = params[path].shape
                if leaf in _TRANSPOSED:
                    *window, fan_in, fan_out = shape
                    official = (fan_out, fan_in, *(window or _WINDOWS.get(group[-1], ())))
                name = f"{module}.{suffix}"
                entries[name] = _Entry(path, shape, official)
    return entries


def official_shapes(spec: Spec) -> dict[str, tuple[int, ...]]:
    """Official name -> shape in PyTorch's layout, in the official order."""
    return {name: entry.official_shape for name, entry in _entries(spec).items()}


def _check_names(expected: Iterable, given: Iterable, holder: str) -> None:
    expected, given = dict.fromkeys(expected), dict.fromkeys(given)  # sets that keep their order
    missing = [name for name in expected if name not in given]
    extra = [name for name in given if name not in expected]
    complaints = [
        f"{verb} {_some(names)}"
        for verb, names in (("lacks", missing), ("has superfluous", extra))
        if names
    ]
    if complaints:
        raise ValueError(f"{holder} {' and '.join(complaints)}")


def _some(names: list[str]) -> str:
    """The first five, and how many there are."""
    more = f", ... ({len(names)} such entries)" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def _objections(spec: UNetSpec, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """What a state dict of another network says of itself, in the words of a config."""

    def size(name: str, axis: int, ndim: int) -> int | None:
        # Misshapen entries are left to the check of every shape.
        shape = shapes.get(name, ())
        return shape[axis] if len(shape) == ndim else None

    if "out.2.c_proj.weight" in shapes:
        yield "it is a classifier of noised images, not a diffusion model"
        return
    width = size("time_embed.0.weight", 1, 2)
    if width not in (None, spec.width):
        yield f"it is a network of width {width}, the config's has model.width {spec.width}"
    inputs = size("input_blocks.0.0.weight", 1, 4)
    if inputs == 2 * spec.channels and not spec.super_resolution:
        yield (
            "it is a super-resolution network (its first convolution sees the small image too), "
            "but the config sets no model.low_res_size; use a config such as superres_64_256.py"
        )
    elif inputs == spec.channels and spec.super_resolution:
        yield (
            "it is no super-resolution network, but the config sets model.low_res_size; "
            "use the config of the base model"
        )
    rows = size("label_emb.weight", 0, 2) if "label_emb.weight" in shapes else 0
    if rows is not None:
        yield from _objections_to_classes(spec, rows)
    outputs = size("out.2.weight", 0, 4)
    if outputs != spec.out_channels and outputs in (spec.channels, 2 * spec.channels):
        learned = outputs == 2 * spec.channels
        yield (
            f"it puts out {outputs} channels, the config's network {spec.out_channels}; set "
            f"diffusion.variance to {'learned_range' if learned else 'fixed_large'}"
        )


def _objections_to_classes(spec: UNetSpec, rows: int) -> Iterator[str]:
    """The same of its class embedding, given the number of rows; 0 for none."""
    if rows and not spec.num_classes:
        yield (
            f"it is class-conditional with {rows} classes; set model.class_conditional=true "
            f"and data.num_classes={rows}"
        )
    elif spec.num_classes and not rows:
        yield "it is unconditional, but the config sets model.class_conditional; set it to false"
    elif rows == spec.num_classes and spec.null_class:
        yield (f'it has no class for "not told" beside its {rows}; set model.label_dropout to 0')
    elif rows == spec.num_classes + 1 and not spec.null_class:
        yield (
            f'it has {rows} classes, one more than data.num_classes; if the last stands for "not '
            f'told", set model.label_dropout=0.1, else data.num_classes={rows}'
        )
    elif rows != spec.class_rows:
        yield f"its classes are {rows}, the config's {spec.class_rows}; set data.num_classes"


def from_state_dict(spec: Spec, state_dict: Mapping[str, np.ndarray]) -> dict:
    """Our parameters from an official state dict.

    Args:
        spec: shape of the network, a UNet or a classifier.
        state_dict: official name -> array in PyTorch's layout.

    Returns:
        Nested dict of numpy arrays, as Network.init gives.

    Raises:
        ValueError: names or shapes are not those of the spec's network; one line that says how the
            networks differ, and otherwise names the entries.
    """
    entries = _entries(spec)
    shapes = {name: np.shape(array) for name, array in state_dict.items()}
    if isinstance(spec, UNetSpec) and "input_blocks.0.0.weight" in shapes:
        objections = list(_objections(spec, shapes))
        if objections:
            raise ValueError("; ".join(objections))
    _check_names(entries, state_dict, "the state dict")
    wrong = [
        f"{name} has shape {shapes[name]}, the spec says {entry.official_shape}"
        for name, entry in entries.items()
        if shapes[name] != entry.official_shape
    ]
    if wrong:
        raise ValueError("; ".join(wrong[:3]) + (f"; {len(wrong)} in all" if wrong[3:] else ""))
    params: dict = {}
    for name, (path, shape, _) in entries.items():
        array = np.asarray(state_dict[name])
        if path[-1] in _TRANSPOSED:
            array = np.moveaxis(array, (0, 1), (-1, -2)).reshape(shape)
        group = params
        for part in path[:-1]:
            group = group.setdefault(part, {})
        group[path[-1]] = array
    return params


def to_state_dict(spec: Spec, params: dict) -> dict[str, np.ndarray]:
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
        if path[-1] in _TRANSPOSED:
            array = np.moveaxis(array, (-1, -2), (0, 1)).reshape(official_shape)
        state_dict[name] = array
    return state_dict


def step_of(name: str) -> int:
    """Training step in the name of a file of weights.

    Args:
        name: file name or path: model123456.pt, ema_0.9999_123456.pt or one as of OpenAI's
            releases, cifar10_uncond_50M_500K.pt; with any suffix.

    Returns:
        The step; 0 where the name does not tell.
    """
    stem = PurePath(name).stem
    number = re.search(r"(?:model|ema_[\d.]+_)(\d+)$", stem)
    thousands = re.search(r"_(\d+)K(?:_|$)", stem)
    if number:
        return int(number.group(1))
    return int(thousands.group(1)) * 1000 if thousands else 0


def newest_model(folder: Path) -> Path | None:
    """The model file (model.pt, model123456.safetensors, ...) of the highest step, or None."""
    names = re.compile(r"model\d*\.(pt|safetensors)")
    found = [path for path in folder.iterdir() if names.fullmatch(path.name)]
    return max(found, key=lambda path: (step_of(path.name), path.name), default=None)
