"""``leyden chat --resume``: a conversation goes on after a restart as it would have without one."""

import io
import subprocess
import sys
from pathlib import Path

import pytest

import leyden
from leyden.cli.chat import chat
from leyden.core.errors import UserError
from leyden.model import HybridLM, preset
from leyden.serve import Chat, Engine, Sampling
from leyden.tokenizer import Tokenizer

SYSTEM = "The lightning struck the old tower, and the jar kept it. " * 12  # more than a page of tokens
SAMPLING = Sampling(max_tokens=20, temperature=1.0, top_p=0.95, seed=5)


def make(path: Path, seed: int) -> str:
    tokenizer = Tokenizer.train(["The lightning struck the tower."] * 3, vocab_size=270)
    shape = {"vocab_size": 270, "hidden_size": 32, "num_hidden_layers": 2, "head_dim": 16, "rotary_dim": 8}
    layers = ("linear_attention", "full_attention")
    model = HybridLM(preset("tiny", **shape, intermediate_size=32, layer_types=layers), seed=seed)
    leyden.save(model, tokenizer, path, layout="leyden")
    return str(path)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make(tmp_path_factory.mktemp("resume") / "model", seed=1)


@pytest.fixture
def say(directory: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs the verb over these lines; what it prints on standard output and error."""

    def run(*lines: str, resume: Path | None = None, system: str | None = SYSTEM) -> tuple[str, str]:
        system = None if resume and resume.exists() else system
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))
        capsys.readouterr()
        chat(directory, system=system, max_tokens=20, temperature=1.0, seed=5, resume=resume)
        printed = capsys.readouterr()
        return printed.out, printed.err

    return run


def test_a_conversation_goes_on_after_a_restart(say, tmp_path: Path) -> None:
    path = tmp_path / "talk"
    straight, _ = say("The tower?", "And the jar?", "Why?")
    first, told = say("The tower?", resume=path)  # begins it
    assert f"saved to {path}" in told and "goes on" not in told
    second, told = say("And the jar?", resume=path)
    assert f"goes on with {path}: 3 messages" in told and f"saved to {path}" in told
    third, _ = say("Why?", resume=path)
    assert first + second + third == straight


def test_what_was_read_is_not_read_again(directory: str, tmp_path: Path) -> None:
    path = tmp_path / "talk"
    before = Chat(Engine(*leyden.load(directory)), system=SYSTEM, sampling=SAMPLING)
    list(before.send("The tower?"))
    assert before.save(path) >= 512
    expected = "".join(before.send("And the jar?"))
    engine = Engine(*leyden.load(directory))
    after = Chat.resume(engine, path, SAMPLING)
    assert after.messages == before.messages[:3]
    read = engine.statistics.prefill_tokens
    assert "".join(after.send("And the jar?")) == expected
    assert engine.tokenizer is not None
    assert engine.statistics.prefill_tokens - read <= len(engine.tokenizer.encode_chat(after.messages[:-1])) - 512


def test_saved_again_only_when_it_grew(say, tmp_path: Path) -> None:
    path = tmp_path / "talk"
    say("The tower?", f"/save {path}", "/exit")
    written = path.stat().st_mtime_ns
    _, told = say("/exit", resume=path)
    assert "saved to" not in told and path.stat().st_mtime_ns == written
    # Another conversation is not kept in the first one's file.
    _, told = say("/new", "Other", "/exit", resume=path)
    assert "saved to" not in told and path.stat().st_mtime_ns == written
    _, told = say("More", "/save", "/exit", resume=path)
    assert told.count(f"saved to {path}") == 1


def test_saving_that_fails_is_no_end(say, tmp_path: Path) -> None:
    out, told = say("The tower?", "/save", f"/save {tmp_path}/no/such/directory/talk", "And the jar?")
    assert "/save needs the name of a file" in told
    assert "no/such/directory" in told
    assert len(out.splitlines()) >= 2


def test_what_cannot_be_resumed_is_refused(say, directory: str, tmp_path: Path) -> None:
    path = tmp_path / "talk"
    say("The tower?", f"/save {path}")
    with pytest.raises(UserError, match="no directory"):
        say("hi", resume=tmp_path / "no" / "file")
    with pytest.raises(UserError, match="torn, or not a conversation"):
        say("hi", resume=Path(directory) / "config.json")
    empty = tmp_path / "empty"
    assert f"saved to {empty}" in say(f"/save {empty}", system=None)[1]
    assert "0 messages" in say(resume=empty)[1]
    torn = tmp_path / "torn"
    torn.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="torn"):
        say("hi", resume=torn)
    other = Engine(*leyden.load(make(tmp_path / "other", seed=2)))
    with pytest.raises(UserError, match="another model"):
        Chat.resume(other, path)
    with pytest.raises(UserError, match="leave one of them out"):
        chat(directory, system="x", resume=path)


@pytest.mark.slow
def test_the_command_line_ends_with_2(directory: str, tmp_path: Path) -> None:
    torn = tmp_path / "torn"
    torn.write_bytes(b"\0" * 500)
    command = [sys.executable, "-m", "leyden", "chat", directory, "--resume", str(torn)]
    ended = subprocess.run(command, input="hi\n", capture_output=True, text=True, timeout=100)
    assert ended.returncode == 2
    assert "torn" in ended.stderr and "Traceback" not in ended.stderr
