"""The native bodies that have no backward: lightning attention over a pool of states, experts in one pass.

Beside the rule of precision they promise that a token's bits depend on its own sequence alone: not on the other
sequences, not on the number of threads, and not on where a text is cut, if it is at a multiple of 64.
"""

import itertools
from collections.abc import Iterator

import pytest
import torch
from exactness import assert_within_noise, examples, random
from hypothesis import given
from hypothesis import strategies as st

from leyden.ops import (
    drop_over_capacity,
    lightning_attention,
    lightning_attention_prefill,
    native,
    route,
    swiglu_experts,
)
from leyden.ops.int8_linear import Int8Matrices, quantize_rows

pytestmark = pytest.mark.skipif(isinstance(native.load(), native.UnavailableError), reason="no C++ compiler here")

BOTH = pytest.mark.parametrize("dtype", native.DTYPES)
SLOPES = torch.tensor([0.0, 0.004, 0.9, 300.0])


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def read(lengths: list[int], dtype: torch.dtype, backend: str, K: int, V: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences of these lengths, each by its number the same tokens, whose states lie in slots from the last down."""
    H, n = len(SLOPES), len(lengths)
    q, k, v = (
        torch.cat([random(1, 600, H, D, dtype=dtype, seed=10 * i + s)[:, :t] for i, t in enumerate(lengths)], 1)
        for s, D in enumerate((K, K, V))
    )
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    states = torch.full((n + 1, H, K, V), torch.nan, dtype=wide)
    for i in range(n):
        states[n - i] = random(H, K, V, seed=500 + i).to(dtype).to(wide)
    slots, bounds = torch.arange(n, 0, -1), torch.tensor([0, *itertools.accumulate(lengths)])
    out = lightning_attention_prefill(q, k, v, SLOPES, states, slots, bounds, backend)
    assert states[0].isnan().all()
    return out, states[slots]


@BOTH
@given(lengths=st.lists(st.sampled_from([0, 1, 5, 63, 64, 65, 131, 300]), min_size=1, max_size=3))
@examples(10)
@pytest.mark.parametrize(("K", "V"), [(64, 64), (20, 16), (7, 128), (128, 48)])
def test_lightning_attention(dtype: torch.dtype, K: int, V: int, lengths: list[int]) -> None:
    mine, plain = (read(lengths, dtype, backend, K, V) for backend in ("native", "torch"))
    exact = read_exactly(lengths, dtype, K, V)
    for name, a, p, e in zip(("output", "states"), mine, plain, exact, strict=True):
        assert_within_noise(a, p, e, dim=2 if name == "output" else 1, what=name)
    assert mine[0].dtype == dtype


def read_exactly(lengths: list[int], dtype: torch.dtype, K: int, V: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The recurrence in float64, of the inputs as ``dtype`` holds them."""
    H, outs, states = len(SLOPES), [], []
    decay = torch.exp(-SLOPES.double())[:, None, None]
    for i, t in enumerate(lengths):
        q, k, v = (random(1, 600, H, D, dtype=dtype, seed=10 * i + s)[0, :t].double() for s, D in enumerate((K, K, V)))
        state = random(H, K, V, seed=500 + i).to(dtype).double()
        for step in range(t):
            state = decay * state + k[step, :, :, None] * v[step, :, None, :]
            outs.append((q[step, :, :, None] * state).sum(1))
        states.append(state)
    return torch.stack(outs)[None] if outs else torch.zeros(1, 0, H, V).double(), torch.stack(states)


@BOTH
def test_lightning_attention_has_the_same_bits_in_any_company(dtype: torch.dtype) -> None:
    torch.set_num_threads(1)
    alone, state = read([200], dtype, "native", 64, 64)
    for count, lengths in itertools.product((1, 2, 5), ([200], [200, 70], [200, 1, 64])):
        torch.set_num_threads(count)  # with 5, a head's values are shared out
        out, states = read(lengths, dtype, "native", 64, 64)
        assert torch.equal(out[:, :200], alone) and torch.equal(states[0], state[0])


@BOTH
@pytest.mark.parametrize("cut", [64, 128, 192])
def test_lightning_attention_has_the_same_bits_in_parts(dtype: torch.dtype, cut: int) -> None:
    q, k, v = (random(1, 230, 4, 32, dtype=dtype, seed=s) for s in range(3))
    first = random(1, 4, 32, 32, dtype=torch.float32, seed=3)
    whole, parts, slots = first.clone(), first.clone(), torch.tensor([0])
    out = lightning_attention_prefill(q, k, v, SLOPES, whole, slots, torch.tensor([0, 230]), "native")
    pieces = [
        lightning_attention_prefill(*(x[:, span] for x in (q, k, v)), SLOPES, parts, slots, torch.tensor(cu), "native")
        for span, cu in ((slice(0, cut), [0, cut]), (slice(cut, 230), [0, 230 - cut]))
    ]
    assert torch.equal(torch.cat(pieces, 1), out) and torch.equal(parts, whole)


@BOTH
@pytest.mark.parametrize("packed", [False, True])
def test_rows_and_documents_without_gradients(dtype: torch.dtype, packed: bool) -> None:
    shape = (1, 130, 4, 32) if packed else (2, 65, 4, 32)
    q, k, v = (random(*shape, dtype=dtype, seed=s) for s in range(3))
    first, cu = random(2, 4, 32, 32, dtype=torch.float32, seed=3), torch.tensor([0, 30, 130]) if packed else None
    for state in (None, first):
        exact_state = None if state is None else state.double()
        exact = lightning_attention(*(x.double() for x in (q, k, v)), SLOPES, exact_state, cu, "reference")
        plain = lightning_attention(q, k, v, SLOPES, state, cu, "torch")
        mine = lightning_attention(q, k, v, SLOPES, state, cu)
        assert all(map(torch.equal, mine, lightning_attention(q, k, v, SLOPES, state, cu, "native")))
        for name, a, p, e in zip(("output", "states"), mine, plain, exact, strict=True):
            assert_within_noise(a, p, e, dim=2 if name == "output" else 1, what=name)
    assert torch.equal(first, random(2, 4, 32, 32, dtype=torch.float32, seed=3))


def test_gradients_of_other_key_dims_take_another_body() -> None:
    q, v = (random(1, 5, 4, width, dtype=torch.float32).requires_grad_() for width in (12, 16))
    assert lightning_attention(q, q, v, SLOPES)[0].requires_grad
    with pytest.raises(ValueError, match="key dims that 16 divides; given 12"):
        lightning_attention(q, q, v, SLOPES, backend="native")
    with torch.no_grad():
        lightning_attention(q, q, v, SLOPES, backend="native")


def test_values_of_other_widths_are_refused() -> None:
    x, cu = torch.zeros(1, 3, 4, 20), torch.tensor([0, 3])
    with pytest.raises(ValueError, match="value dims that 16 divides; given 20"):
        lightning_attention_prefill(x, x, x, SLOPES, torch.zeros(1, 4, 20, 20), torch.tensor([0]), cu, "native")


@BOTH
@given(num_tokens=st.sampled_from([1, 7, 50, 333]), top_k=st.integers(1, 3), dropping=st.booleans())
@examples(8)
@pytest.mark.parametrize("int8", [False, True])
def test_experts(dtype: torch.dtype, int8: bool, num_tokens: int, top_k: int, dropping: bool) -> None:
    E, D, F = 5, 48, 32
    x = random(num_tokens, D, dtype=dtype)
    gate_up, down = random(E, 2 * F, D, seed=2).div(D**0.5).to(dtype), random(E, D, F, seed=3).div(F**0.5).to(dtype)
    routing = route(random(num_tokens, E, seed=5), top_k)
    kept = drop_over_capacity(routing, max(1, num_tokens // 4), "position").kept if dropping else None
    if int8:
        stacks = [Int8Matrices(*quantize_rows(matrix), dtype) for matrix in (gate_up, down)]
        exact_stacks = [stack.weight.double() * stack.scale.double()[..., None] for stack in stacks]
    else:
        stacks, exact_stacks = [gate_up, down], [gate_up.double(), down.double()]
    choice = (routing.experts, routing.weights.float(), kept)
    with torch.inference_mode():
        mine, plain = (swiglu_experts(x, *stacks, *choice, backend) for backend in ("native", "torch"))
        exact = swiglu_experts(x.double(), *exact_stacks, *choice, "reference")
        assert_within_noise(mine, plain, exact)
        torch.set_num_threads(3)
        assert torch.equal(swiglu_experts(x, *stacks, *choice, "native"), mine)
        if kept is None:  # a token by itself
            alone = swiglu_experts(x[-1:], *stacks, routing.experts[-1:], routing.weights[-1:].float(), None, "native")
            assert torch.equal(alone, mine[-1:])
