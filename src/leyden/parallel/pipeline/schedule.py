"""A rank's stages and the order of their work: 1F1B (arXiv 2006.09503) and interleaved 1F1B (arXiv 2104.04473).

The schedules are those of torch.distributed.pipelining. What a stage needs besides hidden states, the tokens, labels
and documents of a micro-batch, every rank has already: only the number of the micro-batch goes through the schedule.
"""

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from leyden.core.errors import UserError
from leyden.model import HybridLM, ModelConfig, Rope, check_tokens
from leyden.parallel.mesh import Mesh
from leyden.parallel.objective import Objective, Row, Sums, sums_of_features, sums_of_nothing
from leyden.parallel.pipeline.split import split_layers
from leyden.parallel.pipeline.stage import StageFeatures, StageModel, boundary

if TYPE_CHECKING:
    from torch.distributed.pipelining import Schedule1F1B, ScheduleInterleaved1F1B


class Pipeline(nn.Module):
    """The stages that one rank has: stage s is with pipeline rank ``s % pp``.

    Its weights have the names of the whole model.

    Args:
        model: its modules become the stages'; not used again by itself.
        mesh: of the ranks, more than one of them along the pipeline.
        row_tokens: the stages are dealt so that they cost alike at documents of this length.
        dtype: of the computation, and of the hidden states between stages.

    Raises:
        ValueError: fewer layers than stages, or one pipeline rank.
    """

    def __init__(self, model: HybridLM, mesh: Mesh, row_tokens: int, dtype: torch.dtype) -> None:
        super().__init__()
        if mesh.groups["pp"] is None:
            raise ValueError("a pipeline has at least 2 ranks; a model on one needs no stages (plan.pp = 1).")
        layers = split_layers(model.config, mesh.plan.num_stages, row_tokens)
        self._mesh, self._dtype = mesh, dtype
        self._stage_numbers = range(mesh.at["pp"], mesh.plan.num_stages, mesh.plan.pp)
        stages = nn.ModuleList(StageModel(model, layers[number]) for number in self._stage_numbers)
        self.stages = cast("Sequence[StageModel]", stages)
        self._schedule: Schedule1F1B | ScheduleInterleaved1F1B | None = None
        self._schedule_shape = (0, 0)
        self._objective: Objective | None = None
        self._sums: list[Sums] = []

    @property
    def config(self) -> ModelConfig:
        """Of the whole model."""
        return self.stages[0].config

    def set_rope(self, rope: Rope) -> None:
        """As :meth:`leyden.model.HybridLM.set_rope`, in all stages."""
        for stage in self.stages:
            stage.config = stage.config.with_rope(rope)

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Generator[tuple[str, nn.Module], None, None]:
        """Those of the stages, by their names in the whole model; so named_parameters() and named_buffers() too."""
        memo = set() if memo is None else memo
        for stage in self.stages:
            yield from stage.named_modules(memo, prefix, remove_duplicate)

    def state_dict(self, *args: Any, **options: Any) -> dict[str, Any]:
        """Those of the stages, by their names in the whole model."""
        return {name: value for stage in self.stages for name, value in stage.state_dict(*args, **options).items()}

    def run(self, batches: Sequence[Row], objective: Objective) -> list[Sums]:
        """Forward and backward of one optimizer step; the gradients of all micro-batches are summed in ``grad``.

        Args:
            batches: the micro-batches, the same ones on all ranks of the pipeline and of one length.
            objective: gives the loss of each.

        Returns:
            The sums of each micro-batch where the last stage is, of nothing on the other ranks: over all ranks of the
            pipeline, and those that share its rows, they are what one process would find.

        Raises:
            UserError: rows of several lengths, too few for the schedule, or longer than the model can read.
        """
        return self._go_through(batches, objective, backward=True)

    def evaluate(self, batches: Sequence[Row], objective: Objective) -> list[Sums]:
        """As :meth:`run`, forward alone and without gradients."""
        return self._go_through(batches, objective, backward=False)

    def _go_through(self, batches: Sequence[Row], objective: Objective, *, backward: bool) -> list[Sums]:
        length = _length(batches)
        for batch in batches:
            check_tokens(self.config, batch.tokens, cu_seqlens=batch.cu_seqlens)
        if self._schedule_shape != (len(batches), length):
            # The old one goes first: it holds a buffer for each of its micro-batches.
            self._schedule = None
            self._schedule, self._schedule_shape = self._new_schedule(len(batches), length), (len(batches), length)
        assert self._schedule is not None, "made above"
        self._objective, self._sums = objective, []
        numbers = torch.arange(len(batches))
        for stage in self.stages:
            stage.batches = batches
        go = self._schedule.step if backward else self._schedule.eval
        go(micro_batch=numbers, target=numbers, return_outputs=False)
        for stage in self.stages:
            stage.batches = ()
        sums, self._sums = self._sums, []
        return sums or [sums_of_nothing(objective, self)]

    def _new_schedule(self, num_batches: int, length: int) -> "Schedule1F1B | ScheduleInterleaved1F1B":
        # It loads torch.compile's machinery, which would take a second of the start of every command.
        from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleInterleaved1F1B

        plan, ranks = self._mesh.plan, self.stages[0].ranks
        num_tokens = ranks.own(torch.empty(1, length, device="meta")).shape[1]
        sent = boundary(self.config, num_tokens, self._dtype)
        stages: list[Any] = [  # an invariant list of a private base class, to type checkers
            PipelineStage(
                stage,
                number,
                plan.num_stages,
                self._mesh.device,
                # Given, they spare torch a first run of the model to find them out.
                input_args=sent if number else (),
                output_args=sent,
                group=self._mesh.groups["pp"],
            )
            for number, stage in zip(self._stage_numbers, self.stages, strict=True)
        ]
        if plan.settings.pipeline_schedule == "1f1b":
            if num_batches < plan.num_stages:
                raise UserError(
                    f"a step of {num_batches} micro-batches cannot fill a 1f1b pipeline of {plan.num_stages} stages; "
                    f"give a step at least {plan.num_stages} (batch_tokens over micro_batch), or make pp smaller."
                )
            (stage,) = stages
            return Schedule1F1B(stage, num_batches, self._loss, scale_grads=False)
        rounds = max(1, num_batches // plan.pp)
        if num_batches % rounds:
            raise UserError(
                f"a step of {num_batches} micro-batches does not divide into {rounds} rounds of at least {plan.pp} in "
                f"an interleaved pipeline; make it a multiple of pp = {plan.pp} (batch_tokens over micro_batch)."
            )
        return ScheduleInterleaved1F1B(stages, num_batches, self._loss, scale_grads=False)

    def _loss(self, output: tuple[torch.Tensor, ...], micro_batch: torch.Tensor) -> torch.Tensor:
        """Of what the last stage made of a micro-batch."""
        assert self._objective is not None, "set by run()"
        last = self.stages[-1]
        features, batch = StageFeatures(*output), last.batches[int(micro_batch)]
        sums = sums_of_features(self._objective, last, features, batch)
        self._sums.append(sums)
        return sums.loss


def _length(batches: Sequence[Row]) -> int:
    lengths = sorted({batch.tokens.shape[1] for batch in batches})
    if len(lengths) != 1:
        raise UserError(
            f"the micro-batches of a pipeline's step are rows of one length; given rows of {lengths} tokens."
        )
    return lengths[0]
