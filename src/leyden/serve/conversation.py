"""Saved conversations: the state after a text in one file, from which a restarted engine goes on.

The file holds the tokens, and of their longest beginning from which the prefix cache could go on the keys and values
and the lightning layers' state in float32, all as prefill computed them on the grid. Going on from the file hence
gives the bits of going on without a restart. It is a safetensors file; its metadata name the format's version, the
model, and the checksum of the whole file with zeros in the checksum's place.
"""

import hashlib
import json
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open

from leyden.checkpoint.tensor_stream import TensorStream
from leyden.core.errors import UserError
from leyden.core.files import atomic_file
from leyden.model import PAGE, HybridLM, Pools
from leyden.serve.memory import EngineMemory
from leyden.serve.memory.snapshots import copy_pages, copy_slot, slot_of
from leyden.tokenizer import Tokenizer

_VERSION = "1"
_CHECKSUM = re.compile(rb'"checksum":"([0-9a-f]{64})"')
_SAMPLED = 4096
"""Elements of each tensor that a model's fingerprint looks at, or up to twice as many."""

_HEAD_BYTES = 4096
"""The metadata, in which the format is named, begin a file."""

_CHUNK_BYTES = 1 << 22
_MAX_HEADER_BYTES = 100_000_000
"""As safetensors has it; the turns of a chat stand there."""
_MAX_TOKEN_BYTES = 1 << 29
_MESSAGES = TypeAdapter(list[dict[str, str]])
_PAGES_AT_ONCE = 64


@dataclass(frozen=True)
class Conversation:
    """What a file holds.

    Attributes:
        tokens: the text.
        messages: its turns, where it is a chat.
        restored_tokens: of its beginning, that need not be read again.
    """

    tokens: list[int]
    messages: list[dict[str, str]]
    restored_tokens: int


def fingerprint(model: HybridLM, tokenizer: Tokenizer | None = None) -> str:
    """What tells a model from others, so that no other goes on from its states.

    It covers the shape, every tensor's name, dtype and shape, some 4096 elements of each, evenly spread, and the
    tokenizer. Training changes nearly every weight, so models that were trained apart differ; that a few single weights
    were edited goes unnoticed. All weights of the largest models would take minutes to hash.
    """
    digest = hashlib.blake2b(model.config.model_dump_json().encode(), digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        # An odd stride: an even one would stay in few columns of a matrix.
        sample = flat[:: flat.numel() // _SAMPLED | 1].cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(sample.view(torch.uint8).numpy().data)
    if tokenizer is not None:
        digest.update(tokenizer.fingerprint.encode())
    return digest.hexdigest()


def save_conversation(
    path: Path,
    memory: EngineMemory,
    tokens: Sequence[int],
    fingerprint: str,
    messages: Sequence[Mapping[str, str]] = (),
    salt: str = "",
    mode: int | None = None,
) -> int:
    """Write a conversation to ``path``, whole or not at all.

    Args:
        path: a conversation that was there is replaced at the end.
        memory: between two steps.
        tokens: the text so far.
        fingerprint: of the model, see :func:`fingerprint`.
        messages: the turns, where it is a chat.
        salt: of the requests that read it, see :class:`leyden.serve.request.Request`.
        mode: the file's permissions; None: those that the umask gives.

    Returns:
        How many of the tokens will not be read again.

    Raises:
        UserError: there is something else than a conversation at ``path``, or the disk is full.
    """
    _refuse_to_replace_others(path)
    pages, state = memory.kept(tokens, salt)
    pools = memory.pools
    contents: dict[str, Iterable[torch.Tensor]] = {"tokens": [torch.tensor(tokens, dtype=torch.int64)]}
    described = [("tokens", torch.int64, (len(tokens),))]
    if state is not None:
        contents |= {name: [part] for name, part in state.items()}
        contents |= {name: _parts(pool, pages) for name, pool in pools.pages.items()}
        described += [(name, part.dtype, tuple(part.shape)) for name, part in state.items()]
        described += [
            (name, pool.dtype, (len(pool), len(pages), *pool.shape[2:])) for name, pool in pools.pages.items()
        ]
    described.sort(key=lambda tensor: -tensor[1].itemsize)
    metadata = {
        "leyden_conversation": _VERSION,
        "model": fingerprint,
        "messages": json.dumps(list(messages)),
        "pages": str(len(pages)),
        "checksum": "0" * 64,
    }
    with atomic_file(path, mode) as part:
        part.unlink(missing_ok=True)
        part.touch(0o666 if mode is None else mode)
        with TensorStream(part, described, metadata) as stream:
            for name, _, _ in described:
                for tensor in contents[name]:
                    stream.append(tensor)
        place, _ = _find_checksum(part)
        checksum = _checksum(part, place)
        with part.open("r+b") as file:
            file.seek(place)
            file.write(checksum)
    return len(pages) * PAGE


def load_conversation(
    path: Path, memory: EngineMemory, fingerprint: str, vocab_size: int | None = None, salt: str = ""
) -> Conversation:
    """Read a conversation, and put what the model has read of it into the prefix cache.

    Without room for any snapshot in ``memory`` the text is read again (``restored_tokens`` is 0).

    Args:
        path: as :func:`save_conversation` wrote it.
        memory: between two steps.
        fingerprint: of the model that is to go on, see :func:`fingerprint`.
        vocab_size: ids of its tokens lie below.
        salt: of the requests that may go on from it, see :class:`leyden.serve.request.Request`.

    Raises:
        UserError: no such file, one that is torn, altered or something else, another model's or another version's, or
            one that does not fit into ``memory``.
    """
    contents = read_conversation(path, memory.pools, fingerprint, vocab_size)
    return Conversation(contents.tokens, contents.messages, restore_conversation(path, memory, contents, salt))


@dataclass(frozen=True)
class ConversationContents:
    """What a file holds, checked.

    Attributes:
        tokens, messages: as of :class:`Conversation`.
        tensors: what a slot and pages hold, by the names in :class:`leyden.model.Pools`; none where nothing can be gone
            on from.
        num_pages: of the tokens that need not be read again.
    """

    tokens: list[int]
    messages: list[dict[str, str]]
    tensors: dict[str, torch.Tensor]
    num_pages: int


def read_conversation(
    path: Path, pools: Pools, fingerprint: str, vocab_size: int | None = None
) -> ConversationContents:
    """Read and check a file, from any thread; arguments and errors are those of :func:`load_conversation`."""
    try:
        most = sum(x.nbytes for x in (*pools.slots.values(), *pools.pages.values()))
        most += _MAX_HEADER_BYTES + _MAX_TOKEN_BYTES
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > most:
            what = "is not a file" if not stat.S_ISREG(status.st_mode) else "is larger than any that this engine saves"
            raise UserError(f"{path} cannot be read: it {what}.")
        place, written = _find_checksum(path)
        whole = _checksum(path, place) == written
    except FileNotFoundError:
        raise UserError(f"there is no conversation at {path}.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    if not whole:
        raise UserError(f"{path} is torn or was altered (its checksum is wrong); start anew, or take a copy of it.")
    try:
        contents = _contents(path, fingerprint)
        _check_contents(path, contents, pools, vocab_size)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UserError(f"{path} is no conversation as Leyden saves them ({reason}); start anew.") from None
    return contents


def _contents(path: Path, fingerprint: str) -> ConversationContents:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        if metadata["leyden_conversation"] != _VERSION:
            raise UserError(
                f"{path} has version {metadata['leyden_conversation'][:20]} of the format, and this Leyden reads "
                f"version {_VERSION}; take the Leyden that wrote it."
            )
        if metadata["model"] != fingerprint:
            raise UserError(
                f"{path} was saved with another model (fingerprint {metadata['model'][:40]}; this one has "
                f"{fingerprint}); load the one it was saved with, or start anew."
            )
        messages = _MESSAGES.validate_json(metadata["messages"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dictionary
    tokens = tensors.pop("tokens")
    if tokens.dtype != torch.int64 or tokens.dim() != 1:
        raise ValueError(f"its tokens are of {tokens.dtype} and shape {tuple(tokens.shape)}")
    # Files that older versions wrote say it by the shape of the keys alone.
    shape = (0, *tensors["keys"].shape[1:2]) if "keys" in tensors else (0,)
    num_pages = int(metadata.get("pages", shape[-1]))
    return ConversationContents(tokens.tolist(), messages, tensors, num_pages)


def _check_contents(path: Path, contents: ConversationContents, pools: Pools, vocab_size: int | None) -> None:
    """A right checksum says nothing of who wrote the file."""
    tokens, tensors = contents.tokens, contents.tensors
    if tokens and not 0 <= min(tokens) <= max(tokens) < (vocab_size or max(tokens) + 1):
        raise ValueError("it has tokens that are not in the vocabulary")
    if not tensors:
        return
    if tensors.keys() != pools.slots.keys() | pools.pages.keys():
        raise ValueError(f"it has the tensors {', '.join(sorted(tensors))[:100]}")
    for name, pool in (pools.pages | pools.slots).items():
        given, expected = tensors[name], (*pool.shape[:1], *pool.shape[2:])
        shape = tuple(given.shape) if name in pools.slots else (*given.shape[:1], *given.shape[2:])
        if given.dtype != pool.dtype or shape != expected:
            raise UserError(
                f"{path}: {name} of {given.dtype} and shape {shape}, where this engine's are of {pool.dtype} and shape "
                f"{expected}; load the model as it was when it was saved."
            )
        if not given.isfinite().all():
            raise ValueError(f"its {name} are no numbers")
    counts = {contents.num_pages, *(tensors[name].shape[1] for name in pools.pages)}
    if len(counts) > 1 or not 1 <= contents.num_pages <= len(tokens) // PAGE:
        raise ValueError(f"it has {' and '.join(map(str, sorted(counts)))} pages for {len(tokens)} tokens")


def _parts(pool: torch.Tensor, pages: list[int]) -> Iterator[torch.Tensor]:
    """The contents of ``pages``, layer by layer, some at a time."""
    for layer in pool:
        for start in range(0, len(pages), _PAGES_AT_ONCE):
            yield layer[pages[start : start + _PAGES_AT_ONCE]]


def restore_conversation(path: Path, memory: EngineMemory, contents: ConversationContents, salt: str = "") -> int:
    """Put what was read into the prefix cache, as if a sequence had just read it and ended.

    Arguments and errors are those of :func:`load_conversation`.

    Returns:
        How many of the tokens need not be read again.
    """
    if not contents.tensors:
        return 0
    pools, tensors, num_pages = memory.pools, contents.tensors, contents.num_pages
    holding = memory.admit(contents.tokens[: num_pages * PAGE], salt)
    if holding is None:
        usage = memory.usage
        raise UserError(
            f"{path} needs {num_pages} pages and a state; of {usage.pages_total} pages {usage.pages_used} are in use, "
            f"of {usage.states_total} states {usage.states_used}. Raise kv_gigabytes, or wait until there is room."
        )
    try:
        here = range(holding.length // PAGE, num_pages)  # the pages before are shared, and may be in use
        copy_pages(pools.pages, [holding.pages[page] for page in here], tensors, here)
        copy_slot(slot_of(pools, holding.state), tensors)
        memory.commit_prefix(holding, num_pages * PAGE)
        return num_pages * PAGE if memory.cuts(holding) else 0
    finally:
        memory.release(holding)


def _refuse_to_replace_others(path: Path) -> None:
    if not path.exists():
        return
    head = b""
    if path.is_file():
        with path.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
    if b'"leyden_conversation"' not in head:
        raise UserError(f"{path} is there already and no conversation of Leyden's; give the name of a new file.")


def _find_checksum(path: Path) -> tuple[int, bytes]:
    """Where in the file its checksum lies, and what it is.

    Raises:
        UserError: there is none.
    """
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = stream.read(length) if length <= min(path.stat().st_size, _MAX_HEADER_BYTES) else b""
    found = _CHECKSUM.search(header)
    if found is None or len(header) < length:
        raise UserError(f"{path} is torn, or not a conversation that Leyden has saved.")
    return 8 + found.start(1), found[1]


def _checksum(path: Path, place: int) -> bytes:
    """Of the whole file, with zeros for the checksum at ``place``."""
    digest = hashlib.blake2b(digest_size=32)
    with path.open("rb") as stream:
        digest.update(stream.read(place) + b"0" * 64)
        stream.seek(place + 64)
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest().encode()
