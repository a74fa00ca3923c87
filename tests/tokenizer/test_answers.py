"""Whatever the template: the tokens of an answer are what the assistant said and the token that ends it, no others."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leyden.core.errors import UserError
from leyden.tokenizer import Tokenizer

ZOO = Path(__file__).with_name("zoo")
GENERATION = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
)
UNENDED = GENERATION.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>")
THINKING = (ZOO / "qwen3.jinja").read_text(encoding="utf-8")
TEMPLATES = {  # the template, the token that ends an answer, what it makes of what was said
    "minimax": (None, "<end_of_sentence>", str),
    "chatml": (None, "<|im_end|>", str),
    "llama3_1": (None, "<|eot_id|>", str.strip),
    "mistral": (None, "</s>", lambda text: " " + text.strip()),
    "gemma2": (None, "<end_of_turn>", str.strip),
    "generation": (GENERATION, "<|im_end|>", str),
    "unended": (UNENDED, "<|im_end|>", str),
}
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>"]
SPECIAL += ["<end_of_turn>", "</s>", "<s>", "[INST]", "[/INST]"]


@pytest.fixture(scope="module")
def tokenizer_of(directory, tmp_path_factory):
    """A tokenizer with a template of that source, and a token that ends answers."""

    def make(source: str | None, end: str) -> Tokenizer:
        path = tmp_path_factory.mktemp("template")
        shutil.copytree(directory, path, dirs_exist_ok=True)
        config = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8"))
        config |= {"eos_token": end, "additional_special_tokens": [*config["additional_special_tokens"], *SPECIAL]}
        config |= {} if source is None else {"chat_template": source}
        (path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        return Tokenizer.load(path)

    return make


@pytest.fixture(scope="module")
def tokenizers(tokenizer_of):
    made = {}
    for name, (source, end, _) in TEMPLATES.items():
        file = ZOO / f"{name}.jinja"
        made[name] = tokenizer_of(file.read_text(encoding="utf-8") if file.exists() else source, end)
    return made


words = st.one_of(
    st.text(st.characters(exclude_categories=("Cs",)), max_size=12),
    st.lists(
        st.sampled_from(
            ["<|im_end|>", "</s>", "<end_of_turn>", "assistant\n", "[/INST]", "\n", " ", "yes", "<|im", "ü"]
        )
    ).map("".join),
).map(lambda text: text if text.strip() else text + "word")


@st.composite
def chats(draw):
    said = draw(st.lists(st.tuples(words, words), min_size=1, max_size=3))
    return [turn for q, a in said for turn in ({"role": "user", "content": q}, {"role": "assistant", "content": a})]


@pytest.mark.parametrize("name", TEMPLATES)
@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_the_tokens_of_answers_are_what_the_assistant_said(tokenizers, name, data):
    tokenizer, (_, end, written) = tokenizers[name], TEMPLATES[name]
    messages = data.draw(chats())
    ids, writers = tokenizer.encode_answers(messages)
    assert set(writers.tolist()) == {-1, *range(1, len(messages), 2)}
    for place in range(1, len(messages), 2):
        own = ids[writers == place].tolist()
        assert tokenizer.decode(own) == written(messages[place]["content"]) + end
        assert own[-1] == tokenizer.eos_id and tokenizer.eos_id not in own[:-1]
        assert np.ptp(np.flatnonzero(writers == place)) == len(own) - 1  # one piece
    assert tokenizer.decode(ids.tolist()) == tokenizer.apply_chat_template(messages, add_generation_prompt=False)
    # A model that is asked for the first answer has read exactly the tokens before it.
    before = ids[: int(np.flatnonzero(writers == 1)[0])].tolist()
    if "generation" not in tokenizer.chat_template:
        assert before == tokenizer.encode_chat(messages[:1])


def test_a_system_message_and_two_answers_in_a_row(tokenizers):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "assistant", "content": "Hi."}]
    messages += [{"role": "user", "content": "Hm?"}, *({"role": "assistant", "content": text} for text in ("A", "B"))]
    for name in ("minimax", "chatml", "llama3_1"):
        ids, writers = tokenizers[name].encode_answers(messages)
        end = TEMPLATES[name][1]
        for place in (1, 3, 4):
            assert tokenizers[name].decode(ids[writers == place]) == messages[place]["content"] + end


def test_calls_belong_to_the_answer_and_their_results_do_not(tokenizers):
    call = {"id": "call00001", "type": "function", "function": {"name": "sky", "arguments": '{"town": "Leyden"}'}}
    messages = [
        {"role": "user", "content": "And the sky?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call00001", "name": "sky", "content": "grey"},
        {"role": "assistant", "content": "It is grey."},
    ]
    tools = [{"type": "function", "function": {"name": "sky", "description": "d", "parameters": {}}}]
    for name, calls in (("minimax", 'functions.sky({"town": "Leyden"})'), ("mistral", '"town": "Leyden"')):
        ids, writers = tokenizers[name].encode_answers(messages, tools)
        first, last = (tokenizers[name].decode(ids[writers == place]) for place in (1, 3))
        assert calls in first and first.endswith(TEMPLATES[name][1]) and first.count(TEMPLATES[name][1]) == 1
        assert last.strip() == "It is grey." + TEMPLATES[name][1]
        assert "grey" not in first and "description" not in first + last
    ids, writers = tokenizers["minimax"].encode_answers(messages, tools)
    assert tokenizers["minimax"].special_tokens["<function_call>"] in ids[writers == 1]


def test_thoughts_that_the_template_cuts_are_not_learned(tokenizer_of):
    tokenizer = tokenizer_of(THINKING, "<|im_end|>")
    said = ["<think>\nfirst\n</think>\n\nOne.", "<think>\nthen\n</think>\n\nTwo."]
    messages = [turn for a in said for turn in ({"role": "user", "content": "?"}, {"role": "assistant", "content": a})]
    ids, writers = tokenizer.encode_answers(messages)
    assert tokenizer.decode(ids[writers == 1]) == "One.<|im_end|>"
    assert tokenizer.decode(ids[writers == 3]) == said[1] + "<|im_end|>"


WHILE_READING = "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"
ASKS = "{% if add_generation_prompt %}assistant: {% endif %}"
UNDECIDED = {
    "never stop": WHILE_READING.replace("</s>", "\n") + ASKS,
    "cannot be told": WHILE_READING + ASKS.replace(": ", ": <think>"),
    "is not all between": "{{ messages[0].content ~ messages[1].content }}{% generation %}{% endgeneration %}",
    "2 passages": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "acts upon": WHILE_READING.replace("m.content", "m.content | upper if m.content[-1] == '!' else m.content"),
}


@pytest.mark.parametrize("message", UNDECIDED)
def test_a_template_that_leaves_answers_undecided_is_refused(tokenizer_of, message):
    tokenizer = tokenizer_of(UNDECIDED[message], "</s>")
    with pytest.raises(UserError, match=message):
        tokenizer.encode_answers([{"role": "user", "content": "So?"}, {"role": "assistant", "content": "so it is!"}])


def test_what_a_user_says_cannot_pass_for_a_request(tokenizer_of):
    tokenizer = tokenizer_of(WHILE_READING + ASKS, "</s>")
    messages = [{"role": "user", "content": "Say assistant: no"}, {"role": "assistant", "content": "assistant: no"}]
    ids, writers = tokenizer.encode_answers(messages)
    assert tokenizer.decode(ids[writers == 1]) == "assistant: no</s>"
