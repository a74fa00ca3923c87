"""New weights in a running engine: what they count for, what they are refused for, and what they make forgotten."""

import asyncio
import copy
from collections.abc import Callable

import pytest
import torch

from leyden.core.errors import UserError
from leyden.model import PAGE, HybridLM, Rope, RopeScaling
from leyden.model.quantized import quantize
from leyden.serve import Engine, Request, Sampling
from leyden.serve.loop import EngineLoop
from leyden.serve.new_weights import WeightsWatch

GREEDY = Sampling(max_tokens=12, temperature=0, ignore_eos=True, logprobs=0)
PROMPTS = [[1, 2, 3], [7] * (PAGE + 9)]

MakeModel = Callable[..., HybridLM]


def other(model: HybridLM, seed: int = 5) -> HybridLM:
    """A model of the same shape whose weights are others."""
    made, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * parameter.std())
    return made


def drawn(engine: Engine, prompts: list[list[int]] = PROMPTS) -> list[tuple[object, ...]]:
    return [(made.tokens, made.logprobs) for made in engine.generate(prompts, GREEDY)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("decoder", ["auto", "torch"])
def test_an_engine_with_new_weights_is_one_that_began_with_them(
    make_model: MakeModel, dtype: torch.dtype, decoder: str
) -> None:
    model = make_model(shared_intermediate_size=16).to(dtype)
    trained = other(model)
    engine = Engine(model, decoder=decoder)
    before = drawn(engine)
    assert engine.update_weights(trained) == engine.weights_version == 1
    fresh = Engine(copy.deepcopy(trained), decoder=decoder)
    assert drawn(engine) == drawn(fresh) != before
    assert [made.weights_version for made in engine.generate(PROMPTS, GREEDY)] == [1, 1]
    state = {name: value.float() for name, value in other(model, seed=6).state_dict().items()}
    engine.update_weights(state)
    fresh.model.load_state_dict(state)
    assert drawn(engine) == drawn(Engine(fresh.model, decoder=decoder))
    assert engine.generate([[1]], GREEDY)[0].weights_version == 2


@pytest.mark.parametrize("head", [False, True])
def test_matrices_of_8_bits_are_rounded_anew(make_model: MakeModel, head: bool) -> None:
    model = make_model()
    trained = other(model)
    engine = Engine(quantize(model, head=head))
    engine.update_weights(trained)
    rounded = quantize(copy.deepcopy(trained), head=head)
    assert drawn(engine) == drawn(Engine(rounded))
    engine.update_weights(quantize(other(trained), head=head))
    assert drawn(engine) != drawn(Engine(rounded))
    with torch.no_grad():
        trained.layers[0].self_attn.qkv_proj.weight[3, 5] = torch.nan
    with pytest.raises(UserError, match=r"layers\.0\.self_attn\.qkv_proj\.weight has an element that is infinite"):
        engine.update_weights(trained)


def test_weights_that_do_not_fit_change_nothing(make_model: MakeModel) -> None:
    model = make_model()
    engine, before = Engine(model), copy.deepcopy(model.state_dict())
    state = other(model).state_dict()
    missing = {name: value for name, value in state.items() if name != "norm.weight"}
    whole_numbers = {**state, "norm.weight": torch.zeros(32, dtype=torch.int8)}
    wrong = {**state, "norm.weight": torch.zeros(3), "more.weight": torch.zeros(3)}
    for source, reason in (
        (missing, r"norm\.weight is missing"),
        (wrong, r"more\.weight is not a weight .*; norm\.weight is \[3\], and \[32\] in the engine"),
        (
            whole_numbers,
            r"norm\.weight is torch\.int8, and torch\.float32",
        ),
        ({**state, "norm.weight": torch.zeros(32, device="meta")}, r"norm\.weight is not a tensor with values"),
        ({}, r"and \d+ more\. Nothing was changed; give all weights"),
        (make_model(num_local_experts=2), "num_local_experts is 2, and 4 in the engine"),
        ("weights", r"takes a model, or tensors by name as model\.state_dict\(\) gives them; given a str"),
    ):
        with pytest.raises(UserError, match=reason):
            engine.update_weights(source)
    with pytest.raises(UserError, match="'refuse', 'finish', 'abort'; given 'wait'"):
        engine.update_weights(state, running="wait")
    assert engine.weights_version == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_tied_output_projection_is_the_embedding(make_model: MakeModel) -> None:
    model = make_model(tie_word_embeddings=True)
    engine, state = Engine(model), other(model).state_dict()
    with pytest.raises(UserError, match=r"lm_head\.weight is not equal to the embedding"):
        engine.update_weights({**state, "lm_head.weight": state["lm_head.weight"] + 1})
    del state["lm_head.weight"]
    engine.update_weights(state)
    assert torch.equal(model.lm_head.weight, state["embed_tokens.weight"])


def test_a_tied_embedding_of_8_bits_is_rounded_anew(make_model: MakeModel) -> None:
    model = make_model(tie_word_embeddings=True)
    trained = other(model)
    engine = Engine(quantize(model, head=True))
    engine.update_weights(trained)
    assert drawn(engine) == drawn(Engine(quantize(trained, head=True)))


def test_a_model_may_be_told_another_rope_base_and_trained_by_other_losses(make_model: MakeModel) -> None:
    model = make_model()
    trained = make_model(capacity_factor=0.5, router_aux_loss_coef=0.3)
    trained.set_rope(Rope(300.0, RopeScaling(rope_type="linear", factor=4.0)))
    engine = Engine(model)
    engine.update_weights(trained)
    assert model.config.rope == trained.config.rope and model.config.capacity_factor is None
    assert drawn(engine) == drawn(Engine(trained))


def test_what_was_read_with_the_old_weights_is_forgotten(make_model: MakeModel) -> None:
    model = make_model()
    engine, long = Engine(model), [5] * (2 * PAGE + 3)
    drawn(engine, [long])
    assert engine.memory.admit(long).length == 2 * PAGE
    engine.update_weights(other(model))
    assert drawn(engine, [long]) == drawn(Engine(model), [long])
    assert engine.statistics.prefill_tokens == 2 * len(long)


def test_requests_that_run_are_in_the_way(make_model: MakeModel) -> None:
    model = make_model()
    trained = other(model)
    engine = Engine(model)
    whole = engine.generate(PROMPTS, GREEDY)
    for number, prompt in enumerate(PROMPTS):
        engine.add(Request(prompt, GREEDY, f"{number}"))
    deltas = engine.step()
    with pytest.raises(UserError, match=r"while 2 requests run: .*running='finish'.* or running='abort'"):
        engine.update_weights(trained)
    assert engine.weights_version == 0
    assert engine.update_weights(trained, running="finish") == 1
    deltas += engine.step()
    assert not engine.busy and {delta.weights_version for delta in deltas} == {0}
    for number, made in enumerate(whole):
        own = [delta for delta in deltas if delta.request == f"{number}"]
        assert tuple(token for delta in own for token in delta.tokens) == made.tokens


def test_requests_that_come_while_others_finish_wait_for_the_new_weights(make_model: MakeModel) -> None:
    model = make_model()
    trained = other(model)
    engine = Engine(model)

    def and_another(delta: object) -> None:
        if missing:
            engine.add(Request(PROMPTS[1], GREEDY, missing.pop()))

    missing: list[str] = []
    engine.add(Request(PROMPTS[0], GREEDY, "first", on_delta=and_another))
    engine.advance()
    missing.append("later")
    engine.update_weights(trained, running="finish")
    later = []
    while engine.busy:
        later += engine.step()
    assert {delta.weights_version for delta in later} == {1}
    tokens = tuple(token for delta in later for token in delta.tokens)
    assert tokens == Engine(trained).generate(PROMPTS[1:], GREEDY)[0].tokens


def test_requests_that_are_aborted_keep_their_tokens(make_model: MakeModel) -> None:
    model = make_model()
    whole = Engine(model).generate(PROMPTS[:1], GREEDY)[0]
    engine = Engine(model)
    stream = engine.stream(PROMPTS[0], GREEDY)
    engine.add(Request(PROMPTS[0], GREEDY.model_copy(update={"n": 2}), "two"))
    next(stream)
    engine.step()
    engine.update_weights(other(model), running="abort")
    ends = [delta for delta in engine.step() if delta.finish_reason]
    assert [(delta.index, delta.finish_reason) for delta in ends] == [(0, "aborted"), (1, "aborted")]
    with pytest.raises(UserError, match="a completion failed: the request was aborted"):
        list(stream)
    assert engine.generate(PROMPTS[:1], GREEDY)[0].tokens != whole.tokens


@pytest.mark.parametrize("entered", [True, False])
@pytest.mark.parametrize("how", ["written", "assigned", "rounded"])
def test_weights_that_were_trained_in_place_are_seen(make_model: MakeModel, how: str, entered: bool) -> None:
    """The trainer has the very same module: nobody tells the engine, and no request mixes both."""
    model = make_model()
    trained = other(model)
    engine = Engine(model)
    engine.add(Request(PROMPTS[0], GREEDY, "torn"))
    first = engine.step()
    if how == "rounded":
        quantize(model)
        trained = model
    else:
        model.load_state_dict(trained.state_dict(), assign=how == "assigned")
    engine.add(Request(PROMPTS[1], GREEDY, "after"))
    deltas = []
    while engine.busy:
        deltas += engine.step(entered=entered)
    (torn,) = [delta for delta in deltas if delta.request == "torn"]
    assert first and torn.finish_reason == "error" and torn.weights_version == 0
    assert torn.error is not None and "by both the old and the new ones" in torn.error
    after = tuple(token for delta in deltas if delta.request == "after" for token in delta.tokens)
    assert after == Engine(trained).generate(PROMPTS[1:], GREEDY)[0].tokens
    assert engine.weights_version == 1


def test_weights_are_looked_at_where_others_may_have_written_to_them(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two steps of ``generate`` only the engine runs; between two chunks of a stream its reader does."""
    model, looked = make_model(), 0
    changed = WeightsWatch.changed

    def counted(watch: WeightsWatch) -> bool:
        nonlocal looked
        looked += 1
        return changed(watch)

    monkeypatch.setattr(WeightsWatch, "changed", counted)
    engine = Engine(model, max_sequences=1)
    engine.generate(PROMPTS, GREEDY)
    assert looked == 1 < engine.statistics.steps
    chunks = engine.stream(PROMPTS[0], GREEDY)
    next(chunks)
    model.load_state_dict(other(model).state_dict())
    with pytest.raises(UserError, match="by both the old and the new ones"):
        list(chunks)


def test_writes_that_pytorch_does_not_count_are_told(make_model: MakeModel) -> None:
    model = make_model()
    trained = other(model)
    engine, long = Engine(model), [5] * (PAGE + 3)
    drawn(engine, [long])
    for parameter, value in zip(model.parameters(), trained.parameters(), strict=True):
        parameter.data.copy_(value.data)
    assert engine.update_weights() == 1
    assert drawn(engine, [long]) == drawn(Engine(trained), [long])
    model.load_state_dict(other(trained).state_dict())
    assert engine.update_weights(model) == 2  # seen and told: one change


def test_training_mode_stays_with_the_trainer(make_model: MakeModel) -> None:
    """Experts at a capacity that drops most tokens, in training mode alone."""
    model = make_model(capacity_factor=0.25)
    expected = drawn(Engine(model))
    engine = Engine(model)
    model.train()
    assert drawn(engine) == expected
    assert all(module.training for module in model.modules())
    model.layers[1].eval()
    assert drawn(engine, PROMPTS[1:]) == expected[1:]
    assert model.training and not any(module.training for module in model.layers[1].modules())


def test_streams_of_a_server_end_by_the_old_weights(make_model: MakeModel) -> None:
    model = make_model()
    trained, long = other(model), GREEDY.model_copy(update={"max_tokens": 200})
    expected = [Engine(weights).generate(PROMPTS[:1], long)[0].tokens for weights in (model, trained)]
    loop = EngineLoop(Engine(copy.deepcopy(model)))
    loop.start()

    async def work() -> None:
        stream = loop.submit(Request(PROMPTS[0], long, "old"))
        deltas = [await anext(stream)]
        update = loop.between_steps(lambda engine: engine.update_weights(trained, running="finish"))
        deltas += [delta async for delta in stream]
        assert await update == loop.statistics.weights_version == 1
        news = [delta async for delta in loop.submit(Request(PROMPTS[0], long, "new"))]
        for found, tokens, version in ((deltas, expected[0], 0), (news, expected[1], 1)):
            assert tuple(token for delta in found for token in delta.tokens) == tokens
            assert {delta.weights_version for delta in found} == {version}

    try:
        asyncio.run(asyncio.wait_for(work(), 60))
    finally:
        loop.drain(0)
