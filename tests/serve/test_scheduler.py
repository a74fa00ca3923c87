"""Who runs when: decodes do not wait for long prompts, nor short prompts for long ones; and little memory is enough."""

from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import torch

from leyden.core.errors import UserError
from leyden.model import PAGE, HybridLM, Pools
from leyden.serve import Delta, Engine, QueueFullError, Request, Sampling
from leyden.serve.memory import audit

GREEDY = Sampling(max_tokens=4, temperature=0, ignore_eos=True)


def text(length: int, seed: int) -> list[int]:
    return torch.randint(290, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def request(id: str, tokens: list[int], sampling: Sampling = GREEDY, **more: int | bool) -> Request:
    return Request(tokens, sampling, id, **{"cache_completion": False, **more})  # pyright: ignore[reportArgumentType]


def steps(engine: Engine) -> Iterator[list[Delta]]:
    while engine.busy:
        yield engine.step()


def first_tokens(engine: Engine) -> dict[str, int]:
    """The step in which each request's first token came, counted from 1."""
    found: dict[str, int] = {}
    for number, deltas in enumerate(steps(engine), 1):
        for delta in deltas:
            if delta.tokens:
                found.setdefault(delta.request, number)
    return found


def pages(model: HybridLM, count: float) -> float:
    return (count + 0.5) * Pools.bytes_of(model.config, model.dtype)[1] / 2**30


def alone(model: HybridLM, tokens: list[int], sampling: Sampling = GREEDY) -> tuple[int, ...]:
    return Engine(model, cache_gigabytes=0).generate([tokens], sampling)[0].tokens


def test_decodes_never_wait_for_a_long_prompt(model: HybridLM) -> None:
    engine = Engine(model, step_tokens=PAGE)
    engine.add(request("decodes", text(5, 1), Sampling(max_tokens=12, temperature=0, ignore_eos=True)))
    engine.step()
    engine.add(request("long", text(8 * PAGE + 10, 2)))
    for _ in range(8):
        deltas = {delta.request: delta for delta in engine.step()}
        assert len(deltas["decodes"].tokens) == 1
        assert deltas["long"].tokens == ()
    assert deltas["long"].read_tokens == 8 * PAGE


def test_short_prompts_pass_long_ones_which_arrive_all_the_same(model: HybridLM) -> None:
    """Of 512 tokens a step the oldest prompt gets a page, the short ones the rest."""
    engine = Engine(model, step_tokens=2 * PAGE)
    engine.add(request("long", text(6 * PAGE, 1)))
    engine.step()
    for number in range(8):
        engine.add(request(f"short {number}", text(100, 10 + number)))
    found = first_tokens(engine)
    assert [found[f"short {number}"] for number in range(8)] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert found["long"] <= 5


def test_steps_that_nobody_watches_read_four_times_as_much(model: HybridLM) -> None:
    engine = Engine(model, step_tokens=PAGE)
    for name in ("batch", "more"):
        engine.add(request(name, text(5 * PAGE + 9, 1 + len(name)), watched=False))
    assert {delta.request: delta.read_tokens for delta in engine.step()} == {"batch": 4 * PAGE}
    engine.add(request("watched", text(3 * PAGE, 9)))
    assert sum(delta.read_tokens for delta in engine.step()) == 5 * PAGE


def test_several_prompts_share_a_step(model: HybridLM) -> None:
    engine = Engine(model, step_tokens=512)
    for number in range(5):
        engine.add(request(f"{number}", text(100, number)))
    assert set(first_tokens(engine).values()) == {1}


def test_priority_then_arrival(model: HybridLM) -> None:
    engine = Engine(model, max_sequences=1)
    for id, priority in (("a", 1), ("b", 0), ("c", 0)):
        engine.add(request(id, text(9, 3), priority=priority))
    found = first_tokens(engine)
    assert sorted(found, key=found.__getitem__) == ["b", "c", "a"]


def test_the_queue_is_bounded(model: HybridLM) -> None:
    engine = Engine(model, max_sequences=2, max_queue=3)
    for number in range(5):
        engine.add(request(f"{number}", text(9, number)))
    with pytest.raises(QueueFullError, match="try again"):
        engine.add(request("6", text(9, 6)))
    assert engine.statistics.refused == 1
    engine.abort("0")
    engine.step()
    assert engine.statistics.queued == 2
    engine.add(request("6", text(9, 6)))
    assert set(first_tokens(engine)) == {"1", "2", "3", "4", "6"}


def test_what_can_never_fit_is_refused_with_the_figures(model: HybridLM) -> None:
    engine = Engine(model, kv_gigabytes=pages(model, 2))
    with pytest.raises(UserError, match=r"513 tokens.*pages of keys and values for 512.*kv_gigabytes"):
        engine.add(request("a", text(513, 1)))
    engine.add(request("b", text(510, 1), Sampling(max_tokens=9, temperature=0, ignore_eos=True)))
    with pytest.raises(UserError, match="'b' already"):
        engine.add(request("b", text(5, 1)))
    *_, last = (delta for deltas in steps(engine) for delta in deltas)
    assert last.finish_reason == "length"
    assert last.usage is not None and last.usage.completion_tokens == 3  # as many as there are pages for


def test_a_prompt_waits_for_another_that_begins_alike(model: HybridLM) -> None:
    """The beginning is read once, and the state kept where the two part."""
    shared = text(3 * PAGE + 40, 1)
    prompts = [shared + text(30, seed) for seed in (2, 3, 4)]
    engine = Engine(model)
    for number, prompt in enumerate(prompts):
        engine.add(request(f"{number}", prompt))
    answers: dict[str, tuple[int, ...]] = {}
    for deltas in steps(engine):
        for delta in deltas:
            answers[delta.request] = answers.get(delta.request, ()) + delta.tokens
    assert engine.statistics.prefill_tokens == len(prompts[0]) + 2 * (len(prompts[0]) - 3 * PAGE)
    assert engine.statistics.cache_used_tokens == 2 * 3 * PAGE
    assert [answers[f"{number}"] for number in range(3)] == [alone(model, prompt) for prompt in prompts]


def test_who_waits_for_a_long_prompt_need_not_wait_for_all_of_it(model: HybridLM) -> None:
    """What others wait for counts as theirs, so that it goes before a prompt of middle length."""
    engine, long = Engine(model, step_tokens=2 * PAGE), text(7 * PAGE, 2)
    for id, tokens in (("oldest", text(7 * PAGE, 1)), ("long", long), ("middle", text(4 * PAGE, 3))):
        engine.add(request(id, tokens))
    engine.step()
    engine.add(request("waits", [*long[: 2 * PAGE], *text(10, 4)]))
    found = first_tokens(engine)
    assert found["waits"] == 3  # two pages of the long one, and its own rest
    assert found["waits"] < min(found[id] for id in ("oldest", "long", "middle"))


def test_an_abort_frees_everything_within_a_step(model: HybridLM) -> None:
    engine = Engine(model, max_sequences=3)
    for number in range(6):
        engine.add(request(f"{number}", text(300 + number, number), Sampling(max_tokens=50, n=2, seed=1)))
    engine.step()
    for number in range(6):
        engine.abort(f"{number}")
    assert engine.step() == []
    assert not engine.busy
    assert engine.statistics.states_used == engine.statistics.pages_used == 0
    assert engine.statistics.finished == Counter(aborted=12)
    audit(engine.memory)


@pytest.mark.parametrize("swap_gigabytes", [None, 0])
def test_sequences_make_room_for_those_before_them(model: HybridLM, swap_gigabytes: float | None) -> None:
    """Four pages for three sequences that grow to two each: moved to the host, or stopped where there is no room."""
    prompts = [text(250, seed) for seed in (1, 2, 3)]
    sampling = Sampling(max_tokens=20, seed=5, ignore_eos=True)
    engine = Engine(model, kv_gigabytes=pages(model, 4), swap_gigabytes=swap_gigabytes, cache_gigabytes=0)
    for number, prompt in enumerate(prompts):
        engine.add(request(f"{number}", prompt, sampling))
    tokens: dict[str, tuple[int, ...]] = {}
    swapped = 0
    for deltas in steps(engine):
        swapped = max(swapped, engine.statistics.swapped)
        audit(engine.memory)
        for delta in deltas:
            tokens[delta.request] = tokens.get(delta.request, ()) + delta.tokens
    assert [tokens[f"{number}"] for number in range(3)] == [alone(model, prompt, sampling) for prompt in prompts]
    assert (swapped, engine.statistics.preemptions) == ((1, 1) if swap_gigabytes is None else (0, 0))


def test_where_nothing_can_make_room_the_last_one_fails(model: HybridLM) -> None:
    engine = Engine(model, kv_gigabytes=pages(model, 2), swap_gigabytes=0, cache_gigabytes=0)
    sampling = Sampling(max_tokens=20, temperature=0, ignore_eos=True)
    for number in range(2):
        engine.add(request(f"{number}", text(250, number), sampling))
    last = {delta.request: delta for deltas in steps(engine) for delta in deltas}
    assert last["0"].finish_reason == "length"
    assert last["1"].finish_reason == "error"
    assert last["1"].error is not None and "memory" in last["1"].error
    assert engine.statistics.pages_used == 0


@pytest.mark.parametrize("room", [8, 2])
def test_several_completions_share_the_reading_of_their_prompt(model: HybridLM, room: int) -> None:
    """Those that find no slot come later, from the cache; each is what its own random numbers make it."""
    prompt, sampling = text(400, 1), Sampling(max_tokens=6, n=5, seed=3, ignore_eos=True)
    engine = Engine(model, max_sequences=room)
    found = [completion.tokens for completion in engine.generate([prompt], sampling)]
    assert engine.statistics.prefill_tokens == (400 if room == 8 else 400 + 3 * (400 - PAGE))
    assert len(set(found)) == 5
    assert found == [c.tokens for c in Engine(model, cache_gigabytes=0, max_sequences=1).generate([prompt], sampling)]


def test_a_completion_is_read_for_the_cache_when_there_is_time(model: HybridLM) -> None:
    """Read once more, up to the grid, so that a text that goes on from it need not be; a request comes first."""
    engine = Engine(model, max_sequences=1)
    sampling = Sampling(max_tokens=300, temperature=0, ignore_eos=True)
    engine.add(Request(text(200, 1), sampling, "first"))
    drawn: tuple[int, ...] = ()
    while len(drawn) < 300:
        drawn += tuple(token for delta in engine.step() for token in delta.tokens)
    assert engine.busy and engine.statistics.cache_read_tokens == 0
    goes_on = [*text(200, 1), *drawn, *text(20, 2)]
    list(steps(engine))
    assert engine.statistics.cache_read_tokens == 256
    before = engine.statistics.prefill_tokens
    assert engine.generate([goes_on], GREEDY)[0].tokens == alone(model, goes_on)
    assert engine.statistics.prefill_tokens - before == len(goes_on) - PAGE


def test_out_of_memory_ends_one_request(model: HybridLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest part of the step fails; a shorter prompt beside it begins anew, and decodes do not notice."""
    engine = Engine(model)
    prompts = {"decodes": text(30, 1), "short": text(300, 2), "long": text(700, 3)}
    tokens: dict[str, tuple[int, ...]] = dict.fromkeys(prompts, ())
    errors: dict[str, str] = {}
    run, calls = engine._steps._runner.run, 0

    def fails_once(decodes: list, prefills: list) -> torch.Tensor:
        nonlocal calls
        logits = run(decodes, prefills)
        calls += bool(prefills)
        if prefills and calls == 2:
            engine.memory.pools.slots["state"][:, [reading.states[0] for reading in prefills]] = torch.nan  # torn
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.")
        return logits

    monkeypatch.setattr(engine._steps._runner, "run", fails_once)
    engine.add(request("decodes", prompts["decodes"]))
    engine.step()
    engine.add(request("short", prompts["short"]))
    engine.add(request("long", prompts["long"]))
    for deltas in [[], *steps(engine)]:
        for delta in deltas:
            tokens[delta.request] += delta.tokens
            if delta.error is not None:
                errors[delta.request] = delta.error
    assert list(errors) == ["long"] and "700 tokens" in errors["long"]
    assert tokens["short"] == alone(model, prompts["short"])
    assert tokens["decodes"] == alone(model, prompts["decodes"])[1:]
    audit(engine.memory)


def test_other_faults_end_everything_and_leave_the_engine_usable(
    model: HybridLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(model)
    run = engine._steps._runner.run

    def fails(decodes: list, prefills: list) -> torch.Tensor:
        raise RuntimeError("a wrong index")

    engine.add(request("a", text(30, 1)))
    engine.step()
    monkeypatch.setattr(engine._steps._runner, "run", fails)
    with pytest.raises(RuntimeError, match="wrong index"):
        engine.step()
    assert not engine.busy
    monkeypatch.setattr(engine._steps._runner, "run", run)
    audit(engine.memory)
    assert engine.generate([text(30, 1)], GREEDY)[0].tokens == alone(model, text(30, 1))
    assert engine.statistics.states_used == 0


def test_a_fault_outside_the_model_empties_the_memory(model: HybridLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its books may be torn; the block of host memory that snapshots lie in is not taken a second time."""
    engine, prompt = Engine(model), text(600, 1)
    engine.generate([prompt], GREEDY)
    engine.add(request("a", prompt))
    engine.step()
    block = engine.memory.snapshots.slots["state"]
    assert engine.statistics.cache_used_tokens and engine.memory.usage.pages_kept == 0

    def fails() -> None:
        raise RuntimeError("a wrong index")

    monkeypatch.setattr(engine._steps.scheduler, "plan", fails)
    with pytest.raises(RuntimeError, match="wrong index"):
        engine.step()
    assert not engine.busy
    usage = engine.memory.usage
    assert (usage.states_used, usage.pages_used, usage.pages_kept, usage.snapshots) == (0, 0, 0, 0)
    assert engine.memory.snapshots.slots["state"] is block
    assert engine.generate([prompt], GREEDY)[0].tokens == alone(model, prompt)
    audit(engine.memory)


@pytest.mark.parametrize("speculation", ["prompt", "draft"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_guesses_change_no_token(
    model: HybridLM, make_model: Callable[..., HybridLM], speculation: str, temperature: float
) -> None:
    """Prompts that repeat themselves, and a draft model that is the model: right guesses, and wrong ones."""
    prompts = [[1, 2, 3] * 30, [5, 6, 7, 8] * 20, [9], [4, 4, 4, 4, 4]]
    sampling = Sampling(max_tokens=40, temperature=temperature, seed=3, frequency_penalty=0.1, stop_token_ids=(17,))
    draft = make_model() if speculation == "draft" else None
    engine = Engine(model, draft=draft, speculation=speculation, max_sequences=3)
    found = engine.generate(prompts, sampling)
    plain = Engine(model).generate(prompts, sampling)
    assert [(c.tokens, c.finish_reason) for c in found] == [(c.tokens, c.finish_reason) for c in plain]
    if speculation == "draft":
        assert engine.statistics.draft_tokens_proposed > engine.statistics.draft_tokens_accepted > 0
    assert engine.statistics.states_used == 0
    audit(engine.memory)


def test_a_draft_model_and_the_setting_belong_together(model: HybridLM) -> None:
    with pytest.raises(UserError, match="belong together"):
        Engine(model, speculation="draft")
    with pytest.raises(UserError, match="belong together"):
        Engine(model, draft=model)


def test_a_prompt_is_scored(model: HybridLM) -> None:
    """All of it, in parts of a page, though the cache has it already."""
    prompt = text(600, 1)
    engine = Engine(model)
    engine.generate([prompt], GREEDY)
    engine.add(request("a", prompt, Sampling(max_tokens=1, temperature=0, logprobs=0, prompt_logprobs=2)))
    *before, last = (delta for deltas in steps(engine) for delta in deltas)
    assert all(delta.prompt_logprobs is None for delta in before)
    assert last.prompt_logprobs is not None and last.usage is not None
    assert last.prompt_logprobs[0] is None and last.usage.cache.used == 0
    with torch.inference_mode():
        expected = model(torch.tensor([prompt]))[0].log_softmax(-1)
    scored = [one for one in last.prompt_logprobs if one is not None]
    assert [one.token for one in scored] == prompt[1:]
    found = torch.tensor([one.logprob for one in scored])
    torch.testing.assert_close(found, expected[torch.arange(599), prompt[1:]], atol=1e-4, rtol=0)
    assert [one.top[0][0] for one in scored] == expected[:-1].argmax(-1).tolist()
    assert last.logprobs[0].token == int(expected[-1].argmax())


def test_a_plan_is_the_last_one_until_someone_comes_or_goes_or_a_page_is_full(model: HybridLM) -> None:
    """And the gauges say what there is in every step."""
    engine = Engine(model, max_sequences=2)
    scheduler = engine._steps.scheduler
    engine.add(request("first", text(PAGE - 6, 1), Sampling(max_tokens=16, temperature=0, ignore_eos=True)))
    engine.step()
    kept: list[bool] = []
    for number in range(12):
        if number == 9:
            engine.add(request("second", text(3, 2), Sampling(max_tokens=2, temperature=0, ignore_eos=True)))
        kept.append(scheduler.repeats)
        engine.step()
        used = engine.memory.usage
        assert engine.statistics.pages_used == used.pages_used == 1 + (number >= 6) + (number == 9)
        assert engine.statistics.running == len(scheduler.running)
    assert kept == [number not in (0, 6, 10, 11) for number in range(12)]
