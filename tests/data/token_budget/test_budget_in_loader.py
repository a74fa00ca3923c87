"""A mixture from its plan to the loader: what the loader gives of each group is what the plan said beforehand."""

import random
from pathlib import Path

import pytest

from leyden.data.documents import Document, Documents
from leyden.data.engine import DataEngine
from leyden.data.groups import write_groups
from leyden.data.loader.mixed import MixedBatches
from leyden.data.loader.mixture_schedule import MixtureSchedule
from leyden.data.parquet import DocumentsWriter, read_batches
from leyden.data.shards import TokenShards
from leyden.data.stage import Corpus
from leyden.data.token_budget import MixturePlan, PlanMixture
from leyden.data.token_budget.stage import PLAN
from leyden.data.tokenise import tokenise_files
from leyden.tokenizer import Tokenizer

WORDS = ["arc", "bolt", "coil", "dust", "earth", "flux"]


def test_the_loader_gives_what_was_planned(tmp_path: Path) -> None:
    rng = random.Random(0)
    documents = [
        Document(
            str(n),
            " ".join(rng.choice(WORDS) for _ in range(rng.randrange(20, 60))) + f" {n}",
            "web" if n % 4 else "books",
        )
        for n in range(1200)
    ]
    batch = Documents.of(documents).score("quality", [rng.random() for _ in documents])
    with DocumentsWriter(tmp_path / "given" / "0.parquet") as writer:
        writer.write(batch)
    tokenizer = Tokenizer.train((d.text for d in documents), vocab_size=290)
    tokenizer.save(tmp_path / "tokenizer")
    num_bytes = int(batch.num_bytes().sum())
    num_tokens = sum(len(ids) + 2 for ids in tokenizer.encode_batch([d.text for d in documents]))  # bos and eod
    steps, batch_tokens = 180, 512
    stage = PlanMixture(scores=("quality",), bytes_per_token=num_bytes / num_tokens, tokens=steps * batch_tokens)

    corpus = Corpus({"0": tmp_path / "given" / "0.parquet"}, tmp_path / "work", DataEngine())
    stage.prepare(corpus)
    with DocumentsWriter(tmp_path / "mixed" / "0.parquet") as writer:
        for part in read_batches(corpus.shards["0"]):
            writer.write(stage.apply(part, "0", corpus.work))
    groups = write_groups([tmp_path / "mixed" / "0.parquet"], tmp_path / "groups", DataEngine())
    sources: dict[str, TokenShards] = {}
    for number, (name, files) in enumerate(groups.items()):
        sources[name] = tokenise_files(files, tmp_path / "tokenizer", tmp_path / "tokens" / str(number), DataEngine())

    plan = MixturePlan.load(corpus.work / PLAN)
    mixture = MixtureSchedule.parse(plan.for_loader(), "plan").timed(steps * batch_tokens)
    batches = MixedBatches(sources, mixture, seq_len=128, batch_tokens=batch_tokens, seed=0)
    given = {one.source: one for one in batches.plan(steps)}
    assert {cell.epochs < 1 for cell in plan.cells} == {False, True}  # some are thinned, some repeat
    for cell in plan.cells:
        assert given[cell.group].epochs == pytest.approx(cell.epochs_of_kept, rel=0.06), cell
        assert given[cell.group].tokens == pytest.approx(cell.tokens, rel=0.03), cell
