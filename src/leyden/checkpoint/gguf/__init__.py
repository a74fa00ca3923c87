"""A model as one GGUF file, the format of llama.cpp: shape, weights, tokenizer and chat template.

After the format's specification (ggml, docs/gguf.md, version 3) and the names that llama.cpp's architecture
``minimax-01`` asks for. ``writing.py`` writes by the ``gguf`` package, a block of a tensor in memory at a time;
``header.py`` and ``reading.py`` read files that hold weights as they were (F32, F16, BF16), with nothing installed.
"""

from leyden.checkpoint.gguf.reading import open_gguf, read_gguf_config
from leyden.checkpoint.gguf.writing import GgufType, write_gguf

__all__ = ["GgufType", "open_gguf", "read_gguf_config", "write_gguf"]
