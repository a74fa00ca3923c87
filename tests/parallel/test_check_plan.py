"""Plans that cannot be are refused with all of their problems and with plans that can."""

import itertools

import pytest

from leyden.core.errors import UserError
from leyden.model import preset
from leyden.parallel import ParallelConfig, Plan
from leyden.parallel.planner import StepShape, check_plan, problems_of

TINY = preset("tiny")  # 4 heads, 2 key-value heads, 8 experts of 512, 8 layers
STEP = StepShape(seq_len=64, micro_batch_tokens=512, num_micro_batches=4)


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


def test_every_plan_of_eight_ranks_that_is_accepted_divides_everything() -> None:
    accepted = 0
    for pp, dp, cp, tp, ep, etp in itertools.product((1, 2, 4, 8), repeat=6):
        plan = Plan(pp=pp, dp_shard=dp, cp=cp, tp=tp, ep=ep, etp=etp)
        divides = pp * dp * cp * tp == 8 and 2 % tp == 0 and (dp * cp * tp) % (ep * etp) == 0 and pp <= 4
        assert (not problems_of(plan, 8, TINY, STEP)) == divides, plan
        accepted += divides
    assert accepted > 20
