"""Fewer steps from the same model: which steps to keep, and their betas (section 4)."""

from collections.abc import Sequence

import jax
import numpy as np

from iddpm_jax.diffusion.process import Process, make_process


def space_timesteps(T: int, spec: str | Sequence[int]) -> np.ndarray:
    """Choose which of T steps to keep.

    Nichol & Dhariwal 2021, section 4; Song et al. 2020 (DDIM) for "ddimN".

    Args:
        T: number of steps of the original process.
        spec: "" keeps all; "250" spreads 250 evenly from the first to the last; "10,15,20" divides
            the process into that many equal sections (the first T mod n one step longer) and
            spreads each count within its own, as does a sequence of counts; "ddim50" takes the
            smallest whole stride that gives exactly 50 steps from 0.

    Returns:
        Kept indices, ascending, int64.

    Raises:
        ValueError: more steps asked for than there are, no fitting stride, or not a spec.
    """
    if isinstance(spec, str):
        if spec == "":
            return np.arange(T)
        if spec.startswith("ddim"):
            return _whole_stride(T, _count(spec[len("ddim") :], spec))
        spec = [_count(part, spec) for part in spec.split(",")]
    return _sections(T, list(spec))


def _count(text: str, spec: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(
            f"steps {spec!r} is not understood; use '250', '10,15,20', 'ddim50' or '' for all"
        ) from None


def _whole_stride(T: int, count: int) -> np.ndarray:
    for stride in range(1, T):
        steps = np.arange(0, T, stride)
        if len(steps) == count:
            return steps
    raise ValueError(f"no whole stride takes exactly {count} of {T} steps; try another count")


def _sections(T: int, counts: list[int]) -> np.ndarray:
    if not counts:
        raise ValueError("an empty list of counts keeps no step; give at least one count")
    base, extra = divmod(T, len(counts))
    steps = []
    start = 0
    for i, count in enumerate(counts):
        size = base + (i < extra)
        if size < count:
            raise ValueError(f"cannot take {count} steps from a section of {size} (T = {T})")
        stride = 1.0 if count <= 1 else (size - 1) / (count - 1)
        # Adding up in floating point and rounding half to even decides which steps OpenAI's models
        # use.
        position = 0.0
        for _ in range(count):
            steps.append(start + round(position))
            position += stride
        start += size
    return np.array(sorted(set(steps)), dtype=np.int64)


def skip_beginning(timesteps: np.ndarray, skip: float) -> np.ndarray:
    """Leave out the noisiest steps, with which the reverse process begins.

    Nichol & Dhariwal 2021, section 3.2: with the linear schedule a prefix of the reverse process
    does hardly anything. Sampling then starts from N(0, I) at the noisiest step that is left.

    Args:
        timesteps: kept indices, ascending [K].
        skip: share of them to leave out, rounded to whole steps; at least one step stays.

    Returns:
        The first of them, ascending.

    Raises:
        ValueError: skip outside [0, 1).
    """
    if not 0 <= skip < 1:
        raise ValueError(f"skip is {skip}; it must be at least 0 and below 1")
    return timesteps[: max(1, len(timesteps) - round(skip * len(timesteps)))]


def respaced_betas(betas: np.ndarray, timesteps: np.ndarray) -> np.ndarray:
    """Betas of the process that visits only the given steps: 1 - alpha_bar_i / alpha_bar_previous.

    Nichol & Dhariwal 2021, equation 19. Not clipped again.

    Args:
        betas: of the original process [T], float64.
        timesteps: kept indices, ascending [K].

    Returns:
        betas [K], float64.
    """
    kept = np.cumprod(1 - np.asarray(betas, np.float64))[np.asarray(timesteps, np.int64)]
    return 1 - kept / np.append(1.0, kept[:-1])


def respace(
    betas: np.ndarray,
    spec: str | Sequence[int] | np.ndarray,
    rescale_timesteps: bool = False,
    skip: float = 0.0,
) -> Process:
    """The Process that visits the steps of a spec, and feeds the network their original time.

    It starts from the float64 betas, because a Process holds float32 tables, from which small betas
    cannot be recovered.

    Args:
        betas: of the original process [T], float64.
        spec: see space_timesteps; or a numpy array of the very indices to keep.
        rescale_timesteps: feed the network t * 1000 / T as a float.
        skip: see skip_beginning; the steps that are left are those of the process without it.

    Returns:
        Process with as many steps as are kept.

    Raises:
        ValueError: impossible spec, indices that do not ascend within [0, T), no step kept, or skip
            outside [0, 1).
    """
    T = len(betas)
    steps = spec if isinstance(spec, np.ndarray) else space_timesteps(T, spec)
    if len(steps) == 0:
        raise ValueError(f"steps {spec!r} keeps no step of {T}")
    if steps[0] < 0 or steps[-1] >= T or (np.diff(steps) <= 0).any():
        raise ValueError(f"steps must ascend within 0 to {T - 1}, got {steps.tolist()}")
    steps = skip_beginning(steps, skip)
    return make_process(respaced_betas(betas, steps), steps, T, rescale_timesteps)


def padded(process: Process, length: int) -> Process:
    """The same process in longer tables, so that one program serves any number of steps.

    A compiled function is made for the shapes of its arguments. Given tables as long as those of
    the original process, whatever was kept of it, it is the same function for every spec.

    Args:
        process: noise process with K steps.
        length: of the tables, at least K.

    Returns:
        Process whose tables [length] repeat their last entry. Its T is the length: whoever takes it
        is told the number of steps beside it.

    Raises:
        ValueError: the tables would be cut.
    """
    extra = length - process.T
    if extra < 0:
        raise ValueError(f"a process of {process.T} steps does not fit into {length}")
    return jax.tree.map(lambda table: np.pad(table, (0, extra), mode="edge"), process)
