"""Weight maps join what they split, and use each name once."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leyden.checkpoint.rules import Binding, WeightRule, bind
from leyden.model import ModelConfig

CONFIG = ModelConfig(num_hidden_layers=1, num_local_experts=3)


@given(num_parts=st.integers(1, 5), rows=st.integers(1, 4), columns=st.integers(1, 3))
def test_join_undoes_split(num_parts: int, rows: int, columns: int) -> None:
    whole = torch.randn(num_parts, rows, columns)
    binding = Binding("w", tuple(whole.shape), tuple(f"w{i}" for i in range(num_parts)))
    parts = binding.split(whole)
    assert [part.shape for part in parts] == [binding.part_shape] * num_parts
    assert torch.equal(binding.join(parts), whole)


@given(heads=st.integers(1, 3), order=st.permutations(range(6)))
def test_rows_are_reordered_within_each_head_and_back(heads: int, order: list[int]) -> None:
    whole = torch.arange(heads * 6.0)[:, None]
    binding = Binding("w", tuple(whole.shape), ("w",), torch.tensor(order))
    (part,) = binding.split(whole)
    assert part[:6, 0].tolist() == order
    assert torch.equal(binding.join([part]), whole)


def test_experts_are_stacked_expert_by_expert() -> None:
    rules = (WeightRule("layers.{layer}.up", ("l.{layer}.{expert}.a", "l.{layer}.{expert}.b")),)
    (binding,) = bind(rules, CONFIG, {"layers.7.up": (3, 4, 2)})
    assert binding.theirs == ("l.7.0.a", "l.7.0.b", "l.7.1.a", "l.7.1.b", "l.7.2.a", "l.7.2.b")
    parts = binding.split(torch.arange(24.0).view(3, 4, 2))
    assert torch.equal(parts[3], torch.tensor([[12.0, 13.0], [14.0, 15.0]]))


@pytest.mark.parametrize(
    ("rules", "shapes", "said"),
    [
        ((WeightRule("a", ("x",)),), {"b": (1,)}, "0 rules .* the parameter b"),
        ((WeightRule("a", ("x",)), WeightRule("{name}", ("y",))), {"a": (1,)}, "2 rules .* the parameter a"),
        ((WeightRule("{name}", ("x",)),), {"a": (1,), "b": (1,)}, "same tensor"),
    ],
)
def test_a_map_that_is_not_one_to_one_is_a_defect(rules: tuple[WeightRule, ...], shapes: dict, said: str) -> None:
    with pytest.raises(LookupError, match=said):
        bind(rules, CONFIG, shapes)
