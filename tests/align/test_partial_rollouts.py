"""Rollouts that are set aside and go on by newer weights: what is kept of them, what is learned, when they end."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from leyden.align.policy import Algorithm, PolicyGradient
from leyden.align.policy.objective import DRAWN, EARLIER
from leyden.align.rollouts.batches import RolloutBatches, RoundShape
from leyden.align.rollouts.call_limit import CallLimit
from leyden.align.rollouts.prompts import Prompt, Prompts
from leyden.align.rollouts.settings import RolloutSettings
from leyden.align.rollouts.turns import Drawn, go_on
from leyden.align.rollouts.waiting import packed_waiting, unpacked_waiting
from leyden.core.errors import UserError
from leyden.data import Batch
from leyden.model import HybridLM, preset
from leyden.serve.completion import Completion
from leyden.serve.sampling.logprobs import TokenLogprobs
from leyden.tokenizer import Tokenizer
from leyden.train import MasterAdamW, TrainState, train_step
from leyden.train.metrics import StepLog

SIZES = {"max_sequences": 16, "kv_gigabytes": 0.02, "cache_gigabytes": 0.001, "swap_gigabytes": 0.001}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["Is it so? Yes, it is so. No, it is not.\n" * 9], vocab_size=270)


class Letters:
    """The share of letters in a response."""

    def prompts(self) -> Iterable[Mapping[str, Any]]:
        return [{"prompt": f"Is {number} so?", "number": number} for number in range(5)]

    def score(self, row: Mapping[str, Any], response: str) -> float:
        return sum(letter.isalpha() for letter in response) / 16


def settings(**changes: Any) -> RolloutSettings:
    given = {"environment": "tests:Letters", "group_size": 3, "prompts_per_step": 3, "max_tokens": 12, "engine": SIZES}
    return RolloutSettings.parse({**given, "algorithm": {"preset": "dapo"}, "round_tokens": 5, **changes}, "test")


def state_of(tokenizer: Tokenizer) -> TrainState:
    """A model that ends its answers at many lengths."""
    shape = preset(
        "tiny",
        vocab_size=tokenizer.vocab_size,
        num_hidden_layers=2,
        layer_types=["linear_attention", "full_attention"],
        hidden_size=32,
        intermediate_size=32,
        head_dim=16,
        rotary_dim=8,
        max_position_embeddings=512,
    )
    model = HybridLM(shape, seed=1)
    with torch.no_grad():
        model.lm_head.weight[sorted(tokenizer.end_ids)] *= 9
    return TrainState(model, MasterAdamW(model))


def batches_of(state: TrainState, tokenizer: Tokenizer, log: Path, how: RolloutSettings) -> RolloutBatches:
    return RolloutBatches(
        state,
        tokenizer,
        how,
        Prompts(Letters(), tokenizer, longest=70, seed=3),
        Letters(),
        RoundShape(seq_len=96, micro_batch_tokens=192, seed=3),
        log=StepLog(log, last=state.step),
        stage="rl",
        reference=None,
    )


def take_step(state: TrainState, batches: RolloutBatches, how: RolloutSettings) -> tuple[list[Batch], Any]:
    rows = [next(batches) for _ in range(batches.micro_batches(state.stage_step))]
    objective = PolicyGradient(how.algorithm, how.temperature, partial=True)
    result = train_step(state, rows, objective, lr=1e-2, clip_norm=1.0)
    batches.check(state, result)
    return rows, result


def slow_log_probs(model: HybridLM, tokens: torch.Tensor, temperature: float) -> torch.Tensor:
    """[T - 1], of each token but the first, one row alone."""
    with torch.no_grad():
        logits = model(tokens[None])[0, :-1].double() / temperature
    return logits.log_softmax(-1).gather(1, tokens[1:, None])[:, 0]


def segments(rows: Sequence[Batch]) -> Iterable[tuple[Batch, slice]]:
    for row in rows:
        assert row.groups is not None
        for segment in np.flatnonzero(row.groups.numpy() >= 0):
            yield row, slice(*row.cu_seqlens[segment : segment + 2].tolist())


@pytest.mark.parametrize(("temperature", "ratio"), [(1.0, "token"), (0.7, "sequence")])
def test_tokens_keep_the_log_probabilities_of_the_weights_that_drew_them(
    tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str], temperature: float, ratio: str
) -> None:
    algorithm = {"preset": "grpo", "kl_weight": 0, "ratio": ratio}
    how = settings(round_tokens=3, temperature=temperature, algorithm=algorithm)
    state, versions = state_of(tokenizer), list[HybridLM]()
    ages = set[int]()
    with batches_of(state, tokenizer, tmp_path / "log", how) as batches:
        for number in range(5):
            versions.append(HybridLM(state.model.config))
            versions[-1].load_state_dict(state.model.state_dict())  # pyright: ignore[reportAttributeAccessIssue]
            rows, result = take_step(state, batches, how)
            facts = batches.step_facts().record
            assert result.metrics["off_policy"] == 0, "of what these weights drew, every ratio is exactly 1"
            assert (result.metrics["earlier"] > 0) == (facts["age_max"] > 0)
            assert facts["drift"] < 1e-4 and facts["age_max"] <= 3 and (number == 0) == (not facts["continued"])
            for row, place in segments(rows):
                labels, drawn = row.labels[0, place][:-1], row.per_token[DRAWN][0, place][:-1].double()
                is_earlier, learned = row.per_token[EARLIER][0, place][:-1], row.labels[0, place][:-1] >= 0
                tokens = row.tokens[0, place]
                assert torch.equal(tokens[1:][learned], labels[learned]) and not (is_earlier & ~learned).any()
                assert is_earlier[learned].int().diff().le(0).all(), "what is earlier comes first"
                by = [slow_log_probs(model, tokens, temperature) for model in versions]
                drew = list[int]()
                for own in learned.nonzero().flatten().split(3):  # each by one version of the weights
                    away = [float((drawn[own] - one[own]).abs().max()) for one in by]
                    drew.append(int(np.argmin(away)))
                    assert min(away) < 1e-4 and sorted(away)[1:2] != [min(away)]
                    assert (is_earlier[own] == (drew[-1] < number)).all()
                assert drew == sorted(drew)
                ages |= {number - one for one in drew}
    assert {0, 1, 2} <= ages, "some ended in each round of their lives"
    assert capsys.readouterr().err.count("were drawn by earlier weights") == 1


def test_a_place_is_kept_with_what_waits(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Saved before each of several steps, between two rounds and within one: what follows has the same bits."""
    how = settings(updates=2)
    state = state_of(tokenizer)
    saved, taken = [], []
    with batches_of(state, tokenizer, tmp_path / "log", how) as batches:
        for _ in range(6):
            weights = {name: value.clone() for name, value in state.model.state_dict().items()}  # pyright: ignore[reportAttributeAccessIssue]
            saved.append((json.loads(json.dumps(batches.state_dict())), weights, state.step))
            batches.micro_batches(0)  # what was drawn since is not of the place
            if len(saved) % 2:
                assert batches.state_dict() == saved[-1][0]
            taken.append(take_step(state, batches, how)[0])
    for number, (place, weights, step) in enumerate(saved):
        again = state_of(tokenizer)
        again.model.load_state_dict(weights)  # pyright: ignore[reportAttributeAccessIssue]
        again.step = step
        with batches_of(again, tokenizer, tmp_path / "again", how) as batches:
            batches.load_state_dict(place)
            assert batches.state_dict() == place
            found = [next(batches) for _ in range(batches.micro_batches(0))]
        assert len(found) == len(taken[number])
        for one, other in zip(found, taken[number], strict=True):
            assert torch.equal(one.tokens, other.tokens)
            assert one.per_token.keys() == other.per_token.keys()
            assert all(torch.equal(one.per_token[name], other.per_token[name]) for name in one.per_token)
            assert all(torch.equal(one.per_document[name], other.per_document[name]) for name in one.per_document)
    with (
        batches_of(state, tokenizer, tmp_path / "log", settings(updates=2, round_tokens=6)) as changed,
        pytest.raises(UserError, match="cannot be resumed on other prompts"),
    ):
        changed.load_state_dict(saved[0][0])


def test_a_rollout_that_does_not_end_is_ended_after_max_rounds(tokenizer: Tokenizer, tmp_path: Path) -> None:
    how = settings(round_tokens=3, max_rounds=2)
    state, log = state_of(tokenizer), tmp_path / "log"
    with batches_of(state, tokenizer, log, how) as batches:
        for number in range(3):
            rows, _ = take_step(state, batches, how)
            facts = batches.step_facts().record
            lengths = [int((row.labels[0, place] >= 0).sum()) for row, place in segments(rows)]
            assert facts["cut"] == 0 and facts["age_max"] <= 1 and max(lengths) <= 6
            assert facts["out_of_rounds"] == pytest.approx(np.mean([n == 6 for n in lengths]), abs=0.35)
            assert number == 0 or facts["out_of_rounds"] > 0
    kept = [json.loads(line) for line in log.read_text().splitlines()]
    assert all(one["reward"] is not None for one in kept), "graded as they are"


def test_a_step_has_something_to_learn_from_however_long_rollouts_are(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """One token a round: the groups go on by the same weights until as many have ended as there are mini-batches."""
    how = settings(round_tokens=1, mini_batches=3)
    state = state_of(tokenizer)
    with batches_of(state, tokenizer, tmp_path / "log", how) as batches:
        steps = [take_step(state, batches, how) for _ in range(3)]
        facts = batches.step_facts().record
    assert facts["groups"] >= 3 and all(not result.skipped for _, result in steps)
    assert [result.metrics["earlier"] for _, result in steps] == [0, 0, 0], "one version of the weights drew it all"
    assert facts["waiting"] > 0 and batches.state_dict()["batch"] > 3, "further prompts were asked meanwhile"


class Spelling:
    """An engine that goes on with a fixed row of tokens from wherever a prompt has got to."""

    def __init__(self, tokenizer: Tokenizer, tokens: Sequence[int], prompt: int) -> None:
        self.tokenizer, self._tokens, self._prompt = tokenizer, tokens, prompt

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Any) -> list[Completion]:
        made = []
        for prompt, one in zip(prompts, sampling, strict=True):
            place = len(prompt) - self._prompt
            tokens = list(self._tokens[place:][: one.max_tokens])
            ends = [n for n, token in enumerate(tokens) if token in self.tokenizer.end_ids]
            tokens, reason = (tokens[: ends[0] + 1], "stop") if ends else (tokens, "length")
            text = self.tokenizer.decode(tokens[: -1 if ends else None], skip_special=True)
            logprobs = tuple(TokenLogprobs(token, -1.0) for token in tokens)
            reason: Any
            made += [Completion(text, tuple(tokens), reason, tuple(prompt), 0.0, 0.0, logprobs)] * one.n
        return made


class Asking(Letters):
    def reply(self, row: Mapping[str, Any], answers: Sequence[str], /) -> str | None:
        return "And?" if len(answers) == 1 else None


@pytest.mark.parametrize("budget", range(1, 30, 4))
def test_answers_in_pieces_are_the_answers(tokenizer: Tokenizer, budget: int) -> None:
    """Also where a piece ends within a character, or within what the environment said."""
    chat = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "Ja, schön — 好!"}]
    chat += [{"role": "user", "content": "And?"}, {"role": "assistant", "content": "Größe"}]
    ids, _ = tokenizer.encode_answers(chat)
    prompt = tuple(tokenizer.encode_chat(chat[:1]))
    behind = ids.tolist()[len(prompt) :]
    ended = max(n for n, token in enumerate(behind) if token in tokenizer.end_ids) + 1
    engine: Any = Spelling(tokenizer, behind[:ended], len(prompt))
    environment: Any = Asking()
    one = Drawn(Prompt({"prompt": "Is it?"}, prompt, "Is it?"))
    rounds = 0
    while not one.has_ended:
        before = len(one.tokens)
        go_on(engine, environment, [one], settings(max_turns=3, max_tokens=99), CallLimit(9), seed=0, budget=budget)
        rounds += 1
        (again,) = unpacked_waiting(packed_waiting([[one]]), Prompts(Letters(), tokenizer, longest=70, seed=0))[0]
        again.prompt = one.prompt
        assert again == one and before < len(one.tokens)
        one = again
    assert one.answers == ["Ja, schön — 好!", "Größe"] and one.replies == ["And?"] and one.is_over
    assert one.tokens == behind[:ended] and rounds > 1
    assert one.text == "Ja, schön — 好!\nAnd?\nGröße"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"round_tokens": 0, "max_rounds": 2}, "max_rounds is of round_tokens"),
        ({"redraws": 1}, "a round does not know yet"),
        ({"round_tokens": -1}, "round_tokens"),
        ({"max_rounds": 0}, "max_rounds"),
    ],
)
def test_settings_that_contradict_each_other(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings(**given)


def test_only_algorithms_see_what_is_earlier() -> None:
    assert "earlier" not in PolicyGradient(Algorithm()).metrics
    assert "earlier" in PolicyGradient(Algorithm(), partial=True).metrics
