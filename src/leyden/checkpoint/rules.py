"""Weight maps: which tensors of a file make which parameter of the model, said once and used in both directions.

A map is a tuple of :class:`WeightRule`. Bound to a model's parameters it becomes a list of :class:`Binding`, one a
parameter, which joins the parts read from a file and splits a parameter into the parts to write. Each parameter is
made by exactly one rule, and each tensor of the file, or each part of one, goes into exactly one parameter.

Where a file has several parameters in one tensor, above one another, the names of their parts are that of the tensor
and ``#0``, ``#1`` and so on (:func:`whole_name`).
"""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch

from leyden.model import ModelConfig
from leyden.model.config import LayerType

_FIELDS = {"layer": r"\d+", "name": r".+"}
_PART = re.compile(r"(.+)#\d+")


@dataclass(frozen=True)
class WeightRule:
    """One line of a weight map.

    Attributes:
        ours: pattern of our parameter names; ``{layer}`` is a number, ``{name}`` any text.
        theirs: names in the file, one or several. With ``{expert}`` there is one set an expert. Several parts lie
            above one another in our matrix: expert by expert, and within an expert in the order given. One that ends
            in ``#0``, ``#1`` and so on is a part of a tensor that other parameters have the rest of.
        rows: how the file orders the rows within each head (theirs[i] = ours[rows[i]]); None: as we do.
        kind: the type of the layers that the rule is for; None: of all.
    """

    ours: str
    theirs: tuple[str, ...]
    rows: Callable[[ModelConfig], torch.Tensor | None] | None = None
    kind: LayerType | None = None

    def match(self, name: str, config: ModelConfig) -> dict[str, str] | None:
        """The fields of ``name`` if it is one of ours, in a layer that the rule is for, else None."""
        found = re.fullmatch(
            re.sub(r"\\{(\w+)\\}", lambda m: f"(?P<{m[1]}>{_FIELDS[m[1]]})", re.escape(self.ours)), name
        )
        if found is None or (self.kind is not None and config.layer_types[int(found["layer"])] != self.kind):
            return None
        return found.groupdict()


@dataclass(frozen=True)
class Binding:
    """A rule applied to one parameter.

    Attributes:
        ours: the parameter's name.
        shape: its shape.
        theirs: the tensors of the file that make it, in order.
        rows: [head_dim] int64, as in :class:`WeightRule`.
    """

    ours: str
    shape: tuple[int, ...]
    theirs: tuple[str, ...]
    rows: torch.Tensor | None = None

    @property
    def part_shape(self) -> tuple[int, ...]:
        """The shape of each tensor in the file."""
        if len(self.theirs) == 1:
            return self.shape
        *rows, columns = self.shape
        return torch.Size(rows).numel() // len(self.theirs), columns

    def join(self, parts: list[torch.Tensor]) -> torch.Tensor:
        """Make our parameter of the file's tensors; the inverse of :meth:`split`."""
        whole = parts[0] if len(parts) == 1 else torch.cat(parts).view(self.shape)
        return whole if self.rows is None else order_rows(whole, self.rows.argsort())

    def split(self, whole: torch.Tensor) -> list[torch.Tensor]:
        """Make the file's tensors of our parameter; the inverse of :meth:`join`."""
        if self.rows is not None:
            whole = order_rows(whole, self.rows)
        return [whole] if len(self.theirs) == 1 else list(whole.flatten(0, -2).chunk(len(self.theirs)))


def order_rows(matrix: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Reorder the rows of each head of a projection [H * head_dim, ...]."""
    heads = matrix.unflatten(0, (-1, rows.numel()))
    return heads[:, rows.to(matrix.device)].flatten(0, 1)


def bind(rules: Iterable[WeightRule], config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> list[Binding]:
    """Apply a weight map to the parameters of a model.

    Args:
        rules: the map.
        config: the model's shape.
        shapes: our parameters' names and shapes.

    Raises:
        LookupError: a parameter that no rule or more than one makes, or a name of the file used twice (a defect of
            the map, not of a file).
    """
    rules = list(rules)
    bindings = []
    for name, shape in shapes.items():
        found = [(rule, fields) for rule in rules if (fields := rule.match(name, config)) is not None]
        if len(found) != 1:
            raise LookupError(f"{len(found)} rules of the weight map make the parameter {name}; it needs one.")
        rule, fields = found[0]
        stacked = any("{expert}" in template for template in rule.theirs)
        experts = range(config.num_local_experts) if stacked else [None]
        theirs = tuple(t.format(**fields, expert=expert) for expert in experts for t in rule.theirs)
        bindings.append(Binding(name, tuple(shape), theirs, rule.rows(config) if rule.rows else None))
    names = [name for binding in bindings for name in binding.theirs]
    if len(set(names)) != len(names):
        raise LookupError("two parameters of the model are made of the same tensor of the file.")
    return bindings


def whole_name(name: str) -> str:
    """Of a name of :attr:`Binding.theirs`, that of the tensor of the file: ``"qkv.weight"`` of ``"qkv.weight#1"``."""
    part = _PART.fullmatch(name)
    return part[1] if part else name


def parts_of_tensors(bindings: Iterable[Binding]) -> dict[str, dict[str, tuple[int, ...]]]:
    """For each tensor of the file, by name, its parts from top to bottom with their shapes: itself, or several.

    Raises:
        LookupError: parts of a tensor that are not named in their order (a defect of the map).
    """
    found = dict[str, dict[str, tuple[int, ...]]]()
    for binding in bindings:
        for name in binding.theirs:
            found.setdefault(whole_name(name), {})[name] = tuple(binding.part_shape)
    for whole, parts in found.items():
        if list(parts) not in ([whole], [f"{whole}#{i}" for i in range(len(parts))]):
            raise LookupError(f"the weight map has the parts of {whole} in the order {', '.join(parts)}.")
    return found


def shapes_of_tensors(bindings: Iterable[Binding]) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the tensors of the file."""
    shapes = dict[str, tuple[int, ...]]()
    for whole, parts in parts_of_tensors(bindings).items():
        first, *_ = parts.values()
        shapes[whole] = first if len(parts) == 1 else (sum(shape[0] for shape in parts.values()), *first[1:])
    return shapes


def put_together(parts: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Parts in the order of their names to the tensors of the file."""
    for name, group in itertools.groupby(parts, lambda part: whole_name(part[0])):
        tensors = [tensor for _, tensor in group]
        yield name, tensors[0] if len(tensors) == 1 else torch.cat(tensors)
