"""Documents packed into one row: where they lie, and the states at their ends."""

from dataclasses import dataclass

import torch

from leyden.ops.lightning_attention.chunks import Segment


@dataclass(frozen=True)
class Documents:
    """N documents, one behind the other.

    Attributes:
        bounds: the N + 1 positions where documents begin and end, on the host.
        starts: [T] int64, where the document of each token begins, on the device of the tokens.
    """

    bounds: list[int]
    starts: torch.Tensor

    @classmethod
    def of(cls, cu_seqlens: torch.Tensor, device: torch.device) -> "Documents":
        """From cu_seqlens [N+1]."""
        cu = cu_seqlens.to("cpu", torch.int64)
        starts = torch.repeat_interleave(cu[:-1], cu.diff())
        return cls(cu.tolist(), starts.to(device))

    @property
    def lengths(self) -> list[int]:
        """How many tokens each document has."""
        return [end - start for start, end in zip(self.bounds[:-1], self.bounds[1:], strict=True)]

    def part(self, segment: Segment) -> bool:
        """Whether a document begins within the segment, or at its first token behind another document."""
        return any(0 < bound < segment.end and bound >= segment.start for bound in self.bounds)


def write_end_states(
    documents: Documents,
    segment: Segment,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor,
    states: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """The state at the end of every document that ends in the segment.

    Such a state is what the document's tokens in its last chunk have left, plus the decayed state before that chunk.
    Pieces of like length are taken together, padded to the next power of four.

    Args:
        documents: where the documents lie.
        segment: the chunks at hand.
        k, v: [1, T, H, K] and [1, T, H, V], all tokens.
        slopes: [H], in the dtype of the states.
        states: [n + 1, 1, H, K, V], the states before and after each chunk of the segment.
        out: [N, H, K, V], written where a document ends.
    """
    bounds = torch.tensor(documents.bounds)
    start, end = bounds[:-1], bounds[1:]
    document = ((end > start) & (end > segment.start) & (end <= segment.end)).nonzero().squeeze(1)
    start, end = start[document], end[document]
    chunk = (end - 1 - segment.start) // segment.chunk
    chunk_start = segment.start + chunk * segment.chunk
    length = end - torch.maximum(start, chunk_start)
    carried = (end - chunk_start, start < chunk_start)
    width = 1
    while width < 4 * segment.chunk:
        chosen = ((length > width // 4) & (length <= width)).nonzero().squeeze(1)
        if len(chosen):
            piece = _pieces(k, v, slopes, end[chosen], length[chosen], width)
            distance, continues = (x[chosen].to(slopes) for x in carried)
            decay = torch.exp(-slopes * distance[:, None]) * continues[:, None]
            piece.addcmul_(states[chunk[chosen], 0], decay[:, :, None, None])
            out[document[chosen].to(out.device)] = piece
        width *= 4


def _pieces(
    k: torch.Tensor, v: torch.Tensor, slopes: torch.Tensor, end: torch.Tensor, length: torch.Tensor, width: int
) -> torch.Tensor:
    """``sum_j exp(-slope (end - 1 - j)) k_j v_j^T`` over the ``length`` tokens before each end: [m, H, K, V]."""
    back = torch.arange(width)
    token = (end[:, None] - 1 - back).clamp_min_(0).to(k.device)
    decay = torch.exp(-slopes * back.to(slopes)[:, None])  # [width, H]
    decay = decay * (back < length[:, None]).to(slopes)[:, :, None]
    keys = k[0, token] * decay[..., None].to(k.dtype)
    return torch.einsum("mjhk,mjhv->mhkv", keys, v[0, token]).to(slopes.dtype)
