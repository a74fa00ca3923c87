"""llama.cpp's side of ``leyden bench serve``: a process of the Python that has llama-cpp-python, and what it runs.

Run as a script, this file imports nothing of Leyden: its interpreter is the one named by ``--llama``. It answers one
line of JSON with one line of JSON. Models run by ``llama_decode`` itself, without the wrapper's own work a token.
"""

import ctypes
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self


class LlamaError(RuntimeError):
    """llama.cpp's process died, or a call in it failed."""


class LlamaWorker:
    """llama.cpp in a process of its own, driven as :class:`leyden.bench.worker.Worker` is.

    Args:
        python: an interpreter with llama-cpp-python.
        threads: of each computation.

    Raises:
        LlamaError: the interpreter does not start, or has no llama_cpp.
    """

    def __init__(self, python: str, *, threads: int) -> None:
        command = [python, str(Path(__file__).resolve()), str(threads)]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        except OSError as error:
            raise LlamaError(f"{python} does not start: {error.strerror}") from None
        try:
            self.version: str = self.call("version")
        except LlamaError:
            self.__exit__()
            raise

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of :class:`_Llama` there.

        Raises:
            LlamaError: it failed; the message holds why.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps([method, arguments]) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        if not line:
            raise LlamaError(f"llama.cpp's process ended in {method}: {self._last_words()}")
        succeeded, value = json.loads(line)
        if not succeeded:
            raise LlamaError(f"{method} failed in llama.cpp's process: {value}")
        return value

    def _last_words(self) -> str:
        assert self._process.stderr is not None
        lines = self._process.stderr.read().strip().splitlines()
        return lines[-1] if lines else f"exit code {self._process.wait(5)}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


class _Llama:
    """The work, by llama.cpp. A variant is ``"UBATCH"`` or ``"UBATCH flash"``: tokens of a graph, flash attention."""

    def __init__(self, threads: int) -> None:
        import llama_cpp  # type: ignore[reportMissingImports]

        self._api = llama_cpp
        self._threads = threads
        self._silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._silent, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._model: Any = None
        self._held = ("",)
        self._context: Any = None
        self._made: tuple[Any, ...] = ()

    def version(self) -> str:
        return self._api.__version__

    def variants(self, work: str) -> list[str]:
        """What to choose the fastest from, for ``"prefill"`` or ``"decode"``."""
        ubatches = ("64", "128", "256", "512") if work == "prefill" else ("512",)
        return [ubatch + flash for ubatch in ubatches for flash in ("", " flash")]

    def prefill(self, variant: str, path: str, tokens: list[int]) -> float:
        """Seconds until the last position's logits."""
        self._start(variant, path, len(tokens))
        started = time.perf_counter()
        self._read(tokens)
        return time.perf_counter() - started

    def decode(self, variant: str, path: str, tokens: list[int], new_tokens: int) -> float:
        """Seconds of ``new_tokens`` greedy tokens after the first, which ends the prefill."""
        return self._generate(variant, path, tokens, new_tokens)[1]

    def greedy(self, variant: str, path: str, tokens: list[int], new_tokens: int) -> list[int]:
        """The first token and ``new_tokens`` after it."""
        return self._generate(variant, path, tokens, new_tokens)[0]

    def logits(self, variant: str, path: str, tokens: list[int]) -> list[float]:
        """[V] of the token after ``tokens``, with keys and values in float32."""
        self._start(variant, path, len(tokens), exact=True)
        self._read(tokens)
        return self._logits().tolist()

    def _generate(self, variant: str, path: str, tokens: list[int], new_tokens: int) -> tuple[list[int], float]:
        self._start(variant, path, len(tokens) + new_tokens)
        self._read(tokens)
        drawn = [int(self._logits().argmax())]
        started = time.perf_counter()
        for _ in range(new_tokens):
            self._read(drawn[-1:])
            drawn.append(int(self._logits().argmax()))
        return drawn, time.perf_counter() - started

    def _read(self, tokens: list[int]) -> None:
        api = self._api
        for start in range(0, len(tokens), 2048):
            part = tokens[start : start + 2048]
            ids = (api.llama_token * len(part))(*part)
            code = api.llama_decode(self._context, api.llama_batch_get_one(ids, len(part)))
            if code:
                raise RuntimeError(f"llama_decode returned {code} for {len(part)} tokens")

    def _logits(self) -> Any:
        import numpy as np

        pointer = self._api.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(pointer, (self._vocabulary,)).copy()

    def _start(self, variant: str, path: str, length: int, *, exact: bool = False) -> None:
        """An empty context for ``length`` tokens; model and context of the call before are kept where they fit."""
        api = self._api
        if self._held != (path,):
            self._free()
            self._model = api.llama_model_load_from_file(path.encode(), api.llama_model_default_params())
            if not self._model:
                raise RuntimeError(f"llama.cpp cannot open {path}")
            self._held = (path,)
            self._vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))
        wanted = (variant, length, exact)
        if self._made != wanted:
            if self._context:
                api.llama_free(self._context)
            self._context = api.llama_init_from_model(self._model, self._parameters(variant, length, exact))
            if not self._context:
                raise RuntimeError(f"llama.cpp makes no context of {length} tokens with {variant}")
            self._made = wanted
        api.llama_memory_clear(api.llama_get_memory(self._context), True)

    def _parameters(self, variant: str, length: int, exact: bool) -> Any:
        api = self._api
        ubatch, _, flash = variant.partition(" ")
        parameters = api.llama_context_default_params()
        parameters.n_ctx = -(-(length + 1) // 256) * 256
        parameters.n_batch, parameters.n_ubatch = 2048, int(ubatch)
        parameters.n_seq_max = 1
        parameters.n_threads = parameters.n_threads_batch = self._threads
        parameters.flash_attn_type = 1 if flash else 0
        if exact:
            parameters.type_k = parameters.type_v = 0  # GGML_TYPE_F32; float16 is what users get
        return parameters

    def _free(self) -> None:
        if self._context:
            self._api.llama_free(self._context)
        if self._model:
            self._api.llama_model_free(self._model)
        self._context, self._made = None, ()


def _main() -> None:
    """StreamedAnswer calls until the parent closes the pipe."""
    held = _Llama(int(sys.argv[1]))
    for line in sys.stdin:
        method, arguments = json.loads(line)
        try:
            answer = (True, getattr(held, method)(*arguments))
        except Exception as error:
            answer = (False, f"{type(error).__name__}: {error}")
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _main()
