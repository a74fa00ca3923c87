"""Rollouts of several turns: the tokens are those of the whole chat, and what the environment said is not learned."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from leyden.align.policy import Algorithm
from leyden.align.rewards import Reward
from leyden.align.rollouts.call_limit import CallLimit
from leyden.align.rollouts.drawing import Rollout, draw_round, graded
from leyden.align.rollouts.prompts import Prompt, Prompts
from leyden.align.rollouts.rows import SAMPLED, pack
from leyden.align.rollouts.settings import RolloutSettings
from leyden.align.rollouts.turns import Drawn, go_on
from leyden.core.errors import UserError
from leyden.ops import IGNORE_INDEX
from leyden.serve.completion import Completion
from leyden.serve.sampling.logprobs import TokenLogprobs
from leyden.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["Is it so? Yes, it is so. No, it is not.\n" * 9], vocab_size=270)


class Counting:
    """Replies until an answer says that it is done."""

    def prompts(self) -> list[dict[str, Any]]:
        return [{"prompt": f"Is {number} so?"} for number in range(3)]

    def reply(self, row: Mapping[str, Any], answers: Sequence[str], /) -> str | None:
        return None if answers[-1] == "done" else f"reply {len(answers)}"

    def score(self, row: Mapping[str, Any], response: str, /) -> float:
        return float(response == "done")


class Saying:
    """An engine whose answers are given: the n-th of every rollout."""

    def __init__(self, tokenizer: Tokenizer, answers: Sequence[str]) -> None:
        self.tokenizer, self._answers, self._turn = tokenizer, answers, 0
        self.asked: list[list[int]] = []

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Any) -> list[Completion]:
        text, self._turn = self._answers[self._turn], self._turn + 1
        made = []
        for prompt, one in zip(prompts, sampling, strict=True):
            self.asked.append(list(prompt))
            ended = self.tokenizer.encode_answers(
                [{"role": "user", "content": "x"}, {"role": "assistant", "content": text}]
            )
            tokens = tuple(ended[0][ended[1] == 1].tolist())
            cut = len(tokens) > one.max_tokens
            tokens = tokens[: one.max_tokens]
            logprobs = tuple(TokenLogprobs(token, -float(place + 1)) for place, token in enumerate(tokens))
            made += [Completion(text, tokens, "length" if cut else "stop", tuple(prompt), 0.0, 0.0, logprobs)] * one.n
        return made


def settings(**changes: Any) -> RolloutSettings:
    given = {"environment": "tests:Counting", "group_size": 2, "prompts_per_step": 2, "max_tokens": 90, "max_turns": 3}
    return RolloutSettings.parse({**given, **changes}, "test")


def drawn(tokenizer: Tokenizer, answers: Sequence[str], **changes: Any) -> list[Rollout]:
    environment: Any = Counting()
    engine: Any = Saying(tokenizer, answers)
    prompts = Prompts(environment, tokenizer, longest=70, seed=0)
    return draw_round(engine, environment, prompts, settings(**changes), place=0, seed=0).rollouts


def test_the_tokens_are_those_of_the_chat(tokenizer: Tokenizer) -> None:
    (first, *_) = made = drawn(tokenizer, ["Yes", "No", "done"], max_tokens=200)
    assert len(made) == 4 and all((one.turns, one.is_cut, one.out_of_turns) == (3, False, False) for one in made)
    chat = [{"role": "user", "content": first.prompt.text}]
    for number, answer in enumerate(("Yes", "No", "done"), 1):
        chat += [{"role": "assistant", "content": answer}, {"role": "user", "content": f"reply {number}"}]
    ids, writers = tokenizer.encode_answers(chat[:-1])
    assert [*first.prompt.tokens, *first.tokens] == ids.tolist()[: len(first.prompt.tokens) + len(first.tokens)]
    assert (first.learned == (writers >= 0)[len(first.prompt.tokens) :][: len(first.tokens)]).all()
    assert (first.log_probs[~first.learned] == 0).all() and (first.log_probs[first.learned] < 0).all()
    assert first.reward.reward == 1 and first.text == "Yes\nreply 1\nNo\nreply 2\ndone"


def test_what_was_said_is_no_label(tokenizer: Tokenizer) -> None:
    made = drawn(tokenizer, ["Yes", "done"])
    (row, *rest) = pack(
        made,
        np.array([1.0, -1.0, 0.5, -0.5]),
        Algorithm(preset="minimax"),
        max_tokens=90,
        seq_len=128,
        vocab_size=tokenizer.vocab_size,
    )
    labels = sum(int((one.labels != IGNORE_INDEX).sum()) for one in (row, *rest))
    assert labels == sum(one.num_drawn for one in made) < sum(len(one.tokens) for one in made)
    assert (row.per_token[SAMPLED][row.labels == IGNORE_INDEX] == 0).all()
    assert (row.per_token[SAMPLED][row.labels != IGNORE_INDEX] < 0).all()


def test_limits_end_a_rollout_and_are_said(tokenizer: Tokenizer) -> None:
    (one, *_) = drawn(tokenizer, ["Yes", "No"], max_turns=2)
    assert (one.turns, one.out_of_turns, one.is_cut, one.reward.reward) == (2, True, False, 0.0)
    (one, *_) = drawn(tokenizer, ["Yes", "No"], max_tokens=12)
    assert one.is_cut and len(one.tokens) <= 12 and not one.out_of_turns


def test_an_environment_must_reply_and_one_turn_asks_none(tokenizer: Tokenizer) -> None:
    class Silent:
        prompts, score = Counting.prompts, Counting.score

    environment: Any = Silent()
    engine: Any = Saying(tokenizer, ["Yes"])
    prompts = Prompts(environment, tokenizer, longest=70, seed=0)
    with pytest.raises(UserError, match=r"Silent has no method reply\(row, answers\)"):
        draw_round(engine, environment, prompts, settings(), place=0, seed=0)
    (one, *_) = drawn(tokenizer, ["Yes"], max_turns=1)
    assert (one.turns, one.out_of_turns) == (1, False)


def test_what_failed_goes_no_further(tokenizer: Tokenizer) -> None:
    prompt = Prompt({"prompt": "Is it?"}, (1, 2), "Is it?")
    failed = Drawn(prompt, answers=["Yes"], error="no memory")
    engine: Any = Saying(tokenizer, [])
    environment: Any = Counting()
    go_on(engine, environment, [failed], settings(), CallLimit(9), seed=0)
    assert graded(environment, failed, CallLimit(9)).reward == Reward(None, {}, "no memory")


class Hanging(Counting):
    """The reply to the first prompt never comes back, nor the score of answers to the second, if so asked."""

    def __init__(self, *, always: bool = False) -> None:
        self._always = always

    def reply(self, row: Mapping[str, Any], answers: Sequence[str], /) -> str | None:
        if row["prompt"] == "Is 0 so?" or self._always:
            time.sleep(60)
        return None

    def score(self, row: Mapping[str, Any], response: str, /) -> float:
        while row["prompt"] == "Is 1 so?" or self._always:
            pass
        return 0.5


def test_calls_that_never_come_back_cost_their_completions_alone(
    tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    engine: Any = Saying(tokenizer, ["Yes"])
    how = settings(call_seconds=0.03, prompts_per_step=3)
    prompts = Prompts(Hanging(), tokenizer, longest=70, seed=0)
    made = draw_round(engine, Hanging(), prompts, how, place=0, seed=0).rollouts
    late = {one.prompt.text: one.reward.reason for one in made if one.timed_out}
    assert len(made) == 6 and set(late) == {"Is 0 so?", "Is 1 so?"}
    assert late["Is 0 so?"].startswith("reply: it took more than 0.03") and late["Is 1 so?"].startswith("score: it")
    assert [one.reward.reward for one in made if not one.timed_out] == [0.5, 0.5]
    assert caplog.text.count("was ended (rl.call_seconds)") == 4 and "Hanging.score took more" in caplog.text
    with pytest.raises(UserError, match=r"Hanging\.score took more than 0\.03 seconds 8 times in a row"):
        engine = Saying(tokenizer, ["Yes"])
        how = settings(call_seconds=0.03, prompts_per_step=3, group_size=4, max_turns=1)
        draw_round(engine, Hanging(always=True), prompts, how, place=0, seed=0)


class Failing(Counting):
    """Has an error in its own code, and rows that are none."""

    def prompts(self) -> list[Any]:
        return [{"prompt": "Is it?"}, "Is it?", None]

    def score(self, row: Mapping[str, Any], response: str, /) -> float:
        return row["right"]


def test_an_error_of_the_environment_is_told_with_its_place(tokenizer: Tokenizer) -> None:
    engine: Any = Saying(tokenizer, ["Yes"])
    prompts = Prompts(Failing(), tokenizer, longest=70, seed=0)
    assert len(prompts) == 1
    with pytest.raises(
        UserError, match=r"Failing\.score raised KeyError: 'right' \(.*test_turns\.py, line \d+\), given 'Yes'"
    ):
        draw_round(engine, Failing(), prompts, settings(max_turns=1), place=0, seed=0)
