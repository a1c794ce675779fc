"""Variants of a config, named after the colon of --config: objectives, schedules, lengths."""

from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from iddpm_jax.errors import InputError

Variant = Callable[[ConfigDict], None]
"""Changes a config in place."""


def apply(config: ConfigDict, names: str, own: Mapping[str, Variant | None]) -> None:
    """Apply the variants named after the colon of --config, such as digits.py:l_vlb,linear.

    Args:
        config: changed in place.
        names: comma-separated; "" for none.
        own: variants of this config file beside COMMON; None for a name of the file as it is.

    Raises:
        InputError: a name that is not known, with those that are.
    """
    known = {**COMMON, **own}
    for name in filter(None, names.split(",")):
        if name not in known:
            raise InputError(f"variant {name!r} is unknown; use one of {', '.join(known)}")
        change = known[name]
        if change is not None:
            change(config)


def _l_simple(config: ConfigDict) -> None:
    config.loss.name = "l_simple"
    config.diffusion.variance = "fixed_large"


def _l_hybrid(config: ConfigDict) -> None:
    config.loss.name = "l_hybrid"
    config.diffusion.variance = "learned_range"


def _l_vlb(config: ConfigDict) -> None:
    config.loss.name = "l_vlb"
    config.loss.timesteps = "importance"
    config.diffusion.variance = "learned_range"


def _diffusion(**values: object) -> Variant:
    return lambda config: config.diffusion.update(values)


COMMON: dict[str, Variant] = {
    "l_simple": _l_simple,
    "l_hybrid": _l_hybrid,
    "l_vlb": _l_vlb,
    "linear": _diffusion(schedule="linear"),
    "cosine": _diffusion(schedule="cosine"),
    "T1000": _diffusion(T=1000),
    "T4000": _diffusion(T=4000),
}
