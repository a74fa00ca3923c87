"""Solutions as packed batches: each whole in one sequence, or up to the last step of which the label fits."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from leyden.align.chats.fitting import FittingRows, TooLong, num_labels, or_cut, take_evenly
from leyden.core.errors import UserError
from leyden.data.loader.grouped import GroupedBatches, GroupedDocuments
from leyden.data.loader.held_out import HeldOutPart
from leyden.data.loader.once import OnceBatches
from leyden.data.shards import TokenShards


class FittingSolutions(FittingRows):
    """Solutions of which each fits into a sequence."""

    noun = "solutions"


def fit_solutions(shards: TokenShards, seq_len: int, too_long: TooLong) -> FittingSolutions:
    """The solutions as they go into sequences of ``seq_len`` tokens.

    Args:
        shards: as :func:`leyden.align.process_rewards.solutions.tokenise_solutions` gives them.
        seq_len: tokens of a sequence.
        too_long: what becomes of longer ones.

    Raises:
        UserError: none fits.
    """
    long = np.flatnonzero(shards.lengths > seq_len)
    kept = [_whole_marks(shards, one, seq_len) if too_long == "cut" else 0 for one in long.tolist()]
    cut = shards.shortened(long, np.array(kept, np.int64))
    labels = num_labels(cut)
    usable = labels > 0
    if not usable.any():
        raise UserError(
            f"None of {shards.num_documents:,} solutions has a labelled step within {seq_len} tokens; make seq_len "
            f"larger (the shortest solution has {int(shards.lengths.min()):,} tokens){or_cut(too_long)}."
        )
    was_long = np.isin(cut.rows, shards.rows[long]) & usable
    lost = shards.lengths[np.isin(shards.rows, cut.rows[was_long])].sum() - cut.lengths[was_long].sum()
    return FittingSolutions(
        shards=cut if usable.all() else cut.select(usable, "with labels"),
        answer_tokens=labels[usable],
        num_rows=shards.num_documents,
        num_cut=int(was_long.sum()),
        cut_tokens=int(lost),
        num_left_out=shards.num_documents - int(usable.sum()),
    )


def _whole_marks(shards: TokenShards, index: int, seq_len: int) -> int:
    """How many tokens of a document are kept: ``seq_len``, or one fewer where the last is the first mark of a step,
    whose second would be missing."""
    last = shards.learned(shards.starts[index : index + 1], np.array([seq_len]))[-2:]
    return seq_len - int(last[-1] and not last[0])


def documents_of(solutions: FittingSolutions) -> GroupedDocuments:
    """Each solution by itself, as a group of one."""
    return GroupedDocuments(solutions.shards, np.arange(solutions.shards.num_documents + 1))


class SolutionBatches(GroupedBatches):
    """An endless stream of batches of solutions, packed by best fit.

    Args:
        solutions: that fit.
        seq_len, batch_tokens, seed, plans: as of :class:`leyden.align.chats.batches.ChatBatches`.

    Attributes:
        fitting: the solutions, as given.
    """

    def __init__(
        self, solutions: FittingSolutions, *, seq_len: int, batch_tokens: int, seed: int, plans: Path | None = None
    ) -> None:
        super().__init__(documents_of(solutions), seq_len=seq_len, batch_tokens=batch_tokens, seed=seed, plans=plans)
        self.fitting = solutions


class HeldOutSolutions(OnceBatches):
    """Some solutions, each once: what a model in training is measured on. Of every source about as many are taken.

    Args:
        solutions: that fit.
        num_tokens: how many tokens are taken, at most; one solution at least.
        seq_len, batch_tokens: as of :class:`SolutionBatches`.
        multiple: the number of batches is a multiple of this.

    Attributes:
        num_bytes: None, since the loss is not one of bytes.
        parts: none; the loss is not measured by source.
    """

    num_bytes: int | None = None
    parts: Sequence[HeldOutPart] = ()

    def __init__(
        self, solutions: FittingSolutions, *, num_tokens: int, seq_len: int, batch_tokens: int, multiple: int = 1
    ) -> None:
        shards = solutions.shards
        sources = [shards.source(number) for number in range(shards.num_documents)]
        taken = take_evenly(shards.lengths, np.unique(sources, return_inverse=True)[1], num_tokens)
        own = FittingSolutions(
            shards.select(taken, "measured"), solutions.answer_tokens[taken], int(taken.sum()), 0, 0, 0
        )
        super().__init__(documents_of(own), seq_len=seq_len, batch_tokens=batch_tokens, multiple=multiple)
