"""What is handed to C++: declarations that agree with the prototypes, and wrong arguments, which raise."""

import ctypes
import importlib.util
import re
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from leyden.ops import (
    Int8Matrices,
    apply_rotary,
    gated_rms_norm,
    int8_linear,
    lightning_attention,
    lightning_attention_decode,
    lightning_attention_prefill,
    linear_cross_entropy,
    native,
    paged_attention,
    quantize_rows,
    ranged_attention,
    rms_norm,
    route,
    silu_split,
    softmax_attention,
    swiglu_experts,
)
from leyden.ops.decode import MIXERS, DecodeBatch, LayerAddresses, ModelAddresses, decode_step
from leyden.ops.native import build, functions
from leyden.ops.native.functions import FUNCTIONS, Function

pytestmark = pytest.mark.skipif(isinstance(native.load(), native.UnavailableError), reason="no C++ compiler here")

_PROTOTYPE = re.compile(r'extern "C" Fault (\w+)\(([^)]*)\)')
_OTHERS = {"leyden_decode"}
"""Functions that have callers of their own."""
_TYPES = {"T": "void", "float32": "float", "float64": "double", "bool": "uint8_t"}
"""What C++ calls the elements of a tensor, where it is not the dtype's name with _t."""


def _prototypes() -> dict[str, str]:
    sources = "\n".join(path.read_text() for path in sorted(build.SOURCES.rglob("*.cpp")))
    return dict(_PROTOTYPE.findall(sources))


def _declared(function: Function) -> list[tuple[str, str]]:
    """What the prototype should say, type by type and name by name; const is for C++ to know."""
    wanted = []
    for parameter in function.parameters:
        if not parameter.is_tensor:
            kind = "float" if parameter.kind == "float" else "int64_t"
            wanted.append((kind, parameter.name or "bfloat16"))
            continue
        wanted.append((f"{_TYPES.get(parameter.kind, f'{parameter.kind}_t')} *", parameter.name))
        if parameter.mark == "~":
            strides = ("row", "head")[: len(parameter.places) - 1]
            wanted += [("int64_t", f"{parameter.name}_{stride}") for stride in strides]
    return wanted


def test_declarations_are_the_prototypes() -> None:
    found = _prototypes()
    assert found.keys() - _OTHERS == FUNCTIONS.keys()
    for name, function in FUNCTIONS.items():
        said = [re.fullmatch(r"(?:const )?(\w+(?: \*)?) ?(\w*)", part.strip()) for part in found[name].split(",")]
        types = [(part[1], part[2]) for part in said if part]
        assert types[-1][0] == "int64_t" and types[-1][1] in ("threads", ""), name
        assert types[:-1] == _declared(function), name


X, W, Y, R = torch.ones(3, 16), torch.ones(16), torch.empty(3, 16), torch.empty(3)
F32 = torch.float32


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((F32, X, None, W, 1e-5, 3, 16, Y), "10 arguments expected; given 8|9 arguments expected; given 8"),
        ((F32, X[:2], None, W, 1e-5, 3, 16, Y, R), r"x \[rows dim\] in torch.float32 with rows = 3, dim = 16"),
        ((F32, X, None, W, 1e-5, 4, 16, Y, R), r"x \[rows dim\].*rows = 4"),
        ((F32, X, None, W.bfloat16(), 1e-5, 3, 16, Y, R), "weight.*given .* of torch.bfloat16"),
        ((torch.bfloat16, X, None, W, 1e-5, 3, 16, Y, R), "x .*in torch.bfloat16"),
        ((torch.float16, X.half(), None, W, 1e-5, 3, 16, Y.half(), R), "bfloat16 or float32 .*given torch.float16"),
        ((F32, torch.ones(16, 3).t(), None, W, 1e-5, 3, 16, Y, R), "one element behind another"),
        ((F32, X.to("meta"), None, W, 1e-5, 3, 16, Y, R), "on the CPU; given a Tensor .* on meta"),
        ((F32, X, None, W, 1e-5, -3, -16, Y, R), "weight|rows"),
        ((F32, X, None, W, 1e-5, 3.0, 16, Y, R), "x .*rows = 3.0"),
        ((F32, None, None, W, 1e-5, 3, 16, Y, R), "given None"),
        ((F32, X, None, W, None, 3, 16, Y, R), "a number for eps"),
        ((F32, X.to_sparse(), None, W, 1e-5, 3, 16, Y, R), "given"),
        ((F32, torch._neg_view(X), None, W, 1e-5, 3, 16, Y, R), "given"),  # pyright: ignore[reportPrivateImportUsage]
        ((F32, torch.empty(0, 16), None, W, 1e-5, 1 << 64, 16, Y, R), "rows"),
    ],
)
def test_arguments_that_are_not_as_declared(arguments: tuple[native.Argument, ...], reason: str) -> None:
    with pytest.raises(ValueError, match=f"leyden_rms_norm: .*({reason})"):
        native.call("leyden_rms_norm", *arguments)


def test_a_function_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="leyden_nothing is none of the native functions: leyden_silu, "):
        native.call("leyden_nothing")


def ints(*values: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


def i32(*values: int) -> torch.Tensor:
    return ints(*values, dtype=torch.int32)


def _sort(experts: torch.Tensor, capacity: int, alignment: int = 1) -> None:
    rows = (torch.empty(2, dtype=torch.int32), torch.empty(capacity, dtype=torch.int32))
    native.call("leyden_experts_sort", experts, None, 2, 4, alignment, capacity, *rows, torch.empty(5).long(), 5)


def _prefill(slots: torch.Tensor, bounds: torch.Tensor, width: int = 16) -> None:
    q, v, states = torch.ones(3, 2, 4), torch.ones(3, 2, width), torch.ones(2, 2, 4, width)
    sizes = (3, 2, 4, width, 2, len(slots), len(bounds))
    given = (q, q, v, torch.ones(2), states, slots, bounds, *sizes, 0, torch.empty_like(v))
    native.call("leyden_lightning_prefill", F32, *given)


def _gated(slots: torch.Tensor, bounds: torch.Tensor, width: int = 16) -> None:
    q, v, states = torch.ones(3, 2, 4), torch.ones(3, 2, width), torch.ones(2, 2, 4, width)
    sizes = (3, 2, 4, width, 2, len(slots), len(bounds))
    native.call("leyden_gated_attention", F32, q, q, v, -q, states, slots, bounds, *sizes, torch.empty_like(v))


def _gated_backward(bounds: torch.Tensor, width: int = 16) -> None:
    x, state, sizes = torch.ones(3, 2, width), torch.ones(1, 2, width, width), (3, 2, width, width, 1, len(bounds))
    given = (x, None, x, x, x, -x, None, bounds, *sizes, *(torch.empty_like(x) for _ in range(4)), state)
    native.call("leyden_gated_attention_backward", F32, *given)


def _experts(
    spans: tuple[int, ...], assignment: tuple[int, ...], row: tuple[int, ...], bytes_too: bool = False
) -> None:
    x, both, down = torch.ones(2, 16), torch.ones(2, 32, 16), torch.ones(2, 16, 16)
    eights = (both.to(torch.int8), torch.ones(2, 32), None, None) if bytes_too else (None, None, None, None)
    given = (x, None if bytes_too else both, down, *eights, i32(*assignment), i32(*row), ints(*spans), torch.ones(2, 1))
    sizes = (2, 3, 1, 2, 2, 16, 16, 32)
    native.call("leyden_experts_forward", F32, *given, *sizes, torch.empty(2, 32), None, torch.empty(2, 16))


def _experts_backward(
    spans: tuple[int, ...], assignment: tuple[int, ...], room: int = 2, dtype: torch.dtype = torch.bfloat16
) -> None:
    x, both, down = (
        torch.ones(2, 16, dtype=dtype),
        torch.ones(2, 32, 16, dtype=dtype),
        torch.ones(2, 16, 16, dtype=dtype),
    )
    given = (x, x, both, down, torch.ones(2, 32, dtype=dtype), i32(*assignment), ints(*spans), torch.ones(2, 1))
    packed = 48 * 64
    made = [torch.empty(shape, dtype=dtype) for shape in ((2, packed), (room, 16), (room, 32), (2, 16))]
    results = (torch.empty_like(both), torch.empty_like(down), torch.empty(2, 1))
    native.call("leyden_experts_backward", dtype, *given, 2, 3, 1, 2, 2, 16, 16, room, packed, *made, *results)


def test_the_backward_of_experts_refuses_what_is_not_sorted() -> None:
    """Every fault, where the processor multiplies bfloat16; elsewhere that it does not."""
    if not native.library().leyden_matmul_pays(ctypes.c_int64(1)):
        with pytest.raises(ValueError, match=r"multipl|sorted"):
            _experts_backward((0, 1, 3), (0, 1))
        return
    _experts_backward((0, 1, 2), (0, 1))
    for spans, assignment in (((0, 1, 3), (0, 1)), ((0, 2, 1), (0, 1)), ((0, 1, 2), (0, 2)), ((0, 1, 2), (-1, 0))):
        with pytest.raises(ValueError, match="sorted by the experts"):
            _experts_backward(spans, assignment)
    with pytest.raises(ValueError, match="no room"):
        _experts_backward((0, 2, 2), (0, 1), room=1)
    with pytest.raises(ValueError, match="float32"):
        _experts_backward((0, 1, 2), (0, 1), dtype=F32)


ONE = torch.ones(2, 4)


def _chosen() -> None:
    given = (ONE, torch.ones(2, 1), ints(0, 4)[:, None], None, None)
    native.call("leyden_route_backward", *given, 2, 4, 1, ONE)


def _top_k() -> None:
    native.call("leyden_route", ONE, 2, 4, 5, ONE, torch.ones(2, 5), torch.ones(2, 5).long())


def _half() -> None:
    angles = torch.ones(1, 3)
    native.call("leyden_rotary", F32, ONE, angles, angles, 1.0, 1.0, 2, 1, 1, 4, 3, ONE)


def _gate() -> None:
    native.call("leyden_rms_norm_backward", F32, ONE, ONE, ONE, W[:4], R[:2], 2, 4, ONE, None, W[:4])


def _softmax(*seen: int) -> None:
    native.call("leyden_softmax", F32, ONE, None, i32(*seen), 1.0, 2, len(seen) // 2, 4, ONE, None)


def _half_of_a_backward() -> None:
    native.call("leyden_softmax", F32, ONE, ONE, i32(0, 4), 1.0, 2, 1, 4, ONE, None)


def _label() -> None:
    native.call("leyden_token_nll", F32, ONE, ints(1, 4), None, None, 2, 4, 0.0, 1, R[:2], R[:2])


INDICES: dict[str, tuple[Callable[[], None], str]] = {
    "label": (_label, "label"),
    "keys": (lambda: _softmax(0, 5), "keys that are none"),
    "before the keys": (lambda: _softmax(-1, 2), "keys that are none"),
    "no period": (_softmax, "what the rows see"),
    "delta": (_half_of_a_backward, "go together"),
    "top k": (_top_k, "top_k"),
    "chosen": (_chosen, "none of the experts"),
    "half": (_half, "widths"),
    "gate": (_gate, "go together"),
    "expert": (lambda: _sort(ints(0, 4), 2), "none of the experts"),
    "negative expert": (lambda: _sort(ints(0, -1), 2), "none of the experts"),
    "room": (lambda: _sort(ints(0, 1), 2, 16), "no room"),
    "no alignment": (lambda: _sort(ints(0, 1), 2, 0), "too many"),
    "gather": (lambda: native.call("leyden_experts_gather", F32, ONE, i32(0, 4), 2, 4, 2, 2, ONE), "assignment"),
    "sum": (lambda: native.call("leyden_experts_sum", F32, ONE, i32(0, 2), 1, 4, 2, 2, ONE), "row"),
    "slot": (lambda: _prefill(ints(2), ints(0, 3)), "slot is none"),
    "negative slot": (lambda: _prefill(ints(-1), ints(0, 3)), "slot is none"),
    "slot twice": (lambda: _prefill(ints(1, 1), ints(0, 1, 3)), "one slot"),
    "bounds": (lambda: _prefill(ints(0), ints(0, 4)), "bounds"),
    "falling bounds": (lambda: _prefill(ints(0, 1), ints(0, 3, 1)), "bounds"),
    "too few bounds": (lambda: _prefill(ints(0, 1), ints(0, 3)), "bounds"),
    "width": (lambda: _prefill(ints(0), ints(0, 3), 8), "16 does not divide"),
    "gated slot": (lambda: _gated(ints(2), ints(0, 3)), "slot is none"),
    "gated slot twice": (lambda: _gated(ints(1, 1), ints(0, 1, 3)), "one slot"),
    "gated bounds": (lambda: _gated(ints(0), ints(0, 4)), "bounds"),
    "gated width": (lambda: _gated(ints(0), ints(0, 3), 8), "16 does not divide"),
    "gated backward bounds": (lambda: _gated_backward(ints(2, 1)), "bounds"),
    "gated backward width": (lambda: _gated_backward(ints(0, 3), 8), "16 does not divide"),
    "spans": (lambda: _experts((0, 1, 3), (0, 1), (0, 1)), "not sorted"),
    "tokens": (lambda: _experts((0, 1, 2), (0, 2), (0, 1)), "not sorted"),
    "rows": (lambda: _experts((0, 1, 2), (0, 1), (0, 2)), "not sorted"),
    "mixed matrices": (lambda: _experts((0, 1, 2), (0, 1), (0, 1), bytes_too=True), "both matrices"),
}


@pytest.mark.parametrize("case", INDICES)
def test_indices_and_numbers_that_point_outside(case: str) -> None:
    run, reason = INDICES[case]
    with pytest.raises(ValueError, match=reason):
        run()


def stacks(E: int = 2, D: int = 16, F: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones(E, 2 * F, D), torch.ones(E, D, F)


def experts(*choice: int, dtype: torch.dtype = torch.int64, weights: int = 4, **changes: torch.Tensor) -> object:
    both, down = stacks()
    given = {"gate_up": both, "down": down, "kept": None, "x": torch.ones(4, 16), **changes}
    return swiglu_experts(experts=ints(*choice, dtype=dtype)[:, None], weights=torch.ones(weights, 1), **given)  # pyright: ignore


def entropy(*labels: int, dtype: torch.dtype = torch.int64) -> object:
    return linear_cross_entropy(torch.ones(3, 4), torch.ones(5, 4), ints(*labels, dtype=dtype))


def prefill(slots: tuple[int, ...], bounds: tuple[int, ...]) -> object:
    x = torch.ones(1, 3, 2, 16)
    return lightning_attention_prefill(x, x, x, torch.ones(2), torch.ones(2, 2, 16, 16), ints(*slots), ints(*bounds))


def decode(*slots: int) -> object:
    x = torch.ones(2, 2, 16)
    return lightning_attention_decode(x, x, x, torch.ones(2), torch.ones(2, 2, 16, 16), ints(*slots))


def paged(table: tuple[int, ...], length: int) -> object:
    pages = torch.ones(2, 4, 1, 8)
    return paged_attention(torch.ones(1, 1, 8), pages, pages, i32(*table)[None], i32(length))


def ranged(first: int, last: int) -> object:
    x = torch.ones(1, 1, 8)
    return ranged_attention(x, x, x, i32(first), i32(last))


def attend(q: tuple[int, ...], k: tuple[int, ...], cu: tuple[int, ...] | None = None) -> object:
    bounds = None if cu is None else ints(*cu)
    return softmax_attention(torch.ones(q), torch.ones(k), torch.ones(k), bounds)


def weigh(weight: torch.Tensor, dtype: torch.dtype = F32) -> object:
    return linear_cross_entropy(torch.ones(3, 4, dtype=dtype), weight, ints(0, 1, 2))


def bf(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.bfloat16)


HALF = torch.ones(4, 2)

WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "label behind the vocabulary": (lambda: entropy(0, 1, 5), "labels from 0 to 4, or -100, expected; given 5"),
    "negative label": (lambda: entropy(0, 1, -1), "given -1"),
    "labels that are no integers": (lambda: entropy(0, 1, 1, dtype=F32), "labels in integers"),
    "too few labels": (lambda: entropy(0, 1), r"labels \[N\] expected; given .* labels \(2,\)"),
    "weight of another dtype": (lambda: weigh(torch.ones(5, 4), torch.bfloat16), "one dtype, a floating one"),
    "weight of another width": (lambda: weigh(torch.ones(5, 3)), "weight"),
    "expert that there is not": (lambda: experts(0, 1, 2, 0), "experts from 0 to 1 expected; given 2"),
    "negative expert": (lambda: experts(0, 1, -1, 0), "given -1"),
    "too few weights": (lambda: experts(0, 1, 0, 1, weights=2), r"\(2, 1\)"),
    "down of another width": (lambda: experts(0, 1, 0, 1, down=torch.ones(2, 16, 32)), "swiglu_experts: x"),
    "down of another dtype": (lambda: experts(0, 1, 0, 1, down=bf(2, 16, 16)), "one dtype, a floating one"),
    "kept that is no bool": (lambda: experts(0, 1, 0, 1, kept=torch.ones(4, 1)), "kept in bool"),
    "slot that there is not": (lambda: prefill((5,), (0, 3)), r"slots from 0 to 1.*given \[5\]"),
    "one slot twice": (lambda: prefill((1, 1), (0, 1, 3)), "each at most once"),
    "bounds beyond the tokens": (lambda: prefill((1,), (0, 4)), "rise from 0 to T = 3"),
    "slot of decoding": (lambda: decode(0, 2), r"slots from 0 to 1.*given \[0, 2\]"),
    "page that there is not": (lambda: paged((0, 2), 8), "pages from 0 to 1 expected; given 2"),
    "length beyond the table": (lambda: paged((0, 1), 9), "lengths from 0 to 8 expected; given 9"),
    "range behind the keys": (lambda: ranged(0, 2), "last from 0 to 1"),
    "documents beyond the row": (lambda: attend((1, 3, 1, 8), (1, 3, 1, 8), (0, 4)), "softmax_attention: cu_seqlens"),
    "keys of another batch": (lambda: attend((2, 3, 1, 8), (1, 3, 1, 8)), "softmax_attention: q"),
    "keys without heads": (lambda: attend((1, 3, 1, 8), (1, 3, 0, 8)), "softmax_attention: q"),
    "norm of integers": (lambda: rms_norm(torch.ones(3, 4).long(), torch.ones(4), 1e-5), "floating"),
    "norm of no dims": (lambda: rms_norm(torch.tensor(1.0), torch.tensor(1.0), 1e-5), "weight"),
    "heads of rotary": (lambda: apply_rotary(torch.ones(3, 4, 8), HALF, HALF), "apply_rotary: x"),
    "logits of the router": (lambda: route(torch.ones(3), 1), "route: logits"),
    "thirds of integers": (lambda: silu_split(torch.ones(1, 1, 1, 3).long()), "floating"),
    "scales of 8 bits": (lambda: int8_linear(R[None], R.to(torch.int8)[None], torch.ones(2)), "scale"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_of_public_functions(case: str) -> None:
    run, reason = WRONG[case]
    with pytest.raises(ValueError, match=reason):
        run()


def test_integers_of_other_widths_are_taken() -> None:
    for run in (lambda dtype: entropy(0, 4, -100, dtype=dtype), lambda dtype: experts(0, 1, 1, 0, dtype=dtype)):
        wide, narrow = run(torch.int64), run(torch.int32)
        for one, other in zip(*((x if isinstance(x, tuple) else (x,)) for x in (wide, narrow)), strict=True):
            assert torch.equal(one, other)


def test_weights_that_are_views_are_read_as_their_copies() -> None:
    x, weight = torch.randn(3, 16), torch.randn(32)[::2]
    assert torch.equal(rms_norm(x, weight, 1e-5, "native"), rms_norm(x, weight.clone(), 1e-5, "native"))
    matrix, scale = quantize_rows(torch.randn(16, 8))
    turned = torch.empty(8, 16, dtype=torch.int8).t().copy_(matrix)
    assert torch.equal(int8_linear(x[:, :8], turned, scale, "native"), int8_linear(x[:, :8], matrix, scale, "native"))


def thirds(like: torch.Tensor) -> torch.Tensor:
    return like.new_ones(1, 3, 2, 16)


EVERY: dict[str, Callable[[torch.Tensor], object]] = {
    "rms_norm": lambda x: rms_norm(x, x.new_ones(16), 1e-5),
    "gated_rms_norm": lambda x: gated_rms_norm(x, x, x.new_ones(16), 1e-5),
    "silu_split": lambda x: silu_split(x.new_ones(1, 2, 2, 48)),
    "rotary": lambda x: apply_rotary(x.new_ones(1, 2, 2, 16), x.new_ones(2, 4), x.new_ones(2, 4)),
    "route": lambda x: route(x.new_ones(3, 4), 2),
    "experts": lambda x: swiglu_experts(
        x, x.new_ones(2, 32, 16), x.new_ones(2, 16, 16), x.new_zeros(len(x), 1).long(), x.new_ones(len(x), 1)
    ),
    "8-bit experts": lambda x: swiglu_experts(
        x,
        Int8Matrices(x.new_ones(2, 32, 16).to(torch.int8), x.new_ones(2, 32), x.dtype),
        Int8Matrices(x.new_ones(2, 16, 16).to(torch.int8), x.new_ones(2, 16), x.dtype),
        x.new_zeros(len(x), 1).long(),
        x.new_ones(len(x), 1),
    ),
    "cross_entropy": lambda x: linear_cross_entropy(x, x.new_ones(5, 16), x.new_zeros(len(x)).long()),
    "softmax": lambda x: softmax_attention(thirds(x), thirds(x), thirds(x)),
    "lightning": lambda x: lightning_attention(thirds(x), thirds(x), thirds(x), x.new_ones(2)),
    "int8_linear": lambda x: int8_linear(x, x.new_ones(5, 16).to(torch.int8), x.new_ones(5)),
}


@pytest.mark.parametrize("op", EVERY)
def test_fake_and_meta_tensors_work_or_raise(op: str) -> None:
    """They have no memory; to read it would end the process."""
    ran = []
    for make in (lambda: torch.ones(4, 16, device="meta"), lambda: torch.ones(4, 16)):
        with FakeTensorMode() if not ran else torch.no_grad():
            try:
                EVERY[op](make())
                ran.append(True)
            except (RuntimeError, ValueError, NotImplementedError):
                ran.append(False)
    assert ran[1]  # on the CPU it works
    if op not in ("experts", "8-bit experts", "softmax"):  # whose bodies in PyTorch look at numbers
        with FakeTensorMode():
            assert EVERY[op](torch.ones(4, 16)) is not None


@pytest.mark.parametrize("op", EVERY)
def test_another_default_device_changes_nothing(op: str) -> None:
    x = torch.randn(4, 16)
    flat = lambda result: [y for y in (result if isinstance(result, tuple) else (result,)) if torch.is_tensor(y)]  # noqa: E731
    before = flat(EVERY[op](x))
    torch.set_default_device("meta")
    try:
        after = flat(EVERY[op](x))
    finally:
        torch.set_default_device(None)
    assert all(map(torch.equal, before, after))


def test_weights_elsewhere_and_tensors_of_other_classes() -> None:
    x = torch.ones(3, 16)
    with pytest.raises(ValueError, match="rms_norm: tensors on one device expected; given cpu, meta"):
        rms_norm(x, torch.ones(16, device="meta"), 1e-5)

    class Mine(torch.Tensor):
        pass

    mine = x.as_subclass(Mine)
    assert torch.equal(rms_norm(mine, W, 1e-5), rms_norm(x, W, 1e-5, "torch"))
    with pytest.raises(ValueError, match="plain tensors"):
        rms_norm(mine, W, 1e-5, "native")
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(ValueError, match="plain tensors"):
        rms_norm(x, W, 1e-5, "native")


def _without_assertions(module: types.ModuleType) -> types.ModuleType:
    """The module as ``python -O`` would import it (which reads all of PyTorch anew, and takes a minute over it)."""
    assert module.__spec__ is not None and module.__file__ is not None
    again = importlib.util.module_from_spec(module.__spec__)
    exec(compile(Path(module.__file__).read_text(), module.__file__, "exec", optimize=1), again.__dict__)
    return again


def test_checks_do_not_depend_on_assertions() -> None:
    calling, declaring = _without_assertions(native), _without_assertions(functions)
    calling.FUNCTIONS = declaring.FUNCTIONS
    with pytest.raises(ValueError, match="one element behind another"):
        calling.call("leyden_silu", torch.float32, torch.arange(32.0)[::2], 16, torch.empty(16))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, while it traces
@pytest.mark.parametrize("op", ["gated_rms_norm", "route", "cross_entropy", "lightning"])
def test_compiled_functions_are_whole_graphs_of_pytorchs_bodies(op: str) -> None:
    torch._dynamo.reset()
    x = torch.randn(4, 16)
    compiled, plain = torch.compile(EVERY[op], backend="eager", fullgraph=True)(x), EVERY[op](x)
    for one, other in zip(*((y if isinstance(y, tuple) else (y,)) for y in (compiled, plain)), strict=True):
        if torch.is_tensor(one):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tokens": [4, 0, 0, 0, 0]}, "id is not in the vocabulary"),
        ({"tokens": [-1, 0, 0, 0, 0]}, "id is not in the vocabulary"),
        ({"tokens": [0, 0, 2, 0, 0]}, "slot is none"),
        ({"tokens": [0, 0, 0, -1, 0]}, "slot is none"),
        ({"tokens": [0, 256, 0, 0, 0]}, "behind the sequence's pages"),
        ({"tokens": [0, 0, 0, 0, 1]}, "behind the sequence's pages"),
        ({"page_tables": [2]}, "page is none"),
        ({"wanted": [1]}, "wanted token"),
        ({"cu_seqlens": [0, 2]}, "bounds"),
        ({"cu_seqlens": []}, "bounds"),
    ],
)
def test_a_step_outside_of_the_model_and_its_pools(changes: dict[str, list[int]], reason: str) -> None:
    layers = (LayerAddresses * 1)(LayerAddresses(MIXERS["softmax"]))  # so that pages matter
    model = ModelAddresses(norm_groups=1, vocab_size=4, num_layers=1, layers=layers, num_slots=2, num_pages=2)
    given = {"tokens": [0, 0, 0, 0, 0], "cu_seqlens": [0, 1], "wanted": [0], "page_tables": [1]} | changes
    with pytest.raises(ValueError, match=reason):
        decode_step(model, DecodeBatch(**given))


@pytest.mark.parametrize("changes", [{"num_experts": 3}, {"shared_width": 17}, {"mixer": MIXERS["sliding window"]}])
def test_a_step_of_a_layer_that_has_no_room(changes: dict[str, int]) -> None:
    layers = (LayerAddresses * 1)(LayerAddresses(**{"mixer": MIXERS["softmax"]} | changes))
    model = ModelAddresses(norm_groups=1, vocab_size=4, num_layers=1, layers=layers, num_slots=2, num_pages=2)
    with pytest.raises(ValueError, match=r"larger than is said|no place for a token"):
        decode_step(model, DecodeBatch(tokens=[0, 0, 0, 0, 0], cu_seqlens=[0, 1], wanted=[0], page_tables=[1]))


def test_a_step_of_layers_that_turn_needs_their_frequencies() -> None:
    layers = (LayerAddresses * 1)(LayerAddresses(MIXERS["cosFormer2"]))
    model = ModelAddresses(norm_groups=1, vocab_size=4, num_layers=1, layers=layers, num_slots=2, num_pages=2)
    with pytest.raises(ValueError, match="nothing says how fast"):
        decode_step(model, DecodeBatch(tokens=[0, 0, 0, 0, 0], cu_seqlens=[0, 1], wanted=[0], page_tables=[1]))


def test_a_step_of_a_mixer_that_it_has_no_body_for() -> None:
    layers = (LayerAddresses * 1)(LayerAddresses(max(MIXERS.values()) + 1))
    model = ModelAddresses(norm_groups=1, vocab_size=4, num_layers=1, layers=layers, num_slots=2, num_pages=2)
    with pytest.raises(ValueError, match="mixer is none"):
        decode_step(model, DecodeBatch(tokens=[0, 0, 0, 0, 0], cu_seqlens=[0, 1], wanted=[0], page_tables=[1]))


def test_structures_of_other_sizes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Longer(LayerAddresses):
        _fields_ = (("more", ctypes.c_int64),)

    monkeypatch.setattr("leyden.ops.decode.LayerAddresses", Longer)
    with pytest.raises(ValueError, match="laid out otherwise"):
        decode_step(ModelAddresses(norm_groups=1, vocab_size=4), DecodeBatch())
