"""Conversations on disk: going on after a restart is going on; what is torn, altered or another's is refused."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from leyden.core.errors import UserError
from leyden.model import PAGE, HybridLM, Pools
from leyden.serve import conversation
from leyden.serve.conversation import fingerprint, load_conversation, save_conversation
from leyden.serve.memory import EngineMemory, audit
from leyden.serve.runner import Reading, Runner
from leyden.tokenizer import Tokenizer

_TEXT = torch.randint(290, (700,), generator=torch.Generator().manual_seed(1)).tolist()
_TURN = [*_TEXT, *torch.randint(290, (90,), generator=torch.Generator().manual_seed(2)).tolist()]


def _memory(model: HybridLM, *, pages: int = 8, snapshots: int = 4) -> EngineMemory:
    dtype = model.lm_head.weight.dtype
    pools = Pools(model.config, 2, pages, dtype=dtype)
    return EngineMemory(pools, cache_bytes=snapshots * Pools.bytes_of(model.config, dtype)[0], swap_bytes=0)


def _read(model: HybridLM, memory: EngineMemory, tokens: list[int]) -> tuple[int, torch.Tensor]:
    """How much of a text need not be read, and the logits behind it."""
    holding = memory.admit(tokens)
    assert holding is not None
    position, logits = holding.length, torch.empty(0)
    for stop in (*memory.cuts(holding), len(tokens)):
        part = Reading(tokens[position:stop], position, holding.pages, [holding.state])
        logits, position = Runner(model, memory.pools).run([], [part]), stop
        if stop % PAGE == 0:
            memory.commit_prefix(holding, stop)
    memory.release(holding)
    return holding.length, logits


@pytest.fixture
def saved(model: HybridLM, tmp_path: Path) -> Path:
    memory, path = _memory(model), tmp_path / "talk.leyden"
    _read(model, memory, _TEXT)
    assert save_conversation(path, memory, _TEXT, fingerprint(model)) == 512
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_going_on_after_a_restart(make_model: Callable[..., HybridLM], dtype: torch.dtype, tmp_path: Path) -> None:
    model, path, messages = make_model().to(dtype), tmp_path / "talk", [{"role": "user", "content": '☂ "checksum":"'}]
    memory = _memory(model)
    _read(model, memory, _TEXT)
    save_conversation(path, memory, _TEXT, fingerprint(model), messages)
    expected = _read(model, memory, _TURN)
    restarted = _memory(model)
    conversation = load_conversation(path, restarted, fingerprint(model))
    assert (conversation.tokens, conversation.messages, conversation.restored_tokens) == (_TEXT, messages, 512)
    audit(restarted)
    assert restarted.usage.states_used == restarted.usage.pages_used == 0
    length, logits = _read(model, restarted, _TURN)
    assert length == 512
    assert torch.equal(logits, expected[1])
    assert torch.equal(logits, _read(model, _memory(model), _TURN)[1])


def test_where_another_text_is_already(model: HybridLM, saved: Path) -> None:
    """Pages that both have are shared, not written to."""
    memory = _memory(model)
    other = [*_TEXT[:256], *_TURN[::-1]]
    _read(model, memory, other[:300])
    running = memory.admit(other)
    assert running is not None and running.length == 256
    before = memory.pools.pages["keys"][:, running.pages[0]].clone()
    assert load_conversation(saved, memory, fingerprint(model)).restored_tokens == 512
    audit(memory)
    assert torch.equal(before, memory.pools.pages["keys"][:, running.pages[0]])
    memory.release(running)
    assert _read(model, memory, _TURN)[0] == 512


def test_texts_without_anything_to_restore(model: HybridLM, saved: Path, tmp_path: Path) -> None:
    short = tmp_path / "short"
    assert save_conversation(short, _memory(model), [1, 2, 3], fingerprint(model)) == 0
    assert load_conversation(short, _memory(model), fingerprint(model)).tokens == [1, 2, 3]
    without = _memory(model, snapshots=0)
    assert load_conversation(saved, without, fingerprint(model)).restored_tokens == 0
    audit(without)


def test_truncated_files_are_refused(model: HybridLM, saved: Path) -> None:
    content = saved.read_bytes()
    for quarters in range(4):
        for length in {len(content) * quarters // 4, max(0, len(content) * (quarters + 1) // 4 - 1)}:
            saved.write_bytes(content[:length])
            with pytest.raises(UserError, match="torn"):
                load_conversation(saved, _memory(model), fingerprint(model))


def test_altered_bytes_are_refused(model: HybridLM, saved: Path) -> None:
    content = bytearray(saved.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    memory, print_of_model = _memory(model), fingerprint(model)
    for place in [*range(0, header, 7), *range(header, len(content), len(content) // 50), len(content) - 1]:
        content[place] ^= 1
        saved.write_bytes(content)
        content[place] ^= 1
        with pytest.raises(UserError, match="torn"):
            load_conversation(saved, memory, print_of_model)
    assert memory.usage.pages_kept == 0


def test_other_models_are_refused(
    model: HybridLM, make_model: Callable[..., HybridLM], saved: Path, tokenizer: Tokenizer
) -> None:
    tuned = make_model()
    with torch.no_grad():
        tuned.layers[2].self_attn.qkv_proj.weight.add_(1e-3)
    others = [fingerprint(other) for other in (tuned, make_model().to(torch.bfloat16), make_model(rope_theta=1e6))]
    assert fingerprint(make_model()) == fingerprint(model)
    for other in [*others, fingerprint(model, tokenizer)]:
        with pytest.raises(UserError, match="another model"):
            load_conversation(saved, _memory(model), other)


def test_bad_files_are_refused(model: HybridLM, saved: Path, tmp_path: Path) -> None:
    def refused(path: Path, message: str) -> None:
        with pytest.raises(UserError, match=message):
            load_conversation(path, _memory(model), fingerprint(model))

    refused(tmp_path / "nowhere", "no conversation at")
    refused(tmp_path, "cannot be read")
    other = tmp_path / "weights.safetensors"
    save_file({"weight": torch.zeros(3)}, other)
    refused(other, "not a conversation")
    other.write_bytes(b"\xff" * 100)
    refused(other, "not a conversation")


def _write(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """A file with these contents and a right checksum, which whoever writes one can compute."""
    save_file(tensors, path, {"checksum": "0" * 64, **metadata})
    place, _ = conversation._find_checksum(path)
    content = bytearray(path.read_bytes())
    content[place : place + 64] = conversation._checksum(path, place)
    path.write_bytes(content)


_WRONG_TENSORS: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "tokens as floats": lambda held: held.update(tokens=held["tokens"].float()),
    "tokens in rows": lambda held: held.update(tokens=held["tokens"][None]),
    "no tokens": lambda held: held.pop("tokens"),
    "few tokens": lambda held: held.update(tokens=held["tokens"][:300]),
    "negative tokens": lambda held: held.update(tokens=-held["tokens"] - 1),
    "tokens of another vocabulary": lambda held: held.update(tokens=held["tokens"] + 290),
    "no pages": lambda held: held.update({name: held[name][:, :0] for name in ("keys", "values")}),
    "fewer values than keys": lambda held: held.update(values=held["values"][:, :1]),
    "no keys": lambda held: held.pop("keys"),
    "keys alone": lambda held: [held.pop(name) for name in ("state", "values")],
    "another dtype": lambda held: held.update(keys=held["keys"].double()),
    "another shape": lambda held: held.update(state=held["state"][:1]),
    "no dimensions": lambda held: held.update(keys=torch.zeros(())),
    "no numbers": lambda held: held.update(state=held["state"] * float("nan")),
    "something else": lambda held: held.update(other=torch.zeros(1)),
}
_WRONG_METADATA: dict[str, dict[str, str | None]] = {
    "no messages": {"messages": None},
    "messages that are no JSON": {"messages": "["},
    "messages that are no turns": {"messages": '[{"role": 1}]'},
    "deep messages": {"messages": "[" * 100_000},
    "no model": {"model": None},
    "no version": {"leyden_conversation": None},
    "another version": {"leyden_conversation": "\x1b[31m" * 1000},
}


@pytest.mark.parametrize("wrong", [*_WRONG_TENSORS, *_WRONG_METADATA])
def test_a_right_checksum_over_wrong_contents(model: HybridLM, saved: Path, wrong: str) -> None:
    """One sentence, and nothing is held or kept."""
    tensors = load_file(saved)
    metadata = {"leyden_conversation": "1", "model": fingerprint(model), "messages": "[]"}
    memory = _memory(model)
    _write(saved, tensors, metadata)
    assert load_conversation(saved, _memory(model), fingerprint(model), 290).restored_tokens == 512
    if wrong in _WRONG_TENSORS:
        _WRONG_TENSORS[wrong](tensors)
    changed = {**metadata, **_WRONG_METADATA.get(wrong, {})}
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    _write(saved, contiguous, {name: value for name, value in changed.items() if value is not None})
    with pytest.raises(UserError) as caught:
        load_conversation(saved, memory, fingerprint(model), 290)
    assert len(str(caught.value)) < 600 and "\n" not in str(caught.value)
    audit(memory)
    assert memory.usage.pages_used == memory.usage.pages_kept == 0


def test_special_files_and_large_ones(model: HybridLM, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "sparse").open("wb") as file:
        file.write((1 << 32).to_bytes(8, "little"))
        file.truncate(1 << 33)
    for path in (tmp_path / "pipe", tmp_path / "sparse", Path("/dev/zero"), tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            load_conversation(path, _memory(model), fingerprint(model))


def test_permissions(model: HybridLM, tmp_path: Path) -> None:
    for mode in (0o600, 0o640):
        save_conversation(tmp_path / "talk", _memory(model), [1], fingerprint(model), mode=mode)
        assert (tmp_path / "talk").stat().st_mode & 0o777 == mode


def test_texts_of_another_salt_are_not_gone_on_from(model: HybridLM, saved: Path) -> None:
    memory = _memory(model)
    assert load_conversation(saved, memory, fingerprint(model), salt="alice").restored_tokens == 512
    for salt, known in (("alice", 512), ("bob", 0), ("", 0)):
        holding = memory.admit(_TURN, salt)
        assert holding is not None and (holding.length, holding.cache.possible) == (known, known)
        memory.release(holding)
    assert memory.kept(_TEXT, "bob") == ([], None)
    audit(memory)


def test_other_versions_are_refused(model: HybridLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "talk"
    monkeypatch.setattr("leyden.serve.conversation._VERSION", "2")
    save_conversation(path, _memory(model), [1], fingerprint(model))
    monkeypatch.undo()
    with pytest.raises(UserError, match="version 2"):
        load_conversation(path, _memory(model), fingerprint(model))


def test_no_room(model: HybridLM, saved: Path) -> None:
    with pytest.raises(UserError, match="needs 2 pages and a state; of 1 pages 0 are in use"):
        load_conversation(saved, _memory(model, pages=1), fingerprint(model))


_KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from leyden.model import ModelConfig, Pools
from leyden.serve.conversation import load_conversation, save_conversation
from leyden.serve.memory import EngineMemory

config = ModelConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, head_dim=4, rotary_dim=2)
memory = EngineMemory(Pools(config, 1, 1, dtype=torch.float32), cache_bytes=0, swap_bytes=0)
path = Path(sys.argv[1])
random.seed(1)
save_conversation(path, memory, [0, 0] * 50_000, "model")
for attempt in range(8):
    if not (child := os.fork()):
        while True:  # never past here: it is killed
            save_conversation(path, memory, [attempt, random.randrange(8)] * 50_000, "model")
    time.sleep(random.uniform(0.002, 0.1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    tokens = load_conversation(path, memory, "model").tokens
    assert tokens == tokens[:2] * 50_000
"""


@pytest.mark.slow
def test_killed_while_saving(tmp_path: Path) -> None:
    path = tmp_path / "talk"
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, str(path)], stderr=subprocess.PIPE, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    assert {file.name for file in tmp_path.iterdir()} <= {"talk", ".talk.part"}


def test_only_a_conversation_is_replaced(model: HybridLM, tmp_path: Path) -> None:
    memory, precious = _memory(model), tmp_path / "precious.txt"
    for content in (b"", b"years of work", b"x" * 10_000):
        precious.write_bytes(content)
        with pytest.raises(UserError, match="no conversation of Leyden's; give the name of a new file"):
            save_conversation(precious, memory, [1, 2, 3], "print")
        assert precious.read_bytes() == content
    with pytest.raises(UserError, match="no conversation"):
        save_conversation(tmp_path, memory, [1, 2, 3], "print")
    for tokens in ([1, 2, 3], [1, 2, 3, 4]):
        save_conversation(tmp_path / "new", memory, tokens, "print")
    assert load_conversation(tmp_path / "new", memory, "print").tokens == [1, 2, 3, 4]
