"""The chat template: MiniMax's format, no injection, a sandbox, and clear errors."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leyden.core.errors import UserError
from leyden.core.limited import LimitedProcess
from leyden.tokenizer import Tokenizer, chat, sandbox
from leyden.tokenizer.chat import ChatTemplate

SPECIAL = ["<beginning_of_sentence>", "<end_of_sentence>", "<end_of_document>", "<function_call>", "<image>"]


def test_the_format_of_minimax(tokenizer):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Weather in "}, {"type": "text", "text": "Oslo?"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "now", "arguments": '{"a": 1}'}}],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": '{"sky": "blå"}'},
        {"role": "function", "name": "then", "content": [{"type": "text", "text": "3"}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "And here?"}]},
    ]
    tools = [{"name": "now", "description": "<é>"}]
    assert tokenizer.apply_chat_template(messages, tools) == (
        "<beginning_of_sentence>system ai_setting=assistant\nBe brief.<end_of_sentence>\n"
        "<beginning_of_sentence>user name=user\nWeather in Oslo?<end_of_sentence>\n"
        '<beginning_of_sentence>ai name=assistant\n<function_call>```typescript\nfunctions.now({"a": 1})\n```'
        "<end_of_sentence>\n"
        '<beginning_of_sentence>system function_response=functions\n{"name": "now", "response": {"sky": "blå"}}'
        "<end_of_sentence>\n"
        '<beginning_of_sentence>system function_response=functions\n{"name": "then", "response": 3}<end_of_sentence>\n'
        "<beginning_of_sentence>user name=user\n<image>And here?<end_of_sentence>\n"
        '<beginning_of_sentence>system function_setting=functions\n{"name": "now", "description": "<é>"}'
        "<end_of_sentence>\n"
        "<beginning_of_sentence>ai name=assistant\n"
    )
    prompt = "<beginning_of_sentence>ai name=assistant\n"
    without = tokenizer.apply_chat_template(messages, tools, add_generation_prompt=False)
    assert without + prompt == tokenizer.apply_chat_template(messages, tools)


def test_a_harmless_chat_has_the_tokens_of_its_text(tokenizer):
    messages = [{"role": "user", "content": [{"type": "text", "text": "if a < b and c > d: <p>"}, {"type": "image"}]}]
    text = tokenizer.apply_chat_template(messages)
    assert tokenizer.encode_chat(messages) == tokenizer.encode(text, allow_special=True)


# Pieces from which a special token could be put together, whole or over the border of two strings.
PIECES = st.lists(st.sampled_from([*SPECIAL, "<", "<im", "mag", "age>", ">", "<end_of_", "sentence>", " ", "\n", "x"]))
PIECE = PIECES.map("".join)


@given(st.lists(PIECE, min_size=1, max_size=4), PIECE, PIECE)
def test_text_never_becomes_a_special_token(tokenizer, parts, answer, name):
    call = {"function": {"name": name, "arguments": {name: answer}}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": part} for part in parts]},
        {"role": "assistant", "content": answer, "tool_calls": [call]},
        {"role": "function", "name": name or "f", "content": answer},
    ]
    tools = [{"name": name, answer: [answer]}]
    ids = tokenizer.encode_chat(messages, tools)
    names = {index: token for token, index in tokenizer.special_tokens.items()}
    written = [names[index] for index in ids if index in names]
    turn = ["<beginning_of_sentence>", "<end_of_sentence>"]
    assert written == [*turn, turn[0], "<function_call>", turn[1], *turn, *turn, turn[0]]
    # Nothing of the text is lost either.
    assert tokenizer.decode(ids) == tokenizer.apply_chat_template(messages, tools=tools)


@pytest.mark.parametrize(
    ("source", "content"),
    [("<im{{ messages[0].content | trim }}", " age> "), ("{{ messages[0].content | trim }}age>", " <im ")],
)
def test_text_cannot_complete_a_special_token_of_the_template(source, content):
    chat = ChatTemplate(source, {})
    marked, mark = chat.render_marked([{"role": "user", "content": content}], None, False, SPECIAL)
    assert "<image>" not in marked
    assert marked.replace(mark, "") == "<image>"


def test_a_role_cannot_carry_a_special_token(tokenizer, directory, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((directory / "tokenizer.json").read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role + m.content | trim }}{% endfor %}")
    foreign = Tokenizer.load(tmp_path)
    messages = [{"role": "user<image>", "content": " <im"}, {"role": "age>", "content": "<image> "}]
    ids = foreign.encode_chat(messages)
    assert not any(foreign.is_special(index) for index in ids)
    assert foreign.decode(ids) == "user<image><image><image>"


def test_a_template_that_acts_on_special_text_is_refused(tokenizer):
    chat = ChatTemplate("{{ messages[0].content.split('<image>') | join(' image ') }}", {})
    with pytest.raises(UserError, match="remove it"):
        chat.render_marked([{"role": "user", "content": "a<image>b"}], None, False, SPECIAL)
    assert chat.render_marked([{"role": "user", "content": "ab"}], None, False, SPECIAL)[0] == "ab"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "one message or more"),
        ("hello", "one message or more"),
        (None, "one message or more"),
        (["hello"], "Message 0 is not a mapping"),
        ([{"content": "a"}], 'with a "role"'),
        ([{"role": 3, "content": "a"}], 'with a "role"'),
        ([{"role": "user", "content": 3}], r'Message 0 \(user\): "content" is a string or a list'),
        ([{"role": "user", "content": "a"}, {"role": "user", "content": [3]}], 'Message 1 .* no "type"'),
        ([{"role": "user", "content": [{"type": "text"}]}], 'needs a string "text"'),
        ([{"role": "user", "content": [{"type": "video"}]}], "type video; allowed: text, image"),
        ([{"role": "wizard", "content": "a"}], "role wizard is not known; allowed: system, user"),
        ([{"role": "tool", "content": "a"}], "has no name"),
        ([{"role": "assistant", "tool_calls": 3}], "chat template refused"),
        ([{"role": "assistant", "tool_calls": [3]}], "chat template refused"),
        ([{"role": "assistant", "tool_calls": [{"id": [1], "function": {}}]}], "chat template refused"),
        ([{"role": "tool", "tool_call_id": [1], "content": "a"}], "chat template refused"),
        ([{"role": "user", "content": "\ud800"}], "lone surrogate"),
    ],
)
def test_a_malformed_chat_is_a_user_error(tokenizer, messages, message):
    with pytest.raises(UserError, match=message):
        tokenizer.encode_chat(messages)


def test_no_template_is_a_user_error(directory, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((directory / "tokenizer.json").read_bytes())
    with pytest.raises(UserError, match="no chat template"):
        Tokenizer.load(tmp_path).encode_chat([{"role": "user", "content": "a"}])


HOSTILE = {
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__.keys() }}",
    "globals by filter": "{{ (raise_exception | attr('__globals__')).keys() }}",
    "globals by function": "{{ cycler.__init__.__globals__.os.system('true') }}",
    "format": "{{ '{0.__class__.__init__}'.format(messages) }}{{ raise_exception('blank') }}",
    "change": "{{ messages.append(1) }}",
    "files": "{% include '/etc/hosts' %}",
    "import": "{% import 'os' as os %}",
    "range": "{{ range(10 ** 9) | list | length }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
}
COSTLY = {
    "repetition": "{{ 'a' * 10 ** 12 }}",
    "repeated bytes": "{{ 'a'.encode() * 4000000000 }}",
    "width": "{{ '%4000000000d' % 1 }}",
    "format": "{{ '{:>4000000000}'.format(1) }}",
    "ljust": "{{ 'a'.ljust(4000000000) | length }}",
    "doubling": "{% set n = namespace(s='a' * 1000000) %}{% for i in range(20) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "indent": "{{ [1] | tojson(indent=1000000000) }}",
    "batch": "{{ [1] | batch(400000000, 'x') | list }}",
    "replace": "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "output": "{% for i in range(99999) %}{{ 'a' * 99999 }}{% endfor %}",
    "power": "{{ 10 ** 999999999 }}",
    "squares": "{% set n = namespace(i=3) %}{% for i in range(40) %}{% set n.i = n.i * n.i %}{% endfor %}",
    "slices": "{{ [1] | slice(600000000) | list | length }}",
    "latin": "{{ lipsum(n=2000000) }}",
    "silent loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
}


@pytest.fixture(scope="module")
def strict():
    process = LimitedProcess(Path(sandbox.__file__), seconds=0.2, memory_bytes=64 << 20)
    yield process
    process.close()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_refused(name):
    messages = [{"role": "user", "content": "a"}]
    with pytest.raises(UserError, match="chat template refused"):
        ChatTemplate(HOSTILE[name], {}).render(messages, None, False)
    assert messages == [{"role": "user", "content": "a"}]


@pytest.mark.parametrize("name", COSTLY)
def test_a_costly_template_is_stopped(name, strict, monkeypatch):
    """Whatever it does: time and memory are those of its process."""
    monkeypatch.setattr(chat, "_STRANGERS", strict)
    with pytest.raises(UserError, match=r"chat template refused these messages: (it took|it wrote|Memory|Exceeds)"):
        ChatTemplate(COSTLY[name], {}).render([{"role": "user", "content": "a"}], None, False)
    after = ChatTemplate("{{ messages[0].content }}", {}).render([{"role": "user", "content": "a"}], None, False)
    assert after == "a"


def test_a_template_of_which_each_try_is_slow_is_stopped(monkeypatch):
    monkeypatch.setattr(chat, "_TRYING_SECONDS", 0)
    with pytest.raises(UserError, match="takes more than 0 seconds to be tried"):
        ChatTemplate("{{ messages[0].content }}", {}).render([{"role": "user", "content": "a"}], None, False)
    monkeypatch.undo()
    with pytest.raises(UserError, match="has 1048577 characters"):
        ChatTemplate("a" * (1 << 20) + "b", {}).render([{"role": "user", "content": "a"}], None, False)


def test_templates_of_others_run():
    source = (
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% if m.role == 'skip' %}{% continue %}{% endif %}\n"
        "    {% generation %}{{ m['content'] * 2 }}{% endgeneration %}\n"
        "{% set ns.n = ns.n + 1 %}{% endfor %}{{ tools | tojson(indent=None) }}{{ ns.n }}"
        "{{ strftime_now('%%') }}{{ bos_token }}{{ thinking }}"
    )
    chat = ChatTemplate(source, {"bos_token": "<s>"})
    messages = [{"role": "skip", "content": ""}, {"role": "user", "content": "b<"}]
    variables = {"bos_token": "</s>", "messages": [], "thinking": True}
    assert chat.render(messages, [{"x": "<é>"}], False, variables) == 'b<b<[{"x": "<é>"}]1%<s>True'


NOT_JINJA = {
    "loop": "{% for %}",
    "brace": "{{ a",
    "tag": "{% nonsense %}",
    "parentheses": "(" * 3 + "{{ " + "(" * 5000,
    "loops": "{% for a in [1] %}" * 21 + "{% endfor %}" * 21,
    "conditions": "{% if 1 %}" * 101 + "{% endif %}" * 101,
    "closed parentheses": "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}",
    "keyword": "{{ f(**1, None=2) }}{% set None = 1 %}",
}


@pytest.mark.parametrize("name", NOT_JINJA)
def test_a_template_that_is_not_jinja_is_a_user_error(name):
    with pytest.raises(UserError, match=r"not valid Jinja|nested too deeply"):
        ChatTemplate(NOT_JINJA[name], {}).render([{"role": "user", "content": "a"}], None, False)
