"""One token of lightning attention: against the recurrence, and step by step against a prefill."""

import pytest
import torch
from exactness import DTYPES, assert_within_noise, random

from leyden.ops import lightning_attention, lightning_attention_step

B, H, K, V = 2, 4, 6, 10
SLOPES = torch.tensor([0.0, 0.004, 0.9, 300.0])


def draw(num_tokens: int, dtype: torch.dtype) -> list[torch.Tensor]:
    return [random(B, num_tokens, H, size, dtype=dtype, seed=size + seed) for seed, size in enumerate((K, K, V))]


@pytest.mark.parametrize("dtype", DTYPES)
def test_steps_equal_a_prefill(dtype: torch.dtype) -> None:
    T, split = 140, 70
    q, k, v = draw(T, dtype)
    wide = [x.double() for x in (q, k, v)]
    exact, exact_end = lightning_attention(*wide, SLOPES, backend="reference")
    plain, plain_end = lightning_attention(q, k, v, SLOPES, backend="reference")
    first, state = lightning_attention(q[:, :split], k[:, :split], v[:, :split], SLOPES)
    outputs = [first]
    for t in range(split, T):
        out, state = lightning_attention_step(q[:, t], k[:, t], v[:, t], SLOPES, state)
        outputs.append(out[:, None])
    assert_within_noise(torch.cat(outputs, 1), plain, exact, dim=2)
    if dtype != torch.bfloat16:  # a bfloat16 prefill hands over a state from bfloat16 products
        assert_within_noise(state, plain_end, exact_end, dim=1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_step_is_exact_to_the_state_s_precision(dtype: torch.dtype) -> None:
    wide = torch.promote_types(dtype, torch.float32)
    q, k, v = (x[:, 0] for x in draw(1, dtype))
    state = random(B, H, K, V, dtype=wide, seed=9)
    before = state.clone()
    out, new = lightning_attention_step(q, k, v, SLOPES, state)
    assert torch.equal(state, before)
    assert (out.dtype, new.dtype) == (dtype, wide)
    decay = torch.exp(-SLOPES.double())[:, None, None]
    exact = decay * state.double() + k.double()[..., None] * v.double()[..., None, :]
    output = torch.einsum("bhk,bhkv->bhv", q.double(), exact)
    unit = torch.finfo(wide).eps
    torch.testing.assert_close(new.double(), exact, rtol=4 * unit, atol=4 * unit)
    narrow = torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), output, rtol=narrow, atol=20 * unit)


def test_the_current_token_is_undecayed_and_the_past_decayed_once() -> None:
    one = torch.ones(1, 1, 1)
    state = torch.full((1, 1, 1, 1), 10.0)
    out, new = lightning_attention_step(one, one, one, torch.tensor([1.0]), state)
    assert new.item() == pytest.approx(10 * 0.36787944117 + 1, rel=1e-6)
    assert out.item() == new.item()
