"""The engine: what it generates is what the plain forward says, however it is asked."""

from collections.abc import Callable

import pytest
import torch

from leyden.core.errors import UserError
from leyden.model import PAGE, HybridLM
from leyden.serve import Engine, Sampling
from leyden.tokenizer import Tokenizer

GREEDY = Sampling(max_tokens=24, temperature=0, ignore_eos=True)
PROMPTS = ["The lightning", "", "Grüße ☂", "A jar keeps the old"]


@pytest.fixture
def engine(model: HybridLM, tokenizer: Tokenizer) -> Engine:
    return Engine(model, tokenizer)


def test_greedy_is_the_argmax_of_the_plain_forward(engine: Engine, model: HybridLM, tokenizer: Tokenizer) -> None:
    for prompt, completion in zip(PROMPTS, engine.generate(PROMPTS, GREEDY), strict=True):
        read = [tokenizer.bos_id, *tokenizer.encode(prompt)]
        with torch.inference_mode():
            logits = model(torch.tensor([[*read, *completion.tokens]]))[0]
        assert list(completion.tokens) == logits.argmax(-1)[len(read) - 1 : -1].tolist()
        assert completion.prompt_tokens == len(read)
        assert completion.finish_reason == "length"
        assert completion.prefill_seconds > 0
        assert completion.decode_seconds > 0


def test_text_is_the_decoded_tokens(engine: Engine, tokenizer: Tokenizer) -> None:
    for completion in engine.generate(PROMPTS, Sampling(max_tokens=40, seed=3)):
        ended = completion.finish_reason == "stop"
        assert ended == (completion.tokens[-1] in (tokenizer.eos_id, tokenizer.eod_id))
        assert completion.text == tokenizer.decode(completion.tokens, skip_special=True)


def test_a_stream_is_what_generate_gives(engine: Engine) -> None:
    for prompt in PROMPTS:
        for stop in ((), ("t", "ing")):
            sampling = Sampling(max_tokens=40, seed=5, stop=stop)
            whole = engine.generate([prompt], sampling)[0]
            *before, last = engine.stream(prompt, sampling)
            assert "".join(chunk.text for chunk in [*before, last]) == whole.text
            assert tuple(chunk.token for chunk in [*before, last]) == whole.tokens
            assert all(chunk.completion is None for chunk in before)
            assert last.completion is not None
            assert last.completion.text == whole.text


def test_the_same_seed_gives_the_same_whatever_stands_beside(engine: Engine) -> None:
    sampling = Sampling(max_tokens=16, seed=7)
    together = engine.generate(PROMPTS, sampling)
    alone = [engine.generate([prompt], sampling)[0] for prompt in reversed(PROMPTS)][::-1]
    other = engine.generate(PROMPTS, Sampling(max_tokens=16, seed=8))
    assert [c.tokens for c in together] == [c.tokens for c in alone]
    assert all(a.tokens != b.tokens for a, b in zip(together, other, strict=True))


def test_end_tokens_stop_and_may_be_ignored(model: HybridLM, tokenizer: Tokenizer) -> None:
    engine = Engine(model, tokenizer)
    sampling = Sampling(max_tokens=400, temperature=2.0, seed=0)
    stopped = engine.generate([""], sampling)[0]
    assert stopped.finish_reason == "stop"
    assert stopped.tokens[-1] in (tokenizer.eos_id, tokenizer.eod_id)
    ignored = engine.generate([""], sampling.model_copy(update={"ignore_eos": True}))[0]
    assert len(ignored.tokens) == 400
    assert ignored.tokens[: len(stopped.tokens)] == stopped.tokens


def test_a_stop_string_ends_the_text_before_it(engine: Engine) -> None:
    free = engine.generate(["The"], GREEDY)[0]
    stop = free.text[5:8]
    cut = engine.generate(["The"], GREEDY.model_copy(update={"stop": (stop,)}))[0]
    assert cut.text == free.text[: free.text.index(stop)]
    assert cut.finish_reason == "stop"
    assert free.tokens[: len(cut.tokens)] == cut.tokens


def test_token_ids_without_a_tokenizer(model: HybridLM, tokenizer: Tokenizer) -> None:
    ids = [tokenizer.bos_id, *tokenizer.encode("The")]
    bare = Engine(model).generate([ids], GREEDY)[0]
    assert bare.tokens == Engine(model, tokenizer).generate(["The"], GREEDY)[0].tokens
    assert bare.text == ""
    for wrong in ("The", []):
        with pytest.raises(UserError, match="no tokenizer"):
            Engine(model).generate([wrong], GREEDY)
    with pytest.raises(UserError, match="stop strings"):
        Engine(model).stream(ids, Sampling(stop=("x",)))


def test_positions_bound_the_prompt_and_the_completion(
    make_model: Callable[..., HybridLM], tokenizer: Tokenizer
) -> None:
    engine = Engine(make_model(max_position_embeddings=10), tokenizer)
    with pytest.raises(UserError, match=r"11 tokens.*10 positions.*shorten"):
        engine.stream([1] * 11, GREEDY)
    full = engine.generate([[1] * 10, [1] * 8], GREEDY)
    assert [len(c.tokens) for c in full] == [1, 3]
    assert all(c.finish_reason == "length" for c in full)


def test_each_prompt_may_have_its_own_sampling(engine: Engine) -> None:
    samplings = [Sampling(max_tokens=length, seed=length) for length in (3, 9, 5, 1)]
    together = engine.generate(PROMPTS, samplings)
    alone = [engine.generate([prompt], own)[0] for prompt, own in zip(PROMPTS, samplings, strict=True)]
    assert [c.tokens for c in together] == [c.tokens for c in alone]
    with pytest.raises(UserError, match="2 for 4"):
        engine.generate(PROMPTS, samplings[:2])


def test_streams_take_turns(engine: Engine) -> None:
    """A step that one asks for serves the other; one that is left frees its memory."""
    expected = [completion.tokens for completion in engine.generate(PROMPTS[:2], GREEDY)]
    streams = [engine.stream(prompt, GREEDY) for prompt in PROMPTS[:2]]
    found = [[], []]
    for _ in range(24):
        for tokens, stream in zip(found, streams, strict=True):
            tokens.append(next(stream).token)
    assert [tuple(tokens) for tokens in found] == expected
    left = engine.stream(PROMPTS[0], GREEDY)
    next(left)
    left.close()
    assert not engine.busy
    with pytest.raises(UserError, match="n=2"):
        engine.stream("The", Sampling(n=2))


def test_what_is_not_a_list_of_prompts_is_refused(engine: Engine) -> None:
    with pytest.raises(UserError, match="list of prompts"):
        engine.generate("The", GREEDY)
    with pytest.raises(UserError, match=r"token 9999 .* 0\.\.289"):
        engine.generate([[1, 9999]], GREEDY)


def test_completions_say_the_log_probabilities_of_what_was_drawn_and_read(model: HybridLM) -> None:
    prompt, sampling = [3, 1, 4, 1, 5], Sampling(max_tokens=6, seed=2, n=2, logprobs=1, prompt_logprobs=0)
    for completion in Engine(model).generate([prompt], sampling):
        with torch.inference_mode():
            logprobs = model(torch.tensor([[*prompt, *completion.tokens]]))[0].log_softmax(-1)
        assert completion.prompt == tuple(prompt) and completion.prompt_logprobs is not None
        first, *read = completion.prompt_logprobs
        assert first is None and [told.token for told in read if told] == prompt[1:]
        assert [told.token for told in completion.logprobs] == list(completion.tokens)
        for place, told in enumerate([*read, *completion.logprobs]):
            assert told is not None
            assert told.logprob == pytest.approx(float(logprobs[place, told.token]), abs=1e-4)
        assert completion.logprobs[0].top[0][0] == int(logprobs[len(prompt) - 1].argmax())
    plain = Engine(model).generate([prompt], sampling.model_copy(update={"logprobs": None, "prompt_logprobs": None}))[0]
    assert plain.logprobs == () and plain.prompt_logprobs is None and plain.error is None


def test_a_completion_that_fails_leaves_the_others_whole(model: HybridLM) -> None:
    """Two sequences grow beyond the two pages that there are, and nothing can make room."""
    config = model.config
    page_bytes = 2 * PAGE * config.num_key_value_heads * config.head_dim * 4
    engine = Engine(model, kv_gigabytes=2.5 * page_bytes / 2**30, swap_gigabytes=0, cache_gigabytes=0)
    sampling = Sampling(max_tokens=20, temperature=0, ignore_eos=True)
    whole, failed = engine.generate([[7] * 250, [9] * 250], sampling)
    assert whole.error is None and len(whole.tokens) == 20
    assert failed.finish_reason == "error" and failed.error is not None and "memory" in failed.error
    assert 0 < len(failed.tokens) < 20
    stream = engine.stream([5] * 250, sampling)
    other = engine.stream([6] * 250, sampling)
    with pytest.raises(UserError, match="a completion failed: the memory"):
        for _ in zip(stream, other, strict=False):
            pass
