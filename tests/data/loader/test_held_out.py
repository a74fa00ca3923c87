"""Held-out documents in batches: every token but the first of each document is predicted once, whatever the shape."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leyden.data.documents import HeldOutDocument
from leyden.data.loader.held_out import HeldOutBatches, class_names
from leyden.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["a jar keeps lightning, a jar keeps it"] * 3, vocab_size=265)


@given(
    documents=st.lists(st.text("a jarkeps🙂", max_size=30), min_size=1, max_size=6),
    seq_len=st.integers(1, 12),
    sequences=st.integers(1, 3),
    multiple=st.integers(1, 3),
    num_tokens=st.integers(2, 200),
    ranks=st.integers(1, 3),
)
def test_each_token_is_predicted_once(
    tokenizer: Tokenizer,
    documents: list[str],
    seq_len: int,
    sequences: int,
    multiple: int,
    num_tokens: int,
    ranks: int,
) -> None:
    batches = HeldOutBatches(
        [HeldOutDocument(text) for text in documents],
        tokenizer,
        num_tokens=num_tokens,
        seq_len=seq_len,
        batch_tokens=seq_len * sequences,
        multiple=multiple,
    )
    assert batches.num_batches % multiple == 0
    whole = [batches.batch(number) for number in range(batches.num_batches)]
    tokens = torch.cat([batch.tokens[0] for batch in whole]).tolist()
    labels = torch.cat([batch.labels[0] for batch in whole]).tolist()
    expected, left = [], num_tokens
    for index in np.random.default_rng(0).permutation(len(documents)):
        if left > 1:  # one token that nothing follows teaches nothing
            expected.append([tokenizer.bos_id, *tokenizer.encode(documents[index]), tokenizer.eod_id][:left])
            left -= len(expected[-1])
    flat = [token for ids in expected for token in ids]
    assert tokens == flat + [0] * (len(tokens) - len(flat))
    predicted = [label for label in labels if label != -100]
    assert predicted == [token for ids in expected for token in ids[1:]]
    begins = {sum(map(len, expected[:index])) for index in range(len(expected))}
    text = [token for token in predicted if not tokenizer.is_special(token)]
    assert batches.num_bytes == sum(len(tokenizer.token_bytes(token)) for token in text)
    for number, batch in enumerate(whole):
        bounds = batch.cu_seqlens.tolist()
        assert bounds[0] == 0
        assert bounds[-1] == seq_len * sequences
        assert all(a < b for a, b in zip(bounds, bounds[1:], strict=False))
        assert set(range(0, bounds[-1], seq_len)) <= set(bounds)
        assert {b for at in begins if 0 <= (b := at - number * seq_len * sequences) < bounds[-1]} <= set(bounds)
        if ranks <= sequences:
            shares = [batches.share(number, rank, ranks) for rank in range(ranks)]
            assert torch.equal(torch.cat([share.tokens for share in shares], 1), batch.tokens)
            assert torch.equal(torch.cat([share.labels for share in shares], 1), batch.labels)


@given(
    documents=st.lists(st.tuples(st.text("a jarkeps", max_size=40), st.sampled_from("xyz")), min_size=1, max_size=12),
    bounds=st.sampled_from([(), (6,), (4, 12)]),
    num_tokens=st.integers(2, 300),
    seq_len=st.integers(1, 12),
)
def test_every_source_and_class_of_lengths_gives_its_share(
    tokenizer: Tokenizer, documents: list[tuple[str, str]], bounds: tuple[int, ...], num_tokens: int, seq_len: int
) -> None:
    batches = HeldOutBatches(
        [HeldOutDocument(text, source) for text, source in documents],
        tokenizer,
        num_tokens=num_tokens,
        seq_len=seq_len,
        batch_tokens=2 * seq_len,
        length_bounds=bounds,
    )
    share = max(2, num_tokens // (len({source for _, source in documents}) * (len(bounds) + 1)))
    there: dict[tuple[str, int], list[int]] = {}
    for text, source in documents:
        length = len(tokenizer.encode(text)) + 2
        there.setdefault((source, sum(length > bound for bound in bounds)), []).append(length)
    assert [(part.source, part.length_class) for part in batches.parts] == sorted(there)
    labels = np.zeros(len(batches.parts), int)
    for number in range(batches.num_batches):
        batch = batches.batch(number)
        of_token = batch.per_document["part"].repeat_interleave(batch.cu_seqlens.diff().long())
        labels += np.bincount(of_token[batch.labels[0] >= 0], minlength=len(labels))
    assert labels.tolist() == [part.num_labels for part in batches.parts]
    for part in batches.parts:
        lengths = there[part.source, part.length_class]
        # A token of every document is given, and one token that is left of a share is not used.
        assert part.num_labels <= min(share, sum(lengths)) - 1
        if sum(lengths) <= share:
            assert part.num_labels == sum(lengths) - len(lengths)
    assert batches.num_bytes == sum(part.num_bytes for part in batches.parts)


def test_classes_of_lengths_in_words() -> None:
    assert class_names([]) == ["1-"]
    assert class_names([8192, 32_768]) == ["1-8192", "8193-32768", "32769-"]
