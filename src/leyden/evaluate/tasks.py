"""The tasks of ``leyden eval``, by name."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from leyden.checkpoint import load
from leyden.core.device import default_device
from leyden.core.errors import UserError, suggest
from leyden.data import Reject, read_documents
from leyden.evaluate.baselines import xz_bits_per_byte
from leyden.evaluate.likelihood import bits_per_byte
from leyden.model import HybridLM
from leyden.tokenizer import Tokenizer


def _bits_per_byte(model: HybridLM, tokenizer: Tokenizer, documents: Sequence[str]) -> dict[str, Any]:
    result = bits_per_byte(model, tokenizer, documents)
    return {
        "value": result.bits_per_byte,
        "baselines": {
            "xz_4096": xz_bits_per_byte(documents),
            "xz_documents": xz_bits_per_byte(documents, piece_bytes=None),
        },
        "documents": result.num_documents,
        "bytes": result.num_bytes,
        "tokens": result.num_tokens,
    }


TASKS: dict[str, Callable[[HybridLM, Tokenizer, Sequence[str]], dict[str, Any]]] = {"bits_per_byte": _bits_per_byte}


def run_tasks(model: str | Path, tasks: Sequence[str], text: Sequence[Path]) -> str:
    """Measure a model on documents.

    Args:
        model: a directory in any layout, or a hub id.
        tasks: names in :data:`TASKS`.
        text: files and folders of documents.

    Returns:
        One JSON object a line, one line a task.

    Raises:
        UserError: an unknown task, no documents, or a model without a tokenizer.
    """
    for task in tasks:
        if task not in TASKS:
            raise UserError(f"task '{task}' is unknown{suggest(task, TASKS)}")
    rejects: list[Reject] = []
    documents = [document.text for document in read_documents(text, rejects)]
    network, tokenizer = load(model, dtype="auto", device=default_device())
    if tokenizer is None:
        raise UserError(f"{model} has no tokenizer, and documents are text; put its tokenizer.json beside the weights.")
    return "\n".join(
        json.dumps({"task": task, **TASKS[task](network, tokenizer, documents), "set_aside": len(rejects)})
        for task in tasks
    )
