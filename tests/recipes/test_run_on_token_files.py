"""A run on token files of other toolkits: every format, held-out documents, groups, and resuming."""

import gzip
import hashlib
import json
import random
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from whole_runs import SMALL_MODEL, after_step, assert_same_run, interrupt, metrics

from leyden.core.config import dump_toml
from leyden.core.errors import UserError
from leyden.recipes import run
from leyden.recipes.loader import parse_recipe
from leyden.recipes.prepare import prepare, read_prepared
from leyden.tokenizer import Tokenizer


@pytest.fixture(autouse=True)
def no_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run draws its report for seconds, which is not what is tested here."""

    def written(directory: Path) -> None:
        (directory / "report").mkdir(exist_ok=True)
        (directory / "report" / "index.html").touch()

    monkeypatch.setattr("leyden.recipes.runner.write_report", written)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    draw = random.Random(3)
    return [" ".join(f"jar {draw.randint(0, 99)} light {n}" for _ in range(draw.randint(3, 40))) for n in range(50)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    Tokenizer.train(texts, vocab_size=300).save(directory)
    return directory


@pytest.fixture(scope="module")
def documents(tokenizer: Path, texts: list[str]) -> list[list[int]]:
    made = Tokenizer.load(tokenizer)
    return [[made.bos_id, *made.encode(text), made.eod_id] for text in texts]


def _packed(code: str, values: list[int]) -> bytes:
    return struct.pack(f"<{len(values)}{code}", *values)


def _flat(documents: list[list[int]]) -> list[int]:
    return [token for document in documents for token in document]


def _ends(documents: list[list[int]]) -> list[int]:
    return np.cumsum([len(document) for document in documents]).tolist()


def megatron(path: Path, documents: list[list[int]]) -> Path:
    lengths = [len(document) for document in documents]
    head = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, len(lengths), len(lengths) + 1)
    offsets = [2 * end for end in (0, *_ends(documents)[:-1])]
    body = _packed("i", lengths) + _packed("q", offsets) + _packed("q", list(range(len(lengths) + 1)))
    path.with_suffix(".idx").write_bytes(head + body)
    path.with_suffix(".bin").write_bytes(_packed("H", _flat(documents)))
    return path.with_suffix(".bin")


def datatrove(path: Path, documents: list[list[int]]) -> Path:
    path.with_suffix(".ds").write_bytes(_packed("I", _flat(documents)))
    path.with_suffix(".ds.index").write_bytes(_packed("Q", _ends(documents)))
    return path.with_suffix(".ds")


def nanogpt(path: Path, documents: list[list[int]]) -> Path:
    path.with_suffix(".bin").write_bytes(_packed("H", _flat(documents)))
    return path.with_suffix(".bin")


def llm_c(path: Path, documents: list[list[int]]) -> Path:
    flat = _flat(documents)
    path.with_suffix(".bin").write_bytes(_packed("i", [20240520, 1, len(flat), *[0] * 253]) + _packed("H", flat))
    return path.with_suffix(".bin")


def numpy(path: Path, documents: list[list[int]]) -> Path:
    np.save(path.with_suffix(".npy"), np.array(_flat(documents), np.int32))
    return path.with_suffix(".npy")


def olmo(path: Path, documents: list[list[int]]) -> Path:
    ends = _ends(documents)
    rows = "".join(f"{a},{b},id,file,0\n" for a, b in zip([0, *ends], ends, strict=False))
    path.with_suffix(".csv.gz").write_bytes(gzip.compress(rows.encode()))
    path.with_suffix(".npy").write_bytes(_packed("H", _flat(documents)))
    return path.with_suffix(".npy")


FORMATS = [megatron, datatrove, nanogpt, llm_c, numpy, olmo]
Writer = Callable[[Path, list[list[int]]], Path]


def given(tokenizer: Path, tokens: Any, data: dict[str, Any] | None = None, **stage: object) -> dict[str, Any]:
    """A recipe of one stage on token files."""
    stage = {"name": "one", "objective": "pretrain", "steps": 3, "seq_len": 64, "batch_tokens": 128, **stage}
    return {
        "model": {**SMALL_MODEL, "num_local_experts": 2},
        "tokenizer": {"path": str(tokenizer)},
        "data": {"tokens": tokens, "held_out_fraction": 0.1, **(data or {})},
        "train": {"dtype": "float32", "checkpoint_steps": 2},
        "stage": [stage],
        "evaluate": {"prompts": ["jar"], "sample_tokens": 4},
    }


def held_out_by_hand(documents: list[list[int]], share: float) -> list[int]:
    """The rule written a second time: the first 8 bytes of a keyed BLAKE2b of the int32 tokens, as a fraction."""
    found = []
    for number, document in enumerate(documents):
        digest = hashlib.blake2b(_packed("i", document), digest_size=8, person=b"hold_out").digest()
        if struct.unpack(">Q", digest)[0] / 2**64 < share:
            found.append(number)
    return found


@pytest.mark.parametrize("writer", FORMATS)
def test_every_format_gives_the_documents_that_are_not_held_out(
    writer: Writer, tokenizer: Path, documents: list[list[int]], texts: list[str], tmp_path: Path
) -> None:
    recipe = parse_recipe(given(tokenizer, [str(writer(tmp_path / "part", documents))]), "test")
    prepare(recipe, tmp_path / "run")
    prepared = read_prepared(recipe, tmp_path / "run")
    out = held_out_by_hand(documents, 0.1)
    assert 0 < len(out) < 20
    assert [document.text for document in prepared.held_out] == [texts[number] for number in out]
    shards = prepared.shards["all"]
    trained = [shards.document(n).tolist() for n in range(shards.num_documents)]
    assert trained == [document for number, document in enumerate(documents) if number not in out]
    facts = json.loads((tmp_path / "run" / "data.json").read_text())
    assert facts["all"].startswith(f"{50 - len(out)} documents, {sum(map(len, trained)):,} tokens to train on; ")


def test_a_document_without_an_end_is_cut(tokenizer: Path, tmp_path: Path) -> None:
    """One document: its last tenth is held out, so that nothing is trained on that is evaluated on."""
    tokens = Tokenizer.load(tokenizer).encode("jar 1 light 2 " * 40)[:100]
    file = nanogpt(tmp_path / "part", [tokens])
    recipe = parse_recipe(given(tokenizer, [str(file)]), "test")
    prepare(recipe, tmp_path / "run")
    prepared = read_prepared(recipe, tmp_path / "run")
    assert prepared.shards["all"].document(0).tolist() == tokens[:90]
    assert [document.text for document in prepared.held_out] == [Tokenizer.load(tokenizer).decode(tokens[90:])]


def test_the_token_that_ends_documents_can_be_named(
    tokenizer: Path, documents: list[list[int]], tmp_path: Path
) -> None:
    made = Tokenizer.load(tokenizer)
    ended = [[*document[1:-1], made.eos_id] for document in documents]
    file = nanogpt(tmp_path / "part", ended)
    recipe = parse_recipe(given(tokenizer, [str(file)], {"document_token": made.eos_id}), "test")
    prepare(recipe, tmp_path / "run")
    assert read_prepared(recipe, tmp_path / "run").shards["all"].num_documents == 50 - len(held_out_by_hand(ended, 0.1))


def test_a_run_that_was_stopped_gives_the_same_bits(
    tokenizer: Path,
    documents: list[list[int]],
    tmp_path: Path,
    leyden_cli: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two groups with a mixture; the files are moved before the run is resumed."""
    mixture = {"point": [{"step": 0, "weights": {"a": 1, "b": 0}}, {"step": 4, "weights": {"a": 1, "b": 2}}]}
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
    places = {
        "a": [str(megatron(tmp_path / "first" / "part", documents[:25]))],
        "b": [str(datatrove(tmp_path / "second" / "part", documents[25:]))],
    }
    (tmp_path / "r.toml").write_text(dump_toml(given(tokenizer, places, mixture=mixture, steps=5)))
    outcome = leyden_cli("run", tmp_path / "r.toml", "--dir", tmp_path / "whole")
    assert outcome.code == 0, outcome.err
    with monkeypatch.context() as patch:
        after_step(patch, 3, interrupt)
        assert leyden_cli("run", tmp_path / "r.toml", "--dir", tmp_path / "stopped").code == 130
    moved = ("run", tmp_path / "stopped" / "recipe.toml", "--dir", tmp_path / "stopped")
    (tmp_path / "second").rename(tmp_path / "elsewhere")
    assert "is no token file and holds none" in leyden_cli(*moved).err
    outcome = leyden_cli(*moved, "--set", f'data.tokens.b=["{tmp_path / "elsewhere"}"]')
    assert outcome.code == 0, outcome.err
    assert "going on from step 3" in outcome.err
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")
    for name in ("final/model.safetensors", "eval.jsonl", "samples.jsonl", "held_out.jsonl", "data/held_out.npz"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_other_tokens_are_another_run(tokenizer: Path, documents: list[list[int]], tmp_path: Path) -> None:
    file = numpy(tmp_path / "part", documents)
    recipe = parse_recipe(given(tokenizer, [str(file)]), "test")
    run(recipe, tmp_path / "run")
    undisturbed = (tmp_path / "run" / "final" / "model.safetensors").read_bytes()
    (tmp_path / "run" / "report" / "index.html").unlink()
    numpy(tmp_path / "part", documents)  # the same tokens, written again
    run(recipe, tmp_path / "run")
    assert (tmp_path / "run" / "final" / "model.safetensors").read_bytes() == undisturbed
    (tmp_path / "run" / "report" / "index.html").unlink()
    numpy(tmp_path / "part", [*documents[1:], documents[0]])
    with pytest.raises(UserError, match=r"data.tokens has other tokens in all than those that .*run began with"):
        run(recipe, tmp_path / "run")
    longer = parse_recipe(given(tokenizer, {"all": [str(file)], "more": [str(file)]}), "test")
    with pytest.raises(UserError, match="other tokens in all, more than"):
        run(longer, tmp_path / "run")


def test_a_run_that_begins_from_a_model(tokenizer: Path, documents: list[list[int]], tmp_path: Path) -> None:
    """The model brings its tokenizer; and a fork takes over what is held out."""
    first = given(tokenizer, [str(datatrove(tmp_path / "part", documents))])
    run(parse_recipe(first, "test"), tmp_path / "run")
    second = {key: value for key, value in first.items() if key != "tokenizer"}
    second["model"] = {"from": str(tmp_path / "run")}
    run(parse_recipe(second, "test"), tmp_path / "second")
    assert (tmp_path / "second" / "held_out.jsonl").read_bytes() == (tmp_path / "run" / "held_out.jsonl").read_bytes()
    run(parse_recipe(first, "test"), tmp_path / "fork", origin=f"{tmp_path / 'run'}@2")
    assert_same_run(tmp_path / "fork", tmp_path / "run")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"tokens": ["{tmp}/a.txt"]}, r"a\.txt is no token file and holds none; give files of \.bin, \.ds, \.npy"),
    ({"tokens": ["{tmp}/nowhere.ds"]}, r"nowhere\.ds is no token file"),
    ({"tokens": ["{tmp}/empty.npy"]}, "empty.npy holds no documents"),
    ({"tokens": ["{tmp}/none.ds"]}, "none.ds.* no whole number of tokens"),
    ({"tokens": ["{tmp}/large.ds"]}, "large.ds holds token 300, and the tokenizer has 300 tokens: another one made"),
    ({"tokens": ["{tmp}/cut.ds"]}, "cut.ds cannot be read: it has .* It may be truncated"),
    ({"tokens": {"web": []}}, "group web names no files"),
    ({"tokens": "a.ds"}, "must be a list of paths, or a table of lists"),
    ({"tokens": ["a.ds"], "text": ["a.txt"]}, "give either text, .* or tokens"),
    ({"tokens": [], "document_token": 3}, "document_token is for token files"),
    ({"tokens": ["{tmp}/good.ds"], "document_token": 300}, r"document_token \(300\) is no token of the tokenizer"),
]


@pytest.mark.parametrize(("data", "says"), REFUSED)
def test_what_cannot_be_trained_on(
    tokenizer: Path,
    documents: list[list[int]],
    tmp_path: Path,
    leyden_cli: Callable[..., Any],
    data: dict[str, Any],
    says: str,
) -> None:
    """In one paragraph, by a run and by a dry run, of which nothing stays."""
    (tmp_path / "a.txt").write_text("text")
    numpy(tmp_path / "empty", [])
    datatrove(tmp_path / "none", [[], []])
    datatrove(tmp_path / "large", [*documents, [300]])
    good = datatrove(tmp_path / "good", documents)
    datatrove(tmp_path / "cut", documents).write_bytes(good.read_bytes()[:-4])
    recipe = given(tokenizer, [])
    recipe["data"] = json.loads(json.dumps(data).replace("{tmp}", str(tmp_path)))
    (tmp_path / "r.toml").write_text(dump_toml(recipe))
    for options in ((), ("--dry-run",)):
        outcome = leyden_cli("run", tmp_path / "r.toml", "--dir", tmp_path / "run", *options)
        assert (outcome.code, outcome.out) == (2, "")
        assert re.search(says, outcome.err), outcome.err
        assert not (tmp_path / "run").exists()


def test_a_tokenizer_is_needed(tokenizer: Path, documents: list[list[int]], tmp_path: Path) -> None:
    recipe = given(tokenizer, [str(datatrove(tmp_path / "part", documents))])
    small = recipe | {"model": {**SMALL_MODEL, "vocab_size": 299}}
    with pytest.raises(UserError, match=r"\(299\) is smaller than the tokenizer's vocabulary \(300\)"):
        parse_recipe(small, "test")
    del recipe["tokenizer"]
    with pytest.raises(UserError, match=r"data.tokens needs tokenizer.path"):
        parse_recipe(recipe, "test")
