"""How long pipeline ranks wait: by hand, and by walking through what each rank does, one work after another."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from leyden.parallel.planner.bubbles import ChunkSeconds, bubbles
from leyden.parallel.planner.schedule import order_of_work

Work = tuple[str, int, int]
"""``("forward", "backward", "inputs" or "weights", the stage, the micro-batch)``."""


def idle_of(orders: Sequence[Sequence[Work]], seconds: dict[str, float]) -> float:
    """What the rank that waits longest waits in: each work begins when its rank is free and what it needs is there.

    A forward needs that of the stage before, a backward that of the stage behind, or at the last stage its forward;
    gradients of weights need those of inputs. The ranks end together.
    """
    num_stages = 1 + max(stage for order in orders for _, stage, _ in order)
    done: dict[Work, float] = {}
    at, free = [0] * len(orders), [0.0] * len(orders)

    def needed(work: Work) -> list[Work]:
        kind, stage, number = work
        if kind == "forward":
            return [("forward", stage - 1, number)] if stage else []
        if kind == "weights":
            return [("inputs", stage, number)]
        return [(kind, stage + 1, number)] if stage + 1 < num_stages else [("forward", stage, number)]

    while any(place < len(order) for place, order in zip(at, orders, strict=True)):
        before = list(at)
        for rank, order in enumerate(orders):
            while at[rank] < len(order) and all(work in done for work in needed(order[at[rank]])):
                work = order[at[rank]]
                begin = max([free[rank], *(done[other] for other in needed(work))])
                free[rank] = done[work] = begin + seconds[work[0]]
                at[rank] += 1
        assert at != before, "the ranks wait for each other"
    busy = [sum(seconds[kind] for kind, _, _ in order) for order in orders]
    return max(free) - min(busy)


def our_orders(pp: int, stages: int, micro_batches: int) -> list[list[Work]]:
    orders = []
    for rank in range(pp):
        counts: dict[tuple[str, int], int] = {}
        order = []
        for direction, local in order_of_work(pp, stages, micro_batches, rank):
            number = counts.get((direction, local), 0)
            counts[direction, local] = number + 1
            order.append((direction, local * pp + rank, number))
        orders.append(order)
    return orders


@pytest.mark.parametrize(("pp", "micro_batches"), [(2, 2), (4, 4), (4, 12), (8, 16)])
@pytest.mark.parametrize("chunk", [ChunkSeconds(), ChunkSeconds(1.0, 3.0, 1.0)])
def test_what_leyden_runs_waits_as_long_as_the_formula_says(pp: int, micro_batches: int, chunk: ChunkSeconds) -> None:
    for stages in (1, 2, 4):
        found = idle_of(
            our_orders(pp, stages, micro_batches),
            {"forward": chunk.forward / stages, "backward": chunk.backward / stages},
        )
        plain, interleaved, *_ = bubbles(pp, micro_batches, stages, chunk)
        said = (plain if stages == 1 else interleaved).idle
        assert said == pytest.approx(found)


def torch_orders(schedule: str, pp: int, micro_batches: int) -> list[list[Work]]:
    """As torch deals them, of schedules that split the backward."""
    schedules = pytest.importorskip("torch.distributed.pipelining.schedules")
    blank: Any = object.__new__(getattr(schedules, schedule))
    blank.pp_group_size, blank._n_microbatches, blank.num_stages = pp, micro_batches, 2 * pp
    kinds = {"FORWARD": ["forward"], "BACKWARD_INPUT": ["inputs"], "BACKWARD_WEIGHT": ["weights"]}
    kinds["FULL_BACKWARD"] = ["inputs", "weights"]
    orders = []
    for rank in range(pp):
        works = [work for work in blank._calculate_single_rank_operations(rank) if work is not None]
        orders.append(
            [
                (kind, work.stage_index, work.microbatch_index)
                for work in works
                for kind in kinds[work.computation_type.name]
            ]
        )
    return orders


@pytest.mark.parametrize(("pp", "micro_batches"), [(2, 4), (4, 8), (8, 20)])
def test_the_v_schedule_of_torch_waits_for_its_first_forward_alone(pp: int, micro_batches: int) -> None:
    """Which reaches the last rank behind p - 1 stages, each half of a rank's chunk."""
    half = {"forward": 0.5, "inputs": 0.5, "weights": 0.5}
    found = idle_of(torch_orders("ScheduleZBVZeroBubble", pp, micro_batches), half)
    said = {bubble.schedule: bubble.idle for bubble in bubbles(pp, micro_batches)}
    assert said["ZBV"] == pytest.approx(found)


def test_by_hand() -> None:
    """Eight ranks, a backward of twice the forward: 7 x 3, 7 x 3 / 2, 7 x 1, 7 / 2, and 3 x 2 of DualPipe."""
    found = {bubble.schedule.split(",")[0]: bubble for bubble in bubbles(8, 20)}
    assert {name: bubble.idle for name, bubble in found.items()} == {
        "1f1b": 21,
        "interleaved": 10.5,
        "ZB1P": 7,
        "ZBV": 3.5,
        "DualPipe": 6,
    }
    assert found["1f1b"].share == pytest.approx(7 / 20) and found["DualPipe"].share == pytest.approx(0.1)
    assert [name for name, bubble in found.items() if bubble.runs] == ["1f1b", "interleaved"]


def test_chunks_of_which_no_formula_is_known() -> None:
    found = {bubble.schedule: bubble.idle for bubble in bubbles(4, 8, chunk=ChunkSeconds(1.0, 3.0, 1.0))}
    assert found["ZBV"] is None and found["ZB1P"] == 6 and found["DualPipe"] == 4
    assert "DualPipe" not in {bubble.schedule for bubble in bubbles(3, 8)}


@pytest.mark.parametrize("given", [(1, 4, 2), (4, 0, 2), (4, 4, 0)])
def test_what_is_no_pipeline_is_refused(given: tuple[int, int, int]) -> None:
    call: Callable[..., Any] = bubbles
    with pytest.raises(ValueError, match="a pipeline has 2 ranks or more"):
        call(*given)
