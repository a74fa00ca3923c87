"""What one optimizer step computes, as a plan divides it."""

from dataclasses import dataclass

from leyden.parallel.plan import Plan


@dataclass(frozen=True)
class StepShape:
    """The tokens of an optimizer step.

    Attributes:
        seq_len: of a sequence.
        micro_batch_tokens: that go through the model at once, on all data ranks together.
        num_micro_batches: a step.
    """

    seq_len: int
    micro_batch_tokens: int
    num_micro_batches: int = 1

    @property
    def tokens(self) -> int:
        """Of the whole step."""
        return self.micro_batch_tokens * self.num_micro_batches

    @property
    def sequences(self) -> int:
        """Of a micro-batch."""
        return self.micro_batch_tokens // self.seq_len

    def row_tokens(self, plan: Plan) -> int:
        """Of the packed row that the context and tensor ranks of one data rank share."""
        return self.micro_batch_tokens // plan.dp
