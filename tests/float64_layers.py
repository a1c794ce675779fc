"""Layers of the networks in numpy float64, slowly and plainly: what tests expect of the package.

Images are [B, H, W, C]; params are the package's trees, with any leaves that numpy can read.
"""

import jax
import numpy as np

GROUPS = 32


def float64(tree):
    """Every leaf as a float64 array."""
    return jax.tree.map(lambda array: np.asarray(array, np.float64), tree)


def random_params(shapes: dict, seed: int = 0) -> dict:
    """Float32 parameters without zeros, so that every path of a network matters."""
    random = np.random.default_rng(seed)

    def draw(path, leaf):
        values = random.normal(size=leaf.shape)
        if len(leaf.shape) > 1:
            values /= np.sqrt(np.prod(leaf.shape[:-1]))
        else:
            values = 0.1 * values + (path[-1].key == "scale")
        return values.astype(np.float32)

    return jax.tree.map_with_path(draw, shapes)


def silu(x: np.ndarray) -> np.ndarray:
    """x times its logistic function."""
    return x / (1.0 + np.exp(-x))


def softmax(x: np.ndarray) -> np.ndarray:
    """Of the last axis."""
    weights = np.exp(x - x.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def dense(x: np.ndarray, params: dict) -> np.ndarray:
    """Linear map of the last axis."""
    return x @ params["kernel"] + params["bias"]


def conv3(x: np.ndarray, params: dict) -> np.ndarray:
    """3x3 convolution, shift by shift, with one pixel of zeros around the image."""
    height, width = x.shape[1:3]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    out = sum(
        padded[:, i : i + height, j : j + width] @ params["kernel"][i, j]
        for i in range(3)
        for j in range(3)
    )
    return out + params["bias"]


def group_norm(x, params: dict, scale=None, shift=None) -> np.ndarray:
    """Group by group."""
    x = np.asarray(x, np.float64)
    normalised = np.empty_like(x)
    for example in range(x.shape[0]):
        for channels in np.split(np.arange(x.shape[-1]), GROUPS):
            group = x[example, :, :, channels]
            normalised[example, :, :, channels] = (group - group.mean()) / np.sqrt(
                group.var() + 1e-5
            )
    h = normalised * params["scale"] + params["bias"]
    return h if scale is None else h * (1.0 + scale[:, None, None]) + shift[:, None, None]


def average_pool(x: np.ndarray) -> np.ndarray:
    """Mean of the pixels that there are in every 2x2 block."""
    rows, columns = (range(0, size, 2) for size in x.shape[1:3])
    blocks = [[x[:, i : i + 2, j : j + 2].mean(axis=(1, 2)) for j in columns] for i in rows]
    return np.moveaxis(np.array(blocks), 2, 0)


def upsample_nearest(x: np.ndarray) -> np.ndarray:
    """Every pixel twice, both ways."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


def attend(qkv: np.ndarray, heads: int, order: str) -> np.ndarray:
    """Position by position, [B, N, 3 C] -> [B, N, C]; order says where q, k and v of a head are."""
    batch, length, channels = qkv.shape
    size = channels // (3 * heads)
    out = np.zeros((batch, length, heads * size))
    for head in range(heads):
        # In units of one head's channels.
        first, step = {"heads_first": (3 * head, 1), "qkv_first": (head, heads)}[order]
        starts = [size * (first + i * step) for i in range(3)]
        for example in range(batch):
            q, k, v = (qkv[example, :, start : start + size] for start in starts)
            for i in range(length):
                weights = softmax(k @ q[i] / np.sqrt(size))
                out[example, i, head * size : (head + 1) * size] = weights @ v
    return out


def attention(x, params: dict, heads: int, order: str = "heads_first") -> np.ndarray:
    """Self-attention over all pixels, with its residual connection."""
    params = float64(params)
    h = group_norm(x, params["norm"]).reshape(x.shape[0], -1, x.shape[-1])
    h = dense(attend(dense(h, params["qkv"]), heads, order), params["proj"])
    return np.asarray(x, np.float64) + h.reshape(x.shape)


def attention_pool(x, params: dict, heads: int) -> np.ndarray:
    """What the mean of all pixels gathers from itself and them: [B, H, W, C] -> [B, features]."""
    params = float64(params)
    pixels = np.asarray(x, np.float64).reshape(x.shape[0], -1, x.shape[-1])
    h = np.concatenate([pixels.mean(axis=1, keepdims=True), pixels], axis=1)
    h = dense(h + params["positional_embedding"], params["qkv"])
    return dense(attend(h, heads, "qkv_first")[:, 0], params["proj"])


def res_block(x, embedding, params: dict, resample: str = "", scale_shift: bool = True):
    """Residual block without dropout; resample is "", "down" or "up"."""
    params, x = float64(params), np.asarray(x, np.float64)
    h = silu(group_norm(x, params["norm_in"]))
    if resample:
        function = average_pool if resample == "down" else upsample_nearest
        h, x = function(h), function(x)
    h = conv3(h, params["conv_in"])
    condition = dense(silu(np.asarray(embedding, np.float64)), params["embedding"])
    if scale_shift:
        h = group_norm(h, params["norm_out"], *np.split(condition, 2, axis=-1))
    else:
        h = group_norm(h + condition[:, None, None], params["norm_out"])
    h = conv3(silu(h), params["conv_out"])
    return h + (dense(x, params["skip"]) if "skip" in params else x)


def embed_time(t, params: dict, width: int) -> np.ndarray:
    """Cosines and sines of t through two linear layers: [B] -> [B, 4 width]; width is even."""
    params = float64(params)
    half = width // 2
    angles = np.asarray(t, np.float64)[:, None] * 10000.0 ** (-np.arange(half) / half)
    h = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    return dense(silu(dense(h, params["time_embedding_in"])), params["time_embedding_out"])
