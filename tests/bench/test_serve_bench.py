"""The quick form of ``leyden bench serve`` runs whole; what cannot be measured is said; llama.cpp gets our weights."""

import json
import sys
from pathlib import Path

import pytest

from leyden.bench.serve import run as serve
from leyden.bench.serve.http import ServerError, ServerProcess
from leyden.bench.serve.llama import LlamaError, LlamaWorker
from leyden.bench.serve.plan import QUICK, prompts
from leyden.bench.serve.rows import step_bytes
from leyden.checkpoint.gguf.header import read_header
from leyden.core.errors import UserError
from leyden.model import HybridLM, preset

_SERVER = """
import http.server, json, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_): pass
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200); self.end_headers()
        events = [{"choices": [{"text": "a"}]}, {"choices": [], "usage": {"completion_tokens": body["max_tokens"]}}]
        if body["prompt"] == "bad":
            events = [{"error": "too bad"}]
        for event in events:
            self.wfile.write(b"data: " + json.dumps(event).encode() + b"\\n\\n")
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[-1])), Handler).serve_forever()
"""


@pytest.mark.slow
def test_quick_form_measures_every_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    result = serve.run_serve(quick=True, output=tmp_path / "serve.json")
    works = " ".join(row.work for row in result.rows)
    for part in ("4 streams against one", "memory floor", "first token", "chat of", "behind 600", "int8 weights"):
        assert part in works
    assert all(row.ours > 0 or "growth" in row.work for row in result.rows)
    assert result.checks["transformers_logit_difference"] < 1e-4
    assert any(note.startswith("llama.cpp: not measured") for note in result.notes)
    assert len(json.loads((tmp_path / "serve.json").read_text())["rows"]) == len(result.rows)
    assert "these figures mean nothing" in capsys.readouterr().out


def test_a_side_that_computes_something_else_is_refused() -> None:
    assert serve._checked("theirs", 1e-6) == 1e-6
    for wrong in (1e-3, float("nan")):
        with pytest.raises(RuntimeError, match="theirs and Leyden must compute the same"):
            serve._checked("theirs", wrong)


def test_without_transformers_or_llama_the_user_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"--llama no-such-python: .* does not start"):
        serve._llama("no-such-python", QUICK)
    with pytest.raises(UserError, match=r"llama_cpp.*Name an interpreter"):
        serve._llama(sys.executable, QUICK)
    monkeypatch.setattr(serve.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install"):
        serve.run_serve(quick=True)


def test_a_server_is_timed_by_its_clients() -> None:
    with ServerProcess([sys.executable, "-c", _SERVER], "model", threads=1) as server:
        answers = server.ask(["one", "two", "three"], 5)
        assert [answer.tokens for answer in answers] == [5, 5, 5]
        assert all(0 < answer.first_seconds <= answer.last_seconds for answer in answers)
        with pytest.raises(ServerError, match="too bad"):
            server.ask(["bad"], 5)


def test_a_server_that_does_not_start_is_quoted() -> None:
    with pytest.raises(ServerError, match="no port for me"):
        ServerProcess([sys.executable, "-c", "raise SystemExit('no port for me')"], "model", threads=1)


def test_bytes_of_a_step() -> None:
    config = preset("tiny", num_key_value_heads=1, rotary_dim=64)
    one, many = (step_bytes(config, streams, 512) for streams in (1, 32))
    weights = HybridLM(config)
    all_weights = 2 * sum(p.numel() for name, p in weights.named_parameters() if name != "embed_tokens.weight")
    states, key_values = 7 * 4 * 64 * 64 * 4, 512 * 2 * 64 * 2
    assert many == pytest.approx(all_weights + 32 * (2 * states + key_values), rel=1e-3)
    experts = 2 * 8 * 3 * 256 * 512  # of one expert in each layer
    assert one == pytest.approx(all_weights - 6 * experts + 2 * states + key_values)


def test_llama_gets_a_file_of_each_dtype(tmp_path: Path) -> None:
    serve._write(QUICK, tmp_path, gguf=True)
    for dtype, kind in (("float32", "F32"), ("bfloat16", "BF16")):
        tensors = read_header(tmp_path / f"{dtype}.gguf").tensors
        assert {tensors[name].kind for name in ("token_embd.weight", "blk.0.ffn_up_exps.weight")} == {kind}


def test_prompts_differ_by_seed() -> None:
    assert prompts(2, 5, 100, 1) == prompts(2, 5, 100, 1) != prompts(2, 5, 100, 2)


def test_a_dead_llama_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho 'out of luck' >&2\nexit 3\n")
    fake.chmod(0o755)
    with pytest.raises(LlamaError, match="ended in version: out of luck"):
        LlamaWorker(str(fake), threads=1)
