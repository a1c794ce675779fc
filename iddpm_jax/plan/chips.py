"""TPU chips by the vendor's figures, and the slices they come in: "v5e:4x4" -> Topology.

The figures are those of Google's documentation, one page for each chip
(https://docs.cloud.google.com/tpu/docs/v4, v5p, v5e and v6e, read in 2026). Its "interconnect
bandwidth" of a chip counts all links in one direction, 1600 Gbps for the four links of v5e; here it
is 50 GB/s for each link.
"""

import dataclasses
import math

from iddpm_jax.errors import InputError

GIB = 2**30

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBIC = "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16".split()


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of chip.

    Attributes:
        flops: peak of bfloat16 products, FLOP/s.
        hbm: memory, bytes.
        hbm_bandwidth: bytes/s.
        link_bandwidth: of one link to a neighbour, in one direction, bytes/s.
        slices: shapes of the slices that one can have.
        cores: devices that XLA sees in a chip when it compiles ahead of time; each has an even
            share of all of the above. v4 joins its two cores into one device on the machine, which
            the compiler cannot be told in advance.
    """

    flops: float
    hbm: int
    hbm_bandwidth: float
    link_bandwidth: float
    slices: tuple[str, ...]
    cores: int = 1


CHIPS = {
    "v4": Chip(275e12, 32 * GIB, 1228e9, 50e9, tuple(_CUBIC), cores=2),
    "v5e": Chip(197e12, 16 * GIB, 819e9, 50e9, _FLAT),
    "v5p": Chip(459e12, 95 * GIB, 2765e9, 100e9, (*_CUBIC, "16x16x16", "16x16x24")),
    "v6e": Chip(918e12, 32 * GIB, 1640e9, 100e9, _FLAT),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice: chips of one kind, linked in a grid.

    Attributes:
        name: as libtpu writes it, such as "v5e:4x4".
        chip: kind of its chips.
        shape: chips along each axis.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def chips(self) -> int:
        """Number of chips."""
        return math.prod(self.shape)

    @property
    def devices(self) -> int:
        """Number of devices that XLA sees."""
        return self.chips * self.chip.cores

    @property
    def links(self) -> int:
        """Links of a chip: two along an axis, one where the neighbours on both sides are one."""
        return sum(min(n - 1, 2) for n in self.shape)


def topology(text: str) -> Topology:
    """Read the name of a slice.

    Args:
        text: chip and shape, such as "v5e:4x4".

    Returns:
        Topology.

    Raises:
        InputError: no such chip, or no such slice of it.
    """
    name, _, shape = text.partition(":")
    if name not in CHIPS:
        raise InputError(
            f"--topology {text!r} names no chip that is known; use one of {', '.join(CHIPS)} with "
            "a shape, such as v5e:4x4"
        )
    chip = CHIPS[name]
    if shape not in chip.slices:
        raise InputError(
            f"--topology {text!r} is no slice of {name}; its shapes are {', '.join(chip.slices)}"
        )
    return Topology(text, chip, tuple(map(int, shape.split("x"))))
