"""How many kernels the ops around lightning attention launch on a GPU: forward, backward and in a step of decoding.

They are counted on tensors of the meta device, from which nothing can be read, so that none of them waits for the GPU.
"""

import importlib
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from launches import counted

from leyden.ops import (
    Int8Matrices,
    apply_rotary,
    gated_rms_norm,
    int8_linear,
    linear_cross_entropy,
    paged_attention,
    ranged_attention,
    ranged_attention_backward,
    residual_rms_norm,
    rms_norm,
    route,
    silu_split,
    swiglu_experts,
)

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="kernels without a GPU are for the interpreter's process"
)

SORTED = ["_to_copy", "sort", "arange", "searchsorted", "arange", "scatter_"]
"""What sorts assignments by expert on the device; ``sort`` is several kernels of PyTorch's."""


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16, learn: bool = True) -> torch.Tensor:
    learn = learn and dtype.is_floating_point
    return torch.empty(shape, dtype=dtype, device="meta").requires_grad_(learn)


def launched(op: str, call: Callable[[], Any]) -> tuple[Any, list[str]]:
    """What ``call`` returns, and the kernels it launches, without the names of who wrote them."""
    with counted(*op.split("+")) as launches:
        out = call()
    return out, [name.partition(".")[2] for name in launches.names]


def norm(op: Callable[..., torch.Tensor], *more: float) -> torch.Tensor:
    inputs = [empty(4, 300, 6144) for _ in range(1 if op is rms_norm else 2)]
    return op(*inputs, empty(6144, dtype=torch.float32), *more, 1e-5, backend="triton")


def experts() -> torch.Tensor:
    x, weights = empty(600, 64), empty(600, 2, dtype=torch.float32)
    chosen = empty(600, 2, dtype=torch.int64)
    return swiglu_experts(x, empty(8, 192, 64), empty(8, 64, 96), chosen, weights, None, "triton")


def losses() -> torch.Tensor:
    """In three chunks."""
    hidden, weight, labels = empty(9000, 64), empty(65_536, 64), empty(9000, dtype=torch.int64)
    return linear_cross_entropy(hidden, weight, labels, 1e-4, "triton")[0]


CHUNK = ["mm", "losses", "mm", "addmm"]
TRAINING: dict[str, tuple[str, Callable[[], Any], list[str], list[str]]] = {
    "rms_norm": ("rms_norm", lambda: norm(rms_norm), ["normalise"], ["differentiate", "sum"]),
    "gated_rms_norm": ("rms_norm", lambda: norm(gated_rms_norm), ["normalise"], ["differentiate", "sum"]),
    "residual_rms_norm": (
        "rms_norm",
        lambda: norm(residual_rms_norm, 1.5, 0.5),
        ["normalise"],
        ["differentiate", "sum"],
    ),
    "rotary": (
        "rotary",
        lambda: apply_rotary(
            empty(2, 40, 64, 128), *(empty(40, 32, dtype=torch.float32, learn=False) for _ in range(2)), "triton"
        ),
        ["turn"],
        ["turn"],
    ),
    "silu_split": ("silu_split", lambda: silu_split(empty(2, 40, 64, 384), "triton"), ["split"], ["join"]),
    "route": (
        "routing",
        lambda: route(empty(600, 32, dtype=torch.float32), 2, "triton").weights,
        ["route"],
        ["route_backward"],
    ),
    "experts": (
        "experts",
        experts,
        [*SORTED, "permute", "_grouped_mm", "activate", "_grouped_mm", "unpermute"],
        [
            *("permute", "_grouped_mm", "activate_backward", "_grouped_mm"),
            *("permute", "_grouped_mm", "clear_idle", "_grouped_mm", "unpermute"),
        ],
    ),
    "losses": (
        "cross_entropy",
        losses,
        ["new_zeros", *CHUNK, *CHUNK, *CHUNK, "_to_copy", "pow", "sum", "sum", "mul", "add"],
        ["_to_copy", "mul", "_to_copy", "mul"],
    ),
}


@pytest.mark.parametrize("row", TRAINING)
def test_training(row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = importlib.import_module("leyden.ops.cross_entropy.launch")
    monkeypatch.setattr(loss, "_accumulates", lambda device, dtype: True)  # as on a GPU
    op, call, forward, backward = TRAINING[row]
    out, names = launched(op, call)
    assert names == forward
    heads = out if isinstance(out, tuple) else (out,)
    gradients = [torch.empty_like(head) for head in heads]
    _, names = launched(op, lambda: torch.autograd.backward(heads, gradients))
    assert names == backward


def test_ranged_attention() -> None:
    """Each kernel that multiplies is launched again, for numbers that are not finite, if sums are not."""
    q, k = empty(900, 16, 128, learn=False), empty(700, 2, 128, learn=False)
    bounds = [empty(900, dtype=torch.int32) for _ in range(2)]
    (out, lse), names = launched("ranged_attention", lambda: ranged_attention(q, k, k, *bounds, "triton"))
    assert names == ["sum", "attend", "attend"] and out.shape == q.shape
    _, names = launched("ranged_attention", lambda: ranged_attention_backward(q, q, k, k, lse, lse, *bounds, "triton"))
    queries = ["sum", "sum", "add", "differentiate_queries", "differentiate_queries"]
    assert names == [*queries, "find", "sum", "differentiate_keys", "differentiate_keys"]


@pytest.mark.parametrize("table", [1, 40, 65_536])
def test_paged_attention_and_its_partial_results(table: int) -> None:
    """However long the longest sequence may be, 64 pieces of each sequence are kept at most."""
    q, pages = empty(64, 64, 128, learn=False), empty(70_000, 64, 8, 128, learn=False)
    tables, lengths = empty(64, table, dtype=torch.int32), empty(64, dtype=torch.int32)
    launch = importlib.import_module("leyden.ops.paged_attention.launch")
    largest, empty_like = 0, torch.Tensor.new_empty

    def new_empty(x: torch.Tensor, *shape: Any, **options: Any) -> torch.Tensor:
        nonlocal largest
        made = empty_like(x, *shape, **options)
        largest = max(largest, made.nbytes)
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "new_empty", new_empty)
        _, names = launched("paged_attention", lambda: paged_attention(q, pages, pages, tables, lengths, "triton"))
    assert names == ["attend", "combine"]
    assert 0 < largest <= 64 * 64 * launch._PIECES * 128 * 4


@pytest.mark.parametrize(("rows", "names"), [(1, ["multiply"]), (255, ["multiply"]), (256, ["mul", "mm"])])
def test_int8_linear(rows: int, names: list[str]) -> None:
    x, weight = empty(rows, 64, learn=False), empty(96, 64, dtype=torch.int8)
    scale = empty(96, dtype=torch.float32, learn=False)
    assert launched("int8_linear", lambda: int8_linear(x, weight, scale, "triton"))[1] == names


@pytest.mark.parametrize("tokens", [1, 32, 5000])
def test_experts_in_8_bits(tokens: int) -> None:
    """As many for a step of 32 sequences as for one, and none of them told to by the host."""
    x, weights = empty(tokens, 64, learn=False), empty(tokens, 2, dtype=torch.float32, learn=False)
    chosen = empty(tokens, 2, dtype=torch.int64)
    stacks = []
    for shape in ((32, 192, 64), (32, 64, 96)):
        scale = empty(*shape[:2], dtype=torch.float32, learn=False)
        stacks.append(Int8Matrices(empty(*shape, dtype=torch.int8), scale, torch.bfloat16))
    _, names = launched(
        "experts+experts.launch_int8", lambda: swiglu_experts(x, *stacks, chosen, weights, None, "triton")
    )
    assert names == [*SORTED, "project_int8", "collect_int8", "unpermute"]
