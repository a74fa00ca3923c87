"""Vectors in the place of a prompt's tokens: they are read as the tokens would be, no prefix shared by mistake."""

from pathlib import Path
from typing import Any

import pytest
import torch

import leyden
from leyden.core.errors import UserError
from leyden.model import PAGE, HybridLM, Inserts, NativeDecoder, Pools, Ranks
from leyden.serve import Delta, Engine, Insert, Request, Sampling
from leyden.serve.runner import Reading, Runner

GREEDY = Sampling(max_tokens=8, temperature=0, ignore_eos=True, logprobs=0)
TEXT = torch.randint(290, (3 * PAGE + 40,), generator=torch.Generator().manual_seed(0)).tolist()
PLACE = slice(PAGE + 200, 2 * PAGE + 30)
"""Of a picture, over the border of two pages."""


def picture(model: HybridLM, tokens: list[int], digest: bytes = b"a") -> Insert:
    """One that looks like these tokens."""
    return Insert(PLACE.start, model.embed_tokens.weight[tokens].detach().clone(), digest)


def with_place(tokens: list[int]) -> list[int]:
    return [*TEXT[: PLACE.start], *tokens, *TEXT[PLACE.stop :]]


BLANK = with_place([3] * (PLACE.stop - PLACE.start))
LOOKS = {b"a": TEXT[PLACE], b"b": TEXT[PLACE][::-1]}


def run(engine: Engine, *requests: Request) -> dict[str, list[Delta]]:
    for request in requests:
        engine.add(request)
    deltas: dict[str, list[Delta]] = {request.id: [] for request in requests}
    while engine.busy:
        for delta in engine.step():
            deltas[delta.request].append(delta)
    return deltas


def asked(model: HybridLM, look: bytes, id: str = "one", **more: Any) -> Request:
    return Request(BLANK, GREEDY, id, inserts=[picture(model, LOOKS[look], look)], **more)


def drawn(deltas: list[Delta]) -> list[Any]:
    return [told for delta in deltas for told in delta.logprobs]


def as_tokens(model: HybridLM, look: bytes, **settings: Any) -> list[Any]:
    return list(Engine(model, **settings).generate([with_place(LOOKS[look])], GREEDY)[0].logprobs)


def test_the_model_reads_inserts_in_the_place_of_tokens(model: HybridLM) -> None:
    tokens, other = torch.tensor([[5, 6, 7, 8], [1, 2, 3, 4]]), torch.tensor([[5, 9, 7, 8], [1, 2, 11, 4]])
    vectors = model.embed_tokens.weight[torch.tensor([11, 9])].detach().requires_grad_()
    inserts = Inserts(torch.tensor([6, 1]), vectors)
    hidden = model.features(tokens, inserts=inserts).hidden
    assert torch.equal(hidden, model.features(other).hidden)
    hidden.square().sum().backward()
    assert vectors.grad is not None and bool((vectors.grad != 0).all())
    model.zero_grad()
    for places, given in ((torch.tensor([6]), vectors), (torch.tensor([[6, 1]]), vectors[None])):
        with pytest.raises(UserError, match=r"inserts have places \[N\] and vectors \[N, 32\]; given"):
            model.embed(tokens, Inserts(places, given))


@pytest.mark.parametrize("settings", [{}, {"step_tokens": 256, "decoder": "torch"}, {"speculation": "prompt"}])
def test_the_engine_reads_them_as_the_tokens_that_they_look_like(model: HybridLM, settings: dict[str, Any]) -> None:
    engine = Engine(model, **settings)
    together = run(engine, *(asked(model, look, look.decode()) for look in LOOKS), Request(TEXT[:70], GREEDY, "text"))
    for look in LOOKS:
        assert drawn(together[look.decode()]) == as_tokens(model, look, **settings)
    assert drawn(together["text"]) == list(Engine(model, **settings).generate([TEXT[:70]], GREEDY)[0].logprobs)


def test_prompts_of_other_digests_share_no_page_behind_the_first_insert(model: HybridLM) -> None:
    engine = Engine(model)
    for look, possible in ((b"a", 0), (b"a", 3 * PAGE), (b"b", PAGE), (b"b", 3 * PAGE), (b"a", 3 * PAGE)):
        deltas = run(engine, asked(model, look))["one"]
        assert drawn(deltas) == as_tokens(model, look)
        usage = deltas[-1].usage
        assert usage is not None and usage.cache.possible == possible
    assert run(engine, Request(BLANK, GREEDY, "blank"))["blank"][-1].usage.cache.possible == PAGE  # type: ignore[union-attr]
    shifted = Insert(PLACE.start + 1, picture(model, LOOKS[b"a"]).vectors[:-1], b"a")
    deltas = run(engine, Request(BLANK, GREEDY, "shifted", inserts=[shifted]))["shifted"]
    assert deltas[-1].usage is not None and deltas[-1].usage.cache.possible == PAGE


def test_prompts_that_are_read_at_once_do_not_wait_for_another_picture(model: HybridLM) -> None:
    """What the first one reads, the second one takes over only where the pictures are the same."""
    engine = Engine(model, step_tokens=256)
    found = run(engine, asked(model, b"a", "1"), asked(model, b"b", "2"), asked(model, b"a", "3"))
    usages = [found[id][-1].usage for id in "123"]
    assert [usage.cache.used for usage in usages if usage is not None] == [0, PAGE, 3 * PAGE]
    assert [drawn(found[id]) for id in "123"] == [as_tokens(model, look) for look in (b"a", b"b", b"a")]


def test_an_answer_behind_a_picture_is_read_for_the_cache_with_it(model: HybridLM) -> None:
    engine = Engine(model)
    long = GREEDY.model_copy(update={"max_tokens": 2 * PAGE})
    first = run(engine, Request(BLANK, long, "one", inserts=[picture(model, LOOKS[b"a"])]))["one"]
    answer = [told.token for told in drawn(first)]
    turn = [*BLANK, *answer, 5]
    deltas = run(engine, Request(turn, GREEDY, "two", inserts=[picture(model, LOOKS[b"a"])]))["two"]
    assert deltas[-1].usage is not None and deltas[-1].usage.cache.used == len(turn) // PAGE * PAGE
    plain = [*with_place(LOOKS[b"a"]), *answer, 5]
    assert drawn(deltas) == list(Engine(model).generate([plain], GREEDY)[0].logprobs)


def test_inserts_that_a_prompt_cannot_have_are_refused(model: HybridLM) -> None:
    engine, vectors = Engine(model), torch.zeros(4, 32)
    for inserts, reason in (
        ([Insert(6, vectors, b"a")], r"within the prompt's 8 tokens, .*; given one from 6 to 10"),
        ([Insert(-1, vectors, b"a")], "given one from -1 to 3"),
        ([Insert(0, vectors, b"a"), Insert(3, vectors, b"b")], "given one from 3 to 7, where the one before ends at 4"),
        ([Insert(0, vectors[:, :8], b"a")], r"vectors \[n, 32\] of a floating dtype; given \[4, 8\]"),
        ([Insert(0, vectors.long(), b"a")], r"given \[4, 32\] in torch\.int64"),
        ([Insert(0, vectors[:0], b"a")], "at least one vector, and a digest"),
        ([Insert(0, vectors, b"")], "at least one vector, and a digest"),
    ):
        with pytest.raises(UserError, match=reason):
            engine.add(Request([1] * 8, GREEDY, "one", inserts=inserts))
    reading = Reading([1], 5, [0], [0, 0], inserts=[Insert(0, vectors, b"a")])
    pools = Pools(model.config, 1, 1, dtype=torch.float32)
    for read in (lambda: Runner(model, pools).run([reading], []), lambda: NativeDecoder(model, pools).run([reading])):
        with pytest.raises(ValueError, match="tokens that decode were drawn from the vocabulary, and have no inserts"):
            read()


def test_several_ranks_refuse_them(make_model: Any) -> None:
    model = make_model()
    engine = Engine(model)
    model.ranks = type("Several", (Ranks,), {})()
    with pytest.raises(UserError, match="inserts are read by one process, and several ranks serve this model"):
        engine.add(Request([1] * 8, GREEDY, "one", inserts=[Insert(0, torch.zeros(4, 32), b"a")]))


def test_there_is_one_way_in() -> None:
    """No other code looks tokens up in the vocabulary."""
    source = Path(leyden.__file__).parent
    found = [path.name for path in source.rglob("*.py") if ".embed_tokens(" in path.read_text(encoding="utf-8")]
    assert found == []
