"""A state that is trained beside that of a run, and lies in its checkpoints."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from leyden.checkpoint.pieces import TensorPiece

if TYPE_CHECKING:
    from leyden.train.state import TrainState


@dataclass(frozen=True)
class Beside:
    """A state whose tensors and counters lie in the checkpoints of another.

    Attributes:
        name: of its part of them.
        state: it.
        begin: gives it the weights that it begins with.
    """

    name: str
    state: "TrainState"
    begin: Callable[[], None]

    def has(self, tensor: str) -> bool:
        """Whether a tensor of a checkpoint is one of its own."""
        return tensor.startswith(f"{self.name}.")

    def pieces(self) -> dict[str, TensorPiece]:
        """By the names that they have in a checkpoint."""
        return {f"{self.name}.{name}": piece for name, piece in self.state.own_pieces().items()}

    def values(self) -> dict[str, int]:
        """Its counters, for a checkpoint."""
        state = self.state
        return {
            "step": state.step,
            "skipped_in_a_row": state.skipped_in_a_row,
            "optimizer_steps": state.optimizer.num_steps,
        }

    def take(self, values: Mapping[str, Any]) -> None:
        """Go on by the values of a checkpoint, once its tensors are loaded."""
        own, state = values["beside"][self.name], self.state
        state.optimizer.round_into_model()
        state.step, state.skipped_in_a_row = own["step"], own["skipped_in_a_row"]
        state.optimizer.num_steps = own["optimizer_steps"]

    def begin_anew(self, step: int) -> None:
        """As if no step had been taken, beside a state that has taken ``step``."""
        state = self.state
        for name, tensor in state.optimizer.tensors().items():
            if not name.startswith("master."):
                tensor.zero_()
        state.step, state.skipped_in_a_row, state.optimizer.num_steps = step, 0, 0
        self.begin()
