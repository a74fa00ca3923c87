"""Documents of token files that are held out for evaluation, by :mod:`leyden.data.hold_out_rule` on their tokens."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from leyden.core.errors import UserError
from leyden.core.log import progress
from leyden.data.hold_out_rule import border, draw
from leyden.data.shards import TOKEN, TokenShards


@dataclass(frozen=True, eq=False)
class TokenSplit:
    """What of one group of tokens is held out.

    Attributes:
        documents: [N] int64, the index of each document of which something is held out.
        kept: [N] int64, how many of its first tokens are trained on: 0, unless it is the only document there is.
    """

    documents: np.ndarray
    kept: np.ndarray

    def train(self, shards: TokenShards) -> TokenShards:
        """The tokens to train on."""
        return shards.shortened(self.documents, self.kept)

    def held_out(self, shards: TokenShards) -> Iterator[tuple[int, np.ndarray]]:
        """The row of each document of which something is held out, and those tokens: [length] int64."""
        for index, kept in zip(self.documents.tolist(), self.kept.tolist(), strict=True):
            places = slice(index, index + 1)
            yield int(shards.rows[index]), shards.gather(shards.starts[places] + kept, shards.lengths[places] - kept)


def split_tokens(groups: Mapping[str, TokenShards], share: float) -> dict[str, TokenSplit]:
    """Choose what is held out of all groups together; at least one document is, and one is not.

    Of a single document, the end is held out.

    Args:
        groups: token shards by name.
        share: of the documents; above 0 and below 1.

    Raises:
        UserError: there is one document, of one token.
    """
    names = list(groups)
    counts = [groups[name].num_documents for name in names]
    if sum(counts) == 1:
        return {name: _end_of(groups[name], share) if groups[name].num_documents else _nothing() for name in names}
    draws: list[float] = []
    with progress("holding documents out", sum(counts)) as bar:
        for name in names:
            for index in range(groups[name].num_documents):
                draws.append(draw(groups[name].document(index).astype(TOKEN).tobytes()))
                bar.advance()
    if min(draws) == max(draws):
        raise UserError("the documents of data.tokens are all equal: give tokens to train on and others to hold out.")
    chosen = np.split(np.array(draws) < border(share, min(draws), max(draws)), np.cumsum(counts)[:-1])
    found = {name: np.flatnonzero(part) for name, part in zip(names, chosen, strict=True)}
    return {name: TokenSplit(indices, np.zeros_like(indices)) for name, indices in found.items()}


def _nothing() -> TokenSplit:
    return TokenSplit(np.empty(0, np.int64), np.empty(0, np.int64))


def _end_of(shards: TokenShards, share: float) -> TokenSplit:
    length = int(shards.lengths[0])
    if length < 2:
        raise UserError(
            f"{shards.directory} holds one document, of one token: give tokens to train on and to hold out."
        )
    kept = min(max(int(length * (1 - share)), 1), length - 1)
    return TokenSplit(np.zeros(1, np.int64), np.array([kept]))
