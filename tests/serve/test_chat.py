"""A chat reads its new turns, and answers as a run over the whole conversation would."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch

from leyden.core.errors import UserError
from leyden.model import PAGE, HybridLM
from leyden.serve import Chat, Engine, Sampling
from leyden.tokenizer import Tokenizer

GREEDY = Sampling(max_tokens=12, temperature=0)


@pytest.fixture
def engine(model: HybridLM, tokenizer: Tokenizer) -> Engine:
    """Decoding in PyTorch, so that hooks see every forward pass."""
    return Engine(model, tokenizer, decoder="torch")


def from_scratch(engine: Engine, messages: list[dict[str, str]], sampling: Sampling = GREEDY) -> str:
    assert engine.tokenizer is not None
    return engine.generate([engine.tokenizer.encode_chat(messages)], sampling)[0].text


@pytest.mark.parametrize(
    "sampling", [GREEDY, Sampling(max_tokens=12, seed=4), Sampling(max_tokens=40, seed=1, stop=("e",))]
)
@pytest.mark.parametrize("decoder", ["auto", "torch"])
def test_answers_equal_those_from_scratch(
    model: HybridLM, tokenizer: Tokenizer, sampling: Sampling, decoder: Literal["auto", "torch"]
) -> None:
    engine = Engine(model, tokenizer, decoder=decoder)
    chat = Chat(engine, system="Be brief.", sampling=sampling)
    for text in ("The jar", "and the lightning?", "☂ Grüße"):
        answer = "".join(chat.send(text))
        assert answer == chat.messages[-1]["content"]
        assert answer == from_scratch(engine, chat.messages[:-1], sampling)
    assert [m["role"] for m in chat.messages] == ["system", *["user", "assistant"] * 3]


LONG = "lightning and the old tower " * 40


def test_a_turn_reads_its_new_tokens_and_less_than_a_page(engine: Engine, tokenizer: Tokenizer) -> None:
    """The answer is made of whole known tokens, so that its text encodes to the very tokens that were drawn."""
    chat = Chat(engine, sampling=GREEDY)
    answer = tokenizer.encode("The lightning")
    with forced(engine.model, [*answer, tokenizer.eos_id]):
        assert "".join(chat.send(LONG)) == "The lightning"
    first = len(tokenizer.encode_chat(chat.messages[:1]))
    assert engine.statistics.prefill_tokens == first > 2 * PAGE
    list(chat.send("keeps"))
    second = len(tokenizer.encode_chat(chat.messages[:3]))
    assert engine.statistics.prefill_tokens - first == second - first // PAGE * PAGE


def test_thirty_turns_read_what_is_new_and_less_than_a_page(engine: Engine, tokenizer: Tokenizer) -> None:
    """Whatever was drawn, the conversation is read as the next turn will render it, while nobody waits."""
    chat = Chat(engine, sampling=Sampling(max_tokens=60, seed=2))
    statistics, said = engine.statistics, 0
    for turn in range(30):
        before = statistics.prefill_tokens - statistics.cache_read_tokens
        list(chat.send(f"{turn} keeps the lightning in the jar and the tower"))
        prompt = len(tokenizer.encode_chat(chat.messages[:-1]))
        assert statistics.prefill_tokens - statistics.cache_read_tokens - before < prompt - said + PAGE
        said = len(tokenizer.encode_chat(chat.messages, add_generation_prompt=False))
    assert said > 8 * PAGE
    assert statistics.prefill_tokens < said + 30 * 2 * PAGE


def test_other_tokens_for_the_same_text_are_read_again(engine: Engine, tokenizer: Tokenizer) -> None:
    chat = Chat(engine, sampling=GREEDY)
    letters = [tokenizer.encode(letter)[0] for letter in "The"]
    assert letters != tokenizer.encode("The")
    with forced(engine.model, [*letters, tokenizer.eos_id]):
        assert "".join(chat.send(LONG)) == "The"
    answer = "".join(chat.send("keeps"))
    assert answer == from_scratch(engine, chat.messages[:3])


class forced:  # noqa: N801 - used as a statement
    """The model's logits favour ``tokens`` one after the other."""

    def __init__(self, model: HybridLM, tokens: list[int]) -> None:
        self._model, self._tokens = model, iter(tokens)

    def __enter__(self) -> None:
        def favour(module: torch.nn.Module, inputs: object, logits: torch.Tensor) -> torch.Tensor:
            row = torch.nn.functional.one_hot(torch.tensor(next(self._tokens)), logits.shape[-1])
            return row.to(logits).expand_as(logits)

        self._hook = self._model.lm_head.register_forward_hook(favour)

    def __exit__(self, *error: object) -> None:
        self._hook.remove()


@pytest.mark.parametrize("pieces", [1, 3])
def test_an_answer_left_early_stays_as_far_as_it_came(engine: Engine, pieces: int) -> None:
    chat = Chat(engine, sampling=GREEDY)
    answer = chat.send("The jar")
    said = "".join(next(answer) for _ in range(pieces))
    answer.close()
    assert chat.messages[-1] == {"role": "assistant", "content": said}
    assert "".join(chat.send("go on")) == from_scratch(engine, chat.messages[:3])


@pytest.mark.parametrize("call", [1, 4])
def test_an_interrupt_inside_the_model_leaves_the_chat_usable(engine: Engine, call: int) -> None:
    """In the third layer, at the prompt or in the answer, when the layers before have already taken the token in."""
    chat = Chat(engine, sampling=GREEDY)
    list(chat.send("A jar"))
    calls = 0

    def interrupt(module: torch.nn.Module, inputs: object, output: object) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt

    hook = engine.model.layers[2].register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(chat.send("the lightning"))
    hook.remove()
    assert len(chat.messages) == (2 if call == 1 else 4)
    assert "".join(chat.send("go on")) == from_scratch(engine, chat.messages[:-1])


def test_a_conversation_that_outgrows_the_model_is_left_as_it_was(
    make_model: Callable[..., HybridLM], tokenizer: Tokenizer
) -> None:
    chat = Chat(Engine(make_model(max_position_embeddings=120), tokenizer), sampling=GREEDY)
    list(chat.send("A jar"))
    before = [dict(message) for message in chat.messages]
    with pytest.raises(UserError, match="120 positions"):
        chat.send("lightning " * 50)
    assert chat.messages == before
    list(chat.send("A jar"))
    assert len(chat.messages) == 4


def test_a_chat_by_a_template_of_parts_that_refuses_to_end_with_an_answer(
    model: HybridLM, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(
        "{% for m in messages %}[{{ m.role }}]{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
        "{% if messages[-1].role == 'assistant' %}{{ raise_exception('the user speaks last') }}{% endif %}"
    )
    own = Tokenizer.load(tmp_path)
    chat = Chat(Engine(model, own), sampling=GREEDY)
    for text in ("The jar", "and the lightning?"):
        assert "".join(chat.send(text)) == chat.messages[-1]["content"]
    assert own.decode(own.encode_chat(chat.messages[:-1])).startswith("[user]The jar[assistant]")


def test_a_chat_needs_a_tokenizer(model: HybridLM) -> None:
    with pytest.raises(UserError, match="tokenizer"):
        Chat(Engine(model))
