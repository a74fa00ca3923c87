"""Accelerators by name, with what their makers publish: no machine reaches these figures."""

from dataclasses import dataclass

from leyden.core.errors import UserError, suggest
from leyden.core.roofline import Speed


@dataclass(frozen=True)
class Chip:
    """One accelerator.

    Attributes:
        title: what its maker calls it.
        flops_per_second: of dense bfloat16 matrix products summed in float32, without structured sparsity.
        bytes_per_second: of its memory.
        memory_bytes: of its memory.
        source: where the figures are published.
    """

    title: str
    flops_per_second: float
    bytes_per_second: float
    memory_bytes: float
    source: str

    @property
    def speed(self) -> Speed:
        """The peaks alone."""
        return Speed(self.bytes_per_second, self.flops_per_second)


CHIPS = {
    "a100": Chip("NVIDIA A100 SXM 80 GB", 312e12, 2.039e12, 80e9, "NVIDIA A100 80GB data sheet"),
    "h100": Chip("NVIDIA H100 SXM", 989.5e12, 3.35e12, 80e9, "NVIDIA H100 data sheet; half of its peak with sparsity"),
    "h200": Chip("NVIDIA H200 SXM", 989.5e12, 4.8e12, 141e9, "NVIDIA H200 data sheet; half of its peak with sparsity"),
    "h20": Chip("NVIDIA H20", 148e12, 4.0e12, 96e9, "as vendors list it; NVIDIA has no public data sheet"),
    "b200": Chip(
        "NVIDIA B200",
        2250e12,
        8.0e12,
        180e9,
        "NVIDIA DGX B200 data sheet, an eighth; a quarter of its FP8 with sparsity",
    ),
    "mi300x": Chip("AMD Instinct MI300X", 1307.4e12, 5.3e12, 192e9, "AMD Instinct MI300X data sheet"),
    "l40s": Chip("NVIDIA L40S", 362e12, 864e9, 48e9, "NVIDIA L40S data sheet"),
    "rtx4090": Chip(
        "NVIDIA GeForce RTX 4090", 165.2e12, 1.008e12, 24e9, "NVIDIA Ada architecture white paper, appendix A"
    ),
}


def chip_named(name: str) -> Chip:
    """The chip of the table.

    Raises:
        UserError: it is not in it.
    """
    if name.lower() not in CHIPS:
        raise UserError(f"'{name}' is no chip of the table; there are {', '.join(CHIPS)}{suggest(name.lower(), CHIPS)}")
    return CHIPS[name.lower()]
