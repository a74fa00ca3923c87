"""What an op cannot do without: the bytes it must move and the operations it must compute, by arithmetic on shapes.

The floor of an op on a machine is the longer of the two times. Bytes count every input once and every output once, as
if nothing else were ever written. Operations of lightning attention are those of the recurrence, which no way of
cutting it into chunks goes below in bytes and every one exceeds in operations.
"""

from leyden.core.roofline import Cost

STATE_BYTES = 4
"""Of one element of a running state: float32 whatever the dtype of the tokens."""


def lightning_forward(tokens: int, heads: int, key_dim: int, value_dim: int, documents: int, itemsize: int = 2) -> Cost:
    """q, k, v read; the output and one float32 state a document written. 4 K V operations a token and head."""
    states = documents * heads * key_dim * value_dim * STATE_BYTES
    per_token = heads * (2 * key_dim + 2 * value_dim) * itemsize
    return Cost(tokens * per_token + states, 4 * tokens * heads * key_dim * value_dim)


def lightning_training(
    tokens: int, heads: int, key_dim: int, value_dim: int, documents: int, itemsize: int = 2
) -> Cost:
    """The forward; then q, k, v and the output's gradient read and three gradients written, at twice its operations."""
    forward = lightning_forward(tokens, heads, key_dim, value_dim, documents, itemsize)
    backward = tokens * heads * (4 * key_dim + 3 * value_dim) * itemsize
    return Cost(forward.bytes + backward, 3 * forward.flops)


def gated_forward(tokens: int, heads: int, key_dim: int, value_dim: int, documents: int, itemsize: int = 2) -> Cost:
    """As lightning attention, and a float32 log decay a token, head and key dim read."""
    forward = lightning_forward(tokens, heads, key_dim, value_dim, documents, itemsize)
    return Cost(forward.bytes + tokens * heads * key_dim * STATE_BYTES, forward.flops)


def gated_training(tokens: int, heads: int, key_dim: int, value_dim: int, documents: int, itemsize: int = 2) -> Cost:
    """As lightning attention; the log decays are read once more, and their gradients written."""
    training = lightning_training(tokens, heads, key_dim, value_dim, documents, itemsize)
    return Cost(training.bytes + 3 * tokens * heads * key_dim * STATE_BYTES, training.flops)


def lightning_decode(sequences: int, heads: int, key_dim: int, value_dim: int, itemsize: int = 2) -> Cost:
    """Each sequence's state read and written; q, k, v and the output are small beside it."""
    states = 2 * sequences * heads * key_dim * value_dim * STATE_BYTES
    tokens = sequences * heads * (2 * key_dim + 2 * value_dim) * itemsize
    return Cost(states + tokens, 4 * sequences * heads * key_dim * value_dim)


def elementwise(elements: int, tensors: int, itemsize: int = 2) -> Cost:
    """``tensors`` tensors of ``elements`` each, read or written once; weights and angles are small beside them."""
    return Cost(elements * tensors * itemsize)


def routing(tokens: int, experts: int, top_k: int) -> Cost:
    """float32 logits read; float32 probabilities, and an int64 index and a float32 weight an assignment, written."""
    return Cost(tokens * (2 * experts * 4 + top_k * (8 + 4)))


def experts(
    tokens: int, width: int, hidden: int, num_experts: int, top_k: int, *, backward: bool, itemsize: int = 2
) -> Cost:
    """SwiGLU experts: three matrices of ``width`` by ``hidden``, 2 operations a weight and assignment.

    With the backward: weights read again and their gradients written; the input read again, the output's gradient
    read and the input's written; three times the operations.
    """
    weights, rows = 3 * num_experts * width * hidden * itemsize, tokens * width * itemsize
    flops = 6 * tokens * top_k * width * hidden
    return Cost(3 * weights + 5 * rows, 3 * flops) if backward else Cost(weights + 2 * rows, flops)


def cross_entropy_training(tokens: int, width: int, vocabulary: int, itemsize: int = 2) -> Cost:
    """Projection and loss with their gradients: hidden states and weights read, the gradient of each written.

    2 operations a weight and token for the logits, as many for the gradient of either side.
    """
    return Cost(2 * (tokens + vocabulary) * width * itemsize, 6 * tokens * width * vocabulary)
