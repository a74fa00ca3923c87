"""Compiles the Triton kernels of an op for GPUs that are not there, and prints what each takes; run as a program.

The ops are called on CPU tensors with a recorder in the place of their kernels. What they would launch is then compiled
for each architecture: a kernel that a compiler refuses is found without a GPU, and so are registers that do not
suffice.
"""

import contextlib
import functools
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any
from unittest import mock

import torch
import triton
from compiled import Facts
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from leyden.ops import launching

_TYPES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.int8: "*i8",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.bool: "*i1",
}
_OPTIONS = ("num_warps", "num_stages", "maxnreg")


@dataclass(frozen=True)
class Launch:
    """One kernel as an op would launch it.

    Attributes:
        name: the kernel's.
        form: the values of its compile-time constants that tell its forms apart.
        source: what Triton compiles.
        options: warps and stages.
    """

    name: str
    form: dict[str, Any]
    source: ASTSource
    options: dict[str, int]

    @classmethod
    def of(cls, kernel: JITFunction, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> "Launch":
        options = {name: keywords[name] for name in _OPTIONS if name in keywords}
        given = dict(zip(kernel.arg_names, arguments, strict=False))
        given |= {name: value for name, value in keywords.items() if name not in _OPTIONS}
        parameters = {p.name: p for p in kernel.params}
        constant = {name for name, p in parameters.items() if p.is_constexpr}
        signature, constants, attributes = {}, {}, {}
        for index, name in enumerate(kernel.arg_names):
            value, special = given[name], not parameters[name].do_not_specialize
            if name in constant or value is None or (isinstance(value, int) and value == 1 and special):
                signature[name], constants[(index,)] = "constexpr", value
            elif isinstance(value, torch.Tensor):
                signature[name], attributes[(index,)] = _TYPES[value.dtype], [["tt.divisibility", 16]]
            elif isinstance(value, float):
                signature[name] = "fp32"
            else:
                signature[name] = "i32" if abs(value) < 1 << 31 else "i64"
                if value % 16 == 0 and special:
                    attributes[(index,)] = [["tt.divisibility", 16]]
        form = {
            name: given[name] for name in kernel.arg_names if name in constant and isinstance(given[name], bool | int)
        }
        return cls(kernel.__name__, form, ASTSource(kernel, signature, constants, attributes), options)

    def key(self) -> str:
        """Equal for launches that are compiled once."""
        return f"{self.source.hash()} {self.options}"


@dataclass
class Recorder:
    """Stands for a module of kernels, and launches nothing."""

    kernels: Any
    launches: list[Launch] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        kernel = getattr(self.kernels, name)
        if not isinstance(kernel, JITFunction):
            return kernel
        recorder = self

        class Grid:
            def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
                return lambda *arguments, **keywords: recorder.launches.append(Launch.of(kernel, arguments, keywords))

        return Grid()


def record(launch_module: str, call: Callable[[Any], None], *others: str) -> list[Launch]:
    """What ``call(module)`` launches, by the module itself or by ``others``."""
    launches: list[Launch] = []
    with contextlib.ExitStack() as stack:
        for name in (launch_module, *others):
            module = importlib.import_module(name)
            if hasattr(module, "kernels"):
                recorder = Recorder(module.kernels.module, launches)
                stack.enter_context(mock.patch.object(module, "kernels", recorder))
        call(importlib.import_module(launch_module))
    return launches


_LIGHTNING, _WALK = (f"leyden.ops.lightning_attention.{name}" for name in ("launch", "walk"))
_GATED = "leyden.ops.gated_linear_attention.launch"


def lightning(dtype: torch.dtype, width: int, op: str = _LIGHTNING) -> Iterator[Launch]:
    """Forward, backward, prefill and decoding, of few heads and of many, with documents whole and cut."""

    def call(module: Any) -> None:
        for heads, tokens in ((2, 100), (200, 100), (2, 70_000)):
            for ragged in (False, True):
                _train(module, dtype, tokens, heads, width, ragged=ragged)
            _serve(module, dtype, tokens, heads, width)
        for tokens in (10, 30):  # the tiles of short documents
            _serve(module, dtype, tokens, 2, width)

    yield from record(op, call, _WALK)


def lightning_hot(dtype: torch.dtype, width: int, op: str = _LIGHTNING) -> Iterator[Launch]:
    """What takes the time: training on rows, of many heads and of few, which are cut, and decoding."""

    def call(module: Any) -> None:
        _train(module, dtype, 100, 200, width)
        _train(module, dtype, 70_000, 2, width)
        _serve(module, dtype, 1, 2, width)

    yield from record(op, call, _WALK)


def lightning_forward(dtype: torch.dtype, width: int, op: str = _LIGHTNING) -> Iterator[Launch]:
    """Each kernel in few forms: the forward on a row of few heads, which is cut, and decoding."""

    def call(module: Any) -> None:
        _train(module, dtype, 70_000, 2, width, backward=False)
        _serve(module, dtype, 1, 2, width)

    yield from record(op, call, _WALK)


def _decays(module: Any, tokens: int, heads: int, width: int) -> torch.Tensor:
    """One a head, or of gated linear attention one a token, head and dim."""
    return torch.zeros((tokens, heads, width) if module.__name__ == _GATED else (heads,), device="meta")


def _train(
    module: Any,
    dtype: torch.dtype,
    tokens: int,
    heads: int,
    width: int,
    *,
    ragged: bool = False,
    backward: bool = True,
) -> None:
    x, decays = torch.zeros(tokens, heads, width, dtype=dtype, device="meta"), _decays(module, tokens, heads, width)
    cu_seqlens = torch.zeros(2, dtype=torch.int64, device="meta") if ragged else None
    initial = torch.zeros(1, heads, width, width, device="meta") if ragged else None
    _, _, entries = module._forward._init_fn(x, x, x, decays, initial, cu_seqlens, 1)
    if not backward:
        return
    entries = entries if entries.numel() else None
    module._backward._init_fn(x, initial, x, x, x, decays, initial, entries, cu_seqlens, 1)


def _serve(module: Any, dtype: torch.dtype, tokens: int, heads: int, width: int) -> None:
    x, decays = torch.zeros(tokens, heads, width, dtype=dtype, device="meta"), _decays(module, tokens, heads, width)
    states, slots = torch.zeros(1, heads, width, width, device="meta"), torch.zeros(1, dtype=torch.int64, device="meta")
    if tokens > 1:
        module.prefill._init_fn(x, x, x, decays, states, slots, torch.zeros(2, dtype=torch.int64, device="meta"))
    decays = decays[:1] if decays.ndim == 3 else decays
    module.decode._init_fn(x[:1], x[:1], x[:1], decays, states, slots)
    module.step._init_fn(x[:1], x[:1], x[:1], decays, states)


def cross_entropy(dtype: torch.dtype, width: int) -> Iterator[Launch]:
    """Without gradients, with those of a sum and with those that a backward gives, over ``width`` thousand words."""
    hidden, weight = torch.zeros(2, 16, dtype=dtype), torch.zeros(1000 * width, 16, dtype=dtype)

    def call(module: Any) -> None:
        labels, ones = torch.tensor([0, -100]), torch.ones(2)
        for *upstream, differentiate in ((None, None, False), (None, None, True), (ones, ones, True)):
            module._pass(hidden, weight, labels, *upstream, 1e-4, differentiate)

    yield from record("leyden.ops.cross_entropy.launch", call)


def paged_attention(dtype: torch.dtype, width: int) -> Iterator[Launch]:
    """Eight queries to a key head."""
    q, pages = torch.zeros(2, 16, width, dtype=dtype), torch.zeros(3, 64, 2, width, dtype=dtype)
    table, lengths = torch.zeros(2, 40, dtype=torch.int32), torch.tensor([64, 0], dtype=torch.int32)
    yield from record(
        "leyden.ops.paged_attention.launch", lambda module: module._paged_attention(q, pages, pages, table, lengths)
    )


def paged_latent_attention(dtype: torch.dtype, width: int) -> Iterator[Launch]:
    """Thirty-two heads, 64 dims of which turn beside latents of ``width``."""
    q, pages = torch.zeros(2, 32, width + 64, dtype=dtype), torch.zeros(3, 64, width + 64, dtype=dtype)
    table, lengths = torch.zeros(2, 40, dtype=torch.int32), torch.tensor([64, 0], dtype=torch.int32)
    yield from record(
        "leyden.ops.paged_latent_attention.launch",
        lambda module: module._paged_latent_attention(q, pages, width, 0.1, table, lengths),
    )


def ranged_attention(dtype: torch.dtype, width: int) -> Iterator[Launch]:
    """Eight queries to a key head, forward and backward."""
    q, k = torch.zeros(2, 16, width, dtype=dtype), torch.zeros(3, 2, width, dtype=dtype)
    first, last, lse = torch.zeros(2, dtype=torch.int32), torch.tensor([1, 3], dtype=torch.int32), torch.zeros(2, 16)

    def call(module: Any) -> None:
        module._forward(q, k, k, first, last)
        module._backward(q, q, k, k, lse, lse, first, last)

    yield from record("leyden.ops.ranged_attention.launch", call)


def ranged_attention_hot(dtype: torch.dtype, width: int) -> Iterator[Launch]:
    """The same without what runs where a number is not finite."""
    return (launch for launch in ranged_attention(dtype, width) if not launch.form.get("CAREFUL"))


def rms_norm(dtype: torch.dtype, width: int) -> Iterator[Launch]:
    """Alone, gated, and of a residual, forward and backward."""
    x, weight = torch.zeros(4096, width, dtype=dtype), torch.ones(width)

    def call(module: Any) -> None:
        for added, gate in ((None, None), (None, x), (x, None)):
            _, rstd = module._forward(x, added, gate, weight, 1e-5, 1.5, 0.5)
            module._backward(x, x, added, gate, weight, rstd, 1.5, 0.5)

    yield from record("leyden.ops.rms_norm.launch", call)


def rotary(dtype: torch.dtype, width: int) -> Iterator[Launch]:
    """Half of the dims, there and back."""
    x, angles = torch.zeros(2, 40, 64, width, dtype=dtype), torch.zeros(40, width // 4)

    def call(module: Any) -> None:
        for inverse in (False, True):
            module._turn(x, angles, angles, 1.0, inverse)

    yield from record("leyden.ops.rotary.launch", call)


def silu_split(dtype: torch.dtype, width: int) -> Iterator[Launch]:
    """Heads of ``width``, forward and backward."""
    qkv = torch.zeros(4096, 3 * width, dtype=dtype)
    yield from record("leyden.ops.silu_split.launch", lambda module: module._backward(*module._forward(qkv), qkv))


def experts(dtype: torch.dtype, width: int) -> Iterator[Launch]:
    """Two of four experts a token, forward and backward."""
    x, weights = torch.zeros(3, width, dtype=dtype), torch.ones(3, 2)
    gate_up, down = x.new_zeros(4, 2 * width, width), x.new_zeros(4, width, width)
    chosen = torch.tensor([[0, 2], [2, 1], [0, 1]])

    def call(module: Any) -> None:
        out, *saved = module._forward(x, gate_up, down, chosen, weights, None)
        module._backward(out, x, gate_up, down, weights, *saved)

    yield from record("leyden.ops.experts.launch", call)


def experts_int8(dtype: torch.dtype, width: int) -> Iterator[Launch]:
    """With one row for an expert, with forty, and with five hundred."""
    both, one = torch.zeros(4, 2 * width, width, dtype=torch.int8), torch.zeros(4, width, width, dtype=torch.int8)
    scales = torch.zeros(4, 2 * width), torch.zeros(4, width)

    def call(module: Any) -> None:
        module.unpermute = lambda rows, row_of, ends, num_tokens: rows[:num_tokens]  # launched by another module
        for tokens in (2, 80, 1000):
            x, weights = torch.zeros(tokens, width, dtype=dtype), torch.ones(tokens, 2)
            chosen = torch.tensor([[0, 2]]).expand(tokens, 2)
            module._forward(x, both, scales[0], one, scales[1], chosen, weights, None)

    yield from record("leyden.ops.experts.launch_int8", call)


def int8_linear(dtype: torch.dtype, width: int) -> Iterator[Launch]:
    """One row, thirty and seventy to three hundred outputs."""
    weight, scale = torch.zeros(300, width, dtype=torch.int8), torch.zeros(300)

    def call(module: Any) -> None:
        for rows in (1, 30, 70):
            module._int8_linear(torch.zeros(rows, width, dtype=dtype), weight, scale)

    yield from record("leyden.ops.int8_linear.launch", call)


def routing(_: torch.dtype, width: int) -> Iterator[Launch]:
    """Two of ``width`` experts, with gradients of the weights, of the probabilities, and of both; in float32 alone."""
    logits = torch.zeros(3, width)

    def call(module: Any) -> None:
        chosen, weights, probabilities = module._forward(logits, 2)
        chosen.zero_()
        for grads in ((weights, None), (None, probabilities), (weights, probabilities)):
            module._backward(chosen, weights, probabilities, *grads)

    yield from record("leyden.ops.routing.launch", call)


OPS = {
    "lightning_attention": lightning,
    "lightning_attention_hot": lightning_hot,
    "lightning_attention_forward": lightning_forward,
    "gated_linear_attention": functools.partial(lightning, op=_GATED),
    "gated_linear_attention_hot": functools.partial(lightning_hot, op=_GATED),
    "gated_linear_attention_forward": functools.partial(lightning_forward, op=_GATED),
    "cross_entropy": cross_entropy,
    "paged_attention": paged_attention,
    "paged_latent_attention": paged_latent_attention,
    "ranged_attention": ranged_attention,
    "ranged_attention_hot": ranged_attention_hot,
    "rms_norm": rms_norm,
    "rotary": rotary,
    "silu_split": silu_split,
    "experts": experts,
    "experts_int8": experts_int8,
    "int8_linear": int8_linear,
    "routing": routing,
}


def main(ops: str, dtype: str, *architectures: str) -> None:
    """One JSON line a kernel and architecture; ``ops`` are names with their widths, ``rotary:64,experts:2048``."""
    for architecture in map(int, architectures):
        launching._OFF_A_GPU = architecture // 10
        launches: dict[str, tuple[str, Launch]] = {}
        for op, _, width in (named.partition(":") for named in ops.split(",")):
            found = OPS[op](getattr(torch, dtype), int(width))
            launches |= {launch.key(): (f"{op}.{launch.name}", launch) for launch in found}
        for name, launch in launches.values():
            compiled = triton.compile(launch.source, GPUTarget("cuda", architecture, 32), launch.options)
            facts = asdict(Facts.of(compiled, architecture))
            line = {"kernel": name, "architecture": architecture, "form": launch.form, **launch.options, **facts}
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
