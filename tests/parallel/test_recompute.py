"""Recomputed and compiled layers compute what plain ones do, and the former keep less."""

import functools
import importlib.util
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from gloo_ranks import mesh_of
from live_memory import track_memory
from one_process import Row, part_of_model, random_row, small_model
from torch.utils._python_dispatch import TorchDispatchMode

from leyden.model import HybridLM
from leyden.model.mixers import softmax
from leyden.ops import backend, softmax_attention
from leyden.parallel import Mesh, ParallelConfig, Plan, attach, recompute
from leyden.parallel.objective import Sums, sums_of_row
from leyden.parallel.recompute import install_compile, install_recompute
from leyden.parallel.tensor import install_tensor
from leyden.parallel.traffic import count_traffic
from leyden.train.objective import Pretrain

_DROPPING = {"shared_intermediate_size": 8, "capacity_factor": 0.7}
_DENSE = {"num_local_experts": 0, "postnorm": False}
_LENGTHS = [5, 1, 120, 34, 64]


def _gradients(model: HybridLM) -> dict[str, torch.Tensor]:
    """By name; every weight has one."""
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(gradients) == len(list(model.parameters()))
    return gradients


def _run(model: HybridLM, row: Row) -> Sums:
    sums = sums_of_row(Pretrain(), model, row)
    sums.loss.backward()
    return sums


def _run_tracked(model: HybridLM, row: Row) -> tuple[Sums, int]:
    """The sums, and the bytes that live between the forward and the backward."""
    with track_memory(model) as memory:
        before = memory.current
        sums = sums_of_row(Pretrain(), model, row)
        kept = memory.current - before
        sums.loss.backward()
    return sums, kept


def _check_modes(build: Callable[[], HybridLM], row: Row) -> None:
    """Both modes give the bits of none, and keep less."""
    model = build()
    plain, most = _run_tracked(model, row)
    kept = {}
    for mode in ("selective", "full"):
        recomputed = build()
        install_recompute(recomputed, mode)
        assert list(recomputed.state_dict()) == list(model.state_dict())
        sums, kept[mode] = _run_tracked(recomputed, row)
        assert torch.equal(sums.loss, plain.loss) and torch.equal(sums.weight, plain.weight), mode
        assert all(torch.equal(value, plain.metrics[name]) for name, value in sums.metrics.items()), mode
        found, gradients = _gradients(recomputed), _gradients(model)
        assert all(torch.equal(found[name], gradients[name]) for name in gradients), mode
    assert kept["full"] < 0.7 * kept["selective"] and kept["selective"] < 0.8 * most, (kept, most)


@pytest.mark.parametrize("changes", [_DROPPING, _DENSE], ids=["experts that drop", "dense, pre-norm"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_bits_of_none_and_less_memory(dtype: torch.dtype, changes: dict[str, Any]) -> None:
    _check_modes(functools.partial(small_model, dtype, **changes), random_row(_LENGTHS))


def test_none_changes_nothing() -> None:
    model = small_model()
    install_recompute(model, "none")
    assert all("forward" not in vars(module) for module in model.modules())


class _Ops(TorchDispatchMode):
    """Counts the ops of leyden that run."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.slow
@pytest.mark.skipif(
    torch.cuda.is_available() or not importlib.util.find_spec("triton"), reason="Triton's interpreter, for a CPU"
)
def test_triton_attention_is_kept_and_norms_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``selective`` means on a GPU: two lightning layers of three, their kernels in the interpreter."""
    monkeypatch.setattr(backend, "_automatic", lambda _op, _device, triton, _native: "triton" if triton else "torch")
    found = {}
    for mode in ("none", "selective", "full"):
        model = small_model(torch.float32, hidden_size=16, head_dim=16, num_attention_heads=2, num_key_value_heads=1)
        install_recompute(model, mode)
        with _Ops() as ops:
            sums = _run(model, random_row([5, 1, 10]))
        names = ("lightning_attention", "silu_split", "rms_norm_backward")
        found[mode] = [sums.loss.detach(), *_gradients(model).values()], [ops.count[f"leyden::{n}"] for n in names]
    assert {mode: counts for mode, (_, counts) in found.items()} == {
        "none": [2, 2, 9],
        "selective": [2, 4, 9],
        "full": [4, 4, 9],
    }
    for mode in ("selective", "full"):
        assert all(torch.equal(a, b) for a, b in zip(found[mode][0], found["none"][0], strict=True)), mode


def _on_rank(mesh: Mesh, dtype: torch.dtype, **changes: Any) -> HybridLM:
    model, _ = part_of_model(small_model(dtype, **changes), mesh)
    install_tensor(model, mesh)
    return model


def _recomputed_ranks(changes: dict[str, Any]) -> dict[str, Counter[str]]:
    """Both modes on tensor ranks: the bits of none; returns the collectives of a micro-batch by mode."""
    mesh, row = mesh_of(Plan(tp=2)), random_row(_LENGTHS)
    _check_modes(functools.partial(_on_rank, mesh, torch.float64, **changes), row)
    calls = {}
    for mode in ("none", "selective", "full"):
        model = _on_rank(mesh, torch.float64, **changes)
        install_recompute(model, mode)  # type: ignore[arg-type]
        with count_traffic(mesh) as traffic:
            _run(model, row)
        calls[mode] = Counter(call.operation for call in traffic.calls)
    return calls


def test_tensor_ranks_recompute_together(ranks: Callable[..., list[Any]]) -> None:
    """One of three layers is softmax attention; each has a dense feed-forward of its own."""
    for calls in ranks(2, _recomputed_ranks, _DENSE):
        again = {mode: calls[mode] - calls["none"] for mode in calls}
        assert again["none"] == {}
        # Tokens enter attention and feed-forward again, and the two norms over heads are summed again.
        assert again["selective"] == {"all_gather": 6, "all_reduce": 2}
        # Attention's output is scattered again; that of the feed-forward, the layer's last, nothing needs.
        assert again["full"] == {"all_gather": 6, "all_reduce": 2, "reduce_scatter": 3}


_quiet = pytest.mark.filterwarnings("ignore")  # the compiler warns of what itself does


@pytest.fixture
def aot_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler up to the generation of code, which takes minutes."""
    _compile_by(monkeypatch, "aot_eager")


def _compile_by(patch: pytest.MonkeyPatch, backend: Any) -> None:
    torch.compiler.reset()
    patch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))


def _check_compiled(build: Callable[[], HybridLM], row: Row, mode: str = "none") -> None:
    """Compiled layers agree with plain ones up to rounding, and only what must be is outside of graphs."""
    plain, model = build(), build()
    names = list(model.state_dict())
    install_compile(model, torch.device("cpu"))
    install_recompute(model, mode)  # type: ignore[arg-type]
    torch._dynamo.utils.counters.clear()
    torch.testing.assert_close(_run(model, row).loss, _run(plain, row).loss, rtol=1e-6, atol=0)
    assert list(model.state_dict()) == names
    _assert_rounding(model, plain)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2 * len(model.layers)
    reasons = torch._dynamo.utils.counters["graph_break"]
    assert reasons and all("torch.compiler.disable" in reason for reason in reasons), reasons


def _assert_rounding(model: HybridLM, plain: HybridLM) -> None:
    """Gradients differ by less than 1e-5 of the weight's largest, which is float32's rounding."""
    gradients = _gradients(plain)
    for name, gradient in _gradients(model).items():
        noise = 1e-5 * gradients[name].abs().max().item()
        torch.testing.assert_close(gradient, gradients[name], rtol=0, atol=noise, msg=name)


_TWO = {"num_hidden_layers": 2, "layer_types": ("linear_attention", "full_attention")}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["none", "selective"])
@pytest.mark.usefixtures("aot_eager")
@_quiet
def test_compiled_layers_on_a_cpu(mode: str) -> None:
    _check_compiled(functools.partial(small_model, torch.float32, **_TWO, **_DROPPING), random_row(_LENGTHS), mode)


@pytest.mark.slow
@_quiet
def test_compiled_layers_on_a_cpu_as_code() -> None:
    torch.compiler.reset()
    _check_compiled(functools.partial(small_model, torch.float32, **_TWO), random_row(_LENGTHS), "full")


def _attached(plan: Plan) -> list[torch.Tensor]:
    """The loss share and this rank's gradients of a model under all of a plan, FSDP included."""
    attached = attach(small_model(**_DROPPING), mesh_of(plan), torch.float64)
    attached.model.train()
    assert isinstance(attached.model, HybridLM)
    sums = _run(attached.model, random_row(_LENGTHS))
    return [sums.loss.detach(), *(w.take_gradient(torch.float64) for w in attached.weights.values())]


def _with_settings(plan: Plan, **settings: Any) -> Plan:
    return replace(plan, settings=ParallelConfig(**settings))


def _all_axes(plan: Plan) -> None:
    expected = _attached(plan)
    for mode in ("selective", "full"):
        found = _attached(_with_settings(plan, activation_checkpointing=mode))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), mode


@pytest.mark.slow
def test_all_axes_recompute_together(ranks: Callable[..., list[Any]]) -> None:
    ranks(4, _all_axes, Plan(cp=2, tp=2, ep=2, etp=2))


def _all_axes_compiled(plan: Plan) -> None:
    expected = _attached(plan)
    for mode in ("none", "full"):
        with pytest.MonkeyPatch.context() as patch:
            _compile_by(patch, "aot_eager")
            found = _attached(_with_settings(plan, activation_checkpointing=mode, compile=True))
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
def test_all_axes_compile_together(ranks: Callable[..., list[Any]]) -> None:
    ranks(4, _all_axes_compiled, Plan(cp=2, tp=2, ep=2, etp=2))


def _compiled_ranks(mode: str) -> None:
    build = functools.partial(_on_rank, mesh_of(Plan(tp=2)), torch.float32, **_TWO, **_DENSE)
    with pytest.MonkeyPatch.context() as patch:
        _compile_by(patch, "aot_eager")
        _check_compiled(build, random_row(_LENGTHS), mode)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["none", "selective", "full"])
def test_compiled_tensor_ranks(ranks: Callable[..., list[Any]], mode: str) -> None:
    ranks(2, _compiled_ranks, mode)


def _whole_document(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: Any) -> torch.Tensor:
    """Attention that a compiler can trace on a CPU."""
    return softmax_attention(q, k, v, backend="reference")


@pytest.mark.slow
@_quiet
def test_a_layer_of_one_graph_keeps_what_the_mode_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: the compiler is told what to keep, and what the backward computes again is in its graph.

    (What is observed by a dispatch mode is not compiled, hence no counting of bytes here.)
    """
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.partitioners import min_cut_rematerialization_partition

    monkeypatch.setattr(softmax, "attend", _whole_document)
    monkeypatch.setitem(recompute._SEAMS, "attend", _whole_document)
    shape = {"num_hidden_layers": 1, "layer_types": ("full_attention",), **_DENSE}
    build, row = functools.partial(small_model, torch.float32, **shape), random_row([24])
    products: dict[str, list[int]] = {}
    plain = build()
    _run(plain, row)
    for mode in ("none", "selective", "full"):

        def count(graph: torch.fx.GraphModule, _: Any, mode: str = mode) -> Any:
            products.setdefault(mode, []).append(sum(n.target is torch.ops.aten.mm.default for n in graph.graph.nodes))
            return graph

        with monkeypatch.context() as patch:
            _compile_by(patch, aot_autograd(fw_compiler=count, partition_fn=min_cut_rematerialization_partition))
            model = build()
            install_compile(model, torch.device("cuda"))
            install_recompute(model, mode)
            _run(model, row)
        _assert_rounding(model, plain)
    # Seven projections, two products each in the backward; and for full, all but the last once more.
    assert products == {"none": [7, 14], "selective": [7, 14], "full": [7, 20]}
