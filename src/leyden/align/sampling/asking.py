"""Responses to prompts, drawn from any model and kept on disk, so that nothing is drawn twice."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from leyden.align.prompts.rows import PromptRow
from leyden.core.errors import UserError
from leyden.core.log import Bar, logger, progress
from leyden.data.documents import Message
from leyden.data.label.answers import Answers, ask
from leyden.data.label.language_model import LanguageModel, ModelRequest, Reply

_log = logger(__name__)


@dataclass(frozen=True)
class Drawing:
    """How responses are drawn.

    Attributes:
        temperatures: of each, responses are drawn; at 0 one, since all would be the same.
        samples: of each prompt, at each temperature above 0.
        max_tokens: of a response; a longer one is cut.
        seed: of all that is drawn. A response depends on it, its prompt, temperature and number, and on nothing else.

    Raises:
        UserError: a temperature below 0, or no response.
    """

    temperatures: tuple[float, ...] = (1.0,)
    samples: int = 8
    max_tokens: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperatures or not all(0 <= one <= 10 for one in self.temperatures):
            raise UserError(f"temperatures are numbers from 0 to 10; given: {', '.join(map(str, self.temperatures))}.")
        if self.samples < 1 or self.max_tokens < 1:
            raise UserError(f"samples ({self.samples}) and max-tokens ({self.max_tokens}) are 1 or more.")

    def plan(self) -> list[tuple[float, int]]:
        """The temperature and the number of each response to a prompt."""
        return [(one, n) for one in dict.fromkeys(self.temperatures) for n in range(self.samples if one else 1)]


@dataclass(frozen=True)
class Response:
    """A response.

    Attributes:
        prompt: what it answers.
        text: of the response; of one that the model refused, why.
        finish: ``stop``, ``length`` (it was cut) or ``refused``.
        temperature, seed: it was drawn with.
    """

    prompt: PromptRow
    text: str
    finish: str
    temperature: float
    seed: int


def draw_responses(
    prompts: Sequence[PromptRow], model: LanguageModel, drawing: Drawing, answers: Path, title: str
) -> list[Response]:
    """All responses, prompt by prompt; a line is logged where some were refused or cut.

    Args:
        prompts: any, each once.
        model: answers.
        drawing: how.
        answers: a folder; what is there already is not drawn again, whatever ended the run before.
        title: of the progress bar.

    Raises:
        UserError: the model cannot be reached, or refuses everything. What it has answered is kept.
    """
    asked = [(prompt, one, _seed(drawing.seed, prompt, one, n)) for prompt in prompts for one, n in drawing.plan()]
    requests = [
        ModelRequest(
            tuple(Message(turn["role"], turn["content"]) for turn in prompt.messages),
            drawing.max_tokens,
            temperature,
            seed,
        )
        for prompt, temperature, seed in asked
    ]
    with Answers(answers) as kept, progress(title, len(requests), "responses") as bar:
        told = _Told(model, bar)
        there = sum(request.key(model.identity) in kept for request in requests)
        bar.advance(there)
        if there:
            _log.info("%d of %d responses are there already", there, len(requests))
        keys = ask(told, requests, kept)
        replies = [kept.get(key) or Reply("the model refused the request", "refused") for key in keys]
    found = [
        Response(prompt, reply.text, reply.finish, temperature, seed)
        for (prompt, temperature, seed), reply in zip(asked, replies, strict=True)
    ]
    for finish, what in (("length", f"do not end within {drawing.max_tokens} tokens"), ("refused", "were refused")):
        count = sum(one.finish == finish for one in found)
        if count:
            _log.warning("%d of %d responses %s", count, len(found), what)
    return found


@dataclass(frozen=True)
class _Told:
    """A model whose answers a progress bar counts."""

    model: LanguageModel
    bar: Bar

    @property
    def identity(self) -> str:
        return self.model.identity

    def complete(self, requests: Sequence[ModelRequest]) -> Iterator[tuple[int, Reply]]:
        for answer in self.model.complete(requests):
            self.bar.advance(1)
            yield answer


def _seed(seed: int, prompt: PromptRow, temperature: float, number: int) -> int:
    """Below 2^31, which every endpoint takes."""
    digest = hashlib.sha256(f"{seed} {prompt.id} {temperature} {number}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
