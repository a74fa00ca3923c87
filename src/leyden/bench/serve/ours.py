"""Our side of ``leyden bench serve``: the engine as its users run it, timed from request to token."""

import statistics
import time
from dataclasses import dataclass, field

import numpy as np
import torch

from leyden.bench.serve.plan import prompts
from leyden.bench.work import DTYPES, bench_dtype
from leyden.checkpoint import load
from leyden.core import device
from leyden.model import HybridLM, ModelConfig
from leyden.model.quantized import Int8
from leyden.serve import Engine, Sampling
from leyden.serve.request import Request

_GIGABYTES = 1 / 8
"""For keys and values (131,072 tokens in float32, and some), and for snapshots: so little that they are full soon, as
those of a server that has run for a while. Memory that is touched for the first time costs page faults: 5 % of a batch
of prompts on a virtual machine."""

_INT8: dict[str, Int8] = {"int8": "layers", "int8 whole": "all"}


@dataclass
class _Stream:
    """One request, as it was seen: when it was sent, and when each of its tokens came."""

    sent: float
    times: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    cached: int = 0


class ServeOurs:
    """The work, done by an engine.

    A kind names the weights (``"float32"``, ``"bfloat16"``, ``"int8"``, ``"int8 whole"`` with embedding and head in
    8 bits too), and, behind a dash, which layers there are: ``"bfloat16-lightning"`` has lightning layers alone, as
    many as the model has; ``"bfloat16-softmax"`` is one layer of softmax attention.

    Args:
        directory: a checkpoint in any layout.
    """

    def __init__(self, directory: str) -> None:
        device.keep_freed_memory()
        self._directory = directory
        self._held = ""
        self._engine: Engine | None = None
        self._number = 0

    def logits(self, tokens: list[int]) -> np.ndarray:
        """[T, V] float32."""
        with torch.inference_mode():
            return load(self._directory, dtype=torch.float32)[0].eval()(torch.tensor([tokens]))[0].numpy()

    def greedy(self, kind: str, tokens: list[int], new: int) -> list[int]:
        """``new`` tokens behind ``tokens``."""
        return self._run(self._of(kind), [tokens], new)[0].tokens

    def generate(self, kind: str, streams: int, prompt: int, new: int, seed: int) -> tuple[float, float]:
        """Seconds from sending all requests to the last token of all, and to the first of the median request."""
        engine = self._of(kind)
        texts = prompts(streams, prompt, engine.model.config.vocab_size, seed)
        seen = self._run(engine, texts, new, watched=False)
        first = statistics.median(stream.times[0] - stream.sent for stream in seen)
        return max(stream.times[-1] for stream in seen) - seen[0].sent, first

    def prefill(self, kind: str, tokens: list[int]) -> float:
        """Seconds from sending a request to its first token."""
        stream = self._run(self._of(kind), [tokens], 1)[0]
        return stream.times[0] - stream.sent

    def decode(self, kind: str, tokens: list[int], new: int) -> float:
        """Seconds of ``new`` tokens after the first, which ends the prefill."""
        stream = self._run(self._of(kind), [tokens], new + 1)[0]
        return stream.times[-1] - stream.times[0]

    def step(self, kind: str, streams: int, prompt: int, steps: int, seed: int, temperature: float = 0.0) -> float:
        """Median seconds of a step in which so many streams all decode."""
        engine = self._of(kind)
        texts = prompts(streams, prompt, engine.model.config.vocab_size, seed)
        room = steps + streams * (1 + prompt // 256)  # the first ones go on while the last are still read
        seen = self._send(engine, texts, room + 1, temperature)
        while any(not stream.tokens for stream in seen.values()):
            self._step(engine, seen)
        seconds = []
        for _ in range(steps):
            started = time.perf_counter()
            self._step(engine, seen)
            seconds.append(time.perf_counter() - started)
        if not engine.busy:
            raise RuntimeError(f"a stream behind {prompt} tokens ended before its {steps} steps were measured")
        for id in seen:
            engine.abort(id)
        while engine.busy:
            engine.step()
        return statistics.median(seconds)

    def chat(self, kind: str, turns: int, turn: tuple[int, int], seed: int) -> list[tuple[float, float, int]]:
        """A conversation: of each turn the seconds to its first token, those that its unread tokens take alone, and
        how many these are.

        Between the turns the engine reads what it will want to have read, as it does while people write.
        """
        engine = self._of(kind)
        said, answered = turn
        vocabulary = engine.model.config.vocab_size
        texts = prompts(2 * turns, max(turns * (said + answered), 1), vocabulary, seed)
        conversation: list[int] = []
        measured = []
        for number in range(turns):
            conversation = conversation + texts[number][:said]
            stream = self._run(engine, [conversation], answered)[0]
            unread = len(conversation) - stream.cached
            alone = self._run(engine, [texts[turns + number][:unread]], 1)[0]
            measured.append((stream.times[0] - stream.sent, alone.times[0] - alone.sent, unread))
            conversation = conversation + stream.tokens
        return measured

    def weight_bytes(self, kind: str) -> int:
        """Bytes of all parameters and buffers."""
        model = self._of(kind).model
        return sum(tensor.nbytes for tensor in {id(t): t for t in model.state_dict().values()}.values())

    def bytes_per_second(self, num_bytes: float) -> float:
        """The rate at which all threads read so much memory again and again (median of 9)."""
        values = torch.ones(int(num_bytes) // 4)
        seconds = []
        for _ in range(12):
            started = time.perf_counter()
            values.sum()
            seconds.append(time.perf_counter() - started)
        return values.nbytes / statistics.median(seconds[3:])

    def _run(self, engine: Engine, texts: list[list[int]], new: int, *, watched: bool = True) -> list[_Stream]:
        """Send all of them at once, and step until the engine rests."""
        seen = self._send(engine, texts, new, watched=watched)
        while engine.busy:
            self._step(engine, seen)
        return list(seen.values())

    def _send(
        self, engine: Engine, texts: list[list[int]], new: int, temperature: float = 0.0, *, watched: bool = True
    ) -> dict[str, _Stream]:
        sampling = Sampling(max_tokens=new, temperature=temperature, ignore_eos=True, seed=0)
        seen = {}
        now = time.perf_counter()
        for text in texts:
            self._number += 1
            id = str(self._number)
            seen[id] = _Stream(now)
            engine.add(Request(text, sampling, id, watched=watched))
        return seen

    def _step(self, engine: Engine, seen: dict[str, _Stream]) -> None:
        deltas = engine.step(entered=False)
        now = time.perf_counter()
        for delta in deltas:
            if delta.error is not None:
                raise RuntimeError(f"request {delta.request} failed: {delta.error}")
            stream = seen[delta.request]
            stream.tokens += delta.tokens
            stream.times += [now] * len(delta.tokens)
            if delta.usage is not None:
                stream.cached = delta.usage.cache.used

    def _of(self, kind: str) -> Engine:
        """The engine of ``kind``; the one held before is let go."""
        if self._engine is None or self._held != kind:
            self._engine = None
            self._engine = Engine(self._model(kind), kv_gigabytes=_GIGABYTES, cache_gigabytes=_GIGABYTES)
            self._held = kind
        return self._engine

    def _model(self, kind: str) -> HybridLM:
        weights, _, layers = kind.partition("-")
        int8 = _INT8.get(weights, "none")
        dtype = DTYPES[bench_dtype() if int8 != "none" else weights]
        model = load(self._directory, dtype=dtype, int8=int8)[0]
        if layers:
            types = {
                "lightning": ("linear_attention",) * model.config.num_hidden_layers,
                "softmax": ("full_attention",),
            }
            shape = {**model.config.model_dump(), "layer_types": types[layers], "num_hidden_layers": len(types[layers])}
            model = HybridLM(ModelConfig.parse(shape, "bench"), seed=0).to(dtype)
        return model
