"""Options that several verbs have."""

import re
from typing import Annotated, Literal

import typer

Device = Annotated[
    str | None,
    typer.Option(help="Where it computes: cpu, cuda, cuda:1, ...; the GPU where there is one.", show_default=False),
]

LayoutName = Literal["transformers", "minimax", "minimax_vl", "ling", "minicpm_sala", "hypenet", "leyden"]
"""The layouts of a directory (``leyden.checkpoint.layouts.LAYOUTS``)."""
AnyLayoutName = Literal["transformers", "minimax", "minimax_vl", "ling", "minicpm_sala", "hypenet", "leyden", "gguf"]
"""With that of a single file."""

_UNITS = {"": 1.0, "B": 1.0, **{f"{prefix}B": 1000.0**power for power, prefix in enumerate("KMGT", 1)}}
_UNITS |= {f"{prefix}IB": 1024.0**power for power, prefix in enumerate("KMGT", 1)}


def size_of(text: str) -> float:
    """``80GB`` or ``80GiB`` to bytes.

    Raises:
        UserError: it is no size.
    """
    from leyden.core.errors import UserError

    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([KMGT]?i?B?)\s*", text, re.IGNORECASE)
    if match is None or match[2].upper() not in _UNITS:
        raise UserError(f"'{text}' is no size; give one like 80GB or 80GiB.")
    return float(match[1]) * _UNITS[match[2].upper()]


def lengths_of(text: str) -> tuple[int, ...]:
    """``1k,32k,1m`` to numbers of tokens, rising and each once; k stands for 1024 and m for its square.

    Raises:
        UserError: a part that is no length.
    """
    from leyden.core.lengths import tokens_of

    return tuple(sorted({tokens_of(part) for part in text.split(",")}))


def counts_of(text: str) -> tuple[int, ...]:
    """``4,16,64`` to whole numbers, rising and each once.

    Raises:
        UserError: a part that is no whole number above 0.
    """
    from leyden.core.errors import UserError

    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if not part.isdecimal() or int(part) < 1:
            raise UserError(f"'{part}' is no number of pairs; give whole numbers like 4,16,64, with commas.")
    return tuple(sorted(set(map(int, parts))))
