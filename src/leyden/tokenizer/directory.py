"""A tokenizer's files, as transformers lays them out: ``tokenizer.json`` and what says which tokens are special.

Read: ``tokenizer_config.json``, ``special_tokens_map.json`` and ``chat_template.jinja`` where they are present, and in
a model's directory the end tokens of ``config.json`` and ``generation_config.json``. Written: ``tokenizer.json`` and
``tokenizer_config.json``, which holds the chat template too; and ``generation_config.json`` for further end tokens.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leyden.core.errors import UserError
from leyden.core.files import atomic_file, read_text

_MAX_BYTES = 1 << 30
_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")
_TEMPLATE_FILES = {"default": "chat_template.jinja", "tool_use": "additional_chat_templates/tool_use.jinja"}
_MODEL_FILES = ("generation_config.json", "config.json")
_LISTS = ("additional_special_tokens", "extra_special_tokens")


@dataclass(frozen=True)
class TokenizerFiles:
    """What a directory says of a tokenizer.

    Attributes:
        definition: the text of ``tokenizer.json``.
        names: special tokens by their part: ``bos_token``, ``eos_token``, ``unk_token``, ``pad_token``, where named.
        others: further special tokens.
        chat_template: Jinja source, or None.
        tool_template: of chats with tools, where that is another one (``tool_use`` among named templates).
        end_ids: what the model's files call the end of a text, in the order in which they are read.
        model_vocab_size: how many tokens the model has, padding included; 0 where there is no model.
    """

    definition: str
    names: Mapping[str, str]
    others: tuple[str, ...]
    chat_template: str | None
    end_ids: tuple[int, ...] = ()
    model_vocab_size: int = 0
    tool_template: str | None = None


def read_files(directory: Path) -> TokenizerFiles:
    """Read a tokenizer's directory.

    Raises:
        UserError: there is no ``tokenizer.json``, or a file cannot be read or is not JSON.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{directory} has no tokenizer.json; give the directory of a tokenizer or a model.")
    special_map = _read_json(directory / "special_tokens_map.json")
    config = {**special_map, **_read_json(directory / "tokenizer_config.json")}
    names = {name: _content(config[name]) for name in _NAMES if config.get(name) is not None}
    listed = [token for name in _LISTS for token in _tokens(config.get(name))]
    templates = _templates(config.get("chat_template"), directory)
    ends = [index for name in _MODEL_FILES for index in _end_ids(directory / name)]
    size = _read_json(directory / "config.json").get("vocab_size")
    vocab_size = size if isinstance(size, int) else 0
    return TokenizerFiles(
        definition=read_text(path, _MAX_BYTES),
        names=names,
        others=tuple(listed),
        chat_template=templates.get("default"),
        end_ids=tuple(dict.fromkeys(ends)),
        model_vocab_size=vocab_size,
        tool_template=templates.get("tool_use"),
    )


def refuse_to_replace_others(directory: Path) -> None:
    """See to it that a trained tokenizer may be written to a directory.

    It may where nothing is, and over one that was trained there before, which has its report beside it.

    Raises:
        UserError: something else is there, a model among others.
    """
    there = {entry.name for entry in directory.iterdir()} if directory.is_dir() else set()
    ours = not there or (directory / "report" / "report.json").exists()
    if directory.is_file() or not ours or "config.json" in there:
        raise UserError(
            f"{directory} is there and holds no tokenizer that `leyden tokenizer train` made; give another --dir."
        )


def write_files(directory: Path, files: TokenizerFiles, bos_id: int) -> None:
    """Write a tokenizer so that transformers' ``AutoTokenizer`` opens it; the directory is made where missing."""
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        **files.names,
    }
    if files.others:
        config["additional_special_tokens"] = list(files.others)
    if files.chat_template is not None:
        config["chat_template"] = files.chat_template
    if files.tool_template is not None:
        named = {"default": files.chat_template, "tool_use": files.tool_template}
        config["chat_template"] = [{"name": name, "template": source} for name, source in named.items()]
    # Other templates would take precedence over those in the configuration.
    for name in _TEMPLATE_FILES.values():
        (directory / name).unlink(missing_ok=True)
    texts = {"tokenizer.json": files.definition, "tokenizer_config.json": json.dumps(config, indent=2) + "\n"}
    if files.end_ids:
        ends = {"bos_token_id": bos_id, "eos_token_id": list(files.end_ids)}
        texts["generation_config.json"] = json.dumps(ends, indent=2) + "\n"
    for name, text in texts.items():
        with atomic_file(directory / name) as part:
            part.write_text(text, encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    """The object in ``path``; an empty one where there is no such file."""
    if not path.is_file():
        return {}
    try:
        data = json.loads(read_text(path, _MAX_BYTES))
    except (ValueError, RecursionError) as error:  # among them a number of more digits than Python reads
        raise UserError(f"{path} is not JSON: {error}.") from None
    if not isinstance(data, dict):
        raise UserError(f"{path} must hold a JSON object, not {type(data).__name__}.")
    return data


def _content(token: Any) -> str:
    """The text of a token, which files give as a string or as an object with its ``content``."""
    content = token.get("content") if isinstance(token, Mapping) else token
    if not isinstance(content, str) or not content:
        raise UserError(f"A special token in the tokenizer's configuration has no text: {token!r}.")
    return content


def _tokens(listed: Any) -> list[str]:
    """The tokens of a list, or of an object that names each."""
    values = listed.values() if isinstance(listed, Mapping) else listed or []
    return [_content(token) for token in values]


def _end_ids(path: Path) -> list[int]:
    """The ``eos_token_id`` of a model's file, which is one number, a list of them, or nothing."""
    given = _read_json(path).get("eos_token_id")
    ids = given if isinstance(given, list) else [] if given is None else [given]
    if not all(isinstance(index, int) and not isinstance(index, bool) for index in ids):
        raise UserError(f"{path}: eos_token_id is a token's number or a list of such, not {given!r:.80}.")
    return ids


def _templates(configured: Any, directory: Path) -> dict[str, str]:
    """The templates by name, ``default`` and ``tool_use``, of the configuration and of files of their own."""
    path = directory / "tokenizer_config.json"
    files = {name: directory / file for name, file in _TEMPLATE_FILES.items()}
    texts = {name: read_text(file, _MAX_BYTES) for name, file in files.items() if file.is_file()}
    listed = [{"name": "default", "template": configured}] if isinstance(configured, str) else configured or []
    items = listed if isinstance(listed, list) else []
    named = {item.get("name"): item.get("template") for item in items if isinstance(item, Mapping)}
    found = {name: source for name, source in named.items() if name in _TEMPLATE_FILES and isinstance(source, str)}
    if configured is not None and "default" not in found | texts:
        raise UserError(f"{path}: chat_template is neither a text nor a list of named ones with a default.")
    return found | texts
