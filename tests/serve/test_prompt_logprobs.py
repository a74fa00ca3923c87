"""Log-probabilities of prompts: those of float64, whatever else is read in the step, without the logits of a prompt."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from leyden.model import HybridLM
from leyden.serve import Completion, Engine, Sampling

GREEDY = Sampling(max_tokens=1, temperature=0, ignore_eos=True)


def _text(length: int, seed: int, vocab_size: int = 290) -> list[int]:
    return torch.randint(vocab_size, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def _scored(engine: Engine, prompts: list[list[int]], top: int, **more: Any) -> list[Completion]:
    return engine.generate(prompts, GREEDY.model_copy(update={"prompt_logprobs": top, **more}))


def _values(completion: Completion) -> torch.Tensor:
    assert completion.prompt_logprobs is not None
    return torch.tensor([told.logprob for told in completion.prompt_logprobs if told is not None], dtype=torch.float64)


@pytest.mark.parametrize("length", [1, 2, 129, 300])
def test_they_are_those_of_float64(model: HybridLM, length: int) -> None:
    """Within twice the error of the model's own float32, and so are the most probable ones in each place."""
    prompt = _text(length, seed=length)
    with torch.inference_mode():
        row = torch.tensor([prompt])
        exact = copy.deepcopy(model).double()(row)[0, :-1].log_softmax(-1)
        noise = (model(row)[0, :-1].log_softmax(-1).double() - exact).abs().max() if length > 1 else 0
    (completion,) = _scored(Engine(model), [prompt], top=5)
    assert completion.prompt_logprobs is not None and len(completion.prompt_logprobs) == length
    first, *told = completion.prompt_logprobs
    assert first is None and [one.token for one in told if one is not None] == prompt[1:]
    bound = 2 * noise + torch.finfo(torch.float32).eps * exact.abs().max() if length > 1 else 0
    for place, one in enumerate(told):
        assert one is not None and len(one.top) == 5
        found = torch.tensor([one.logprob, *(value for _, value in one.top)], dtype=torch.float64)
        tokens = [one.token, *(token for token, _ in one.top)]
        assert (found - exact[place, tokens]).abs().max() <= bound
        assert (found[1:] - exact[place].topk(5).values).abs().max() <= bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_they_do_not_depend_on_what_is_read_beside_them(
    make_model: Callable[..., HybridLM], dtype: torch.dtype
) -> None:
    """Alone, in parts, with others, with the most probable ones or without: the same bits."""
    model = make_model().to(dtype)
    prompt, others = _text(400, seed=1), [_text(70, seed=2), _text(3, seed=3)]
    alone = _values(_scored(Engine(model), [prompt], top=0)[0])
    for step_tokens, top, prompts in ((256, 0, [prompt]), (1024, 3, [prompt, *others]), (256, 0, [*others, prompt])):
        found = _scored(Engine(model, step_tokens=step_tokens), prompts, top)
        assert torch.equal(_values(found[prompts.index(prompt)]), alone)


def test_a_token_that_is_read_has_the_figure_that_it_had_when_it_was_drawn(model: HybridLM) -> None:
    engine, prompt = Engine(model), _text(20, seed=4)
    (drawn,) = engine.generate([prompt], GREEDY.model_copy(update={"max_tokens": 30, "logprobs": 2}))
    (read,) = _scored(engine, [[*prompt, *drawn.tokens]], top=2)
    assert read.prompt_logprobs is not None
    for one, other in zip(drawn.logprobs, read.prompt_logprobs[20:], strict=True):
        assert other is not None and one.token == other.token
        assert one.logprob == pytest.approx(other.logprob, abs=2e-6)
        assert [token for token, _ in one.top] == [token for token, _ in other.top]


def test_scored_and_plain_prompts_in_one_step_draw_what_they_draw_alone(model: HybridLM) -> None:
    prompts = [_text(length, seed=length) for length in (140, 1, 33)]
    plain = [Engine(model).generate([prompt], GREEDY)[0].tokens for prompt in prompts]
    samplings = [GREEDY.model_copy(update={"prompt_logprobs": top}) for top in (None, 0, 2)]
    found = Engine(model).generate(prompts, samplings)
    assert [completion.tokens for completion in found] == plain
    assert [completion.prompt_logprobs is None for completion in found] == [True, False, False]
    assert found[1].prompt_logprobs == (None,)


class _Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return result


@pytest.mark.parametrize("lengths", [[1500], [250] * 6], ids=["a long prompt", "prompts of one step"])
@pytest.mark.parametrize("top", [0, 5])
def test_the_logits_of_prompts_never_exist_whole(
    make_model: Callable[..., HybridLM], top: int, lengths: list[int]
) -> None:
    vocab_size = 20_000
    prompts = [_text(length, seed, vocab_size) for seed, length in enumerate(lengths)]
    engine = Engine(make_model(vocab_size=vocab_size), kv_gigabytes=0.002, swap_gigabytes=0, cache_gigabytes=0)
    with _Largest() as largest:
        found = _scored(engine, prompts, top)
    assert [len(_values(completion)) for completion in found] == [length - 1 for length in lengths]
    assert largest.elements <= 128 * vocab_size
