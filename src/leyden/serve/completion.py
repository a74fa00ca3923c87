"""The results of generation in a program: whole completions, or a stream of tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from leyden.serve.request import Delta, FinishReason
from leyden.serve.sampling import TokenLogprobs


@dataclass(frozen=True)
class Completion:
    """What the model made of one prompt.

    Attributes:
        text: without the token or string that ended it; empty where the engine has no tokenizer.
        tokens: all that were drawn, the one that ended the text included.
        finish_reason: ``"stop"`` for an end token or a stop string, ``"length"`` for ``max_tokens`` or the model's
            last position; ``"error"`` or ``"aborted"`` where the completion is not whole.
        prompt: the tokens that were read.
        prefill_seconds: time until the logits of the first token.
        decode_seconds: time from there to the end.
        logprobs: of ``tokens``, as they were drawn; empty unless :attr:`Sampling.logprobs` asks for them.
        prompt_logprobs: of ``prompt``, None for its first token; None unless :attr:`Sampling.prompt_logprobs` asks for
            them.
        weights_version: the version of the engine's weights that made it.
        error: why it could not be finished; None where it is whole.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    prompt: tuple[int, ...]
    prefill_seconds: float
    decode_seconds: float
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    weights_version: int = 0
    error: str | None = None

    @classmethod
    def of_request(cls, prompt: Sequence[int], deltas: Sequence[Sequence[Delta]]) -> list[Self]:
        """The completions of one request.

        Args:
            prompt: its tokens.
            deltas: of each completion all, in order. The first completion's tell of the prompt.
        """
        of_prompt = next((delta.prompt_logprobs for delta in deltas[0] if delta.prompt_logprobs is not None), None)
        return [cls._of(tuple(prompt), of_prompt, own) for own in deltas]

    @classmethod
    def _of(
        cls, prompt: tuple[int, ...], of_prompt: tuple[TokenLogprobs | None, ...] | None, deltas: Sequence[Delta]
    ) -> Self:
        last = deltas[-1]
        assert last.usage is not None and last.finish_reason is not None, "the last delta ends the completion"
        return cls(
            text="".join(delta.text for delta in deltas),
            tokens=tuple(token for delta in deltas for token in delta.tokens),
            finish_reason=last.finish_reason,
            prompt=prompt,
            prefill_seconds=last.usage.prefill_seconds,
            decode_seconds=last.usage.decode_seconds,
            logprobs=tuple(told for delta in deltas for told in delta.logprobs),
            prompt_logprobs=of_prompt,
            weights_version=last.weights_version,
            error="the request was aborted" if last.finish_reason == "aborted" else last.error,
        )

    @property
    def prompt_tokens(self) -> int:
        """How many tokens the prompt has."""
        return len(self.prompt)

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
