"""Sampling: what is kept, how often it is drawn, and what is refused."""

import json
import math
import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leyden.core.errors import UserError
from leyden.ops import Filters, can_sample, filter_table, sample
from leyden.serve.sampling import Draw, Grammar, Sampler, SamplerBatch, Sampling, draw
from leyden.serve.sampling.sampler import _filters, filter_weights, invert
from leyden.serve.sampling.together import choose_together

# Probabilities 0.5, 0.25, 0.125, 0.0625, 0.0625, in shuffled places.
PROBABILITIES = torch.tensor([0.125, 0.5, 0.0625, 0.25, 0.0625])


def kept(logits: torch.Tensor, sampling: Sampling) -> set[int]:
    weights = ((logits - logits.max()) / sampling.temperature).exp()
    filter_weights(weights, logits, sampling)
    return set(weights.nonzero()[:, 0].tolist())


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, {0, 1, 2, 3, 4}),
        ({"top_k": 2}, {1, 3}),
        ({"top_k": 99}, {0, 1, 2, 3, 4}),
        ({"top_k": 4}, {0, 1, 2, 3, 4}),  # the fourth and the fifth are as probable
        ({"top_p": 0.5}, {1}),
        ({"top_p": 0.51}, {1, 3}),
        ({"top_p": 0.8}, {1, 3, 0}),
        ({"top_p": 1e-9}, {1}),
        ({"min_p": 0.25}, {1, 3, 0}),
        ({"min_p": 1.0}, {1}),
        # After top_k=2 the probabilities are 2/3 and 1/3, so top_p=0.6 needs the first alone.
        ({"top_k": 2, "top_p": 0.6}, {1}),
        ({"top_k": 3, "min_p": 0.4}, {1, 3}),
        # At temperature 1/2 the probabilities are squared: 16/23, 4/23, ... of 64/92.
        ({"temperature": 0.5, "top_p": 0.7}, {1}),
        ({"temperature": 0.5, "top_p": 0.75}, {1, 3}),
        # In units of ln 2 the logits are 0, -1, -2, -3, -3, whose standard deviation is sqrt(1.36) = 1.166.
        ({"top_n_sigma": 0.85}, {1}),
        ({"top_n_sigma": 0.87}, {1, 3}),
        ({"top_n_sigma": 0.87, "temperature": 3.0}, {1, 3}),
        ({"top_n_sigma": 2.0, "top_k": 2}, {1, 3}),
        ({"top_n_sigma": 9.0}, {0, 1, 2, 3, 4}),
    ],
)
def test_filters_keep_the_most_probable(filters: dict[str, float], expected: set[int]) -> None:
    assert kept(PROBABILITIES.log(), Sampling.parse(filters, "test")) == expected


@given(
    st.integers(0, 2**32),
    st.floats(0.05, 4),
    st.none() | st.integers(1, 700),
    st.floats(0.01, 0.999) | st.just(1.0),
    st.floats(0, 1),
)
def test_filters_are_those_of_the_sorted_list(
    seed: int, temperature: float, top_k: int | None, top_p: float, min_p: float
) -> None:
    """Against the definition: of the sorted tokens, those before which the probabilities are less than p."""
    logits = torch.randn(600, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    weights = ((logits - logits.max()) / temperature).exp()
    ordered, tokens = weights.sort(descending=True)
    ordered = ordered[:top_k].double()
    before = ordered.cumsum(0) - ordered
    # A top_p of 1 keeps all, and the sum of float64 does not see weights under 2**-53 of it.
    within = (before < top_p * ordered.sum()) | (top_p == 1)
    expected = tokens[: len(ordered)][within & (ordered.float() >= min_p) & (ordered > 0)].tolist()
    found = kept(logits, sampling)
    assert int(logits.argmax()) in found
    assert len(found ^ set(expected)) <= 1  # the sums' last bits may differ


@pytest.mark.parametrize("top_k", [None, 3])
def test_tokens_are_drawn_as_often_as_they_are_probable(top_k: int | None) -> None:
    """Pearson's statistic stays under the 99.9 % point of chi-square (18.5 at 4 degrees of freedom, 13.8 at 2)."""
    sampler = Sampler(Sampling(seed=0, top_k=top_k))
    num_draws = 4000
    counts = torch.zeros(5)
    for _ in range(num_draws):
        counts[sampler(PROBABILITIES.log()).token] += 1
    expected = PROBABILITIES.clone()
    if top_k is not None:
        expected[[2, 4]] = 0
    expected *= num_draws / expected.sum()
    possible = expected > 0
    assert counts[~possible].sum() == 0
    assert ((counts - expected)[possible] ** 2 / expected[possible]).sum() < (18.5 if top_k is None else 13.8)


@pytest.mark.parametrize("how", [{"temperature": 0.0}, {"temperature": 1e-6}, {"top_k": 1}])
def test_greedy_takes_the_first_of_the_largest(how: dict[str, Any]) -> None:
    assert Sampler(Sampling(**how))(torch.tensor([0.0, 2.0, 1.0, 2.0])).token == 1


def test_the_most_improbable_token_is_never_one_left_out() -> None:
    """Weights of 0 at the end are not drawn even by the largest number below 1."""
    sampler = Sampler(Sampling(min_p=0.5))
    sampler._uniforms = lambda position: 1 - 2.0**-53  # pyright: ignore[reportAttributeAccessIssue]
    assert sampler(torch.tensor([1.0, 1.0, -50.0, -50.0])).token == 1


def test_no_seed_differs_from_run_to_run() -> None:
    flat = torch.zeros(4096)
    draws = [[Sampler(Sampling())(flat).token for _ in range(4)] for _ in range(4)]
    assert len({tuple(draw) for draw in draws}) > 1


def test_seeds_completions_and_positions_draw_by_themselves() -> None:
    def numbers(seed: int, index: int) -> list[float]:
        sampler, found = Sampler(Sampling(seed=seed), index=index), []
        for _ in range(50):
            found.append(sampler.uniform)
            sampler.record(0)
        return found

    again = Sampler(Sampling(seed=1), index=127)
    assert [again.uniform_of(ahead) for ahead in (40, 3, 17)] == [numbers(1, 127)[i] for i in (40, 3, 17)]
    drawn = [numbers(seed, index) for seed in (-(2**63), 0, 1, 2**63 - 1) for index in (0, 1, 127)]
    flat = [number for row in drawn for number in row]
    assert len(set(flat)) == len(flat) == 600
    assert all(0 <= number < 1 for number in flat)
    assert abs(sum(flat) / 600 - 0.5) < 4 * 600**-0.5 * 12**-0.5
    assert drawn[0] == numbers(-(2**63), 0)


SAMPLINGS = st.builds(
    Sampling,
    seed=st.integers(-(2**63), 2**63 - 1),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_k=st.sampled_from([None, None, 1, 5, 300, 100_000]),
    top_p=st.sampled_from([1.0, 1.0, 0.9, 0.1]),
    min_p=st.sampled_from([0.0, 0.0, 0.05]),
    top_n_sigma=st.sampled_from([None, None, 1.0, 2.5]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.3, 0.7]),
    presence_penalty=st.sampled_from([0.0, 0.0, 1.5]),
    frequency_penalty=st.sampled_from([0.0, 0.0, -0.5]),
    logit_bias=st.dictionaries(st.integers(0, 400), st.floats(-100, 100), max_size=3),
    stop_token_ids=st.lists(st.integers(0, 400), max_size=2),
    min_tokens=st.integers(0, 3),
    logprobs=st.sampled_from([None, 0, 5, 20]),
)


@settings(max_examples=40)
@given(st.lists(SAMPLINGS, min_size=1, max_size=6), st.integers(0, 2**32), st.sampled_from([401, 1000, 1024]))
def test_a_batch_changes_no_draw(samplings: list[Sampling], seed: int, vocab: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(3, len(samplings), vocab, generator=generator)
    if seed % 2:
        logits = logits.bfloat16().float()  # equals abound
    prompts = [torch.randint(vocab, (index,), generator=generator).tolist() for index in range(len(samplings))]

    def samplers() -> list[Sampler]:
        rows = zip(samplings, prompts, strict=True)
        return [Sampler(own, prompt, index, {7}) for index, (own, prompt) in enumerate(rows)]

    alone, together, kept = samplers(), samplers(), logits.clone()
    batch, place = SamplerBatch(samplers()), torch.empty_like(logits[0])
    for step in logits:
        expected = [sampler(row) for sampler, row in zip(alone, step, strict=True)]
        assert draw(together, step) == expected
        assert batch.draw(place.copy_(step)) == expected
    assert torch.equal(logits, kept)


@pytest.mark.parametrize("filters", [{}, {"top_p": 0.95}, {"top_k": 40}, {"min_p": 0.02}, {"temperature": 0.0}])
def test_a_large_batch_changes_no_draw(filters: dict[str, Any]) -> None:
    """Threads share the rows of a large one; each row's sums still are its own."""
    logits = 3 * torch.randn(12, 32_003, generator=torch.Generator().manual_seed(0))
    samplings = [Sampling(seed=seed, logprobs=2, **filters) for seed in range(12)]
    expected = [Sampler(own)(row) for own, row in zip(samplings, logits, strict=True)]
    assert draw(list(map(Sampler, samplings)), logits) == expected


@settings(max_examples=60)
@given(st.lists(SAMPLINGS, min_size=1, max_size=6), st.integers(0, 2**32), st.sampled_from([2, 401, 1024]))
def test_a_gpu_chooses_what_a_cpu_does(samplings: list[Sampling], seed: int, vocab: int) -> None:
    """All rows at once, by other sums; equal weights count as one another's."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(len(samplings), vocab, generator=generator)
    if seed % 2:
        logits = logits.bfloat16().float()
    uniforms = torch.rand(len(samplings), generator=generator, dtype=torch.float64).tolist()
    chosen = choose_together(samplings, uniforms, logits)
    assert chosen.dtype == torch.int64
    for row, own, uniform, token in zip(logits, samplings, uniforms, chosen.tolist(), strict=True):
        expected = row.argmax() if own.greedy else invert(row, own, uniform)
        assert token == int(expected)


@settings(max_examples=80)
@given(
    st.lists(SAMPLINGS, min_size=1, max_size=5),
    st.integers(0, 2**32),
    st.sampled_from([1, 2, 17, 401, 1024]),
    st.sampled_from([0.1, 1.0, 10.0]),
)
def test_native_code_draws_what_the_inverse_of_the_distribution_is(
    samplings: list[Sampling], seed: int, vocab: int, spread: float
) -> None:
    """Rows lie apart from each other, some tokens are forbidden, and memory beside the rows is poisoned."""
    generator = torch.Generator().manual_seed(seed)
    held = torch.full((len(samplings), vocab + 3), float("nan"))
    logits = held[:, :vocab]
    logits.copy_(spread * torch.randn(logits.shape, generator=generator))
    if seed % 2:
        logits.copy_(logits.bfloat16())
        logits[:, 1::3] = -math.inf
    if not can_sample(logits):
        pytest.skip("no native library here")
    uniforms = torch.rand(len(samplings), generator=generator, dtype=torch.float64).tolist()
    kept = held.clone()
    filters = [_filters(own)._replace(uniform=uniform) for own, uniform in zip(samplings, uniforms, strict=True)]
    chosen = sample(logits, filter_table(filters))
    for row, own, uniform, token in zip(logits, samplings, uniforms, chosen, strict=True):
        assert token == int(row.argmax() if own.greedy else invert(row.contiguous(), own, uniform))
    assert torch.equal(held.nan_to_num(7.0), kept.nan_to_num(7.0))


@pytest.mark.parametrize("spread", [0.01, 1.0, 30.0])
def test_native_draws_of_large_heads(spread: float) -> None:
    """Of many weights that are near each other, of which a part alone is put in order; some are equal."""
    generator = torch.Generator().manual_seed(0)
    logits = (spread * torch.randn(6, 20_011, generator=generator)).bfloat16().float()
    if not can_sample(logits):
        pytest.skip("no native library here")
    hows = [
        {"top_p": 0.9},
        {"top_p": 0.3},
        {"top_k": 5000},
        {"top_k": 12_000, "top_p": 0.7},
        {"top_p": 1e-9},
        {"top_k": 1},
    ]
    samplings = [Sampling(**how) for how in hows]
    filters = filter_table([_filters(own)._replace(uniform=0.999999) for own in samplings])
    expected = [int(invert(row, own, 0.999999)) for row, own in zip(logits, samplings, strict=True)]
    assert sample(logits, filters) == expected


def test_native_draws_of_logits_that_are_no_numbers_end() -> None:
    logits = torch.full((5, 100), float("nan"))
    logits[1:3, ::2] = 1.0
    if not can_sample(logits):
        pytest.skip("no native library here")
    hows = [{"top_p": 0.9}, {"top_p": 0.5}, {"top_k": 60}, {"top_k": 3}, {"temperature": 0.0}]
    tokens = sample(logits, filter_table([_filters(Sampling(**how)) for how in hows]))
    assert all(0 <= token < 100 for token in tokens)


def test_native_draws_refuse_what_does_not_fit() -> None:
    logits, filters = torch.zeros(2, 5), filter_table([Filters(1, math.inf, 1, 0, math.inf, 0.5)] * 2)
    if not can_sample(logits):
        pytest.skip("no native library here")
    assert sample(logits, filters) == [2, 2]
    assert not can_sample(logits.double())
    assert not can_sample(logits.t())
    for wrong, given_filters in [(logits.double(), filters), (logits.t(), filters), (logits, filters[:1])]:
        with pytest.raises(ValueError, match=r"leyden_sample: .* expected"):
            sample(wrong, given_filters)
    with pytest.raises(ValueError, match="a vocabulary of one or more"):
        sample(torch.zeros(2, 0), filters)


def slowly_adjusted(logits: torch.Tensor, sampling: Sampling, prompt: list[int], output: list[int]) -> torch.Tensor:
    """The definition: of OpenAI's documentation, and of CTRL for the repetition penalty."""
    changed = logits.tolist()
    for token, value in enumerate(changed):
        if token in prompt or token in output:
            value = value / sampling.repetition_penalty if value > 0 else value * sampling.repetition_penalty
        count = output.count(token)
        value -= count * sampling.frequency_penalty + (count > 0) * sampling.presence_penalty
        changed[token] = value + sampling.logit_bias.get(token, 0.0)
    return torch.tensor(changed)


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.floats(0.5, 2), st.floats(-2, 2), st.floats(-2, 2))
def test_penalties_are_those_of_the_definition(seed: int, repetition: float, presence: float, frequency: float) -> None:
    rng = random.Random(seed)
    sampling = Sampling(
        temperature=0,
        repetition_penalty=repetition,
        presence_penalty=presence,
        frequency_penalty=frequency,
        logit_bias={3: -1.5, 11: 0.5},
    )
    prompt, output = rng.choices(range(12), k=5), []
    sampler = Sampler(sampling, prompt)
    for _ in range(60):
        logits = torch.tensor([rng.gauss(0, 2) for _ in range(12)])
        token = sampler(logits).token
        expected = slowly_adjusted(logits, sampling, prompt, output)
        assert expected[token] >= expected.max() - 1e-4
        output.append(token)


def test_a_bias_of_100_decides() -> None:
    logits = torch.linspace(-5, 5, 9)
    assert Sampler(Sampling(logit_bias={2: 100}))(logits).token == 2
    flat = Sampler(Sampling(logit_bias={2: -100.0}))
    assert all(flat(torch.zeros(3)).token != 2 for _ in range(50))


def test_nothing_ends_the_text_before_min_tokens() -> None:
    sampling = Sampling(temperature=0, min_tokens=3, stop_token_ids=(1,), logit_bias={1: 1.0})
    sampler = Sampler(sampling, end_tokens={4})
    logits = torch.tensor([0.0, 9.0, 1.0, 2.0, 10.0])
    assert [sampler(logits).token for _ in range(4)] == [3, 3, 3, 1]  # 9 and the bias, against 10
    assert sampler.ends(1) and sampler.ends(4) and not sampler.ends(3)


def test_ignored_ends_can_be_drawn_and_end_nothing() -> None:
    sampler = Sampler(Sampling(temperature=0, min_tokens=3, ignore_eos=True), end_tokens={1})
    assert sampler(torch.tensor([0.0, 1.0])).token == 1
    assert not sampler.ends(1)


@pytest.mark.parametrize("penalty", [1e-300, 1e-30, 100.0])
def test_extreme_penalties_leave_numbers(penalty: float) -> None:
    sampler = Sampler(Sampling(repetition_penalty=penalty, temperature=2, seed=0), [0, 1, 2])
    assert 0 <= sampler(torch.tensor([1.0, 0.0, -1.0, 0.5])).token < 4
    assert sampler.adjustments is not None
    assert torch.equal(draw_weights(sampler), draw_weights(sampler))


def draw_weights(sampler: Sampler) -> torch.Tensor:
    from leyden.serve.sampling.penalties import adjust

    logits = torch.tensor([[1.0, 0.0, -1.0, 0.5]])
    assert sampler.adjustments is not None
    adjust(logits, [(0, sampler.adjustments)])
    assert not logits.isnan().any()
    return logits


def test_logprobs_are_of_the_unchanged_distribution() -> None:
    sampling = Sampling(temperature=0, logprobs=2, logit_bias={2: 100.0})
    drawn = Sampler(sampling)(PROBABILITIES.log())
    assert drawn.token == 2
    assert drawn.logprobs is not None
    assert drawn.logprobs.logprob == pytest.approx(-2.7725887, abs=1e-5)
    assert [token for token, _ in drawn.logprobs.top] == [1, 3]
    assert drawn.logprobs.top[0][1] == pytest.approx(-0.6931472, abs=1e-5)


@pytest.mark.parametrize("count", [0, 1, 2, 20])
def test_the_greedy_token_leads_the_reported_ones(count: int) -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, 2.0, 2.0, 1.0, -1.0])
    drawn = Sampler(Sampling(temperature=0, logprobs=count))(logits)
    assert drawn.token == 2
    assert drawn.logprobs is not None
    tokens = [token for token, _ in drawn.logprobs.top]
    assert tokens[:1] == [2][:count]
    assert len(tokens) == len(set(tokens)) == min(count, 7)


def test_no_logprobs_unless_asked_for() -> None:
    assert Sampler(Sampling(temperature=0))(PROBABILITIES) == Draw(1, None)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", True),
        ("max_tokens", 3.0),
        ("min_tokens", -1),
        ("n", 0),
        ("n", 129),
        ("temperature", -0.1),
        ("temperature", False),
        ("temperature", "1"),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", 0),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("min_p", -1.0),
        ("top_n_sigma", 0.0),
        ("top_n_sigma", float("inf")),
        ("repetition_penalty", 0.0),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("logit_bias.1", {1: 101.0}),
        ("logit_bias.-1.[key]", {-1: 1.0}),
        ("logit_bias.x.[key]", {"x": 1.0}),
        ("logit_bias.1", {1: True}),
        ("stop", ("",)),
        ("stop", "text"),
        ("stop", ("a",) * 65),
        ("stop", ("a" * 1025,)),
        ("stop_token_ids", (1,) * 4097),
        ("logit_bias", dict.fromkeys(range(4097), 1.0)),
        ("stop.0", (1,)),
        ("stop_token_ids.0", (-1,)),
        ("stop_token_ids.0", (True,)),
        ("ignore_eos", 1),
        ("logprobs", 21),
        ("logprobs", -1),
        ("logprobs", True),
        ("prompt_logprobs", 21),
        ("seed", "x"),
        ("seed", 2**63),
        ("seed", 1.5),
        ("top_q", 1),
    ],
)
def test_a_bad_value_names_its_field(field: str, value: object) -> None:
    with pytest.raises(UserError) as caught:
        Sampling(**{field.split(".")[0]: value})  # pyright: ignore[reportArgumentType]
    assert f"'{field}'" in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert str(caught.value).startswith("sampling: ")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"min_tokens": 9, "max_tokens": 8}, r"'min_tokens' \(9\) is more than 'max_tokens' \(8\)"),
        ({"grammar": Grammar(regex="a"), "ignore_eos": True}, "'ignore_eos' contradicts 'grammar'"),
        ({"grammar": Grammar(regex="a"), "min_tokens": 1}, "'min_tokens' contradicts 'grammar'"),
    ],
)
def test_values_that_contradict_each_other_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Sampling(**fields)


def test_lists_and_keys_of_text_as_files_have_them() -> None:
    given = {"stop": ["a"], "stop_token_ids": [3], "logit_bias": {"5": -100}}
    sampling = Sampling.parse(given, "test")
    assert (sampling.stop, sampling.stop_token_ids, sampling.logit_bias) == (("a",), (3,), {5: -100.0})
    assert Sampling.parse(json.loads(sampling.model_dump_json()), "test") == sampling


def test_tokens_that_the_model_lacks_are_refused() -> None:
    Sampling(logit_bias={9: 1.0}, stop_token_ids=(9,)).check_tokens(10)
    with pytest.raises(UserError, match=r"'logit_bias' names token 10; the model's ids lie in 0..9"):
        Sampling(logit_bias={10: 1.0}).check_tokens(10)
    with pytest.raises(UserError, match="'stop_token_ids' names token 10"):
        Sampling(stop_token_ids=(10,)).check_tokens(10)


@given(
    st.dictionaries(
        st.sampled_from([*Sampling.model_fields, "top_q"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
            lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
            max_leaves=4,
        ),
        max_size=3,
    )
)
def test_anything_is_a_sampling_or_an_error_for_the_user(data: dict[str, Any]) -> None:
    try:
        sampling = Sampling.parse(data, "request")
    except UserError:
        return
    for name, value in data.items():
        assert type(value) is not bool or name in ("ignore_eos",)
        assert getattr(sampling, name) is not None or value is None
