"""Fill-in-the-middle against a slow reading of the formats; nothing is lost, and everything follows from the number."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from leyden.data import PackedBatches
from leyden.data.loader.fill_in_middle import SHORTEST, FilledShards, FillInMiddle, Sentinels
from leyden.data.shards import TokenFile, TokenShards

P, S, M, FIRST, LAST = 900_001, 900_002, 900_003, 900_004, 900_005
IDS = Sentinels(P, S, M, FIRST, LAST)
LENGTHS = [1, 4, 5, 6, 17, 40, 41, 300, 2, 90, 33, 64, 128, 7, 1000]
Numbered = Callable[..., TokenShards]


def restored(tokens: list[int]) -> tuple[list[int], str]:
    """The plain document, and its order: read back by the formats as they are written."""
    if P not in tokens:
        return tokens, "plain"
    assert [token for token in tokens if token > 900_000] in ([P, S, M], [P, S, M])
    p, s, m = map(tokens.index, (P, S, M))
    head, between, suffix, behind = tokens[:p], tokens[p + 1 : s], tokens[s + 1 : m], tokens[m + 1 :]
    if between:  # PSM, unless the prefix is empty
        return head + between + behind[: len(behind)] + suffix, "PSM"
    return head + behind + suffix, "SPM"


def whole(shards: TokenShards, index: int) -> list[int]:
    return shards.document(index).tolist()


@pytest.mark.parametrize(("spm", "order"), [(0.0, "PSM"), (1.0, "SPM")])
def test_documents_are_cut_in_three_and_nothing_is_lost(numbered: Numbered, spm: float, order: str) -> None:
    plain = numbered(LENGTHS * 20, files=3)
    filled = FilledShards.of(plain, FillInMiddle(rate=1.0, spm_share=spm), IDS, seed=3)
    seen = set()
    for index, length in enumerate(LENGTHS * 20):
        tokens, before = whole(filled, index), whole(plain, index)
        assert len(tokens) == filled.lengths[index] == length + 3 * (length >= SHORTEST)
        found, kind = restored(tokens)
        assert found == before
        if length >= SHORTEST:
            seen.add(kind)
            if kind != order:  # an empty prefix cannot be told from the other order
                assert order == "PSM" and tokens[1] == S
        else:
            assert tokens == before
    assert order in seen


def test_first_and_last_tokens_stay() -> None:
    """An independent reading of a document of 12 with its marks, over all cuts that seeds give."""
    body = list(range(10))
    tokens = np.array([FIRST, *body, LAST], np.int32)
    plain = TokenShards.over([TokenFile(tokens, np.array([0]), np.array([12]))], Path("nowhere"), "one", vocab_size=1)
    cuts = set()
    for seed in range(300):
        found = whole(FilledShards.of(plain, FillInMiddle(rate=1.0), IDS, seed), 0)
        s, m = found.index(S), found.index(M)
        prefix, suffix, middle = found[2:s], found[s + 1 : m], found[m + 1 : -1]
        assert found == [FIRST, P, *prefix, S, *suffix, M, *middle, LAST]
        assert prefix + middle + suffix == body
        cuts.add((len(prefix), len(prefix) + len(middle)))
    assert len(cuts) > 60  # of 66
    assert {first for first, _ in cuts} == {last for _, last in cuts} == set(range(11))


def test_the_share_is_the_rate(numbered: Numbered) -> None:
    plain = numbered([50] * 4000)
    filled = FilledShards.of(plain, FillInMiddle(rate=0.3, spm_share=0.25), IDS, seed=0)
    documents = [whole(filled, index) for index in range(4000)]
    rearranged = [tokens for tokens in documents if P in tokens]
    assert len(rearranged) == pytest.approx(1200, rel=0.1)
    assert sum(tokens[1] == S for tokens in rearranged) == pytest.approx(300 + 900 / 51, rel=0.2)


def test_a_document_is_the_same_by_its_number_alone(numbered: Numbered) -> None:
    """Whatever else there is, what was chosen, and how the document is cut into pieces."""
    plain, settings = numbered(LENGTHS * 4, files=2), FillInMiddle(rate=0.7, spm_share=0.5)
    filled = FilledShards.of(plain, settings, IDS, seed=5)
    chosen = np.arange(plain.num_documents) % 3 == 1
    for some in (filled.select(chosen, "some"), FilledShards.of(plain.select(chosen, "some"), settings, IDS, seed=5)):
        for index, number in enumerate(np.flatnonzero(chosen)):
            assert whole(some, index) == whole(filled, number)
    long = int(np.flatnonzero(filled.lengths == filled.lengths.max())[0])
    for size in (1, 2, 7, 400):
        at = np.arange(0, filled.lengths[long], size)
        count = np.minimum(size, filled.lengths[long] - at)
        assert filled.gather(filled.starts[long] + at, count).tolist() == whole(filled, long)
    assert filled.id(long) == plain.id(long)


def test_cuts_are_between_characters() -> None:
    """Tokens 0 to 9, of which odd ones begin within a character: no part begins with one."""
    tokens = np.arange(10, dtype=np.int32)
    plain = TokenShards.over([TokenFile(tokens, np.array([0]), np.array([10]))], Path("nowhere"), "one", vocab_size=10)
    ids = Sentinels(P, S, M, FIRST, LAST, continuing=(1, 3, 4, 5, 9))
    starts = set()
    for seed in range(200):
        found = whole(FilledShards.of(plain, FillInMiddle(rate=1.0), ids, seed), 0)
        p, s, m = map(found.index, (P, S, M))
        starts |= {part[0] for part in (found[p + 1 : s], found[s + 1 : m], found[m + 1 :]) if part}
        assert sorted(found[p + 1 : s] + found[s + 1 : m] + found[m + 1 :]) == list(range(10))
    assert starts == {0, 2, 6, 7, 8}


def test_what_is_not_to_be_learned_goes_along() -> None:
    """Even tokens are not learned, wherever they stand; sentinels are."""
    tokens = np.arange(80, dtype=np.int32)
    bits = np.packbits(tokens % 2 == 1, bitorder="little")
    file = TokenFile(tokens, np.array([0, 40]), np.array([40, 40]), learned=bits)
    plain = TokenShards.over([file], Path("nowhere"), "masked", vocab_size=80)
    filled = FilledShards.of(plain, FillInMiddle(rate=1.0, spm_share=0.5), IDS, seed=1)
    learned = filled.learned(filled.starts, filled.lengths)
    assert np.array_equal(
        learned, [token % 2 == 1 or token > 900_000 for index in (0, 1) for token in whole(filled, index)]
    )
    batch = PackedBatches(filled, seq_len=86, batch_tokens=86, seed=0, packing="best_fit").batch(0)
    labels = batch.labels[batch.labels >= 0]
    assert bool(((labels % 2 == 1) | (labels > 900_000)).all()) and len(labels) > 40


@pytest.mark.parametrize("packing", ["concatenate", "best_fit"])
def test_batches_hold_every_document_and_resume(numbered: Numbered, packing: str) -> None:
    plain = numbered(LENGTHS * 6)
    filled = FilledShards.of(plain, FillInMiddle(rate=0.5, spm_share=0.5), IDS, seed=2)
    how = {"seq_len": 64, "batch_tokens": 128, "seed": 9, "packing": packing}
    batches = PackedBatches(filled, **how)
    needed = -(-filled.num_tokens // 128) + 1
    made = [next(batches) for _ in range(needed)]
    seen = {int(token) for batch in made for token in batch.tokens.flatten()}
    assert {int(token) for index in range(plain.num_documents) for token in plain.document(index)} <= seen
    again = PackedBatches(FilledShards.of(plain, FillInMiddle(rate=0.5, spm_share=0.5), IDS, seed=2), **how)
    again.load_state_dict({"batch": 3, "fingerprint": batches.fingerprint})
    assert np.array_equal(next(again).tokens, made[3].tokens)
    # A label is the next token of the rearranged document, cut or not.
    documents = {tuple(whole(filled, index)) for index in range(filled.num_documents)}
    pairs = {pair for document in documents for pair in zip(document, document[1:], strict=False)}
    for batch in made:
        learned = batch.labels[0] >= 0
        pieces = zip(batch.tokens[0][learned].tolist(), batch.labels[0][learned].tolist(), strict=True)
        assert set(pieces) <= pairs


def test_other_settings_are_other_data(numbered: Numbered) -> None:
    plain = numbered(LENGTHS)
    prints = {
        FilledShards.of(plain, settings, ids, seed).fingerprint
        for settings in (FillInMiddle(), FillInMiddle(rate=0.2), FillInMiddle(spm_share=0.1))
        for ids in (IDS, Sentinels(P, M, S, FIRST, LAST))
        for seed in (0, 1)
    }
    assert len(prints) == 12 and plain.fingerprint not in prints


def test_three_tokens_are_wanted() -> None:
    with pytest.raises(ValueError, match="must be different tokens; given <a>, <b>, <a>"):
        FillInMiddle(prefix="<a>", suffix="<b>", middle="<a>")
