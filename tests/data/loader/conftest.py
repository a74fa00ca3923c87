from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from leyden.data.shards import TokenFile, TokenShards


@pytest.fixture(scope="session")
def numbered() -> Callable[..., TokenShards]:
    """Shards whose every token is another: a token tells its document and its place."""

    def make(lengths: Sequence[int], first: int = 1, files: int = 1, fingerprint: str = "numbered") -> TokenShards:
        """``lengths`` [D]; tokens count from ``first``; documents are dealt to so many files."""
        made = []
        for part in np.array_split(np.array(lengths, np.int64), files):
            tokens = np.arange(first, first + part.sum(), dtype=np.int32)
            ends = np.cumsum(part)
            made.append(TokenFile(tokens, ends - part, part))
            first += len(tokens)
        return TokenShards.over(made, Path("nowhere"), f"{fingerprint} {lengths} {first}", vocab_size=first)

    return make
