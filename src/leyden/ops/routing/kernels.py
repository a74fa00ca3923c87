"""The router's softmax and choice of experts in Triton: a few tokens a program, all experts of each in registers."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_tokens"])
def route(
    logits, probabilities, weights, experts, num_tokens,
    E: tl.constexpr, K: tl.constexpr, BE: tl.constexpr, BK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The softmax of each row, its K largest entries (the first of equals, each once) and their shares of 1.

    logits, probabilities: [num_tokens, E] float32; weights, experts: [num_tokens, K].
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    expert, rank = tl.arange(0, BE)[None, :], tl.arange(0, BK)[None, :]
    inside = (row < num_tokens) & (expert < E)
    x = tl.load(logits + row * E + expert, mask=inside, other=-3.4028235e38)
    p = tl.where(expert < E, tl.exp(x - tl.max(x, axis=1, keep_dims=True)), 0.0)
    p = p / tl.sum(p, axis=1, keep_dims=True)
    tl.store(probabilities + row * E + expert, p, mask=inside)

    left = tl.where(p == p, p, 0.0)  # logits that are NaN choose the first experts
    left = tl.where(expert < E, left, -2.0)
    values, chosen = tl.zeros([ROWS, BK], dtype=tl.float32), tl.zeros([ROWS, BK], dtype=tl.int64)
    for j in range(K):
        best = tl.max(left, axis=1, keep_dims=True)
        first = tl.min(tl.where(left == best, expert, BE), axis=1, keep_dims=True)
        value = tl.sum(tl.where(expert == first, p, 0.0), axis=1, keep_dims=True)
        values = tl.where(rank == j, value, values)
        chosen = tl.where(rank == j, first.to(tl.int64), chosen)
        left = tl.where(expert == first, -1.0, left)
    values = values / tl.sum(values, axis=1, keep_dims=True)
    inside = (row < num_tokens) & (rank < K)
    tl.store(weights + row * K + rank, values, mask=inside)
    tl.store(experts + row * K + rank, chosen, mask=inside)


@triton.jit(do_not_specialize=["num_tokens"])
def route_backward(
    probabilities, weights, experts, dprobabilities, dweights, dlogits, num_tokens,
    E: tl.constexpr, K: tl.constexpr, BE: tl.constexpr, BK: tl.constexpr, ROWS: tl.constexpr,
    HAS_DPROBABILITIES: tl.constexpr, HAS_DWEIGHTS: tl.constexpr,
):  # fmt: skip
    """Through w_j = p_j / sum of the chosen p, then through p = softmax(logits)."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    expert, rank = tl.arange(0, BE)[None, :], tl.arange(0, BK)[None, :]
    inside = (row < num_tokens) & (expert < E)
    p = tl.load(probabilities + row * E + expert, mask=inside, other=0.0)
    dp = tl.zeros([ROWS, BE], dtype=tl.float32)
    if HAS_DPROBABILITIES:
        dp = tl.load(dprobabilities + row * E + expert, mask=inside, other=0.0)
    if HAS_DWEIGHTS:
        taken = (row < num_tokens) & (rank < K)
        at = row * K + rank
        w, dw = tl.load(weights + at, mask=taken, other=0.0), tl.load(dweights + at, mask=taken, other=0.0)
        chosen = tl.load(experts + at, mask=taken, other=0)
        share = tl.sum(tl.load(probabilities + row * E + chosen, mask=taken, other=0.0), axis=1, keep_dims=True)
        dw = (dw - tl.sum(dw * w, axis=1, keep_dims=True)) / tl.where(row < num_tokens, share, 1.0)
        for j in range(K):
            of_j = tl.sum(tl.where(rank == j, dw, 0.0), axis=1, keep_dims=True)
            dp += tl.where(expert == tl.sum(tl.where(rank == j, chosen, 0), axis=1, keep_dims=True), of_j, 0.0)
    dx = p * (dp - tl.sum(dp * p, axis=1, keep_dims=True))
    tl.store(dlogits + row * E + expert, dx, mask=inside)
