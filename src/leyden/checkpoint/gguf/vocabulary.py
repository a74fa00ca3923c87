"""A tokenizer in the keys of a GGUF header, and back.

llama.cpp makes its tokenizer of the tokens, their types and the merges (``tokenizer.ggml.*``), and knows how text is
split before merging by a name (``tokenizer.ggml.pre``) from a list of its own. The whole ``tokenizer.json`` goes along
under the format's key for it, ``tokenizer.huggingface.json``, from which Leyden reads the tokenizer back.
"""

import json
from collections.abc import Mapping
from typing import Any

from leyden.core.errors import UserError
from leyden.core.log import logger
from leyden.tokenizer import Tokenizer
from leyden.tokenizer.bpe import SPLIT_PATTERN
from leyden.tokenizer.directory import TokenizerFiles

_log = logger(__name__)

SECTION_KEY = "leyden.fields"
_TOKENIZER_KEY = "leyden.tokenizer"
_JSON_KEY = "tokenizer.huggingface.json"
_TEMPLATE_KEY = "tokenizer.chat_template"
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
"""Types of tokens."""

_ENDS = ("eos", "eot", "eom")
"""The names under which llama.cpp knows tokens that end a generation."""


def vocabulary_keys(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
    """What a header says of ``tokenizer``, for a model with ``vocab_size`` rows; rows without a token are unused ones.

    Raises:
        UserError: it splits text in a way that llama.cpp has no name for.
    """
    files = tokenizer.files
    definition = json.loads(files.definition)
    tokens = {index: token for token, index in definition["model"]["vocab"].items()}
    kinds = dict.fromkeys(tokens, _NORMAL)
    for added in definition["added_tokens"]:
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = _CONTROL if added["special"] else _USER_DEFINED
    keys = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _splitter(definition),
        "tokenizer.ggml.tokens": [tokens.get(index, f"[PAD{index}]") for index in range(vocab_size)],
        "tokenizer.ggml.token_type": [kinds.get(index, _UNUSED) for index in range(vocab_size)],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in definition["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": tokenizer.bos_id,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        _JSON_KEY: files.definition,
        _TOKENIZER_KEY: json.dumps({"names": dict(files.names), "others": files.others, "end_ids": files.end_ids}),
    }
    keys |= {f"tokenizer.ggml.{name}_token_id": index for name, index in zip(_ENDS, tokenizer.end_ids, strict=False)}
    if len(tokenizer.end_ids) > len(_ENDS):
        left = [tokenizer.decode([index]) for index in tokenizer.end_ids[len(_ENDS) :]]
        _log.warning("a GGUF file names %d tokens that end a text; left out: %s", len(_ENDS), ", ".join(left))
    if files.chat_template is not None:
        keys[_TEMPLATE_KEY] = files.chat_template
    if files.tool_template is not None:
        keys |= {f"{_TEMPLATE_KEY}.tool_use": files.tool_template, "tokenizer.chat_templates": ["tool_use"]}
    return keys


def tokenizer_of(keys: Mapping[str, Any], source: str) -> Tokenizer | None:
    """The tokenizer in a header; None where it has none.

    Raises:
        UserError: what stands there is no tokenizer.
    """
    if _JSON_KEY not in keys:
        if keys.get("tokenizer.ggml.tokens"):
            _log.warning("%s has a vocabulary without %s; Leyden reads no tokenizer from it.", source, _JSON_KEY)
        return None
    said = _object(keys.get(_TOKENIZER_KEY, "{}"), f"{source}: {_TOKENIZER_KEY}")
    try:
        files = TokenizerFiles(
            definition=str(keys[_JSON_KEY]),
            names={str(part): str(token) for part, token in dict(said.get("names", {})).items()},
            others=tuple(map(str, said.get("others", ()))),
            chat_template=_text(keys.get(_TEMPLATE_KEY)),
            tool_template=_text(keys.get(f"{_TEMPLATE_KEY}.tool_use")),
            end_ids=tuple(map(int, said.get("end_ids", ()))),
            model_vocab_size=len(keys.get("tokenizer.ggml.tokens", ())),
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"{source}: the keys of the tokenizer are not of their kinds: {error}.") from None
    return Tokenizer.from_files(files, f"{source}: {_JSON_KEY}")


def _text(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{value!r:.60} in place of a text")
    return value


def section_of(keys: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The fields that only Leyden knows.

    Raises:
        UserError: what stands there is no JSON object.
    """
    return _object(keys[SECTION_KEY], f"{source}: {SECTION_KEY}")


def _object(text: Any, source: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{source} is not JSON: {error}.") from None
    if not isinstance(found, dict):
        raise UserError(f"{source} holds a {type(found).__name__}; it should hold a JSON object.")
    return found


def _splitter(definition: dict[str, Any]) -> str:
    """llama.cpp's name of the way in which the tokenizer splits text.

    Raises:
        UserError: it has none.
    """
    step = definition["pre_tokenizer"] or {}
    steps = step["pretokenizers"] if step.get("type") == "Sequence" else [step]
    plain = definition["normalizer"] is None and not definition["model"].get("ignore_merges")
    match steps:
        case [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ] if plain and pattern == SPLIT_PATTERN:
            return "gpt-4o"
        case [{"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}] if plain:
            return "gpt-2"
    raise UserError(
        "the gguf layout cannot express this tokenizer: llama.cpp has names for ways of splitting text before merging, "
        "and Leyden knows those of o200k (which the tokenizers that it trains have) and of GPT-2, without a "
        f"normalizer; this one has {json.dumps({'normalizer': definition['normalizer'], 'pre_tokenizer': step}):.300}. "
        "Write the layout minimax, and let llama.cpp's own convert_hf_to_gguf.py read that."
    )
