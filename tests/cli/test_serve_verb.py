"""``leyden serve``: what it refuses before it loads anything, and a server in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

import leyden
from leyden.model import HybridLM, preset
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
        assert next(lines).startswith("data: ")
        served.process.send_signal(signal.SIGTERM)
        rest = [line for line in lines if line.startswith("data: ")]
    assert rest[-1] == "data: [DONE]"
    assert '"finish_reason":"length"' in rest[-2]
    assert served.process.wait(30) == 0
    assert "Traceback" not in "".join(served.lines)
