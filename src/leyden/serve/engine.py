"""Generation without a server: whole completions, or text as it comes."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from leyden.core.device import keep_freed_memory
from leyden.core.errors import UserError
from leyden.core.log import log_once
from leyden.model import HybridLM, NativeDecoder
from leyden.ops.decode import UnavailableError
from leyden.serve.context import Context
from leyden.serve.sampling import Sampler, Sampling
from leyden.serve.text import TextStream
from leyden.tokenizer import Tokenizer

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Completion:
    """What the model made of one prompt.

    Attributes:
        text: without the token or string that ended it; empty where the engine has no tokenizer.
        tokens: all that were drawn, the one that ended the text included.
        finish_reason: ``"stop"`` for an end token or a stop string, ``"length"`` for ``max_tokens`` or the model's
            last position.
        prompt_tokens: how many tokens of prompt were read.
        prefill_seconds: time until the logits of the first token.
        decode_seconds: time from there to the end.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    prefill_seconds: float
    decode_seconds: float

    def speed(self) -> str:
        """One line: how many tokens were read and generated, and how fast.

        The first token comes with the prefill, so decoding is stated over those after it.
        """
        read = f"{self.prompt_tokens} tokens read in {self.prefill_seconds:.2f} s"
        if len(self.tokens) == 1:
            return f"{read}, 1 generated"
        rate = (len(self.tokens) - 1) / self.decode_seconds
        return f"{read}, {len(self.tokens)} generated at {rate:.0f} tokens/s"


@dataclass(frozen=True)
class Chunk:
    """One token of a stream.

    Attributes:
        text: what became certain with it; often empty inside a character or a possible stop string.
        token: its id.
        completion: the whole, with the last token alone.
    """

    text: str
    token: int
    completion: Completion | None = None


class Engine:
    """Generates from a model, one sequence at a time.

    Args:
        model: is put in evaluation mode.
        tokenizer: None for prompts of token ids alone; there is no text then, and no token that ends it.
        prefill_tokens: how much of a prompt goes through the model at once; bounds memory.
        decoder: what reads single tokens: ``"native"``, one compiled call a token on a CPU; ``"torch"``, the model; or
            ``"auto"``, the first where it can be had (a line in the log says why not).
    """

    def __init__(
        self,
        model: HybridLM,
        tokenizer: Tokenizer | None = None,
        *,
        prefill_tokens: int = 4096,
        decoder: Literal["auto", "native", "torch"] = "auto",
    ) -> None:
        keep_freed_memory()
        self.model = model.eval()
        self.tokenizer = tokenizer
        self._prefill_tokens = prefill_tokens
        self._decoder: Literal["auto", "native", "torch"] = decoder
        self._end_tokens = frozenset() if tokenizer is None else frozenset((tokenizer.eos_id, tokenizer.eod_id))

    def generate(
        self, prompts: Sequence[str] | Sequence[Sequence[int]], sampling: Sampling | None = None
    ) -> list[Completion]:
        """Complete each prompt by itself; a completion does not depend on the other prompts.

        Args:
            prompts: texts, which start a document, or token ids, which are taken as they are; an empty one starts
                from the token that begins a document.
            sampling: :class:`Sampling`'s defaults where None.

        Raises:
            UserError: a prompt longer than the model's positions, a token outside its vocabulary, or a text, an empty
                prompt or a stop string for an engine without tokenizer.
        """
        if isinstance(prompts, str):
            raise UserError("generate takes a list of prompts; put the one prompt in a list, or use stream.")
        return [self._last(self.stream(prompt, sampling)) for prompt in prompts]

    def stream(self, prompt: str | Sequence[int], sampling: Sampling | None = None) -> Iterator[Chunk]:
        """One prompt, token by token; the texts together are what :meth:`generate` gives.

        Raises:
            UserError: at once, as :meth:`generate`.
        """
        return self.continue_from(self.context(), self._prompt_tokens(prompt), sampling or Sampling())

    def context(self) -> Context:
        """An empty context of this engine's model, with its weights as they are now.

        Raises:
            UserError: the decoder was to be native, and cannot be.
        """
        return Context(self.model, self._prefill_tokens, self._native_decoder())

    def _native_decoder(self) -> NativeDecoder | None:
        if self._decoder == "torch":
            return None
        try:
            return NativeDecoder(self.model)
        except UnavailableError as reason:
            if self._decoder == "native":
                raise UserError(f"decoder='native' cannot run: {reason}; take 'auto' or 'torch'.") from None
            log_once(__name__, f"decoding in PyTorch, not natively: {reason}")
            return None

    def continue_from(self, context: Context, tokens: Sequence[int], sampling: Sampling) -> Iterator[Chunk]:
        """Read ``tokens`` into ``context``, then generate; all but the last generated token are read into it too.

        Raises:
            UserError: at once, as :meth:`generate`.
        """
        if sampling.stop and self.tokenizer is None:
            raise UserError("this engine has no tokenizer and sees no text; leave out sampling's stop strings.")
        context.check(tokens)
        return self._run(context, tokens, sampling)

    def _run(self, context: Context, tokens: Sequence[int], sampling: Sampling) -> Iterator[Chunk]:
        started = time.perf_counter()
        logits = context.read(tokens)
        prefilled = time.perf_counter()
        sampler, text = Sampler(sampling), TextStream(self.tokenizer, sampling.stop)
        end_tokens = frozenset() if sampling.ignore_eos else self._end_tokens
        limit = min(sampling.max_tokens, 1 + context.room)
        drawn: list[int] = []
        pieces: list[str] = []
        while True:
            token = sampler(logits)
            drawn.append(token)
            ended = token in end_tokens
            piece = "" if ended else text.push(token)
            reason = "stop" if ended or text.stopped else "length" if len(drawn) == limit else None
            if reason is not None:
                piece += text.finish()
            pieces.append(piece)
            if reason is not None:
                seconds = (prefilled - started, time.perf_counter() - prefilled)
                yield Chunk(piece, token, Completion("".join(pieces), tuple(drawn), reason, len(tokens), *seconds))
                return
            yield Chunk(piece, token)
            logits = context.read([token])

    def _last(self, chunks: Iterator[Chunk]) -> Completion:
        *_, last = chunks
        assert last.completion is not None, "a stream ends with its completion"
        return last.completion

    def _prompt_tokens(self, prompt: str | Sequence[int]) -> list[int]:
        """A text begins with the token that begins a document; token ids stand as they are."""
        if isinstance(prompt, str) or not prompt:
            if self.tokenizer is None:
                raise UserError("this engine has no tokenizer; give prompts as lists of at least one token id.")
            return [self.tokenizer.bos_id, *(self.tokenizer.encode(prompt) if isinstance(prompt, str) else ())]
        return list(prompt)
