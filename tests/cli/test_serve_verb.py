"""``leyden serve``: what it refuses before it loads anything, and a server in a process of its own."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

import leyden
from leyden.model import HybridLM, preset
from leyden.serve.config import EngineConfig
from leyden.tokenizer import Tokenizer

MEMORY = ("--kv-gigabytes", "0.01", "--cache-gigabytes", "0.01", "--swap-gigabytes", "0", "--decoder", "torch")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = Tokenizer.train(["The lightning struck the tower."] * 3, vocab_size=270)
    shape = {"vocab_size": 270, "hidden_size": 32, "num_hidden_layers": 2, "head_dim": 16, "rotary_dim": 8}
    layers = ("linear_attention", "full_attention")
    model = HybridLM(preset("tiny", **shape, intermediate_size=32, layer_types=layers))
    path = tmp_path_factory.mktemp("serve") / "jar"
    leyden.save(model, tokenizer, path, layout="leyden")
    return path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--host", "0.0.0.0"), "--api-key"),
        (("--port", "65536"), "65535"),
        (("--api-key", "two words"), "printable"),
        (("--api-key-file", "no/such/file"), "no/such/file"),
        (("--max-body-bytes", "1"), "1024"),
        (("--step-tokens", "1"), "256"),
        (("--max-sequences", "0"), "max_sequences"),
        (("--decoder", "magic"), "decoder"),
        (("--device", "abacus"), "--device abacus: this machine has cpu"),
        (("--tp", "0"), "--tp"),
        (("--tp", "2"), "torchrun --nproc-per-node 2 -m leyden serve no/such/model --tp 2"),
        (("--ep", "2", "--etp", "4"), "torchrun --nproc-per-node 8 -m leyden serve no/such/model --ep 2 --etp 4"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_what_it_refuses(leyden_cli: Callable, options: tuple[str, ...], message: str) -> None:
    ended = leyden_cli("serve", "no/such/model", *options)
    assert ended.code == 2
    assert message in ended.err


@pytest.mark.parametrize("place", ["", "final"])
def test_a_run_is_served_as_its_recipe_says_unless_an_option_does(
    place: str,
    leyden_cli: Callable,
    directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shutil.copytree(directory, tmp_path / "run" / "final")
    (tmp_path / "run" / "recipe.toml").write_text("[serve]\nmax_sequences = 3\nstep_tokens = 512\n")
    served = []
    monkeypatch.setattr("leyden.cli.serve._serve_alone", lambda *given: served.append(given))
    with caplog.at_level("INFO", "leyden"):
        ended = leyden_cli("serve", tmp_path / "run" / place, "--step-tokens", "1024", "--max-queue", "7")
    assert ended.code == 0, ended.err
    assert "says max_sequences = 3, step_tokens = 512." in caplog.text
    leyden_cli("serve", directory)
    ours, plain = (given[4] for given in served)
    assert (ours.max_sequences, ours.step_tokens, ours.max_queue) == (3, 1024, 7)
    assert plain == EngineConfig()
    (tmp_path / "run" / "recipe.toml").write_text("[serve]\nmax_sequence = 3\n")
    refused = leyden_cli("serve", tmp_path / "run" / place)
    assert refused.code == 2
    assert "[serve]: unknown key 'max_sequence'; did you mean 'max_sequences'?" in refused.err


def test_conversations_where_none_can_be_kept(leyden_cli: Callable, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = leyden_cli("serve", "no/such/model", "--conversations", tmp_path / "file")
    assert ended.code == 2
    assert "--conversations" in ended.err


def test_what_several_ranks_refuse(leyden_cli: Callable, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before they look for one another."""
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    for options, message in ((("--tp", 4), "there are 2"), (("--ep", 3), "ep"), (("--device", "cpu"), "--device")):
        ended = leyden_cli("serve", directory, *options)
        assert ended.code == 2
        assert message in ended.err


def test_a_port_that_is_taken(leyden_cli: Callable) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = leyden_cli("serve", "no/such/model", "--port", taken.getsockname()[1])
    assert ended.code == 2
    assert "--port" in ended.err


def test_an_empty_file_of_keys(leyden_cli: Callable, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("\n")
    assert "no key" in leyden_cli("serve", "no/such/model", "--api-key-file", tmp_path / "keys").err


class Process:
    """A server in a process, from its first line to its end."""

    def __init__(self, directory: Path, *options: str, **environment: str) -> None:
        command = [sys.executable, "-m", "leyden", "serve", str(directory), "--port", "0", *MEMORY, *options]
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}
        )
        assert self.process.stderr is not None
        self.lines: list[str] = []
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r"served at (http://\S+)", line):
                self.url = found[1]
                break
        else:
            raise AssertionError("".join(self.lines))
        self._rest = threading.Thread(target=self.lines.extend, args=(self.process.stderr,))
        self._rest.start()

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(30)
        self._rest.join(10)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code


@pytest.fixture
def served(directory: Path, tmp_path: Path) -> Iterator[Process]:
    (tmp_path / "keys").write_text("from-a-file\n")
    options = ("--api-key-file", str(tmp_path / "keys"), "--served-model-name", "jar-1", "--drain-seconds", "20")
    server = Process(directory, *options, LEYDEN_API_KEY="from-the-environment")
    yield server
    if server.process.poll() is None:
        server.process.kill()
        server.end()


def test_sigterm_lets_a_stream_finish_and_ends_with_0(served: Process) -> None:
    assert "tokens" in served.lines[-1]
    for key in ("from-a-file", "from-the-environment"):
        models = httpx.get(f"{served.url}/v1/models", headers={"authorization": f"Bearer {key}"})
        assert models.json()["data"][0]["id"] == "jar-1"
    assert httpx.get(f"{served.url}/v1/models").status_code == 401
    body = {"prompt": "The", "max_tokens": 100, "ignore_eos": True, "stream": True}
    headers = {"authorization": "Bearer from-a-file"}
    with httpx.stream("POST", f"{served.url}/v1/completions", json=body, headers=headers, timeout=30) as stream:
        lines = stream.iter_lines()
        next(line for line in lines if line.startswith("data: "))
        served.process.send_signal(signal.SIGTERM)
        rest = [line for line in lines if line.startswith("data: ")]
    assert rest[-1] == "data: [DONE]"
    assert '"finish_reason":"length"' in rest[-2]
    assert served.process.wait(30) == 0
    assert "Traceback" not in "".join(served.lines)


@pytest.mark.slow
def test_sigkill_while_conversations_are_saved(directory: Path, tmp_path: Path) -> None:
    """Whatever moment it comes at, a file is the one before or the one after; chats go on with them."""
    kept, messages = tmp_path / "kept", [{"role": "user", "content": "The tower. " * 60}]

    def chat(url: str, name: str, **fields: object) -> httpx.Response:
        body = {"messages": messages, "max_tokens": 4, "conversation": name, **fields}
        return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30)

    for seconds in (0.3, 0.7, 1.1):
        server = Process(directory, "--conversations", str(kept))
        names = [f"jar-{number}" for number in range(4)]
        answers = [chat(server.url, name) for name in names]
        assert [answer.status_code for answer in answers] == [200] * 4, answers[0].text
        ended = threading.Event()

        def talk(url: str, name: str, ended: threading.Event) -> None:
            with contextlib.suppress(httpx.TransportError):
                while not ended.is_set():
                    chat(url, name, temperature=1)

        talks = [threading.Thread(target=talk, args=(server.url, name, ended)) for name in names]
        for each in talks:
            each.start()
        time.sleep(seconds)
        server.process.kill()
        ended.set()
        for each in talks:
            each.join()
        server.end()
        assert {path.name for path in (kept / "no-key").glob("*.leyden")} == {f"{name}.leyden" for name in names}
    server = Process(directory, "--conversations", str(kept))
    try:
        cached = [chat(server.url, name).json()["usage"]["prompt_tokens_details"]["cached_tokens"] for name in names]
    finally:
        assert server.end() == 0
    assert all(tokens >= 256 for tokens in cached)
    assert {path.suffix for path in (kept / "no-key").iterdir()} == {".leyden"}
