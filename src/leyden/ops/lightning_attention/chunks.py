"""The pieces that chunked lightning attention is made of: segments of chunks, decays within a chunk, the scan."""

from dataclasses import dataclass, replace

import torch

from leyden.ops.choices import LIGHTNING_SEGMENT

CHUNK_TOKENS = 64
"""C, by measurement: with 128 more of the masked products is wasted than is saved on states (docs/math.md)."""

_SEGMENT_ELEMENTS = LIGHTNING_SEGMENT.here


@dataclass(frozen=True)
class ChunkSegment:
    """Tokens ``start`` to ``end`` of the sequence, cut into whole chunks of ``chunk`` tokens."""

    start: int
    end: int
    chunk: int

    def take(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """These tokens of x [B, T, H, D], copied into chunks: contiguous [n, B, H, C, D]."""
        blocks = self._blocks(x)
        return torch.empty(blocks.shape, dtype=dtype, device=x.device).copy_(blocks)

    def put(self, blocks: torch.Tensor, x: torch.Tensor) -> None:
        """Write chunks [n, B, H, C, D] to these tokens of x [B, T, H, D]."""
        self._blocks(x).copy_(blocks)

    def _blocks(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, self.start : self.end].unflatten(1, (-1, self.chunk)).permute(1, 0, 3, 2, 4)


def segments(num_tokens: int, elements_per_token: int) -> list[ChunkSegment]:
    """Cut T tokens into segments that fit the cache; a tail shorter than a chunk is a segment of its own."""
    length = max(1, _SEGMENT_ELEMENTS // (elements_per_token * CHUNK_TOKENS)) * CHUNK_TOKENS
    whole = num_tokens - num_tokens % CHUNK_TOKENS
    cut = [ChunkSegment(start, min(start + length, whole), CHUNK_TOKENS) for start in range(0, whole, length)]
    return cut if whole == num_tokens else [*cut, ChunkSegment(whole, num_tokens, num_tokens - whole)]


@dataclass(frozen=True)
class Decays:
    """What is left of a contribution after the tokens it has passed, within one chunk.

    Every one is exp of a number that is at most zero, or zero. They broadcast over [n, B, H, ...].

    Attributes:
        within: [H, C, C], from token j of the chunk to its token i: exp(-slope (i - j)) for j <= i, else 0.
        entry: [..., H, C, 1], from the state before the chunk to its token i: exp(-slope (i + 1)).
        exit: [..., H, C, 1], from token j to the state after the chunk: exp(-slope (C - 1 - j)).
        across: [..., H, 1, 1], from the state before the chunk to the state after it: exp(-slope C); as wide as slopes.
        divided: which chunks more than one document shares [m], and whether tokens i and j of these chunks are of
            one document [m, 1, 1, C, C]; None where no chunk is shared.
    """

    within: torch.Tensor
    entry: torch.Tensor
    exit: torch.Tensor
    across: torch.Tensor
    divided: tuple[torch.Tensor, torch.Tensor] | None = None

    @classmethod
    def of(cls, slopes_H: torch.Tensor, chunk: int, dtype: torch.dtype) -> "Decays":
        """Formed in the dtype of the slopes; those that multiply tokens are then rounded to ``dtype``."""
        minus = -slopes_H[:, None, None]
        token = torch.arange(chunk, device=slopes_H.device, dtype=slopes_H.dtype)[:, None]
        return cls(
            within=torch.exp(minus * (token - token.mT).clamp_min_(0)).tril_().to(dtype),
            entry=torch.exp(minus * (token + 1)).to(dtype),
            exit=torch.exp(minus * (chunk - 1 - token)).to(dtype),
            across=torch.exp(minus * chunk),
        )

    def between(self, segment: ChunkSegment, starts: torch.Tensor) -> "Decays":
        """The same, and zero from one document to another.

        Args:
            segment: the chunks that the decays are for.
            starts: [end - start] integers, where the document of each token begins.
        """
        starts = starts.view(-1, segment.chunk)
        first = torch.arange(segment.start, segment.end, segment.chunk, device=starts.device)[:, None]
        earlier = starts < first  # this token's document was there before the chunk
        last = starts[:, -1:]
        (shared,) = (starts[:, :1] != last).squeeze(1).nonzero(as_tuple=True)
        same = starts[shared, :, None] == starts[shared, None, :]
        return replace(
            self,
            entry=self.entry * earlier[:, None, None, :, None],
            exit=self.exit * (starts == last)[:, None, None, :, None],
            across=self.across * earlier[:, -1, None, None, None, None],
            divided=(shared, same[:, None, None].to(self.within.dtype)),
        )

    def weigh_(self, scores: torch.Tensor) -> torch.Tensor:
        """Scores [n, B, H, C, C] times the decay from token j to token i, in place."""
        scores.mul_(self.within)
        if self.divided is not None:  # few chunks, so that only these pay for a second pass
            shared, same = self.divided
            scores.index_copy_(0, shared, scores.index_select(0, shared).mul_(same))
        return scores


def scan(deltas: torch.Tensor, across: torch.Tensor, first: torch.Tensor, *, reverse: bool = False) -> torch.Tensor:
    """``states[i + 1] = across[i] * states[i] + deltas[i]`` from ``states[0] = first``.

    Args:
        deltas: [n, B, H, K, V].
        across: as :attr:`Decays.across`.
        first: [B, H, K, V], in the dtype to compute in.
        reverse: run from the end instead: ``states[i] = across[i] * states[i + 1] + deltas[i]`` from
            ``states[n] = first``.

    Returns:
        [n + 1, B, H, K, V] in the dtype of ``first``.
    """
    num_chunks = deltas.shape[0]
    states = first.new_empty(num_chunks + 1, *first.shape)
    (states[:-1] if reverse else states[1:]).copy_(deltas)
    rows, factors = states.unbind(0), across.expand(num_chunks, *across.shape[-4:]).unbind(0)
    if reverse:
        rows, factors = rows[::-1], factors[::-1]
    rows[0].copy_(first)
    for previous, row, factor in zip(rows[:-1], rows[1:], factors, strict=True):
        row.addcmul_(previous, factor)
    return states
