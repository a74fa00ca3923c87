"""Plans that cannot be are refused with all of their problems and with plans that can."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leyden.core.errors import UserError
from leyden.model import preset
from leyden.parallel import ParallelConfig, Plan
from leyden.parallel.planner import StepShape, check_plan, problems_of
from leyden.parallel.planner.check import nearest_step

TINY = preset("tiny")  # 4 heads, 2 key-value heads, 8 experts of 512, 8 layers
STEP = StepShape(seq_len=64, micro_batch_tokens=512, num_micro_batches=4)
BOTH = "batch_tokens = {} (now {}) with micro_batch_tokens = {} (now {})."


def _refused(config: ParallelConfig, world: int, model: object = TINY, step: StepShape | None = STEP) -> str:
    with pytest.raises(UserError) as raised:
        check_plan(config, world, model, step)  # type: ignore[arg-type]
    return str(raised.value)


@pytest.mark.parametrize(
    ("config", "world", "said"),
    [
        (ParallelConfig(tp=3), 3, "tp = 3 does not divide 4 attention heads"),
        (ParallelConfig(tp=4), 4, "tp = 4 does not divide 2 key-value heads"),
        (ParallelConfig(ep=3), 3, "ep = 3 does not divide 8 experts"),
        (ParallelConfig(etp=3), 3, "etp = 3 does not divide an expert's width of 512"),
        (ParallelConfig(ep=8), 4, "ep x etp = 8 x 1 does not divide the dp_shard x cp x tp = 4 x 1 x 1 = 4 ranks"),
        (ParallelConfig(dp_replicate=2, ep=4), 4, "ep x etp = 4 x 1 does not divide the dp_shard x cp x tp = 2 x"),
        (ParallelConfig(pp=16), 16, "pp x stages_per_rank = 16 x 1 stages, and there are 8 layers"),
        (ParallelConfig(pp=2, pipeline_schedule="interleaved"), 2, "'interleaved' needs stages_per_rank of 2 or more"),
        (ParallelConfig(pp=2, stages_per_rank=2), 2, "stages_per_rank = 2 needs pipeline_schedule 'interleaved'"),
        (ParallelConfig(pp=8), 8, "pp = 8 stages need at least as many micro-batches a step, and there are 4"),
        (ParallelConfig(dp_shard=3), 3, "3 data ranks (dp_replicate x dp_shard) do not divide the 8 sequences"),
        (ParallelConfig(cp=3, dp_shard=2), 4, "= 6 ranks are asked for, and there are 4"),
        (ParallelConfig(cp=3), 4, "= 3 ranks are asked for, and there are 4"),
    ],
)
def test_each_rule(config: ParallelConfig, world: int, said: str) -> None:
    assert said in _refused(config, world)


def test_rules_of_other_models() -> None:
    dense = preset("70m", tie_word_embeddings=False, intermediate_size=1405)
    assert "tp = 2 does not divide the feed-forward's width of 1405" in _refused(ParallelConfig(tp=2), 2, dense)
    first = preset("tiny", mlp_types=("dense", *["experts"] * 7), dense_intermediate_size=513)
    assert "tp = 2 does not divide the feed-forward's width of 513" in _refused(ParallelConfig(tp=2), 2, first)
    assert "the model has no experts" in _refused(ParallelConfig(ep=2), 2, preset("70m"))
    assert "pp = 2 puts tied embeddings on two ranks" in _refused(ParallelConfig(pp=2), 2, preset("70m"))
    odd = StepShape(seq_len=63, micro_batch_tokens=63)
    assert "tp = 2 does not divide a row of 63 tokens" in _refused(ParallelConfig(tp=2), 2, step=odd)
    short = StepShape(seq_len=2, micro_batch_tokens=2)
    assert "ranks are more than the 2 tokens of a row" in _refused(ParallelConfig(cp=4), 4, step=short)


def test_all_problems_at_once_and_the_nearest_plans() -> None:
    text = _refused(ParallelConfig(cp=2, tp=3, ep=3), 8)
    problems, near = text.split("Nearest plans that work:")
    assert [line[:14] for line in problems.splitlines()[1:]] == [
        "  - pp x dp_re",
        "  - tp = 3 doe",
        "  - tp = 3 doe",
        "  - ep = 3 doe",
        "  - tp = 3 doe",  # heads, key-value heads, a row
    ]
    # Two sizes are wrong, so two change, each as little as it can.
    assert near.splitlines()[1:] == [
        "  - dp_shard=2 cp=2 tp=2 ep=4",
        "  - dp_shard=2 cp=2 tp=2 ep=2",
        "  - dp_shard=4 cp=2 ep=4",
    ]


def test_nearest_plans_are_possible_and_the_same_every_time() -> None:
    text = [_refused(ParallelConfig(pp=3, dp_shard=5, cp=3, tp=5, ep=3, etp=7), 8) for _ in range(2)]
    assert text[0] == text[1]
    near = text[0].split("Nearest plans that work:")[1].splitlines()[1:]
    assert len(near) == 3
    for line in near:
        sizes = {name: int(size) for name, size in (item.split("=") for item in line.removeprefix("  - ").split())}
        assert check_plan(ParallelConfig(**sizes), 8, TINY, STEP).world == 8


def test_what_no_sizes_can_change() -> None:
    one = StepShape(seq_len=1, micro_batch_tokens=1)
    dense = preset("tiny", num_local_experts=0)
    assert "No sizes of the axes change that" in _refused(ParallelConfig(), 7, dense, one)


@pytest.mark.parametrize(
    ("config", "world", "step", "said"),
    [
        # a pipeline of 4 has to be filled: as many tokens in more micro-batches
        (ParallelConfig(pp=4), 4, StepShape(64, 512, 2), "micro_batch_tokens = 256 (now 512)."),
        # 3 data ranks divide neither 8 sequences nor 32: 4 x 9 sequences differ less from 4 x 8 than 5 x 6 do
        (ParallelConfig(dp_shard=3), 3, STEP, BOTH.format(2304, 2048, 576, 512)),
        (ParallelConfig(dp_shard=3), 3, StepShape(64, 64, 3), "micro_batch_tokens = 192 (now 64)."),
        (ParallelConfig(pp=2), 2, StepShape(64, 64, 1), "batch_tokens = 128 (now 64) with micro_batch_tokens = 64."),
        (ParallelConfig(tp=2), 2, StepShape(63, 63), BOTH.format(126, 63, 126, 63)),
        (ParallelConfig(cp=4), 4, StepShape(2, 2, 2), "micro_batch_tokens = 4 (now 2)."),
    ],
)
def test_the_smallest_change_of_the_batch(config: ParallelConfig, world: int, step: StepShape, said: str) -> None:
    last = _refused(config, world, step=step).splitlines()[-1]
    assert last == f"The smallest change of the batch with which this plan works: {said}"


def test_no_batch_mends_what_is_wrong_with_the_model() -> None:
    assert "change of the batch" not in _refused(ParallelConfig(tp=4), 4)
    assert "change of the batch" not in _refused(ParallelConfig(tp=3, dp_shard=3), 9)
    assert "change of the batch" not in _refused(ParallelConfig(cp=3), 4)


@given(
    pp=st.sampled_from([1, 2, 4]),
    dp=st.integers(1, 5),
    cp=st.integers(1, 3),
    tp=st.sampled_from([1, 2]),
    interleaved=st.booleans(),
    seq_len=st.integers(1, 12),
    sequences=st.integers(1, 9),
    count=st.integers(1, 6),
)
def test_the_nearest_step_works_and_none_is_nearer(
    pp: int, dp: int, cp: int, tp: int, interleaved: bool, seq_len: int, sequences: int, count: int
) -> None:
    """Beside every step of up to 96 sequences in up to 12 micro-batches."""
    schedule = {"pipeline_schedule": "interleaved", "stages_per_rank": 2} if interleaved and pp > 1 else {}
    plan = Plan(pp=pp, dp_shard=dp, cp=cp, tp=tp, settings=ParallelConfig.parse(schedule, "test"))
    step = StepShape(seq_len, seq_len * sequences, count)
    found = nearest_step(plan, plan.world, TINY, step)
    assert found is not None
    assert not problems_of(plan, plan.world, TINY, found)

    def changes(shape: StepShape) -> tuple[int, float]:
        kind = 0 if shape.tokens == step.tokens else 1 if shape.micro_batch_tokens == step.micro_batch_tokens else 2
        doublings = [math.log2(a / b) for a, b in zip(_sizes(shape), _sizes(step), strict=True)]
        return kind, round(sum(map(abs, doublings)), 9)

    every = [StepShape(seq_len, seq_len * size, number) for size in range(1, 97) for number in range(1, 13)]
    working = [shape for shape in every if not problems_of(plan, plan.world, TINY, shape)]
    assert all(changes(found) <= changes(shape) for shape in working)


def _sizes(shape: StepShape) -> tuple[int, int]:
    return shape.micro_batch_tokens, shape.tokens


def test_every_plan_of_eight_ranks_that_is_accepted_divides_everything() -> None:
    accepted = 0
    for pp, dp, cp, tp, ep, etp in itertools.product((1, 2, 4, 8), repeat=6):
        plan = Plan(pp=pp, dp_shard=dp, cp=cp, tp=tp, ep=ep, etp=etp)
        divides = pp * dp * cp * tp == 8 and 2 % tp == 0 and (dp * cp * tp) % (ep * etp) == 0 and pp <= 4
        assert (not problems_of(plan, 8, TINY, STEP)) == divides, plan
        accepted += divides
    assert accepted > 20
