"""How many kernels the ops launch on a GPU: each costs the host some microseconds, and the stream as much."""

import os

import pytest
import torch

pytest.importorskip("triton")

from launches import Launches, counted

from leyden.ops import (
    gated_linear_attention,
    gated_linear_attention_decode,
    gated_linear_attention_prefill,
    lightning_attention,
    lightning_attention_decode,
    lightning_attention_prefill,
    lightning_attention_step,
)

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="kernels without a GPU are for the interpreter's process"
)


def rows(batch: int, tokens: int, heads: int, *, learn: bool = False) -> list[torch.Tensor]:
    x = torch.empty(batch, tokens, heads, 128, dtype=torch.bfloat16, device="meta")
    return [x.clone().requires_grad_(learn) for _ in range(3)]


def attention_and_gradients(batch: int, tokens: int, heads: int, documents: int | None) -> tuple[Launches, Launches]:
    q, k, v = rows(batch, tokens, heads, learn=True)
    slopes = torch.empty(heads, device="meta")
    cu_seqlens = None if documents is None else torch.empty(documents + 1, dtype=torch.int32, device="meta")
    gradient = torch.empty_like(q)
    with counted("lightning_attention.walk") as forward:
        out, _ = lightning_attention(q, k, v, slopes, cu_seqlens=cu_seqlens, backend="triton")
    with counted("lightning_attention.walk") as backward:
        out.backward(gradient)
    return forward, backward


def test_training_launches_one_kernel_forward_and_three_backward() -> None:
    forward, backward = attention_and_gradients(8, 2048, 64, None)
    assert forward.names == ["triton.attend"]
    assert backward.names == ["triton.attend"] * 3


@pytest.mark.parametrize("documents", [None, 64])
def test_where_documents_are_cut_states_take_two_kernels_more(documents: int | None) -> None:
    forward, backward = attention_and_gradients(1, 65_536, 16, documents)
    states = ["triton.summarise", "triton.scan"]
    assert forward.names == [*states, "triton.attend"]
    assert backward.names == ["triton.attend", *states, "triton.attend", "triton.attend"]


def test_serving_launches_one_kernel_a_step() -> None:
    q, k, v = rows(1, 256, 64)
    slopes, states = torch.empty(64, device="meta"), torch.empty(300, 64, 128, 128, device="meta")
    slots = torch.empty(256, dtype=torch.int64, device="meta")
    with counted("lightning_attention.walk") as decode:
        lightning_attention_decode(q[0], k[0], v[0], slopes, states, slots, "triton")
    assert decode.names == ["triton.decode"]
    with counted("lightning_attention.walk") as step, torch.no_grad():
        lightning_attention_step(q[0], k[0], v[0], slopes, states[:256], "triton")
    assert step.names == ["triton.decode"]
    bounds = torch.empty(5, dtype=torch.int32, device="meta")
    with counted("lightning_attention.walk") as prefill:
        lightning_attention_prefill(q, k, v, slopes, states, slots[:4], bounds, "triton")
    assert prefill.names == ["triton.attend"]


GATED = ("gated_linear_attention", "lightning_attention.walk")


@pytest.mark.parametrize(("batch", "tokens", "heads", "documents"), [(8, 2048, 64, None), (1, 65_536, 16, 64)])
def test_decays_that_follow_from_the_data_take_a_kernel_more_forward_and_two_backward(
    batch: int, tokens: int, heads: int, documents: int | None
) -> None:
    q, k, v = rows(batch, tokens, heads, learn=True)
    decay = torch.empty(q.shape, device="meta", requires_grad=True)
    cu_seqlens = None if documents is None else torch.empty(documents + 1, dtype=torch.int32, device="meta")
    with counted(*GATED) as forward:
        out, _ = gated_linear_attention(q, k, v, decay, cu_seqlens=cu_seqlens, backend="triton")
    with counted(*GATED) as backward:
        torch.autograd.grad(out, (q, k, v, decay), torch.empty_like(q))
    states = [] if documents is None else ["triton.summarise", "triton.scan"]
    walk = ["triton.weigh", *states, "triton.attend"]
    assert forward.names == walk
    walk = ["triton.weigh", "triton.attend", *states, "triton.attend", "triton.attend"]
    assert backward.names == [*walk, "triton.differentiate"]


def test_serving_with_decays_that_follow_from_the_data() -> None:
    q, k, v = rows(1, 256, 64)
    decay, states = torch.empty(q.shape, device="meta"), torch.empty(300, 64, 128, 128, device="meta")
    slots, bounds = (torch.empty(n, dtype=torch.int64, device="meta") for n in (256, 5))
    with counted(*GATED) as decode:
        gated_linear_attention_decode(q[0], k[0], v[0], decay[0], states, slots, "triton")
    assert decode.names == ["triton.decode"]
    with counted(*GATED) as prefill:
        gated_linear_attention_prefill(q, k, v, decay, states, slots[:4], bounds, "triton")
    assert prefill.names == ["triton.weigh", "triton.attend"]


def test_what_waits_for_the_gpu_is_refused() -> None:
    x = torch.empty(3, device="meta")
    with counted(), pytest.raises((AssertionError, RuntimeError)):
        x.sum().item()
    with counted(), pytest.raises(AssertionError, match="waits"):
        torch.equal(torch.ones(2), torch.ones(2))
    with counted(), pytest.raises(AssertionError, match="copies between"):
        torch.ones(2).to("meta")
    with counted() as launches:
        (x[1:] + 1).exp_()
    assert launches.names == ["aten.add", "aten.exp_"]
