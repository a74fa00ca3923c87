"""``leyden serve`` ends in its time, whatever a thread does: asleep, or with the interpreter to itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from leyden.checkpoint import save
from leyden.model import HybridLM
from leyden.tokenizer import Tokenizer

_SERVER = """
import sys, threading, time
import leyden.serve.http.server as run
from leyden.tokenizer import Tokenizer
from leyden.cli.app import main

run._END_SECONDS = 3
encode = Tokenizer.encode

def stuck(self, text, **options):
    if "stuck" in text:
        {how}
    return encode(self, text, **options)

Tokenizer.encode = stuck
sys.argv = ["leyden", "serve", sys.argv[1], "--uds", sys.argv[2], "--kv-gigabytes", "0.001", "--cache-gigabytes", "0",
            "--swap-gigabytes", "0", "--drain-seconds", "1"]
main()
"""
_HOW = {
    "asleep": "threading.Event().wait()",
    "a join without end": "threading.Thread(target=time.sleep, args=(1000,)).start(); threading.Event().wait()",
    "the interpreter to itself": "time.sleep(1); import re; re.match('(a|a)*b', 'a' * 60)",
}


@pytest.mark.slow
@pytest.mark.parametrize("how", _HOW)
def test_it_ends(how: str, model: HybridLM, tokenizer: Tokenizer, tmp_path: Path) -> None:
    import httpx

    save(model, tokenizer, tmp_path / "model", layout="leyden")
    socket = tmp_path / "s"
    command = [sys.executable, "-c", _SERVER.replace("{how}", _HOW[how]), str(tmp_path / "model"), str(socket)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment) as server:
        try:
            deadline = time.monotonic() + 120
            client = httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://localhost")
            while True:
                try:
                    client.get("/health")
                    break
                except httpx.TransportError:
                    assert time.monotonic() < deadline
                    time.sleep(0.2)
            with pytest.raises(httpx.TransportError):
                client.post("/v1/completions", json={"prompt": "stuck"}, timeout=0.5)
            server.send_signal(signal.SIGTERM)
            began = time.monotonic()
            server.wait(60)
            assert time.monotonic() - began < 30
        finally:
            server.kill()
            server.communicate()
