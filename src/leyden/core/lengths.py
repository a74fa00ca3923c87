"""Numbers of tokens as people write them."""

import re

from leyden.core.errors import UserError


def tokens_of(text: str) -> int:
    """``512``, ``32k`` or ``1m`` to a number of tokens; k stands for 1024 and m for its square.

    Raises:
        UserError: it is no length.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKmM]?)\s*", text)
    length = 0 if match is None else float(match[1]) * {"": 1, "k": 1024, "m": 1024**2}[match[2].lower()]
    if length < 1 or length != int(length):
        raise UserError(f"'{text.strip()}' is no length in tokens; give lengths like 512, 32k or 1m, with commas.")
    return int(length)
