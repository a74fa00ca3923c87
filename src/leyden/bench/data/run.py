"""``leyden bench data``: rules, deduplication, tokenising and reading of tokens beside datatrove, core against core.

Both sides work on the same text and with the same tokenizer, each in a process of its own with one thread, and are
driven in turn. Memory is that of whole builds, each in a fresh process, of a corpus and of one ten times as large.
"""

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

from leyden import __version__
from leyden.bench.ab import ABBenchmark
from leyden.bench.result import BenchResult, ResultRow, show
from leyden.bench.worker import Worker
from leyden.core.environment import machine
from leyden.core.errors import UserError
from leyden.core.log import progress
from leyden.data import Reject, find_sources, read_documents, standard_library_sources
from leyden.tokenizer import Tokenizer

_LENGTH = 2048
_SUFFIXES = (".txt", ".md", ".rst", ".py")
_MEMORY = """
import json, sys
from pathlib import Path
from leyden.bench.memory import peak_bytes
from leyden.data.builds import BuildRecipe, run_build
run_build(BuildRecipe.parse(json.loads(sys.argv[1]), "bench"), Path(sys.argv[2]))
print(peak_bytes())
"""


def run_data(
    text: Sequence[Path] = (), *, megabytes: float = 20, quick: bool = False, output: Path | None = None
) -> BenchResult:
    """Run the comparison and print its table.

    Args:
        text: files and folders of the documents; none: the standard library's sources and Python's installed packages.
        megabytes: of text to work on.
        quick: little text and few repeats, to see that everything runs; its figures mean nothing.
        output: where to write the result as JSON as well.

    Raises:
        UserError: datatrove is not installed, or there is no text.
    """
    if importlib.util.find_spec("datatrove") is None or importlib.util.find_spec("spacy") is None:
        raise UserError("leyden bench data compares with datatrove: pip install datatrove spacy orjson.")
    repeats, megabytes = (1, min(megabytes, 0.5)) if quick else (3, megabytes)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        size, texts = write_text(text, megabytes, Path(folder))
        Tokenizer.train(texts, vocab_size=2000 if quick else 50_000, allow_smaller=True).save(Path(folder, "tokenizer"))
        theirs = stack.enter_context(Worker("leyden.bench.data.theirs:DataTheirs", folder, threads=1))
        ours = stack.enter_context(Worker("leyden.bench.data.ours:DataOurs", folder, threads=1))
        with progress("bench data", 4 * (repeats + 1), "turns") as bar:
            rows = _speed_rows(ABBenchmark(theirs, ours, bar), size / 1e6, repeats)
        rows += _memory_rows(Path(folder), texts, quick=quick)
    result = BenchResult(
        name="data",
        rows=rows,
        settings={"quick": quick, "megabytes": size / 1e6, "threads": 1, "repeats": repeats},
        checks={},
        machine=machine(),
        versions={
            "leyden": __version__,
            **{name: version(name) for name in ("datatrove", "daft", "spacy", "tiktoken")},
        },
        command="leyden bench data" + " --quick" * quick,
        notes=["quick form: these figures mean nothing"] if quick else [],
    )
    show(result, output)
    return result


def write_text(paths: Sequence[Path], megabytes: float, folder: Path) -> tuple[int, list[str]]:
    """Write ``text.jsonl``; its bytes of text, and the texts."""
    rejects: list[Reject] = []
    sources = find_sources(paths)[0] if paths else standard_library_sources()
    size, texts = 0, []
    for document in read_documents([source for source in sources if source.path.suffix in _SUFFIXES], rejects):
        texts.append(document.text)
        size += len(document.text.encode())
        if size >= megabytes * 1e6:
            break
    with (folder / "text.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"id": str(i), "text": one}) + "\n" for i, one in enumerate(texts))
    return size, texts


def _speed_rows(benchmark: ABBenchmark, megabytes: float, repeats: int) -> list[ResultRow]:
    rows = []
    for work, call, goal, how in (
        ("rules (Gopher, C4, FineWeb)", ("rules",), 5.0, "both on documents in memory"),
        ("MinHash, 14 bands of 8", ("deduplicate",), 10.0, "from JSON lines to the documents that are kept, on disk"),
        ("tokenising", ("tokenise",), 5.0, "from JSON lines to token files; the same 50,000-word tokenizer"),
    ):
        theirs, ours = benchmark.medians(call, call, repeats)
        rows.append(
            ResultRow(work, "MB/s", megabytes / theirs, megabytes / ours, theirs / ours, at_least=goal, how=how)
        )
    for side in (benchmark.theirs, benchmark.ours):
        side.call("write_tokens")
    sequences = 512
    call = ("read", sequences, _LENGTH)
    theirs, ours = benchmark.medians(call, call, repeats)
    tokens = sequences * _LENGTH / 1e6
    how = f"sequences of {_LENGTH} in random order; ours 64 a batch, packed, with labels and bounds of documents"
    rows.append(
        ResultRow("reading tokens", "M tokens/s", tokens / theirs, tokens / ours, theirs / ours, at_least=10, how=how)
    )
    rows.append(ResultRow("reading tokens, packed", "M tokens/s", None, tokens / ours, judged="ours", at_least=20))
    return rows


def _memory_rows(folder: Path, texts: Sequence[str], *, quick: bool) -> list[ResultRow]:
    """The most memory of builds of a corpus and of one of ten times the documents, all different."""
    peaks: dict[tuple[str, int], float] = {}
    for times in (1, 10):
        path = folder / f"times-{times}.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for number in range(times):
                for row, text in enumerate(texts):
                    mixed = " ".join(
                        f"{word}{number}" if place % 7 == 0 else word for place, word in enumerate(text.split(" "))
                    )
                    file.write(json.dumps({"text": mixed if number else text, "id": f"{number}-{row}"}) + "\n")
        for name, stages in (("rules", _RULES), ("minhash", [{"kind": "minhash", "evidence_documents": 0}])):
            recipe = {
                "build": {"workers": 1, "shard_bytes": 1 << 16 if quick else 4 << 20},
                "source": [{"name": "text", "paths": [str(path)]}],
                "stage": stages,
            }
            command = [sys.executable, "-c", _MEMORY, json.dumps(recipe), str(folder / f"{name}-{times}")]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peaks[name, times] = int(done.stdout.split()[-1]) / 1e6
    rows = []
    for name, what in (("rules", "stages of single documents"), ("minhash", "MinHash deduplication")):
        once, tenfold = peaks[name, 1], peaks[name, 10]
        how = f"{once:.0f} MB for the corpus, {tenfold:.0f} MB for one ten times as large"
        rows.append(
            ResultRow(
                f"memory, {what}, 10x over 1x", "x", None, tenfold / once, judged="ours", aim=1.2, at_most=True, how=how
            )
        )
    return rows


_RULES = [{"kind": kind} for kind in ("unicode", "pii", "length", "gopher_repetition", "gopher_quality", "fineweb")]
