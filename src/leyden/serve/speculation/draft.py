"""Speculation with a draft model: a small model of the same vocabulary reads along with the large one."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from leyden.core.errors import UserError
from leyden.core.transfers import fetch, pick
from leyden.model import PAGE, HybridLM, ModelConfig, Pools
from leyden.serve.runner import Reading, Runner
from leyden.serve.sampling import Sampler, Sampling, choose_together
from leyden.serve.speculation.guesser import Ask, Guesser
from leyden.serve.weights import decoder_of

_PART = 8 * PAGE
"""Tokens of a text that are read in one go; a long prompt is caught up with over several steps, without guesses."""
_FEW = 16
"""As many or fewer are read by the recurrence, as single tokens are."""
_GREEDY = Sampling(temperature=0.0)


@dataclass
class _Text:
    """What the small model has of one sequence.

    Attributes:
        slots: the first holds the state behind the first ``read`` tokens, the others those behind guesses, in order.
        pages: of its keys and values.
        read: tokens of the sequence that were read.
        guessed: tokens read behind them.
    """

    slots: list[int]
    pages: list[int] = field(default_factory=list)
    read: int = 0
    guessed: list[int] = field(default_factory=list)

    def keep_right_guesses(self, tokens: Sequence[int]) -> None:
        """Stand behind those guesses that came true: a state once passed cannot be computed back, so each was kept.

        Before the last token at most, which is to be read: not all that was guessed need have been verified.
        """
        came = tokens[self.read : min(self.read + len(self.guessed), len(tokens) - 1)]
        right = next((i for i, (a, b) in enumerate(zip(self.guessed, came, strict=False)) if a != b), len(came))
        self.slots[0], self.slots[right] = self.slots[right], self.slots[0]
        self.read += right
        self.guessed = []


class DraftModel(Guesser):
    """Runs a small model over the same sequences, in memory of its own, and guesses what would be drawn from it.

    Args:
        model: in evaluation mode.
        target: the shape of the model whose tokens are guessed.
        max_sequences: sequences that are followed at once; no guesses for others.
        draft_tokens: guessed at a time, at most.
        kv_bytes: for keys and values.

    Raises:
        UserError: the models' vocabularies differ, or no page fits.
    """

    def __init__(
        self, model: HybridLM, target: ModelConfig, *, max_sequences: int, draft_tokens: int, kv_bytes: int
    ) -> None:
        super().__init__()
        if model.config.vocab_size != target.vocab_size:
            raise UserError(
                f"the draft model has a vocabulary of {model.config.vocab_size} tokens and the model one of "
                f"{target.vocab_size}; a draft model must have been trained with the model's tokenizer."
            )
        weight = model.lm_head.weight
        _, page_bytes = Pools.bytes_of(model.config, weight.dtype)
        longest = min(model.config.max_position_embeddings, target.max_position_embeddings)
        num_pages = max_sequences * -(-longest // PAGE)
        if page_bytes:
            num_pages = min(num_pages, kv_bytes // page_bytes)
        if num_pages < 1:
            raise UserError(f"a page of the draft model takes {page_bytes:,} bytes; only {kv_bytes:,} are given to it.")
        pools = Pools(model.config, max_sequences * draft_tokens, num_pages, dtype=weight.dtype, device=weight.device)
        self._runner = Runner(model, pools, decoder_of(model, pools, "auto"))
        self._longest = longest
        self._draft_tokens = draft_tokens
        self._free_slots = list(range(pools.num_states))
        self._free_pages = list(range(num_pages))
        self._texts: dict[str, _Text] = {}

    def forget(self, id: str) -> None:
        """See :meth:`Guesser.forget`."""
        super().forget(id)
        text = self._texts.pop(id, None)
        if text is not None:
            self._free_slots += text.slots
            self._free_pages += text.pages

    def _guess(self, asks: Sequence[Ask]) -> list[list[int]]:
        guesses: list[list[int]] = [[] for _ in asks]
        limits = [min(ask.limit, self._draft_tokens, self._longest - len(ask.tokens)) for ask in asks]
        going = [index for index, limit in enumerate(limits) if limit > 0 and self._follow(asks[index], limit)]
        going, logits = self._catch_up(asks, going)
        while going:
            told = _foretell([asks[index].sampler for index in going], logits, [len(guesses[index]) for index in going])
            for index, token in zip(going, told, strict=True):
                guesses[index].append(token)
            going = [index for index in going if len(guesses[index]) < limits[index]]
            if going:
                logits = self._runner.run([self._next(asks[index], guesses[index]) for index in going], [])
        return guesses

    def _follow(self, ask: Ask, limit: int) -> bool:
        """Whether there is memory for the sequence and ``limit`` guesses; its state then is at its place."""
        text = self._texts.get(ask.id)
        if text is None:
            if len(self._free_slots) < self._draft_tokens:
                return False
            text = self._texts[ask.id] = _Text([self._free_slots.pop() for _ in range(self._draft_tokens)])
        text.keep_right_guesses(ask.tokens)
        missing = -(-(len(ask.tokens) + limit) // PAGE) - len(text.pages)
        if missing > len(self._free_pages):
            return False
        text.pages += [self._free_pages.pop() for _ in range(missing)]
        return True

    def _catch_up(self, asks: Sequence[Ask], going: list[int]) -> tuple[list[int], torch.Tensor]:
        """Read what has come since; the sequences that have caught up, and the logits behind each."""
        single, parts = [], []
        for index in going:
            text, tokens = self._texts[asks[index].id], asks[index].tokens
            stop = min(len(tokens), text.read + _PART)
            reading = Reading(tokens[text.read : stop], text.read, text.pages, text.slots[:1])
            if text.read > 0 and stop - text.read <= _FEW:
                states = [text.slots[0]] * (1 + len(reading.tokens))
                single.append((index, Reading(reading.tokens, reading.start, reading.pages, states)))
            else:
                parts.append((index, reading))
            text.read = stop
        if not single and not parts:
            return [], torch.empty(0)
        logits = self._runner.run([reading for _, reading in single], [reading for _, reading in parts])
        order = [index for index, _ in single + parts]
        rows = [row for row, index in enumerate(order) if self._texts[asks[index].id].read == len(asks[index].tokens)]
        return [order[row] for row in rows], pick(logits, rows)

    def _next(self, ask: Ask, guess: list[int]) -> Reading:
        """Read the last guess, into the slot behind the one before."""
        text = self._texts[ask.id]
        text.guessed.append(guess[-1])
        place = len(text.guessed)
        return Reading(guess[-1:], text.read + place - 1, text.pages, text.slots[place - 1 : place + 1])


def _foretell(samplers: Sequence[Sampler | None], logits: torch.Tensor, ahead: Sequence[int]) -> list[int]:
    """The tokens that the small model's logits [R, V] give, each so many places behind its sequence's next."""
    if logits.is_cpu:
        rows = zip(samplers, logits, ahead, strict=True)
        return [int(row.argmax()) if own is None else own.foresee(row, places) for own, row, places in rows]
    samplings = [_GREEDY if own is None else own.sampling for own in samplers]
    uniforms = [0.0 if own is None else own.uniform_of(places) for own, places in zip(samplers, ahead, strict=True)]
    (tokens,) = fetch([choose_together(samplings, uniforms, logits)])
    return tokens.tolist()
