"""Held-out documents in batches: every token but the first of each document is predicted once, whatever the shape."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leyden.data.loader.held_out import HeldOutBatches
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
        documents,
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
