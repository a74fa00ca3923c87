"""CUDA graphs of the decode step: recorded once for each batch size, then launched by one call.

A step of single tokens is a few hundred short kernels, and launching them one by one takes the host longer than the GPU
takes to run them. A CUDA graph runs again what was recorded, on the same memory: so what a step is about lies in one
buffer of fixed places, which a step overwrites first, and nothing that was recorded knows a length, a slot or a page.
Steps of a size share a recording; what is left of it is filled up with rows that are nobody's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from leyden.core.log import log_once
from leyden.core.transfers import packed_bytes, send
from leyden.model import PAGE, HybridLM, Pools, Rows
from leyden.model.decode import Decode
from leyden.model.rows import GRAIN

Step = Callable[[], None]


class Recorder(Protocol):
    """Runs a step that has no other effects than on memory, and gives what does the same to that memory again.

    Raises:
        RuntimeError: the step waits for the device, or asks for something else that no recording can hold.
    """

    def __call__(self, step: Step, /) -> Step: ...


class CudaRecorder:
    """Records CUDA graphs, all in one pool of memory, since they never run beside each other."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, step: Step, /) -> Step:
        """The first run compiles kernels and finds out whether any op waits for the device; it is not recorded."""
        here, stream = torch.cuda.current_stream(self._device), torch.cuda.Stream(self._device)
        stream.wait_stream(here)
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            with torch.cuda.stream(stream):
                step()
        finally:
            torch.cuda.set_sync_debug_mode(mode)
        here.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
            step()
        return graph.replay


@dataclass(frozen=True)
class _Recording:
    """Of one size: the buffer of what a step is about, and what computes the logits of all its rows."""

    inputs: torch.Tensor
    replay: Step


class DecodeGraphs:
    """Reads one more token of many sequences by the model's modules, recorded.

    Args:
        model: in evaluation mode, with the weights in the place where they stay.
        pools: of the sequences.
        record: what records on the device that these are on.
    """

    def __init__(self, model: HybridLM, pools: Pools, record: Recorder) -> None:
        self._model, self._pools = model, pools
        self._record: Recorder | None = record
        self._recordings: dict[tuple[int, int], _Recording] = {}
        shape = (size_of(pools.num_states), model.config.vocab_size)
        dtype = torch.promote_types(model.dtype, torch.float32)
        self._logits = torch.empty(shape, dtype=dtype, device=pools.device)

    @torch.inference_mode()
    def run(self, decodes: Sequence[Decode]) -> torch.Tensor | None:
        """Read them all.

        Returns:
            The logits [R, V] in float32 of each one's token, good until the next call. None where these cannot be read
            so, and nothing was: a draft among them, a first token of all, or a step that cannot be recorded.
        """
        size = size_of(len(decodes))
        if self._record is None or not decodes or size > len(self._logits) or not all(map(_is_plain, decodes)):
            return None
        width = _width_of(max(len(decode.pages) for decode in decodes))
        recording = self._recordings.get((size, width)) or self._recorded(size, width)
        if recording is None:
            return None
        send(self._about(decodes, size, width), recording.inputs.device, recording.inputs)
        recording.replay()
        return self._logits[: len(decodes)]

    def _recorded(self, size: int, width: int) -> _Recording | None:
        """A recording for steps of ``size`` rows with ``width`` pages; None where there can be none, now and later."""
        assert self._record is not None
        nobody = self._about([], size, width)
        device = self._pools.device
        inputs = torch.empty(packed_bytes(nobody), dtype=torch.uint8, device=device)
        ids, positions, places, slots, lengths, none, tables = send(nobody, device, inputs)
        rows = Rows(
            positions=positions,
            places=places,
            num_decodes=size,
            rounds=(0, size),
            moves=(False,),
            lengths=lengths,
            bounds=(0,),
            ends=(),
            cu_seqlens=none,
            states_before=slots,
            states_after=slots,
            tables=tables,
        )

        def step() -> None:
            # The recordings share one place for logits: in a place of its own each would keep them for good.
            self._logits[:size] = self._model.lm_head(self._model.read(ids, rows, self._pools))

        try:
            replay = self._record(step)
        except RuntimeError as reason:
            log_once(__name__, f"decoding without CUDA graphs: {str(reason).splitlines()[0]}")
            self._record = None
            return None
        recording = self._recordings[size, width] = _Recording(inputs, replay)
        return recording

    def _about(self, decodes: Sequence[Decode], size: int, width: int) -> list[np.ndarray]:
        """What a step is about: ids, positions, places, slots, lengths, no bounds, tables; the last rows nobody's."""
        n = len(decodes)
        ids, positions = np.zeros((2, size), np.int64)
        slots = np.full(size, -1, np.int64)
        places = self._pools.nowhere + np.arange(size) % PAGE
        lengths, tables = np.zeros(size, np.int32), np.zeros((size, width), np.int32)
        ids[:n] = [decode.tokens[0] for decode in decodes]
        positions[:n] = [decode.start for decode in decodes]
        slots[:n] = [decode.states[0] for decode in decodes]
        lengths[:n] = positions[:n] + 1
        for table, decode in zip(tables, decodes, strict=False):
            table[: len(decode.pages)] = decode.pages
        pages, offsets = np.divmod(positions[:n], PAGE)
        places[:n] = tables[np.arange(n), pages].astype(np.int64) * PAGE + offsets
        return [ids, positions, places, slots, lengths, np.zeros(1, np.int32), tables]


def size_of(num_rows: int) -> int:
    """The least size of a recording that holds so many rows: GRAIN times 1, 2, 3, 4, 6, 8, 12, ..."""
    grains = max(1, -(-num_rows // GRAIN))
    power = 1 << (grains - 1).bit_length()
    return GRAIN * (power * 3 // 4 if grains <= power * 3 // 4 else power)


def _width_of(num_pages: int) -> int:
    """The least width of a table that holds so many pages: 4, 16, 64, ..."""
    width = 4
    while width < num_pages:
        width *= 4
    return width


def _is_plain(decode: Decode) -> bool:
    """Whether one token is read behind others, into the slot of its state, and its logits are wanted."""
    return len(decode.tokens) == 1 and decode.start > 0 and decode.wanted == 1 and decode.states[0] == decode.states[1]
