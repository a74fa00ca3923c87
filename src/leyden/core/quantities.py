"""Counts and sizes as people read them."""


def count_text(number: float) -> str:
    """``69e9`` as ``69B``, with two decimals at most."""
    for scale, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= scale:
            return f"{number / scale:.2f}".rstrip("0").rstrip(".") + suffix
    return f"{number:.4g}"


def bytes_text(number: int) -> str:
    """``1536`` as ``1.5 KiB``."""
    for scale, suffix in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if number >= scale:
            return f"{number / scale:.4g} {suffix}"
    return f"{number} bytes"
