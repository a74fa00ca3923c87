"""The stage ``mixture`` on documents: thinning and repeats by content, the same however the corpus is cut."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from leyden.core.errors import UserError
from leyden.data.documents import Document, Documents, Message
from leyden.data.engine import DataEngine
from leyden.data.groups import write_groups
from leyden.data.parquet import DocumentsWriter, read_batches
from leyden.data.stage import Corpus
from leyden.data.token_budget import MixturePlan, PlanMixture, forecast
from leyden.data.token_budget.content import contents_of, cut_at

SETTINGS = PlanMixture(scores=("quality",), bytes_per_token=1.0)


def documents(count: int = 600) -> list[tuple[Document, float]]:
    """Documents of two categories with a score each; a few without one, a few nested."""
    rng = random.Random(0)
    made = []
    for number in range(count):
        text = " ".join(rng.choice(["arc", "bolt", "coil", "dust"]) for _ in range(rng.randrange(5, 60))) + f" {number}"
        nested = (Message("user", text), Message("assistant", "yes")) if number % 50 == 0 else ()
        document = Document(
            str(number),
            "" if nested else text,
            "crawl",
            nested,
            metadata={"category": "web" if number % 3 else "books"},
        )
        made.append((document, float("nan") if number % 40 == 0 else float(rng.randrange(6))))
    return made


@pytest.fixture
def corpus(tmp_path: Path) -> Callable[..., Corpus]:
    def build(given: list[tuple[Document, float]], shards: int, name: str, workers: int = 1) -> Corpus:
        paths = {}
        for index in range(shards):
            part = given[index::shards]
            paths[f"{index}"] = tmp_path / name / f"{index}.parquet"
            with DocumentsWriter(paths[f"{index}"]) as writer:
                batch = Documents.of(document for document, _ in part)
                writer.write(batch.score("quality", [score for _, score in part]))
        return Corpus(paths, tmp_path / name / "work", DataEngine(workers))

    return build


def outcome(stage: PlanMixture, corpus: Corpus) -> dict[str, tuple[float, str, str | None]]:
    """For each document how often it is used, its group, and why it left."""
    stage.prepare(corpus)
    found = {}
    for shard, path in corpus.shards.items():
        for batch in Corpus({shard: path}, corpus.work, corpus.engine).batches():
            result = stage.apply(batch, shard, corpus.work)
            groups = [json.loads(text)["group"] for text in result.column("metadata")]
            rows = zip(result.column("id"), result.scores("repeats"), groups, result.column("reason"), strict=True)
            found |= {name: (times, group, reason) for name, times, group, reason in rows}
    return found


def test_the_same_documents_however_the_corpus_is_cut(corpus: Callable[..., Corpus]) -> None:
    given = documents()
    first = outcome(SETTINGS, corpus(given, 1, "one"))
    again = outcome(SETTINGS, corpus(given[::-1], 7, "seven"))
    assert first == again
    assert {reason for _, _, reason in first.values() if reason} >= {"mixture: low quality thinned"}
    assert all((times == 0) == (reason is not None) for times, _, reason in first.values())


@pytest.mark.slow  # to start processes takes seconds
def test_the_same_by_several_processes(corpus: Callable[..., Corpus]) -> None:
    given = documents(60)
    assert outcome(SETTINGS, corpus(given, 1, "one")) == outcome(SETTINGS, corpus(given, 3, "three", workers=2))


def test_what_is_achieved_is_what_was_asked(corpus: Callable[..., Corpus]) -> None:
    """Counted again from the documents: each cell's tokens, to half a document; each category's share."""
    given = documents()
    total = sum(sum(len(m.content) for m in d.messages) or len(d.text) for d, _ in given)
    stage = SETTINGS.model_copy(update={"tokens": 2 * total})
    corpus_ = corpus(given, 4, "four")
    found = outcome(stage, corpus_)
    sizes = {d.id: sum(len(m.content) for m in d.messages) or len(d.text) for d, _ in given}
    report = stage.report(corpus_.work)
    achieved = report["achieved"]
    assert isinstance(achieved, dict)
    longest = max(sizes.values())
    for group, cell in achieved.items():
        used = sum(times * sizes[name] for name, (times, own, _) in found.items() if own == group)
        assert used == pytest.approx(cell["achieved_tokens"])
        assert abs(used - cell["asked_tokens"]) <= longest / 2
        assert sum(cell["documents_by_repeats"].values()) == sum(own == group for _, own, _ in found.values())
    share = sum(size for d, _ in given for size in [sizes[d.id]] if d.metadata["category"] == "books") / total
    books = sum(times * sizes[name] for name, (times, own, _) in found.items() if own.startswith("books/"))
    assert books / (2 * total) == pytest.approx(share, abs=3 * longest / (2 * total))
    assert max(times for times, own, _ in found.values() if own.endswith("low")) <= 2


def test_better_scores_are_in_better_classes(corpus: Callable[..., Corpus]) -> None:
    given = documents()
    found = outcome(SETTINGS, corpus(given, 2, "two"))
    order = ["low", "middle", "high"]
    for category in ("web", "books"):
        ranks = [
            (score, order.index(found[d.id][1].split("/")[1]))
            for d, score in given
            if d.metadata["category"] == category and score == score
        ]
        ranks.sort()
        assert [rank for _, rank in ranks] == sorted(rank for _, rank in ranks)
        assert {rank for _, rank in ranks} == {0, 1, 2}
    assert {found[d.id][1].split("/")[1] for d, score in given if score != score} == {"middle"}


def test_a_smaller_budget_takes_a_part_of_a_larger_one_s(corpus: Callable[..., Corpus]) -> None:
    given = documents()
    uses = []
    for number, tokens in enumerate((5_000, 20_000)):
        found = outcome(SETTINGS.model_copy(update={"tokens": tokens}), corpus(given, 2, f"b{number}"))
        uses.append({name for name, (times, _, _) in found.items() if times})
    assert set() < uses[0] < uses[1]


def test_without_scores_or_categories_the_source_is_uniform(corpus: Callable[..., Corpus]) -> None:
    given = [(Document(str(n), f"text {n}", "a" if n % 2 else "b"), float("nan")) for n in range(20)]
    found = outcome(SETTINGS, corpus(given, 2, "plain"))
    assert {(times, group) for times, group, _ in found.values()} == {(1.0, "a/middle"), (1.0, "b/middle")}


def test_documents_are_parted_by_group(corpus: Callable[..., Corpus], tmp_path: Path) -> None:
    made = corpus(documents(), 3, "whole")
    SETTINGS.prepare(made)
    kept: dict[str, str] = {}
    paths = []
    for shard in made.shards:
        paths.append(tmp_path / "mixed" / f"{shard}.parquet")
        with DocumentsWriter(paths[-1]) as writer:
            for batch in read_batches(made.shards[shard]):
                result = SETTINGS.apply(batch, shard, made.work)
                writer.write(result)
                groups = [json.loads(text)["group"] for text in result.kept().column("metadata")]
                kept |= dict(zip(result.kept().column("id"), groups, strict=True))
    found = write_groups(paths, tmp_path / "groups", DataEngine())
    assert sorted(found) == sorted(set(kept.values()))
    parted = {
        name: group
        for group, files in found.items()
        for file in files
        for b in read_batches(file)
        for name in b.column("id")
    }
    assert parted == kept
    with pytest.raises(UserError, match="has no group"):
        write_groups(list(made.shards.values()), tmp_path / "none", DataEngine())
    assert not list((tmp_path / "none").rglob("*.parquet"))


def test_a_cut_is_nearest_to_the_share() -> None:
    draws, sizes = np.array([0.5, 0.1, 0.9]), np.array([1, 2, 3])  # in order of draws: 2, 1, 3
    for share, chosen in ((0.0, 0), (0.1, 0), (0.2, 1), (0.4, 1), (0.45, 2), (0.9, 3), (1.0, 3)):
        assert np.sum(draws < cut_at(draws, sizes, share)) == chosen, share


def test_draws_are_uniform_and_of_the_text_alone() -> None:
    batch = Documents.of(Document(str(n), f"text {n}", "s") for n in range(4000))
    draws = contents_of(batch, (), None).draws
    assert abs(draws.mean() - 0.5) < 4 / np.sqrt(12 * 4000)
    assert np.histogram(draws, 10, (0, 1))[0].min() > 300
    other = Documents.of([Document("other", "text 7", "elsewhere")])
    assert contents_of(other, (), None).draws[0] == draws[7]


def test_a_forecast_says_the_plan(corpus: Callable[..., Corpus], tmp_path: Path, leyden_cli: Callable) -> None:
    made = corpus(documents(), 2, "parquet")
    (tmp_path / "m.toml").write_text('scores = ["quality"]\nbytes_per_token = 1.0\n')
    folder = next(iter(made.shards.values())).parent
    outcome_ = leyden_cli(
        "study", "mixture", folder, "--dir", tmp_path / "out", "--settings", tmp_path / "m.toml", "--tokens", 9000
    )
    assert outcome_.code == 0, outcome_.err
    plan = MixturePlan.load(tmp_path / "out" / "plan.json")
    assert outcome_.out == plan.table() + "\n"
    assert plan.tokens == 9000
    with pytest.raises(UserError, match="no documents in Parquet files"):
        forecast([tmp_path / "none"], SETTINGS, tmp_path / "out")
    refused = leyden_cli("study", "mixture", folder, "--dir", tmp_path / "out", "--tokens", 10**12)
    assert refused.code == 2
    assert "largest possible budget" in refused.err


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"classes": [{"name": "a", "share": 0.5, "weight": 1, "max_epochs": 1}]}, "must sum to 1"),
        ({"classes": [{"name": "a", "share": 0.5, "weight": 1, "max_epochs": 1}] * 2}, "two classes have one name"),
        ({"floor": 0}, "greater than 0"),
        ({"flor": 0.1}, "did you mean 'floor'"),
    ],
)
def test_settings_that_cannot_be(settings: dict, says: str) -> None:
    with pytest.raises(UserError) as refused:
        PlanMixture.parse(settings, "stage")
    assert says in str(refused.value)
