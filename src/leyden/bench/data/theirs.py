"""The baseline's side of ``leyden bench data``: datatrove, in a process of its own, with one task and one thread."""

# pyright: reportMissingImports=false
# datatrove is an extra of its own.

import contextlib
import io
import itertools
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one core, as on our side


class DataTheirs:
    """Answers a :class:`leyden.bench.ab.ABBenchmark`; every method returns wall seconds.

    Args:
        folder: holds ``text.jsonl``, a document a line, and ``tokenizer/tokenizer.json``; scratch space.
    """

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._made = itertools.count()

    def rules(self) -> float:
        """Gopher repetition, Gopher quality, C4 and FineWeb over every document, each to the first that drops it."""
        from datatrove.data import Document
        from datatrove.pipeline.filters import (
            C4QualityFilter,
            FineWebQualityFilter,
            GopherQualityFilter,
            GopherRepetitionFilter,
        )

        filters = [
            GopherRepetitionFilter(),
            GopherQualityFilter(),
            C4QualityFilter(filter_no_terminal_punct=False),
            FineWebQualityFilter(),
        ]
        with (self._folder / "text.jsonl").open(encoding="utf-8") as lines:
            documents = [Document(text=row["text"], id=row["id"]) for row in map(json.loads, lines)]
        started = time.perf_counter()
        for document in documents:
            all(one.filter(document) is True for one in filters)
        return time.perf_counter() - started

    def deduplicate(self) -> float:
        """MinHash with 14 bands of 8, clusters, and the documents that are kept written out."""
        from datatrove.pipeline.dedup import (
            MinhashDedupBuckets,
            MinhashDedupCluster,
            MinhashDedupFilter,
            MinhashDedupSignature,
        )
        from datatrove.pipeline.dedup.minhash import MinhashConfig
        from datatrove.pipeline.readers import JsonlReader
        from datatrove.pipeline.writers import JsonlWriter
        from datatrove.utils.hashing import HashConfig

        # Its default hash, xxhash, refuses strings from xxhash 3.8 on; hashing is a fortieth of the time.
        hashing = HashConfig(precision=64, hash_fc="sha1")
        config = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8, hash_config=hashing)
        with self._scratch() as at:
            reader = JsonlReader(str(self._folder), glob_pattern="text.jsonl")
            started = time.perf_counter()
            self._run(at, 1, reader, MinhashDedupSignature(f"{at}/signatures", config=config))
            self._run(at, 14, MinhashDedupBuckets(f"{at}/signatures", f"{at}/buckets", config=config))
            self._run(at, 1, MinhashDedupCluster(f"{at}/buckets", f"{at}/removed", config=config))
            self._run(at, 1, reader, MinhashDedupFilter(f"{at}/removed"), JsonlWriter(f"{at}/kept"))
            return time.perf_counter() - started

    def tokenise(self) -> float:
        """Text to token files, in the order of the text."""
        with self._scratch() as at:
            started = time.perf_counter()
            self._write_tokens(at)
            return time.perf_counter() - started

    def write_tokens(self) -> float:
        """Token files to read from, kept in the folder."""
        self._write_tokens(str(self._folder / "theirs"))
        return 0.0

    def read(self, sequences: int, length: int) -> float:
        """``sequences`` of ``length`` tokens, in random order, from the files of :meth:`write_tokens`."""
        import numpy as np
        from datatrove.utils.dataset import DatatroveFolderDataset

        data = DatatroveFolderDataset(
            str(self._folder / "theirs" / "tokens"), seq_len=length, token_size=4, recursive=False,
            return_positions=True, shuffle=False,
        )  # fmt: skip
        order = np.random.default_rng(0).integers(len(data), size=sequences).tolist()
        started = time.perf_counter()
        for index in order:
            data[index]
        return time.perf_counter() - started

    def _write_tokens(self, at: str) -> None:
        from datatrove.pipeline.readers import JsonlReader
        from datatrove.pipeline.tokens import DocumentTokenizer

        tokenizer = str(self._folder / "tokenizer" / "tokenizer.json")
        reader = JsonlReader(str(self._folder), glob_pattern="text.jsonl")
        writer = DocumentTokenizer(f"{at}/tokens", tokenizer_name_or_path=tokenizer, shuffle_documents=False)
        self._run(at, 1, reader, writer)

    @contextlib.contextmanager
    def _scratch(self) -> Iterator[str]:
        at = self._folder / f"scratch-{next(self._made)}"
        yield str(at)
        shutil.rmtree(at)

    def _run(self, at: str, tasks: int, *pipeline: Any) -> None:
        from datatrove.executor import LocalPipelineExecutor

        logs = f"{at}/logs-{next(self._made)}"
        with contextlib.redirect_stderr(io.StringIO()):  # it logs at length
            LocalPipelineExecutor(list(pipeline), tasks=tasks, workers=1, logging_dir=logs).run()
