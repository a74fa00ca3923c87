"""The sizes in which one call of lightning attention in Triton is cut, and of gated linear attention.

They follow from shapes and the kind of GPU alone, so that the same inputs give the same bits there.
"""

from dataclasses import dataclass, replace

import torch

from leyden.ops.launching import blocks, has_large_memory, multiprocessors, padded

_SHORTEST_SEGMENT = 512
"""Tokens. A segment's state is written and read once; at 512 tokens that is an eighth of the tokens' own bytes."""

_MULTIPLE = 64
"""Tokens. Segments are whole chunks, of any size."""


@dataclass(frozen=True)
class LightningTiles:
    """The tile sizes of one launch.

    Attributes:
        chunk: tokens of a chunk.
        value_dims: of a program.
        num_warps: of a program.
        resident: programs that a multiprocessor holds at once, by the registers and memory that they take.
        num_stages: with 3, a chunk's loads are issued before the products of the chunk before it; with 2, after them.
    """

    chunk: int
    value_dims: int
    num_warps: int
    resident: int
    num_stages: int = 3


_ANY = 1 << 30
_TILES = {
    torch.bfloat16: (
        (64, (64, 64, 4, 2), (64, 32, 4, 2)),
        (128, (64, 128, 8, 1), (64, 64, 8, 1)),
        (_ANY, (32, 64, 8, 1)),
    ),
    torch.float16: ((64, (64, 32, 4, 2)), (128, (32, 32, 8, 1)), (_ANY, (16, 32, 8, 1))),
    torch.float32: ((32, (32, 64, 8, 1)), (64, (16, 64, 8, 1)), (_ANY, (16, 16, 8, 1))),
}
"""By the widest head that a row is for: chunk, value dims, warps and residents, where programs are many and where they
are few. float32 is multiplied outside of the matrix units."""

_NARROW_TILES = {**_TILES, torch.bfloat16: ((64, (64, 64, 4, 2)), (128, (64, 32, 4, 2)), (_ANY, (32, 32, 8, 1)))}
"""Where products read their operands from registers, which then hold less of the state, and memory is small."""


@dataclass(frozen=True)
class LaunchPlan:
    """What is decided from shapes and the device alone.

    Attributes:
        tiles: of the programs.
        length: the most tokens of a segment.
        num_segments: the most there can be.
        split: whether a document may have more than one.
    """

    tiles: LightningTiles
    length: int
    num_segments: int
    split: bool

    @classmethod
    def of(cls, q: torch.Tensor, v: torch.Tensor, num_documents: int, longest: int) -> "LaunchPlan":
        """For rows q [T, H, K] and v [T, H, V], of which no document has more than ``longest`` tokens.

        A program takes as many value dims as registers hold, so that queries and keys are read by few; fewer where all
        programs then run at once. Where there is still room for twice as many, documents are cut into segments (whose
        states cost another reading of keys and values, half as much again as the forward moves).
        """
        (T, H, K), V = q.shape, v.shape[-1]
        width = padded(max(K, V))  # either may be the keys' in one of the backward's passes
        table = (_TILES if has_large_memory(q.device) else _NARROW_TILES)[q.dtype]
        wide, *narrow = (LightningTiles(*tiles) for tiles in next(row for widest, *row in table if width <= widest))

        def rounds(tiles: LightningTiles, documents: int) -> float:
            programs = documents * H * blocks(V, min(tiles.value_dims, padded(V)))
            return programs / (multiprocessors(q.device) * tiles.resident)

        chosen = next((tiles for tiles in narrow if rounds(tiles, num_documents) <= 1), wide)
        short = next((chunk for chunk in (16, 32) if chunk * num_documents >= T), chosen.chunk)  # T may be symbolic
        chosen = replace(chosen, chunk=min(chosen.chunk, short))
        parts = max(1, int(1 / rounds(chosen, 1)))
        length = max(_SHORTEST_SEGMENT, blocks(blocks(T, parts), _MULTIPLE) * _MULTIPLE)
        split = longest > length
        return cls(chosen, length, T // length + num_documents if split else num_documents, split)
