"""Stock transformers opens what is saved, and gives the same ids and the same chats."""

import pytest
from transformers import AutoTokenizer

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "What is it?"}, {"type": "image"}]},
    {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": {"a": "é"}}}]},
    {"role": "tool", "tool_call_id": "1", "content": "12"},
]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "<b>", "parameters": {}}}]


@pytest.fixture(scope="module")
def stock(directory):
    return AutoTokenizer.from_pretrained(directory)


def test_the_same_ids(tokenizer, stock, texts):
    for text in (*texts, "", " a\0b\n\n<image>x  <end_of_sentence>\n", "12345 don't 🙂 東京\ttab  "):
        ids = stock(text, add_special_tokens=False)["input_ids"]
        assert ids == tokenizer.encode(text, allow_special=True)
        # By default it begins a text as Leyden begins one.
        assert stock(text)["input_ids"] == tokenizer.encode(text, bos=True, allow_special=True) == [395, *ids]
        assert stock.decode(ids) == tokenizer.decode(ids) == text
    assert stock.vocab_size + len(stock.get_added_vocab()) >= tokenizer.vocab_size == len(stock)


def test_the_same_special_tokens(tokenizer, stock):
    assert (stock.bos_token_id, stock.eos_token_id) == (tokenizer.bos_id, tokenizer.eos_id)
    assert stock.unk_token_id == tokenizer.eod_id
    assert stock.pad_token_id is None
    assert set(stock.all_special_tokens) == set(tokenizer.special_tokens)


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_the_same_chats(tokenizer, stock, tools, prompt):
    text = stock.apply_chat_template(CHAT, tools=tools, tokenize=False, add_generation_prompt=prompt)
    assert tokenizer.apply_chat_template(CHAT, tools, add_generation_prompt=prompt) == text
    ids = stock.apply_chat_template(CHAT, tools=tools, add_generation_prompt=prompt, return_dict=False)
    assert tokenizer.encode_chat(CHAT, tools, add_generation_prompt=prompt) == ids


def test_what_transformers_saves_is_read(tokenizer, stock, tmp_path):
    stock.save_pretrained(tmp_path)
    loaded = type(tokenizer).load(tmp_path)
    assert loaded.encode("The dog 東京 <image>") == tokenizer.encode("The dog 東京 <image>")
    assert loaded.encode_chat(CHAT) == tokenizer.encode_chat(CHAT)
    assert loaded.special_tokens == tokenizer.special_tokens
