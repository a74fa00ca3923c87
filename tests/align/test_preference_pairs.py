"""Pairs in sequences: both answers of each together, masked to the token, cut alike, with their references."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leyden.align.chats import preference_of
from leyden.align.chats.tokens import REFUSED, held_out
from leyden.align.preference.batches import ANSWER, HeldOutPairs, PairBatches, fit_pairs
from leyden.align.preference.objective import ANSWER_TOKENS, REFERENCE
from leyden.align.preference.pairs import EQUAL, PairCounts, tokenise_pairs
from leyden.core.errors import UserError
from leyden.data import TokenShards
from leyden.data.tokenise import write_tokenised
from leyden.tokenizer import Tokenizer

END = "<end_of_sentence>"
Said = tuple[str, str, str]
"""A question, the chosen answer, and the rejected one."""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["Is it so? Yes, it is so. No, it is not.\n" * 9], vocab_size=270)


def shards_of(said: list[Said], tokenizer: Tokenizer, directory: Path, counts: PairCounts | None = None) -> TokenShards:
    rows = [{"prompt": q, "chosen": a, "rejected": b} for q, a, b in said]
    pairs = [preference_of(row, f"f:{n}", f"f{n % 2}") for n, row in enumerate(rows)]
    return write_tokenised(tokenise_pairs(pairs, tokenizer, counts or PairCounts()), tokenizer, directory / "tokens")


answer = st.text("abc .é\n", max_size=12).map(lambda a: a + "x")
pairs = st.tuples(answer, answer, answer).filter(lambda one: one[1] != one[2])


@given(said=st.lists(pairs, min_size=1, max_size=5), seq_len=st.integers(20, 80), cut=st.booleans())
@settings(max_examples=25, deadline=None)
def test_a_batch_has_both_answers_of_a_pair_cut_at_the_length(tokenizer, tmp_path_factory, said, seq_len, cut):
    shards = shards_of(said, tokenizer, tmp_path_factory.mktemp("pairs"))
    lengths = shards.lengths.reshape(-1, 2)
    whole = [(a + END).encode() for one in said for a in one[1:]]
    try:
        fitting = fit_pairs(shards, seq_len, "cut" if cut else "leave_out")
    except UserError as error:
        assert "seq_len larger" in str(error)
        return
    reference = np.arange(shards.num_documents) + 0.5
    how = {"seq_len": seq_len, "batch_tokens": seq_len, "reference": reference}
    batches = HeldOutPairs(fitting, num_tokens=10**6, **how)
    endless = PairBatches(fitting, seed=0, **how)
    assert endless.fingerprint == PairBatches(fitting, seed=0, seq_len=seq_len, batch_tokens=seq_len).fingerprint
    assert endless.batch(3).tokens.shape == (1, seq_len)
    seen = {}
    for number in range(batches.num_batches):
        batch = batches.batch(number)
        is_answer = (batch.groups >= 0).numpy()
        answers = batch.per_document[ANSWER].numpy()[is_answer]
        assert (answers[::2] % 2 == 0).all() and (answers[1::2] == answers[::2] + 1).all()
        np.testing.assert_array_equal(batch.per_document[REFERENCE].numpy()[is_answer], reference[answers])
        counts = batch.per_document[ANSWER_TOKENS].numpy()[is_answer]
        starts = batch.cu_seqlens[:-1].numpy()[is_answer].tolist()
        for segment, start, one, count in zip(batches.trace(number), starts, answers.tolist(), counts, strict=True):
            labels = batch.labels[0, start : start + segment.length]
            assert one not in seen and count == (labels >= 0).sum() > 0
            assert segment.id == f"f:{one // 2} {('chosen', 'rejected')[one % 2]}"
            seen[one] = segment.length, tokenizer.decode_bytes(labels[labels >= 0].tolist())
    assert len(seen) == 2 * (len(said) - fitting.num_left_out)
    for one, (length, learned) in seen.items():
        if length == lengths.ravel()[one]:
            assert learned == whole[one]
        else:
            other = seen[one ^ 1][0]
            assert cut and whole[one].startswith(learned) and length + other in (seq_len, seq_len // 2 * 2)
            assert length >= min(other, seq_len // 2), "of the longer one is cut"
    if not cut:
        assert fitting.num_left_out == (lengths.sum(1) > seq_len).sum() and not fitting.num_cut


def test_what_is_alike_up_to_the_cut_is_left_out(tokenizer, tmp_path):
    said = [("q", "x" * 60 + "a", "x" * 60 + "b"), ("q", "a", "b")]
    shards = shards_of(said, tokenizer, tmp_path)
    fitting = fit_pairs(shards, 100, "cut")
    assert (fitting.num_rows, fitting.num_left_out, fitting.shards.num_documents) == (2, 1, 2)
    assert fitting.shards.rows.tolist() == [2, 3]
    assert "of 2 pairs 0 are cut, by 0 tokens, and 1 are left out" in str(fitting)
    with pytest.raises(UserError, match=r"None of 2 pairs .* shortest pair has \d+ tokens\), or say too_long"):
        fit_pairs(shards, 10, "leave_out")


def test_what_the_template_refuses_or_makes_alike_is_set_aside(tokenizer, tmp_path):
    (tmp_path / "t").mkdir()
    tokenizer.save(tmp_path / "t")
    config = json.loads((tmp_path / "t" / "tokenizer_config.json").read_text())
    config["chat_template"] = (Path(__file__).parents[1] / "tokenizer" / "zoo" / "gemma2.jinja").read_text()
    config |= {"additional_special_tokens": ["<end_of_turn>"], "eos_token": "<end_of_turn>"}
    (tmp_path / "t" / "tokenizer_config.json").write_text(json.dumps(config))
    rows = [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": "a", "rejected": "b", "system": "Be brief."},
        {"prompt": "q", "chosen": "a", "rejected": "a "},  # Gemma's template strips
    ]
    read = [preference_of(row, f"pairs/f.jsonl:{n}", "f.jsonl") for n, row in enumerate(rows, 1)]
    counts = PairCounts()
    made = list(tokenise_pairs(read, Tokenizer.load(tmp_path / "t"), counts))
    assert (len(made), counts.rows, counts.answers) == (2, 1, 2)
    assert [(one.place, one.reason) for one in counts.rejects] == [("row 2", REFUSED), ("row 3", EQUAL)]
    assert "set aside: 1 refused by the chat template, 1 equal answers" in str(counts)


def test_pairs_with_one_prompt_are_held_out_together(tokenizer, tmp_path):
    counts = PairCounts()
    shards_of([(f"q{n % 4}", f"a{n}", "b") for n in range(16)], tokenizer, tmp_path, counts)
    chosen = held_out(np.array(counts.draws), 0.5).reshape(4, 4)
    assert (chosen == chosen[0]).all() and 0 < chosen[0].sum() < 4
