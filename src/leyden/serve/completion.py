"""What the offline side of an engine gives: whole completions, or one token after the other."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

from leyden.core.errors import UserError
from leyden.serve.request import Delta


@dataclass(frozen=True)
class Completion:
    """What the model made of one prompt.

    Attributes:
        text: without the token or string that ended it; empty where the engine has no tokenizer.
        tokens: all that were drawn, the one that ended the text included.
        finish_reason: ``"stop"`` for an end token or a stop string, ``"length"`` for ``max_tokens`` or the model's
            last position.
        prompt_tokens: how many tokens the prompt has.
        prefill_seconds: time until the logits of the first token.
        decode_seconds: time from there to the end.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    prefill_seconds: float
    decode_seconds: float

    @classmethod
    def of(cls, deltas: Sequence[Delta]) -> Self:
        """All deltas of one completion, put together.

        Raises:
            UserError: it ended with an error.
        """
        last = deltas[-1]
        if last.usage is None or (last.finish_reason != "stop" and last.finish_reason != "length"):
            raise UserError(f"a completion failed: {last.error}.")
        return cls(
            "".join(delta.text for delta in deltas),
            tuple(token for delta in deltas for token in delta.tokens),
            last.finish_reason,
            last.usage.prompt_tokens,
            last.usage.prefill_seconds,
            last.usage.decode_seconds,
        )

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
