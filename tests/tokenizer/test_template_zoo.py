"""Chat templates in the style of many makers get messages in the form they take, and lose nothing in silence.

``zoo/`` holds templates written for this test with the habits of those that ship with models: parts that are walked
over, ``content[0]['text']``, tests ``is string``, arguments by ``tojson`` or item by item, ids of nine characters,
content that must be none beside calls. What each one takes is written down here by hand, and its text is compared with
that of transformers, which is given messages in that form by hand.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, Literal

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from leyden.core.errors import UserError
from leyden.tokenizer.chat import ChatTemplate

ZOO = Path(__file__).with_name("zoo")
NAMES: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>"}


@dataclass(frozen=True)
class Takes:
    """What a template takes; ``calls`` is what a call's arguments are, ``tags`` and ``list`` that they become text."""

    content: Literal["string", "parts", "both"] = "string"
    system: Literal["yes", "refused", "lost"] = "yes"
    calls: Literal["text", "mapping", "tags", "list"] | None = None
    tools: Literal["wrapped", "bare"] | None = None
    tool_content: Literal["string", "parts"] = "string"
    no_content: Literal["", "none"] = ""
    short_ids: bool = False


TAKES = {
    "chatml": Takes(),
    "llama2": Takes(),
    "llama3_1": Takes(calls="mapping", tools="wrapped"),
    "llama3_2_vision": Takes("both"),
    "mistral": Takes(calls="mapping", tools="wrapped", short_ids=True),
    "mistral_small": Takes("both"),
    "gemma2": Takes(system="refused"),
    "gemma3": Takes("both"),
    "gemma4": Takes(calls="mapping", tools="wrapped"),
    "qwen2_5": Takes(calls="mapping", tools="wrapped"),
    "qwen3": Takes(calls="text", tools="wrapped"),
    "qwen2_vl": Takes("both"),
    "llava": Takes("parts"),
    "idefics": Takes("parts"),
    "deepseek_v3": Takes(calls="text", no_content="none"),
    "phi3": Takes(),
    "phi4_mini": Takes(calls="mapping", tools="wrapped"),
    "command_r": Takes(calls="mapping", tools="wrapped"),
    "hermes": Takes(calls="mapping", tools="wrapped"),
    "granite": Takes(calls="mapping", tools="wrapped"),
    "glm4": Takes("both", calls="mapping", tools="wrapped"),
    "minimax_text01": Takes("parts"),
    "minimax_m1": Takes("parts", calls="list", tools="wrapped", tool_content="parts"),
    "minimax_m2": Takes("both", calls="mapping", tools="wrapped"),
    "functionary": Takes(calls="text"),
    "loops": Takes("parts", system="lost", tools="bare"),
}

SYSTEM = {"role": "system", "content": "Answer in two words: <b>no</b> more."}
TURNS = [
    {"role": "user", "content": "Is 2 < 3, and what follows?"},
    {"role": "assistant", "content": "Yes, it is."},
    {"role": "user", "content": "Grüße: then go on 🙂"},
]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The sky over a town.",
        "parameters": {"type": "object", "properties": {"town": {"type": "string"}}},
    },
}
CALL_ID = "call_6b7c8d9e0f1a2b3c"
SHORT_ID = hashlib.sha256(CALL_ID.encode()).hexdigest()[:9]
ARGUMENTS = '{"town": "Leyden", "days": 3}'
CALLED = [
    {"role": "user", "content": "How is the sky?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": CALL_ID, "type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}],
    },
    {"role": "tool", "tool_call_id": CALL_ID, "content": "Lightning, 12 degrees."},
    {"role": "assistant", "content": "There is lightning."},
    {"role": "user", "content": "And the next day?"},
]


@cache
def template(name: str) -> ChatTemplate:
    return ChatTemplate((ZOO / f"{name}.jinja").read_text(), NAMES)


def stock(name: str, messages: list, tools: list | None = None, prompt: bool = True) -> str:
    source = (ZOO / f"{name}.jinja").read_text()
    texts, _ = render_jinja_template([messages], tools, chat_template=source, add_generation_prompt=prompt, **NAMES)
    return texts[0]


def parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def by_hand(takes: Takes, messages: list) -> list:
    """Messages in the form that a template takes, by what is written down of it."""
    made = []
    for message in json.loads(json.dumps(messages)):
        form = takes.tool_content if message["role"] == "tool" else takes.content
        calls = message.get("tool_calls")
        if calls and takes.calls == "list":
            line = f'{{"name": "weather", "arguments": {calls[0]["function"]["arguments"]}}}'
            del message["tool_calls"]
            message["content"] = f"<tool_calls>\n{line}\n</tool_calls>"
        elif calls:
            function = calls[0]["function"]
            message["content"] = None if takes.no_content == "none" else ""
            function["arguments"] = json.loads(ARGUMENTS) if takes.calls == "mapping" else ARGUMENTS
            calls[0]["id"] = SHORT_ID if takes.short_ids else CALL_ID
        if message["role"] == "tool":
            message |= {"name": "weather", "tool_call_id": SHORT_ID if takes.short_ids else CALL_ID}
        if form == "parts" and message["content"] is not None:
            message["content"] = parts(message["content"])
        made.append(message)
    return made


def test_the_zoo_is_whole():
    assert {path.stem for path in ZOO.glob("*.jinja")} == set(TAKES)


@pytest.mark.parametrize("name", TAKES)
def test_a_template_gets_content_in_the_form_it_takes(name):
    takes, chat = TAKES[name], template(name)
    messages = TURNS if takes.system != "yes" else [SYSTEM, *TURNS]
    text = chat.render(messages, None, True)
    assert text == stock(name, by_hand(takes, messages))
    for message in messages:
        assert message["content"] in text
    as_parts = [{**message, "content": parts(message["content"])} for message in messages]
    wanted = as_parts if takes.content == "both" else by_hand(takes, messages)
    assert chat.render(as_parts, None, False) == stock(name, wanted, prompt=False)
    two = [{"type": "text", "text": "qz first. "}, {"type": "text", "text": "qz second."}]
    text = chat.render([{"role": "user", "content": two}], None, True)
    assert "first" in text and "second" in text and "'text'" not in text


@pytest.mark.parametrize("name", TAKES)
def test_a_template_takes_a_system_prompt_or_says_that_it_does_not(name):
    takes, chat = TAKES[name], template(name)
    if takes.system == "yes":
        assert SYSTEM["content"] in chat.render([SYSTEM, *TURNS], None, True)
        return
    with pytest.raises(UserError, match="not supported" if takes.system == "refused" else r"message 0 \(system\)"):
        chat.render([SYSTEM, *TURNS], None, True)


@pytest.mark.parametrize("name", TAKES)
def test_a_template_gets_calls_and_their_results(name):
    takes, chat = TAKES[name], template(name)
    if takes.calls is None:
        with pytest.raises(UserError, match=r"tool_calls|chat template"):
            chat.render(CALLED, None, True)
        return
    text = chat.render(CALLED, None, True)
    assert text == stock(name, by_hand(takes, CALLED))
    for words in ("Leyden", "Lightning, 12 degrees.", "There is lightning.", "And the next day?"):
        assert words in text
    said = [{**message, "content": "I look."} if message.get("tool_calls") else message for message in CALLED]
    assert "Leyden" in chat.render(said, None, True)
    twice = json.loads(json.dumps(CALLED))
    twice[1]["tool_calls"].append({**CALLED[1]["tool_calls"][0], "id": "call_2"})
    twice[1]["tool_calls"][1]["function"] = {"name": "weather", "arguments": '{"town": "Delft"}'}
    if name == "llama3_1":
        with pytest.raises(UserError, match="One call at a time"):
            chat.render(twice, None, True)
    else:
        assert "Delft" in chat.render(twice, None, True)
    parsed = json.loads(json.dumps(CALLED))
    parsed[1]["tool_calls"][0]["function"]["arguments"] = json.loads(ARGUMENTS)
    assert chat.render(parsed, None, True) == text


@pytest.mark.parametrize("name", TAKES)
def test_a_template_tells_tools_or_the_request_is_refused(name):
    takes, chat = TAKES[name], template(name)
    if takes.tools is None:
        with pytest.raises(UserError, match=r'no place for tools.*leave "tools" out'):
            chat.render(TURNS, [TOOL], True)
        return
    given = [TOOL if takes.tools == "wrapped" else TOOL["function"]]
    text = chat.render(TURNS, [TOOL], True)
    assert text == stock(name, by_hand(takes, TURNS), given)
    assert "weather" in text and "The sky over a town." in text


def test_calls_that_a_template_leaves_out_are_refused():
    first = "{% for m in messages %}{{ m.content }}{{ m.tool_calls[0] | tojson if m.tool_calls }}{% endfor %}"
    chat = ChatTemplate(first, {})
    assert "Leyden" in chat.render(CALLED, None, True)
    twice = json.loads(json.dumps(CALLED))
    twice[1]["tool_calls"] *= 2
    with pytest.raises(UserError, match=r"Message 1 \(assistant\) has 2 tool_calls, of which .* one a message"):
        chat.render(twice, None, True)


BROKEN = ["", " \n", "null", '{"path": "C:\\temp', "3", "[1]", '"x"', '{"a":' * 900 + "1" + "}" * 900]
BROKEN += ["[" * 100_000, '{"a": "\\ud800"}', "{" * 40, '{"n": ' + "9" * 5000 + "}", '{"a": NaN}']


@pytest.mark.parametrize("name", [name for name, takes in TAKES.items() if takes.calls])
def test_a_slip_in_an_old_turn_ends_no_chat(name):
    """Whatever an earlier answer called a function with."""
    for arguments in BROKEN:
        messages = json.loads(json.dumps(CALLED))
        messages[1]["tool_calls"][0]["function"]["arguments"] = arguments
        text = template(name).render(messages, None, True)
        assert "And the next day?" in text
        text.encode()
        if arguments.strip() in ("", "null"):
            messages[1]["tool_calls"][0]["function"]["arguments"] = "{}"
            assert template(name).render(messages, None, True) == text


LOSING = {
    "nothing said": "{{ messages[0].role }}",
    "the last one": "{% for m in messages[:-1] %}{{ m.content }}{% endfor %}",
    "cut": "{% for m in messages %}{{ m.content[:20] }}{% endfor %}",
    "some words": "{% for m in messages %}{{ m.content.split()[:3] | join(' ') }}{% endfor %}",
    "before a tag": "{% for m in messages %}{{ m.content.split('<b>')[-1] }}{% endfor %}",
    "another field": "{% for m in messages %}{{ m.text }}{% endfor %}",
    "every other": "{% for m in messages[::2] %}{{ m.content }}{% endfor %}",
    "images alone": "{% for m in messages %}{{ m.content | selectattr('type', 'equalto', 'image') }}{% endfor %}",
    "no results": "{% for m in messages if m.role != 'tool' %}{{ m.content ~ m.tool_calls }}{% endfor %}",
}
CHANGING = {
    "JSON": "{% for m in messages %}{{ m.content | tojson }}{% endfor %}",
    "JSON in ASCII": "{% for m in messages %}{{ m.content | tojson(ensure_ascii=true) }}{% endfor %}",
    "HTML": "{% for m in messages %}{{ m.content | e }}{% endfor %}",
    "upper case": "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
    "one line": "{% for m in messages %}{{ m.content.split() | join(' ') }}{% endfor %}",
    "switches": "{% for m in messages %}{{ m.content.replace('/no_think', '') }}{% endfor %}",
    "thoughts": "{% for m in messages %}{{ m.content.split('</think>')[-1] if m.role == 'assistant' else m.content }}"
    "{% endfor %}",
}
SAID = [
    {"role": "user", "content": 'Tell me, <b>please</b>: what is\n\na "jar" & what\'s a crème? /no_think'},
    {"role": "assistant", "content": "<think>I know</think> A vessel of glass, and a sweet."},
    {"role": "user", "content": 'Tell me, <b>please</b>: what is\n\na "jar" & what\'s a crème? /no_think'},
]


@pytest.mark.parametrize("name", LOSING)
def test_a_template_that_loses_words_is_refused(name):
    messages = SAID[2:] if name == "nothing said" else SAID
    if name == "no results":
        messages = CALLED
    with pytest.raises(UserError, match=r"leaves out what message \d \((user|assistant|tool)\) says"):
        ChatTemplate(LOSING[name], {}).render(messages, None, True)


@pytest.mark.parametrize("name", CHANGING)
def test_a_template_may_change_how_words_are_written(name):
    assert ChatTemplate(CHANGING[name], {}).render(SAID, None, True)


PIECES = ["content", "role", "'text'", "[0]", " is string", " | trim", "{% endfor %}", "{% endif %}", "tool_calls"]
PIECES += ["message", "messages", "loop.last", "==", "not ", "[1:]", "{{", "}}", "'", "| tojson", "user", "assistant"]


def mutated(source: str, random: Random) -> str:
    """``source`` with one to three pieces cut out, put in or exchanged."""
    for _ in range(random.randint(1, 3)):
        place, piece = random.randrange(len(source)), random.choice(PIECES)
        source = random.choice(
            [
                source[:place] + source[place + random.randint(1, 12) :],
                source[:place] + piece + source[place:],
                source.replace(piece, random.choice(PIECES), 1),
            ]
        )
    return source


@pytest.mark.parametrize("rounds", [15, pytest.param(1500, marks=pytest.mark.slow)])
def test_whatever_a_template_does_nothing_is_lost_in_silence(rounds):
    random, sources = Random(rounds), [path.read_text() for path in sorted(ZOO.glob("*.jinja"))]
    rendered = 0
    for _ in range(rounds):
        chat = ChatTemplate(mutated(random.choice(sources), random), NAMES)
        for messages, tools in ((TURNS, None), ([SYSTEM, *TURNS], None), ([SYSTEM, *CALLED], [TOOL])):
            try:
                text = chat.render(messages, tools, True)
            except UserError:
                continue
            rendered += 1
            said = [message["content"] for message in messages if message["content"]]
            for words in [*said, "weather", "Leyden"][: len(said) + 2 * bool(tools)]:
                assert words in text or json.dumps(words, ensure_ascii=False)[1:-1] in text
    assert rendered
