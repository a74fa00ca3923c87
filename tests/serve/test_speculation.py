"""Speculation: what is guessed, what is verified, and that it changes no token."""

import random
import time
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leyden.core.errors import UserError
from leyden.model import HybridLM, Pools
from leyden.serve.runner import Reading, Runner
from leyden.serve.sampling import Sampler, Sampling
from leyden.serve.speculation import Ask, DraftModel, Guesser, PromptLookup, verify
from leyden.serve.speculation.guesser import GuessPace
from leyden.serve.speculation.lookup import TextIndex


def slowly_following(tokens: list[int], limit: int) -> list[int]:
    """The definition, for a text of few repetitions: the longest match of 3 to 16 tokens, the most recent one."""
    for length in range(min(16, len(tokens) - 1), 2, -1):
        for end in range(len(tokens) - 2, length - 2, -1):
            if tokens[end - length + 1 : end + 1] == tokens[-length:]:
                longer = list(tokens)
                for place in range(end + 1, end + 1 + limit):
                    longer.append(longer[place])
                return longer[len(tokens) :]
    return []


@settings(max_examples=50)
@given(st.integers(0, 2**32), st.integers(2, 8), st.integers(0, 9))
def test_look_up_finds_the_longest_and_most_recent_match(seed: int, vocab: int, limit: int) -> None:
    rng = random.Random(seed)
    index, tokens = TextIndex(), []
    while len(tokens) < 60:
        tokens += rng.choices(range(vocab), k=rng.randint(1, 5))
        if rng.random() < 0.3:
            start = rng.randrange(len(tokens))
            tokens += tokens[start : start + rng.randint(1, 20)]
        runs = [tuple(tokens[i : i + 3]) for i in range(len(tokens) - 2)]
        found = index.following(tokens, limit)
        if runs.count(runs[-1] if runs else ()) <= 16:  # it looks no further back than that
            assert found == slowly_following(tokens, limit)


@pytest.mark.parametrize(
    ("tokens", "guess"),
    [
        ([], []),
        ([1], []),
        ([1, 1, 1], []),
        ([1, 1, 1, 1], [1, 1, 1, 1]),
        ([1, 2, 3, 9, 1, 2, 3], [9, 1, 2, 3]),
        ([5, 6, 5, 6, 5, 6], [5, 6, 5, 6]),
        ([1, 2, 3, 4, 5, 6], []),
    ],
)
def test_repetitions_go_on(tokens: list[int], guess: list[int]) -> None:
    assert TextIndex().following(tokens, 4) == guess


def test_a_long_text_costs_no_more_a_step() -> None:
    tokens = random.Random(0).choices(range(1000), k=100_000)
    index = TextIndex()
    index.following(tokens, 4)
    best = 1.0
    for token in range(50):
        tokens.append(token)
        started = time.perf_counter()
        index.following(tokens, 4)
        best = min(best, time.perf_counter() - started)
    assert best < 1e-3


def test_fewer_are_guessed_where_guesses_fail() -> None:
    pace, tokens, guessed = GuessPace(), [0], 0
    for _ in range(100):
        limit = pace.limit(8)
        pace.guess, pace.behind = [1] * limit, len(tokens)
        guessed += limit
        tokens.append(0)
        pace.judge(tokens)
    assert guessed < 12
    for _ in range(50):  # now they are right
        limit = pace.limit(8)
        pace.guess, pace.behind = [1] * limit, len(tokens)
        tokens += [1] * (limit + 1)
        assert pace.judge(tokens) == (limit, limit)
    assert pace.limit(8) == 8


def rows_of(texts: Sequence[Sequence[int]], vocab: int) -> torch.Tensor:
    """Logits that depend on the text alone, as a model's do: one row for each text."""
    rows = [torch.randn(vocab, generator=torch.Generator().manual_seed(hash(tuple(text)) % 2**60)) for text in texts]
    return 2 * torch.stack(rows)


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.5, 1.5]), st.floats(0, 1))
def test_guesses_change_no_token(seed: int, temperature: float, quality: float) -> None:
    """Right and wrong guesses, of any number, for three sequences with penalties; one of them ends early."""
    rng, vocab = random.Random(seed), 6
    samplings = [
        Sampling(temperature=temperature, seed=seed, presence_penalty=0.5, logprobs=1, stop_token_ids=stop)
        for stop in ((), (0,), ())
    ]
    plain = [([index], Sampler(own, [index], index)) for index, own in enumerate(samplings)]
    expected = []
    for text, sampler in plain:
        while len(text) < 24:
            expected.append(sampler(rows_of([text], vocab)[0]))
            text.append(expected[-1].token)
            if sampler.ends(text[-1]):
                break
    texts = [[index] for index in range(3)]
    samplers = [Sampler(own, [index], index) for index, own in enumerate(samplings)]
    found: list[list[object]] = [[], [], []]
    going = [0, 1, 2]
    while going:
        guesses = []
        for index in going:
            true = plain[index][0][len(texts[index]) :][: rng.randint(0, 4)]
            guesses.append([token if rng.random() < quality else rng.randrange(vocab) for token in true[:-1]])
        read = [
            [*texts[index], *guess[:n]]
            for index, guess in zip(going, guesses, strict=True)
            for n in range(len(guess) + 1)
        ]
        draws = verify([samplers[index] for index in going], guesses, rows_of(read, vocab))
        for index, drawn in zip(going, draws, strict=True):
            texts[index] += [one.token for one in drawn]
            found[index] += drawn
        going = [i for i in going if len(texts[i]) < 24 and not samplers[i].ends(texts[i][-1])]
    assert texts == [text for text, _ in plain]
    assert [one for rows in found for one in rows] == expected


class _Sequence:
    """A sequence that is generated with guesses, by a runner of the test's own."""

    def __init__(self, id: str, prompt: list[int], sampling: Sampling, slots: list[int], pages: list[int]) -> None:
        self.id, self.tokens, self.slots, self.pages = id, list(prompt), slots, pages
        self.sampler = Sampler(sampling, prompt)
        self.read = 0


def generate(
    runner: Runner, sequences: Sequence[_Sequence], guesser: Guesser | None, num_tokens: int
) -> tuple[list[list[int]], int]:
    """Tokens of each, and how many steps it took."""
    readings = [Reading(own.tokens, 0, own.pages, own.slots[:1]) for own in sequences]
    logits, steps = runner.run([], readings), 0
    for own, row in zip(sequences, logits, strict=True):
        own.read = len(own.tokens)
        own.tokens.append(own.sampler(row).token)
    going = list(sequences)
    while going:
        asks = [Ask(own.id, own.tokens, min(4, num_tokens - own.sampler.num_drawn - 1), own.sampler) for own in going]
        guesses = [[] for _ in going] if guesser is None else guesser.propose(asks)
        readings = []
        for own, guess in zip(going, guesses, strict=True):
            unread = [*own.tokens[own.read :], *guess]
            readings.append(
                Reading(unread, own.read, own.pages, [own.slots[0], *own.slots[: len(unread)]], len(unread))
            )
        # The slot before is also the first behind, as in plain decoding; a longer guess takes the others.
        draws = verify([own.sampler for own in going], guesses, runner.run(readings, []))
        steps += 1
        for own, drawn in zip(going, draws, strict=True):
            own.read += len(drawn)
            own.slots[0], own.slots[len(drawn) - 1] = own.slots[len(drawn) - 1], own.slots[0]
            own.tokens += [one.token for one in drawn]
        going = [own for own in going if own.sampler.num_drawn < num_tokens]
    return [own.tokens for own in sequences], steps


def started(model: HybridLM, sampling: Sampling) -> tuple[Runner, list[_Sequence]]:
    vocab = model.config.vocab_size
    runner = Runner(model, Pools(model.config, 18, 6, dtype=torch.float32))
    prompts = [torch.randint(vocab, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (5, 260, 40)]
    return runner, [
        _Sequence(str(i), prompt, sampling, list(range(6 * i, 6 * i + 6)), [2 * i, 2 * i + 1])
        for i, prompt in enumerate(prompts)
    ]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("source", ["itself", "other", "look-up"])
def test_a_model_writes_the_same_with_guesses(
    model: HybridLM, make_model: Callable[..., HybridLM], temperature: float, source: str
) -> None:
    sampling = Sampling(temperature=temperature, seed=3)
    plain, plain_steps = generate(*started(model, sampling), None, 24)
    guesser: Guesser = PromptLookup()
    if source != "look-up":
        small = model if source == "itself" else make_model(num_hidden_layers=1, layer_types=("full_attention",))
        guesser = DraftModel(small, model.config, max_sequences=3, draft_tokens=4, kv_bytes=1 << 24)
    found, steps = generate(*started(model, sampling), guesser, 24)
    assert found == plain
    assert steps <= plain_steps
    if source == "itself":
        assert steps < plain_steps // 2  # its own guesses are right, drawn ones as well
        assert guesser.accepted > 0.9 * guesser.proposed > 0


def test_a_draft_model_without_room_guesses_for_those_it_has_room_for(model: HybridLM) -> None:
    guesser = DraftModel(model, model.config, max_sequences=1, draft_tokens=2, kv_bytes=1 << 24)
    asks = [Ask("a", [1, 2, 3], 2), Ask("b", [4, 5], 2)]
    guesses = guesser.propose(asks)
    assert (len(guesses[0]), guesses[1]) == (2, [])
    guesser.forget("a")
    guesser.forget("a")
    assert len(guesser.propose(asks[1:])[0]) == 2


def test_a_draft_model_catches_up_with_a_long_text(model: HybridLM) -> None:
    """Parts over several steps, and the guesses of one that read it at once."""
    tokens = torch.randint(model.config.vocab_size, (3000,), generator=torch.Generator().manual_seed(0)).tolist()
    small = {"max_sequences": 1, "draft_tokens": 3, "kv_bytes": 1 << 26}
    guesser = DraftModel(model, model.config, **small)
    assert guesser.propose([Ask("a", tokens, 3)]) == [[]]
    (guess,) = guesser.propose([Ask("a", tokens, 3)])
    runner = Runner(model, Pools(model.config, 1, 12, dtype=torch.float32))
    logits = runner.run([], [Reading(tokens, 0, list(range(12)), [0])])
    assert guess[0] == int(logits[0].argmax())
    assert guesser.propose([Ask("a", [*tokens, guess[0], guess[1]], 0)]) == [[]]


def test_a_draft_model_goes_on_where_fewer_were_verified(model: HybridLM) -> None:
    """Of right guesses one alone came, since there was no memory to verify the others."""
    small = {"max_sequences": 1, "draft_tokens": 3, "kv_bytes": 1 << 26}
    guesser = DraftModel(model, model.config, **small)
    (guess,) = guesser.propose([Ask("a", [1, 2, 3], 3)])
    (again,) = guesser.propose([Ask("a", [1, 2, 3, guess[0]], 2)])
    assert again == guess[1:]


def test_a_draft_model_of_another_vocabulary_is_refused(model: HybridLM, make_model: Callable[..., HybridLM]) -> None:
    other = make_model(vocab_size=999)
    with pytest.raises(UserError, match=r"999 tokens and the model one of \d+"):
        DraftModel(other, model.config, max_sequences=1, draft_tokens=1, kv_bytes=1 << 24)
    with pytest.raises(UserError, match="only 10 are given"):
        DraftModel(model, model.config, max_sequences=1, draft_tokens=1, kv_bytes=10)
