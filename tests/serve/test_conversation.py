"""Conversations on disk: going on after a restart is going on; what is torn, altered or another's is refused."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from leyden.core.errors import UserError
from leyden.model import PAGE, HybridLM, Pools
from leyden.serve.conversation import fingerprint, load_conversation, save_conversation
from leyden.serve.memory import Memory, audit
from leyden.serve.runner import Reading, Runner
from leyden.tokenizer import Tokenizer

_TEXT = torch.randint(290, (700,), generator=torch.Generator().manual_seed(1)).tolist()
_TURN = [*_TEXT, *torch.randint(290, (90,), generator=torch.Generator().manual_seed(2)).tolist()]


def _memory(model: HybridLM, *, pages: int = 8, snapshots: int = 4) -> Memory:
    dtype = model.lm_head.weight.dtype
    pools = Pools(model.config, 2, pages, dtype=dtype)
    return Memory(pools, cache_bytes=snapshots * Pools.bytes_of(model.config, dtype)[0], swap_bytes=0)


def _read(model: HybridLM, memory: Memory, tokens: list[int]) -> tuple[int, torch.Tensor]:
    """How much of a text need not be read, and the logits behind it."""
    holding = memory.admit(tokens)
    assert holding is not None
    position, logits = holding.length, torch.empty(0)
    for stop in (*memory.cuts(holding), len(tokens)):
        part = Reading(tokens[position:stop], position, holding.pages, [holding.state])
        logits, position = Runner(model, memory.pools).run([], [part]), stop
        if stop % PAGE == 0:
            memory.settled(holding, stop)
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
    before = memory.pools.keys[:, running.pages[0]].clone()
    assert load_conversation(saved, memory, fingerprint(model)).restored_tokens == 512
    audit(memory)
    assert torch.equal(before, memory.pools.keys[:, running.pages[0]])
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
from leyden.serve.memory import Memory

config = ModelConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, head_dim=4, rotary_dim=2)
memory = Memory(Pools(config, 1, 1, dtype=torch.float32), cache_bytes=0, swap_bytes=0)
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
