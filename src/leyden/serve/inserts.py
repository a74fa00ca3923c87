"""Vectors that stand in the place of a prompt's tokens, as those of a picture will; the seam for them."""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from leyden.core.errors import UserError
from leyden.model import PAGE, HybridLM, Ranks


@dataclass(frozen=True, eq=False)
class Insert:
    """Vectors in the place of one stretch of a prompt.

    Attributes:
        start: the first token whose place they take; the prompt has any token of the vocabulary there.
        vectors: [n, D], as the model's embedding gives them; on any device.
        digest: what they were made from, as a hash. Prefixes are shared among inserts of equal digests, so other
            vectors must have another one.
    """

    start: int
    vectors: torch.Tensor
    digest: bytes

    @property
    def stop(self) -> int:
        """The first token behind it."""
        return self.start + len(self.vectors)


def check_inserts(model: HybridLM, num_tokens: int, inserts: Sequence[Insert]) -> None:
    """Refuse inserts that a prompt of so many tokens cannot have.

    Raises:
        UserError: what is wrong, and what is allowed.
    """
    if inserts and type(model.ranks) is not Ranks:
        raise UserError("inserts are read by one process, and several ranks serve this model; serve it with one.")
    end, width = 0, model.config.hidden_size
    for insert in inserts:
        if insert.vectors.ndim != 2 or insert.vectors.shape[1] != width or not insert.vectors.is_floating_point():
            raise UserError(
                f"an insert has vectors [n, {width}] of a floating dtype; given {list(insert.vectors.shape)} in "
                f"{insert.vectors.dtype}."
            )
        if not len(insert.vectors) or not insert.digest:
            raise UserError("an insert has at least one vector, and a digest; this one lacks one of them.")
        if insert.start < end or insert.stop > num_tokens:
            raise UserError(
                f"inserts lie within the prompt's {num_tokens} tokens, in order and without overlap; given one from "
                f"{insert.start} to {insert.stop}, where the one before ends at {end}."
            )
        end = insert.stop


def page_digest(inserts: Sequence[Insert], start: int) -> bytes:
    """What tells the page of tokens from ``start`` on from one with the same tokens and other inserts.

    Returns:
        32 bytes; none for a page without inserts.
    """
    inside = [insert for insert in inserts if insert.start < start + PAGE and insert.stop > start]
    if not inside:
        return b""
    digest = hashlib.blake2b(digest_size=32)
    for insert in inside:
        digest.update(struct.pack("<qqq", insert.start - start, len(insert.vectors), len(insert.digest)))
        digest.update(insert.digest)
    return digest.digest()
