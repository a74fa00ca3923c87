"""Documents packed into one row: where they lie, and the states at their ends."""

from bisect import bisect_right
from dataclasses import dataclass

import torch

from leyden.ops.lightning_attention.chunks import ChunkSegment


@dataclass(frozen=True)
class DocumentBounds:
    """N documents, one behind the other.

    Attributes:
        bounds: the N + 1 positions where documents begin and end, on the host.
        starts: [T] int32, where the document of each token begins, on the device of the tokens.
    """

    bounds: list[int]
    starts: torch.Tensor

    @classmethod
    def of(cls, cu_seqlens: torch.Tensor, device: torch.device) -> "DocumentBounds":
        """From cu_seqlens [N+1]."""
        cu = cu_seqlens.to("cpu", torch.int32)
        return cls(cu.tolist(), torch.repeat_interleave(cu[:-1], cu.diff()).to(device))

    @property
    def lengths(self) -> list[int]:
        """How many tokens each document has."""
        return [end - start for start, end in zip(self.bounds[:-1], self.bounds[1:], strict=True)]

    def divide(self, segment: ChunkSegment) -> bool:
        """Whether a document begins within the segment, or with it behind another."""
        below, behind = (bisect_right(self.bounds, position) for position in (segment.start - 1, segment.end - 1))
        return self.bounds[behind - 1] > 0 and behind > below

    def ending(self, segment: ChunkSegment) -> range:
        """The documents that end in the segment: after its first bound, up to its last."""
        first, last = (bisect_right(self.bounds, position, lo=1) - 1 for position in (segment.start, segment.end))
        return range(first, last)


def write_end_states(
    documents: DocumentBounds,
    segment: ChunkSegment,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor,
    states: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """The state at the end of every document that ends in the segment.

    Such a state is what the document's tokens in its last chunk have left there, plus what is left of the state before
    that chunk. The former are padded to the longest, at most a chunk, which is no more memory than their states.

    Args:
        documents: where the documents lie.
        segment: the chunks at hand.
        k, v: [1, T, H, K] and [1, T, H, V], all tokens, in the dtype of the inputs.
        slopes: [H], in the dtype of the states.
        states: [n + 1, 1, H, K, V], the states before and after each chunk of the segment.
        out: [N, H, K, V], written where a document ends.
    """
    ending = documents.ending(segment)
    if not ending:
        return
    bounds = torch.tensor(documents.bounds[ending.start : ending.stop + 1], device=out.device)
    start, end = bounds[:-1], bounds[1:]
    chunk = ((end - 1 - segment.start) // segment.chunk).clamp_min_(0)
    before = segment.start + chunk * segment.chunk
    length = end - torch.maximum(start, before)
    out[ending.start : ending.stop] = _what_is_left(k, v, slopes, end, length)
    (continued,) = ((start < before) & (start < end)).nonzero(as_tuple=True)
    decay = torch.exp(-slopes * (end - before)[continued, None])[:, :, None, None]
    carried = states[:, 0].index_select(0, chunk[continued]).mul_(decay)
    out.index_add_(0, ending.start + continued, carried)


def _what_is_left(
    k: torch.Tensor, v: torch.Tensor, slopes: torch.Tensor, end: torch.Tensor, length: torch.Tensor
) -> torch.Tensor:
    """``sum_j exp(-slope (end - 1 - j)) k_j v_j^T`` over the ``length`` tokens before each end: [m, H, K, V]."""
    back = torch.arange(int(length.max()), device=k.device)
    tokens = (end[:, None] - 1 - back).clamp_min_(0).flatten()
    keys, values = (x[0].index_select(0, tokens).unflatten(0, (len(end), -1)).transpose(1, 2) for x in (k, v))
    decay = torch.exp(-slopes[:, None] * back) * (back < length[:, None])[:, None]  # [m, H, width]
    return (keys * decay[..., None].to(k.dtype)).mT @ values
