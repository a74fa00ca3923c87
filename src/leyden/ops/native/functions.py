"""The signatures of the native library's functions, and the checks of every argument that Python hands to them.

A function of C++ believes its arguments. So each has a declaration here that says, of every argument in order, what it
is: ``T x[rows dim]`` is a contiguous tensor of rows times dim elements in the dtype T, which the first argument names;
``float32 weight[dim]?`` may also be None; of ``T q[tokens heads K]~`` the last dim alone must be contiguous, and C++
gets the strides of the others behind the address (more dims of 1 may come first); ``int rows`` is a number of 0 or more
and ``float eps`` any. The sizes in brackets are the numbers of the same call (``2 width`` is twice one), so that no
tensor can be shorter than what is read from it or written to it. A test holds the declarations to the prototypes in
C++. Indices inside of tensors are checked in C++, where they are read.
"""

import ctypes
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

DTYPES = (torch.bfloat16, torch.float32)
"""What the native bodies compute on."""

DECLARATIONS = (
    "leyden_silu(T; T x[count]; int count; T y[count])",
    "leyden_silu_backward(T; T dy[count]; T x[count]; int count; T dx[count])",
    "leyden_rms_norm(T; T x[rows dim]; T gate[rows dim]?; float32 weight[dim]; float eps; int rows; int dim;"
    " T y[rows dim]; float32 rstd[rows])",
    "leyden_rms_norm_backward(T; T dy[rows dim]; T x[rows dim]; T gate[rows dim]?; float32 weight[dim];"
    " float32 rstd[rows]; int rows; int dim; T dx[rows dim]; T dgate[rows dim]?; float32 dweight[dim])",
    "leyden_rotary(T; T x[tokens heads dim]; float32 cos[positions half]; float32 sin[positions half]; float sign;"
    " float scale; int tokens; int positions; int heads; int dim; int half; T y[tokens heads dim])",
    "leyden_route(float32 logits[rows num_experts]; int rows; int num_experts; int top_k;"
    " float32 probabilities[rows num_experts]; float32 weights[rows top_k]; int64 chosen[rows top_k])",
    "leyden_route_backward(float32 probabilities[rows num_experts]; float32 weights[rows top_k];"
    " int64 chosen[rows top_k]; float32 dweights[rows top_k]?; float32 dprobabilities[rows num_experts]?; int rows;"
    " int num_experts; int top_k; float32 dlogits[rows num_experts])",
    "leyden_sample(float32 logits[rows vocab]~; float64 filters[rows columns]; int rows; int vocab; int columns;"
    " int64 tokens[rows])",
    "leyden_int8_widen(T; int8 weight[rows dim]; float32 scale[rows]; int rows; int dim; T out[rows dim])",
    "leyden_token_nll(T; T logits[rows vocab]; int64 labels[rows]; float32 dnll[rows]?; float32 dlog_z[rows]?;"
    " int rows; int vocab; float z_loss; int differentiate; float32 nll[rows]; float32 z[rows])",
    "leyden_add_product(T; T a[depth rows]; T b[depth columns]; int depth; int rows; int columns;"
    " float32 y[rows columns])",
    "leyden_softmax(T; float32 scores[rows width]; float32 dp[rows width]?; int32 seen[2 period]; float scale;"
    " int rows; int period; int width; T p[rows width]; T ds[rows width]?)",
    "leyden_attention_probabilities(T; T q[rows dim]; T k[width dim]; int32 seen[2 period]; float scale; int rows;"
    " int period; int width; int dim; T p[rows width])",
    "leyden_attention_gradients(T; T q[rows dim]; T k[width dim]; T dout[rows dim]; T v[width dim];"
    " int32 seen[2 period]; float scale; int rows; int period; int width; int dim; T p[rows width]; T ds[rows width])",
    "leyden_causal_attention(T; T q[tokens heads K]~; T keys[places kv_heads K]~; T values[places kv_heads K]~;"
    " int32 table[used]?; int64 bounds[last]; int tokens; int heads; int K; int places; int kv_heads; int page;"
    " int used; int last; T out[tokens heads K])",
    "leyden_lightning_prefill(T; T q[tokens heads K]~; T k[tokens heads K]~; T v[tokens heads V]~;"
    " float32 slopes[heads]; float32 states[places heads K V]; int64 slots[sequences]; int64 bounds[last];"
    " int tokens; int heads; int K; int V; int places; int sequences; int last; int reversed; T out[tokens heads V])",
    "leyden_gated_attention(T; T q[tokens heads K]~; T k[tokens heads K]~; T v[tokens heads V]~;"
    " float32 log_decay[tokens heads K]; float32 states[places heads K V]; int64 slots[sequences]; int64 bounds[last];"
    " int tokens; int heads; int K; int V; int places; int sequences; int last; T out[tokens heads V])",
    "leyden_gated_attention_backward(T; T dout[tokens heads V]; float32 dfinal[sequences heads K V]?;"
    " T q[tokens heads K]~; T k[tokens heads K]~; T v[tokens heads V]~; float32 log_decay[tokens heads K];"
    " float32 initial[sequences heads K V]?; int64 bounds[last]; int tokens; int heads; int K; int V; int sequences;"
    " int last; T dq[tokens heads K]; T dk[tokens heads K]; T dv[tokens heads V]; float32 dlog_decay[tokens heads K];"
    " float32 dinitial[sequences heads K V])",
    "leyden_experts_sort(int64 experts[count]; bool kept[count]?; int count; int num_experts; int alignment;"
    " int capacity; int32 row[count]; int32 assignment[capacity]; int64 spans[last]; int last)",
    "leyden_experts_gather(T; T x[tokens dim]; int32 assignment[count]; int top_k; int dim; int tokens; int count;"
    " T rows[count dim])",
    "leyden_experts_sum(T; T rows[count dim]; int32 row[tokens top_k]; int top_k; int dim; int count; int tokens;"
    " T out[tokens dim])",
    "leyden_experts_activate(T; T projected[2 count width]; int32 assignment[count]; float32 weights[assignments];"
    " int width; int count; int assignments; T hidden[count width])",
    "leyden_experts_activate_backward(T; T projected[2 count width]; int32 assignment[count];"
    " float32 weights[assignments]; int width; int count; int assignments; T hidden[count width];"
    " T dprojected[2 count width]; float32 dweights[assignments])",
    "leyden_experts_forward(T; T x[tokens dim]; T gate_up[2 experts width dim]?; T down[experts dim width]?;"
    " int8 gate_up_bytes[2 experts width dim]?; float32 gate_up_scale[2 experts width]?;"
    " int8 down_bytes[experts dim width]?; float32 down_scale[experts dim]?; int32 assignment[rows];"
    " int32 row[tokens top_k]; int64 spans[last]; float32 weights[tokens top_k]; int experts; int last; int top_k;"
    " int tokens; int rows; int dim; int width; int stride; float32 y[rows stride]; T projected[rows 2 width]?;"
    " T out[tokens dim])",
    "leyden_experts_backward(T; T x[tokens dim]; T dy[tokens dim]; T gate_up[2 experts width dim];"
    " T down[experts dim width]; T projected[rows 2 width]; int32 assignment[rows]; int64 spans[last];"
    " float32 weights[tokens top_k]; int experts; int last; int top_k; int tokens; int rows; int dim; int width;"
    " int room; int packed; T to_pack[experts packed]; T hidden[room width]; T dprojected[2 room width];"
    " T drows[rows dim]; T dgate_up[2 experts width dim]; T ddown[experts dim width]; float32 dweights[tokens top_k])",
)

Argument = torch.Tensor | torch.dtype | int | float | None

_NAMES = {name: getattr(torch, name) for name in ("float32", "float64", "int8", "int32", "int64", "bool")}
_DECLARED = re.compile(r"(\w+)\((.*)\)")
_PARAMETER = re.compile(r"(\w+)(?: (\w+))?(?:\[([\w ]+)\])?([?~]?)")
_PLAIN = (torch.Tensor, torch.nn.Parameter)
_NUMBERS = (int, float)
_MOST = 1 << 62


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether the tensor is on the CPU and of no class of its own, such as a fake one."""
    return type(tensor) in _PLAIN and tensor.is_cpu


@dataclass(frozen=True)
class Parameter:
    """One argument of a function.

    Attributes:
        kind: ``"T"`` alone (a dtype), ``"int"``, ``"float"``, or the dtype of a tensor.
        name: empty for the dtype.
        sizes: of a tensor, its dims in words.
        places: where those that are arguments stand among them.
        factor: what else the tensor's elements are multiplied by.
        mark: ``"?"`` where None is allowed, ``"~"`` where strides follow.
    """

    kind: str
    name: str
    sizes: str
    places: tuple[int, ...]
    factor: int
    mark: str

    @property
    def is_tensor(self) -> bool:
        """Whether C++ gets an address."""
        return bool(self.sizes)


class Function:
    """One function of the library, by its declaration.

    Attributes:
        name: of the function.
        parameters: of Python; C++ has the strides and the number of threads besides.
    """

    def __init__(self, declaration: str) -> None:
        declared = _DECLARED.fullmatch(declaration)
        assert declared is not None, declaration
        self.name = declared[1]
        found = [_PARAMETER.fullmatch(text.strip()) for text in declared[2].split(";")]
        places = {match[2]: place for place, match in enumerate(found) if match}
        self.parameters = [_parameter(match, places) for match in found if match]
        assert len(self.parameters) == len(found), declaration
        self._plan = [
            (place, part.is_tensor, part.kind, _NAMES.get(part.kind), part.places, part.factor, part.mark == "~")
            for place, part in enumerate(self.parameters)
        ]

    def ctypes(self) -> list[type]:
        """The types of C++'s arguments, the number of threads included."""
        types: list[type] = []
        for parameter in self.parameters:
            if parameter.is_tensor:
                strides = len(parameter.places) - 1 if parameter.mark == "~" else 0
                types += [ctypes.c_void_p, *[ctypes.c_int64] * strides]
            else:
                types.append(ctypes.c_float if parameter.kind == "float" else ctypes.c_int64)
        return [*types, ctypes.c_int64]

    def given(self, arguments: Sequence[Any]) -> list[int | float | None]:
        """The arguments as C++ takes them, without the number of threads.

        Raises:
            ValueError: one is not what is declared; nothing was called.
        """
        if len(arguments) != len(self.parameters):
            raise ValueError(f"{self.name}: {len(self.parameters)} arguments expected; given {len(arguments)}.")
        dtype, given = None, []
        # What is right costs little: a step of training makes hundreds of calls.
        for (place, is_tensor, kind, wanted, names, factor, strided), value in zip(self._plan, arguments, strict=True):
            if is_tensor:
                sizes = [arguments[name] for name in names]
                if _fits(value, wanted or dtype, sizes, factor, strided):
                    given.append(value.data_ptr())
                    if strided:
                        given += value.stride()[-len(sizes) : -1]
                elif value is None and self.parameters[place].mark == "?":
                    given.append(None)
                else:
                    self._refuse(place, arguments)
            elif kind == "T":
                if value not in DTYPES:
                    self._refuse(place, arguments)
                dtype = value
                given.append(int(value is torch.bfloat16))
            else:
                number = isinstance(value, int) and 0 <= value < _MOST if kind == "int" else isinstance(value, _NUMBERS)
                if not number:
                    self._refuse(place, arguments)
                given.append(value)
        return given

    def _refuse(self, place: int, arguments: Sequence[Any]) -> NoReturn:
        parameter, value = self.parameters[place], arguments[place]
        if not parameter.is_tensor:
            wanted = {"T": "bfloat16 or float32", "int": "a number of 0 or more", "float": "a number"}[parameter.kind]
            raise ValueError(f"{self.name}: {wanted} for {parameter.name or 'the dtype'} expected; given {value!r}.")
        sizes = ", ".join(f"{self.parameters[at].name} = {arguments[at]!r}" for at in parameter.places)
        dtype = arguments[0] if parameter.kind == "T" else _NAMES[parameter.kind]
        where = "by strides, the last dim" if parameter.mark == "~" else "one element behind another"
        raise ValueError(
            f"{self.name}: {parameter.name} [{parameter.sizes}] in {dtype} with {sizes} expected, {where}, on the CPU; "
            f"given {_described(value)}."
        )


def _fits(value: Any, dtype: torch.dtype | None, sizes: list[Any], factor: int, strided: bool) -> bool:
    if type(value) not in _PLAIN or not value.is_cpu or value.dtype is not dtype or value.is_neg():
        return False
    if value.layout is not torch.strided:
        return False
    count = factor
    for size in sizes:
        if not isinstance(size, int):
            return False
        count *= size
    if value.numel() != count or not (value.data_ptr() or not count):
        return False
    if not strided:
        return value.is_contiguous()
    # Strides of dims of one element, and of tensors without any, mean nothing.
    return list(value.shape[-len(sizes) :]) == sizes and (value.stride(-1) == 1 or sizes[-1] == 1 or not count)


def _parameter(match: re.Match[str], places: dict[str, int]) -> Parameter:
    kind, name, sizes, mark = match.groups()
    words = (sizes or "").split()
    factor = math.prod(int(word) for word in words if word.isdigit())
    found = tuple(places[word] for word in words if not word.isdigit())
    return Parameter(kind, name or "", sizes or "", found, factor, mark)


def _described(value: object) -> str:
    if not isinstance(value, torch.Tensor):
        return repr(value)
    if not is_plain(value):
        return f"a {type(value).__name__} {list(value.shape)} of {value.dtype} on {value.device}, {value.layout}"
    return f"{list(value.shape)} of {value.dtype} with strides {list(value.stride())}"


FUNCTIONS = {function.name: function for function in map(Function, DECLARATIONS)}
