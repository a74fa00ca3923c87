"""Leyden's side of ``leyden bench data``, in a process of its own, with one thread."""

import functools
import itertools
import json
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from leyden.tokenizer import Tokenizer

os.environ.setdefault("RAYON_NUM_THREADS", "1")  # one core, as on the other side
os.environ.setdefault("DAFT_MAX_THREADS", "1")


class DataOurs:
    """Answers a :class:`leyden.bench.ab.ABBenchmark`; every method returns wall seconds.

    Args:
        folder: holds ``text.jsonl``, a document a line, and ``tokenizer/``; scratch space.
    """

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._made = itertools.count()

    def rules(self) -> float:
        """Gopher repetition, Gopher quality, C4 and FineWeb over every document, each to the first that drops it."""
        from leyden.data.documents import Document
        from leyden.data.parquet import batches
        from leyden.data.rules.c4 import C4
        from leyden.data.rules.chain import apply_chain
        from leyden.data.rules.fineweb import FineWeb
        from leyden.data.rules.gopher import GopherQuality, GopherRepetition

        stages = (GopherRepetition(), GopherQuality(), C4(line_ends=""), FineWeb())
        with (self._folder / "text.jsonl").open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        made = list(batches(Document(row["id"], row["text"], "bench") for row in rows))
        started = time.perf_counter()
        for batch in made:
            apply_chain(batch, stages)
        return time.perf_counter() - started

    def deduplicate(self) -> float:
        """MinHash with 14 bands of 8, clusters, and the documents that are kept written out, all as a build does it."""
        return self._build({"kind": "minhash", "evidence_documents": 0})

    def exact(self) -> float:
        """A build that removes exact duplicates alone."""
        return self._build({"kind": "exact"})

    def tokenise(self) -> float:
        """Text to token shards, in the order of the text."""
        at = self._scratch()
        started = time.perf_counter()
        self._write_tokens(at / "tokens")
        seconds = time.perf_counter() - started
        shutil.rmtree(at)
        return seconds

    def write_tokens(self) -> float:
        """Token shards to read from, kept in the folder."""
        self._write_tokens(self._folder / "ours")
        return 0.0

    def read(self, sequences: int, length: int) -> float:
        """``sequences`` of ``length`` tokens in shuffled order, packed, with labels and bounds."""
        from leyden.data.loader.packing import PackedBatches
        from leyden.data.shards import TokenShards

        batch_sequences = 64
        shards = TokenShards.open(self._folder / "ours")
        batches = PackedBatches(shards, seq_len=length, batch_tokens=batch_sequences * length, seed=0)
        batches.batch(0)  # the order of the documents is made once an epoch
        started = time.perf_counter()
        for number in range(sequences // batch_sequences):
            batches.batch(number)
        return time.perf_counter() - started

    def _build(self, stage: dict[str, object]) -> float:
        from leyden.data.builds import BuildRecipe, run_build

        at = self._scratch()
        text = str(self._folder / "text.jsonl")
        recipe = {"build": {"workers": 1}, "source": [{"name": "text", "paths": [text]}], "stage": [stage]}
        started = time.perf_counter()
        run_build(BuildRecipe.parse(recipe, "bench"), at)
        seconds = time.perf_counter() - started
        shutil.rmtree(at)
        return seconds

    def _write_tokens(self, directory: Path) -> None:
        from leyden.data.readers import read_documents
        from leyden.data.tokenise import write_shards

        documents = read_documents([self._folder / "text.jsonl"], [])
        write_shards(documents, self._tokenizer, directory)

    @functools.cached_property
    def _tokenizer(self) -> "Tokenizer":
        """Loaded once a process, as in a build."""
        from leyden.tokenizer import Tokenizer

        return Tokenizer.load(self._folder / "tokenizer")

    def _scratch(self) -> Path:
        return self._folder / f"ours-{next(self._made)}"
