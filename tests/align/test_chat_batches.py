"""Chats in sequences: whole unless longer than one, masked to the token, weighted, and each held-out one once."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leyden.align.chats import chat_of
from leyden.align.chats.batches import ChatBatches, HeldOutChats, MixedChats, fit_chats
from leyden.align.chats.tokens import REFUSED, ChatCounts, held_out, tokenise_chats
from leyden.core.errors import UserError
from leyden.data import TokenShards, shards_in_memory
from leyden.data.loader.mixture_schedule import MixturePoint, MixtureSchedule
from leyden.data.tokenise import write_tokenised
from leyden.tokenizer import Tokenizer

END = "<end_of_sentence>"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["Is it so? Yes, it is so. No, it is not.\n" * 9], vocab_size=270)


def turns(said: list[str]) -> list[dict[str, str]]:
    return [m for a in said for m in ({"role": "user", "content": "So?"}, {"role": "assistant", "content": a})]


def shards_of(answers: list[list[str]], tokenizer: Tokenizer, directory: Path) -> TokenShards:
    chats = [chat_of({"messages": turns(one)}, f"f:{n}", f"f{n % 2}") for n, one in enumerate(answers)]
    return write_tokenised(tokenise_chats(chats, tokenizer, ChatCounts()), tokenizer, directory / "tokens")


spoken = st.text("abc .é\n", max_size=9).map(lambda a: a + "x")
answers = st.lists(st.lists(spoken, min_size=1, max_size=3), min_size=1, max_size=6)


@given(said=answers, seq_len=st.integers(20, 60), too_long=st.sampled_from(["cut", "leave_out"]))
@settings(max_examples=25, deadline=None)
def test_the_labels_of_a_batch_are_the_answers_cut_at_the_length(tokenizer, tmp_path_factory, said, seq_len, too_long):
    shards = shards_of(said, tokenizer, tmp_path_factory.mktemp("chats"))
    whole = [[a + END for a in one] for one in said]
    try:
        fitting = fit_chats(shards, seq_len, too_long)
    except UserError as error:
        assert "seq_len larger" in str(error)
        assert shards.lengths.min() > (seq_len if too_long == "leave_out" else 20)
        return
    batches = HeldOutChats(fitting, "tokens", tokenizer, num_tokens=10**6, seq_len=seq_len, batch_tokens=seq_len)
    assert ChatBatches(fitting, "tokens", seq_len=seq_len, batch_tokens=seq_len, seed=0).batch(3).tokens.shape == (
        1,
        seq_len,
    )
    seen = {}
    for number in range(batches.num_batches):
        batch = batches.batch(number)
        starts = batch.cu_seqlens[:-1][batch.groups >= 0].tolist()
        for segment, start in zip(batches.trace(number), starts, strict=True):
            labels = batch.labels[0, start : start + segment.length]
            assert segment.id not in seen
            seen[segment.id] = tokenizer.decode_bytes(labels[labels >= 0].tolist())
    assert len(seen) == fitting.shards.num_documents == len(said) - fitting.num_left_out
    for name, learned in seen.items():
        expected = "".join(whole[int(name.split(":")[1])]).encode()
        length = int(shards.lengths[int(name.split(":")[1])])
        assert learned == expected if length <= seq_len else expected.startswith(learned) and learned != expected
    assert fitting.num_cut == sum(int(shards.lengths[int(name.split(":")[1])]) > seq_len for name in seen)
    assert sum(part.num_labels for part in batches.parts) == fitting.answer_tokens.sum()
    assert batches.num_bytes == sum(len(learned.replace(END.encode(), b"")) for learned in seen.values())


def test_what_every_chat_weighs(tokenizer, tmp_path):
    shards = shards_of([["yes"], ["no, it is not so. " * 3], ["x", "y"]], tokenizer, tmp_path)
    fitting = fit_chats(shards, 512, "cut")
    for normalise, expected in (("tokens", np.ones(3)), ("chats", 1 / fitting.answer_tokens)):
        batches = ChatBatches(fitting, normalise, seq_len=512, batch_tokens=512, seed=0)
        batch = batches.batch(0)
        own = [int(segment.id.split(":")[1]) for segment in batches.trace(0)]
        np.testing.assert_allclose(batch.per_document["weight"][batch.groups >= 0], expected[own], rtol=1e-6)
        assert batch.per_document["weight"][batch.groups < 0].tolist() == [0.0] * int((batch.groups < 0).sum())
    assert str(fitting) == "all 3 chats fit"


def test_a_chat_that_the_template_refuses_is_set_aside(tokenizer, tmp_path):
    (tmp_path / "t").mkdir()
    tokenizer.save(tmp_path / "t")
    config = json.loads((tmp_path / "t" / "tokenizer_config.json").read_text())
    config["chat_template"] = (Path(__file__).parents[1] / "tokenizer" / "zoo" / "gemma2.jinja").read_text()
    config |= {"additional_special_tokens": ["<end_of_turn>"], "eos_token": "<end_of_turn>"}
    (tmp_path / "t" / "tokenizer_config.json").write_text(json.dumps(config))
    rows = [{"messages": turns(["Yes."])}, {"messages": turns(["Yes."]), "system": "Be brief."}]
    chats = [chat_of(row, f"chats/f.jsonl:{n}", "f.jsonl") for n, row in enumerate(rows, 1)]
    counts = ChatCounts()
    made = list(tokenise_chats(chats, Tokenizer.load(tmp_path / "t"), counts))
    assert len(made) == counts.rows == 1
    assert [(r.source, r.place, r.reason) for r in counts.rejects] == [("f.jsonl", "row 2", REFUSED)]
    assert "System role not supported" in counts.rejects[0].detail


def test_a_share_is_held_out_by_content():
    drawn = np.random.default_rng(0).random(1000)
    assert held_out(drawn, 0.1).sum() == (drawn < 0.1).sum()
    assert held_out(np.array([0.5]), 0.1).sum() == 0
    assert held_out(np.array([0.5, 0.6]), 0.1).sum() == 1


def test_classes_of_lengths_have_their_shares() -> None:
    shards = shards_in_memory(
        [[1] * 8 for _ in range(40)] + [[2] * 60 for _ in range(6)],
        vocab_size=9,
        learned=[np.arange(8) > 3] * 40 + [np.arange(60) > 3] * 6,
    )
    mixture = MixtureSchedule(length_bounds=(8,), point=(MixturePoint(weights={"all": 1}, lengths=(0.5, 0.5)),)).timed(
        64 * 100
    )
    made = MixedChats(fit_chats(shards, 64, "cut"), "chats", mixture, seq_len=64, batch_tokens=64, seed=0)
    short, long = made.plan(100)
    assert abs(short.tokens / (short.tokens + long.tokens) - 0.5) < 0.05
    batch = made.batch(0)
    assert batch.per_document["weight"].max() <= 1 / 4 and batch.groups is not None
