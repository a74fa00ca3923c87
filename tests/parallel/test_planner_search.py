"""The plans that a search finds can be, fit, and are the fastest; the time of a step follows its own figures."""

import pytest

from leyden.core.errors import UserError
from leyden.model import preset
from leyden.parallel import ParallelConfig, Plan
from leyden.parallel.mesh import coordinates
from leyden.parallel.planner import StepShape, problems_of
from leyden.parallel.planner.rank import Rank
from leyden.parallel.planner.search import search
from leyden.parallel.planner.sizes import unevenness
from leyden.parallel.planner.time import Machine, group_size, predict_time, spans_nodes

TINY = preset("tiny")
STEP = StepShape(2048, 16 * 2048)


def test_the_best_plans_are_possible_fit_and_stand_in_order() -> None:
    found = search(TINY, 8, STEP, Machine(), best=8)
    assert len({str(candidate.plan) for candidate in found}) == 8
    assert [c.time.seconds for c in found] == sorted(c.time.seconds for c in found)
    for candidate in found:
        assert candidate.step.tokens == STEP.tokens
        assert not problems_of(candidate.plan, 8, TINY, candidate.step)
        assert candidate.memory.peak <= 0.9 * 80e9
        assert 0 < candidate.time.mfu <= 1


def test_little_memory_is_met_by_recomputation_or_refused() -> None:
    roomy = search(TINY, 8, STEP, Machine(), best=1)[0]
    tight = search(TINY, 8, STEP, Machine(memory_bytes=roomy.memory.peak), best=1)[0]
    assert tight.memory.peak < roomy.memory.peak
    assert tight.time.seconds >= roomy.time.seconds
    with pytest.raises(UserError, match="no plan of 8 ranks fits 90% of 0 GB a rank; the nearest is"):
        search(TINY, 8, STEP, Machine(memory_bytes=1e6))


def test_a_slow_link_binds_its_axis() -> None:
    plan = Plan(dp_shard=2, tp=2, ep=2)
    rank = Rank(TINY, plan, STEP, coordinates(plan, 0))
    fast = predict_time(rank, Machine(intra_bytes_per_second=1e15, inter_bytes_per_second=1e15))
    assert fast.binds == "compute"
    assert fast.mfu == pytest.approx(1, abs=0.01)
    slow = predict_time(rank, Machine(intra_bytes_per_second=1e9))
    assert slow.binds in ("tp", "ep", "fsdp_dense")
    assert slow.seconds > 10 * fast.seconds
    assert slow.compute_seconds == fast.compute_seconds


def test_a_pipeline_idles_by_its_stages_and_micro_batches() -> None:
    step = StepShape(2048, 2048, 16)
    plans = [Plan(pp=4), Plan(pp=4, settings=ParallelConfig(pipeline_schedule="interleaved", stages_per_rank=2))]
    machine = Machine(intra_bytes_per_second=1e15)
    shares = [predict_time(Rank(TINY, p, step, coordinates(p, 0)), machine) for p in plans]
    assert [t.idle_seconds / (t.seconds - t.idle_seconds) for t in shares] == pytest.approx([3 / 16, 3 / 32])


def test_uneven_stages_cost_time() -> None:
    even, uneven = (
        unevenness(preset("tiny", num_hidden_layers=layers, vocab_size=1), pp, pp, 64)
        for layers, pp in ((8, 1), (9, 8))
    )
    assert even == 1
    assert uneven == pytest.approx(16 / 9, rel=0.1)  # one rank has two of nine layers


def test_which_groups_leave_a_node() -> None:
    plan, machine = Plan(dp_shard=2, cp=2, tp=4, ep=4, etp=2), Machine(ranks_per_node=8)
    assert [group_size(plan, axis) for axis in ("tp", "cp", "ep", "etp", "fsdp_dense", "stage")] == [4, 2, 4, 2, 4, 16]
    assert [spans_nodes(plan, axis, machine) for axis in ("tp", "cp", "ep", "fsdp_dense")] == [
        False,
        False,
        False,
        True,
    ]
