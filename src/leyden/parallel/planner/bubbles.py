"""How long pipeline ranks wait in a step, by the schedule of their forwards and backwards.

With p ranks, m micro-batches, and of one micro-batch on one rank the seconds F of its forward, B of its backward, and W
of that part of the backward which is the gradients of weights, a rank idles:

| schedule | idle | from |
|---|---|---|
| 1F1B | (p - 1) (F + B) | arXiv 2006.09503 |
| interleaved, v stages a rank | (p - 1) (F + B) / v | arXiv 2104.04473, section 2.2 |
| ZB1P | (p - 1) (F + B - 2 W) | arXiv 2401.10241, section 2.3; DeepSeek-V3, table 2 |
| ZBV | (p - 1) F / 2 where F = B - W = W | arXiv 2401.10241, section 6; torch's table of its works |
| DualPipe | (p / 2 - 1) (G + B - 3 W) | DeepSeek-V3 (arXiv 2412.19437), table 2 |

G is the time of a forward and a backward that overlap, F + B where they save nothing. DualPipe holds two copies of the
weights, and p is even. Stages cost alike. Ranks begin and end a step together, since its gradients have one norm: the
paper of ZBV counts from a rank's own first work to its last, by which nobody waits.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ChunkSeconds:
    """What one micro-batch takes on one rank, in any unit; the defaults are those of products of matrices alone.

    Attributes:
        forward: F.
        backward: B, of inputs and weights, with what is computed again.
        weights: W, the part of B that nothing waits for.
    """

    forward: float = 1.0
    backward: float = 2.0
    weights: float = 1.0


@dataclass(frozen=True)
class Bubble:
    """How long a rank waits under one schedule.

    Attributes:
        schedule: its name.
        idle: in the unit of the chunks; None where no formula says it for chunks that cost so.
        share: of the time that the rank works.
        runs: whether Leyden has it.
    """

    schedule: str
    idle: float | None
    share: float | None
    runs: bool = False


def bubbles(
    pp: int, num_micro_batches: int, stages_per_rank: int = 2, chunk: ChunkSeconds | None = None
) -> list[Bubble]:
    """Of every schedule that ``pp`` ranks can have.

    Args:
        pp: ranks of the pipeline, 2 or more.
        num_micro_batches: of a step.
        stages_per_rank: of the interleaved schedule.
        chunk: what a micro-batch costs on a rank.

    Raises:
        ValueError: fewer ranks, micro-batches or stages than make a pipeline.
    """
    if pp < 2 or num_micro_batches < 1 or stages_per_rank < 1:
        raise ValueError(
            f"a pipeline has 2 ranks or more, and at least 1 micro-batch and 1 stage a rank; given {pp}, "
            f"{num_micro_batches} and {stages_per_rank}."
        )
    chunk = chunk or ChunkSeconds()
    both, weights = chunk.forward + chunk.backward, chunk.weights
    even = chunk.forward == chunk.backward - weights == weights
    found: list[tuple[str, float | None, bool]] = [
        ("1f1b", (pp - 1) * both, True),
        (f"interleaved, {stages_per_rank} stages a rank", (pp - 1) * both / stages_per_rank, True),
        ("ZB1P", (pp - 1) * (both - 2 * weights), False),
        ("ZBV", (pp - 1) * chunk.forward / 2 if even else None, False),
    ]
    if pp % 2 == 0:
        found.append(("DualPipe", (pp // 2 - 1) * (both + chunk.backward - 3 * weights), False))
    work = num_micro_batches * both
    return [Bubble(name, idle, None if idle is None else idle / work, runs) for name, idle, runs in found]
