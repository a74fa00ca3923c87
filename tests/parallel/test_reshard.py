"""Weights of a training model become those of a serving model on the same ranks: to the bit, and a shard at a time."""

import copy
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gloo_ranks import mesh_of
from live_memory import track_memory
from one_process import FOUR_LAYERS, TWO_LAYERS, small_model
from test_exactness import DROPS, build, joined, rows_of

from leyden.core.errors import UserError
from leyden.model import Rope
from leyden.model.quantized import quantize
from leyden.parallel import Part, Plan, RankGroup, attach
from leyden.parallel.announce import Announcer
from leyden.parallel.reshard import Resharding, _common
from leyden.parallel.serving import divide
from leyden.parallel.weights import part_of
from leyden.serve import Engine, EngineConfig, Sampling
from leyden.serve.ranks import dismiss, follow, join, lead
from leyden.train import MasterAdamW, Pretrain, TrainState, train_step

_SIZES = {"max_sequences": 3, "kv_gigabytes": 0.001, "cache_gigabytes": 0.001, "swap_gigabytes": 0.001}
_PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6] * 5, [7, 7, 2]]


def _resharded(training: Plan, serving: Plan | None, dtype: torch.dtype, int8: bool) -> None:
    """Every weight of the serving model is the part of the trained one, and its engine samples as one that began so."""
    mesh, serving_mesh = mesh_of(training), None if serving is None else mesh_of(serving)
    whole = small_model(seed=7, shared_intermediate_size=8, **FOUR_LAYERS).to(dtype)
    whole.set_rope(Rope(500.0))
    attached = attach(copy.deepcopy(whole), mesh, dtype, row_tokens=64)
    model = small_model(seed=1, shared_intermediate_size=8, **FOUR_LAYERS).to(dtype)
    if serving_mesh is not None:
        divide(model, serving_mesh)
    if int8:
        quantize(model)
    engine = Engine(model, **_SIZES, decoder="torch")
    before = _drawn(engine)
    assert engine.update_weights(Resharding(attached, mesh, model, serving_mesh)) == 1
    expected = copy.deepcopy(whole).eval()
    if serving_mesh is not None:
        divide(expected, serving_mesh)
    if int8:
        quantize(expected)
    found = model.state_dict()
    for name, value in expected.state_dict().items():
        assert torch.equal(found[name], value), name
    assert model.config.rope_theta == 500
    assert _drawn(engine) == _drawn(Engine(expected, **_SIZES, decoder="torch")) != before


def _drawn(engine: Engine) -> list[tuple[int, ...]]:
    return [made.tokens for made in engine.generate(_PROMPTS, Sampling(max_tokens=5, temperature=0, seed=0))]


@pytest.mark.parametrize(
    ("training", "serving", "dtype", "int8"),
    [
        pytest.param(Plan(dp_shard=2), Plan(tp=2, ep=2), torch.bfloat16, False, marks=pytest.mark.slow),
        (Plan(tp=2, ep=2), Plan(tp=2, etp=2), torch.float32, True),
        (Plan(pp=2), Plan(tp=2), torch.float32, False),
        (Plan(dp_replicate=2), None, torch.float32, False),
        pytest.param(Plan(dp_shard=2, tp=2, etp=2), Plan(tp=4, ep=4), torch.float32, False, marks=pytest.mark.slow),
        pytest.param(Plan(pp=2, cp=2, ep=2), Plan(tp=4, ep=2, etp=2), torch.float32, False, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_shards_of_training_become_shards_of_serving(
    ranks: Callable[..., list[Any]], training: Plan, serving: Plan | None, dtype: torch.dtype, int8: bool
) -> None:
    ranks(training.world, _resharded, training, serving, dtype, int8)


def _tied() -> bool:
    """An embedding that is the output projection too moves once, into what is both."""
    mesh, serving_mesh = mesh_of(Plan(dp_shard=2)), mesh_of(Plan(tp=2))
    whole, model = (small_model(torch.float32, seed=seed, tie_word_embeddings=True) for seed in (7, 1))
    attached = attach(copy.deepcopy(whole), mesh, torch.float32)
    divide(model, serving_mesh)
    Resharding(attached, mesh, model, serving_mesh).put()
    divide(whole, serving_mesh)
    engines = [Engine(each, **_SIZES, decoder="torch") for each in (model, whole)]
    return torch.equal(model.lm_head.weight, whole.embed_tokens.weight) and _drawn(engines[0]) == _drawn(engines[1])


def test_a_tied_output_projection_moves_with_the_embedding(ranks: Callable[..., list[Any]]) -> None:
    assert ranks(2, _tied) == [True, True]


def _trained(training: Plan) -> None:
    """Behind every optimizer step the whole serving model has in it what each rank's shards have."""
    mesh = mesh_of(training)
    attached = attach(build(TWO_LAYERS | DROPS).float(), mesh, torch.float32)
    state = TrainState(attached.model, MasterAdamW(attached.weights), RankGroup(mesh))
    serving = build(TWO_LAYERS | DROPS).float()
    resharding = Resharding(attached, mesh, serving)
    share, count = state.rank_group.share
    for step in range(2):
        rows = rows_of(Plan(dp_shard=4), seed=step)
        own = joined(rows[4 * share // count : 4 * (share + 1) // count])
        before = copy.deepcopy(serving.state_dict())
        train_step(state, [own, own], Pretrain(), lr=1e-2, clip_norm=1.0)
        resharding.put()
        found = serving.state_dict()
        for name, weight in attached.weights.items():
            assert torch.equal(weight.part.cut(found[name]), weight.local), name
        assert not any(torch.equal(found[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    "training",
    [Plan(dp_shard=2, cp=2, ep=2), pytest.param(Plan(pp=2, dp_shard=2, etp=2), marks=pytest.mark.slow)],
    ids=str,
)
def test_weights_move_behind_every_optimizer_step(ranks: Callable[..., list[Any]], training: Plan) -> None:
    ranks(4, _trained, training)


def _led(store: str) -> list[Any] | None:
    """The first rank has the requests; weights move while the others do not follow it."""
    mesh, serving_mesh = mesh_of(Plan(dp_shard=2)), mesh_of(Plan(tp=2))
    attached = attach(small_model(torch.float32, seed=7), mesh, torch.float32)
    model = small_model(torch.float32)
    divide(model, serving_mesh)
    announcer = Announcer(torch.distributed.FileStore(store, 2), 2)
    resharding = Resharding(attached, mesh, model, serving_mesh)
    if mesh.rank:
        engine = join(model, None, announcer)
        follow(engine, announcer)
        engine.update_weights(resharding)
        follow(engine, announcer)
        return None
    engine = lead(model, None, EngineConfig(**_SIZES, decoder="torch"), announcer, 2)
    found = _drawn(engine)
    dismiss(engine)
    engine.update_weights(resharding)
    found += _drawn(engine)
    dismiss(engine)
    return found


def test_an_engine_that_leads_others_takes_weights_in_between(ranks: Callable[..., list[Any]], tmp_path: Path) -> None:
    found, nothing = ranks(2, _led, str(tmp_path / "store"))
    alone = [_drawn(Engine(small_model(torch.float32, seed=seed), **_SIZES, decoder="torch")) for seed in (0, 7)]
    assert nothing is None and found == [*alone[0], *alone[1]] and alone[0] != alone[1]


def _memory(training: Plan, serving: Plan) -> tuple[int, int, int]:
    """What a rank holds beside its two models while weights move, its two largest shards, and a whole model."""
    mesh, serving_mesh = mesh_of(training), mesh_of(serving)
    whole = small_model(torch.float32, **FOUR_LAYERS)
    bytes_of_whole = sum(parameter.nbytes for parameter in whole.parameters())
    attached = attach(copy.deepcopy(whole), mesh, torch.float32, row_tokens=64)
    divide(whole, serving_mesh)
    resharding = Resharding(attached, mesh, whole, serving_mesh)
    shards = [weight.local.nbytes for weight in attached.weights.values()], [p.nbytes for p in whole.parameters()]
    with track_memory(*(weight.local for weight in attached.weights.values()), whole) as memory:
        before = memory.current
        resharding.put()
        gc.collect()  # what is dropped in circles, by whatever ran in this process, goes when it likes
    assert memory.current == before
    return memory.peak - before, sum(map(max, shards)), bytes_of_whole


def test_no_rank_ever_has_more_than_one_weight_beside_its_models(ranks: Callable[..., list[Any]]) -> None:
    for peak, largest, whole in ranks(4, _memory, Plan(dp_shard=2, tp=2, etp=2), Plan(tp=4, ep=4)):
        assert 0 < peak <= largest < whole / 8


def _refused(plan: Plan) -> str:
    mesh = mesh_of(plan)
    attached = attach(small_model(torch.float32), mesh, torch.float32)
    model = small_model(torch.float32, num_local_experts=8)
    with pytest.raises(UserError) as raised:
        Resharding(attached, mesh, model)
    engine = Engine(small_model(torch.float32), **_SIZES, decoder="torch")
    with pytest.raises(UserError, match="this resharding is for another model than the engine's"):
        engine.update_weights(Resharding(attached, mesh, small_model(torch.float32)))
    return str(raised.value)


def test_a_serving_model_of_another_shape_is_refused(ranks: Callable[..., list[Any]]) -> None:
    told = ranks(2, _refused, Plan(dp_shard=2))
    assert told[0] == told[1]
    assert "do not fit the serving model of rank 0: layers.0.mlp.gate.weight is [8, 24] of a whole [4, 24]; " in told[0]


def test_rectangles_that_two_parts_share_are_what_both_have() -> None:
    """Every pair of parts of a tensor of stacked projections: each common element, once."""
    name, shape = "layers.0.mlp.experts.gate_up_proj", (4, 12, 3)
    whole = torch.arange(4 * 12 * 3).view(shape)

    def parts(plan: Plan) -> list[Part]:
        places = [{"tp": 0, "ep": ep, "etp": etp} for ep in range(plan.ep) for etp in range(plan.etp)]
        return [part_of(name, shape, plan, at) for at in places]

    plans = [Plan(), Plan(ep=2), Plan(etp=3), Plan(ep=4, etp=2)]
    for one in [part for plan in plans for part in parts(plan)] + [Part.whole(shape).chunk(1, 1, 5)]:
        for other in [part for plan in plans for part in parts(plan)]:
            a, b = one.cut(whole), other.cut(whole)
            found = torch.full_like(b, -1)
            for taken, put, sizes in _common(one, other):
                here, there = (tuple(slice(at, at + n) for at, n in zip(x, sizes, strict=True)) for x in (taken, put))
                assert bool((found[there] == -1).all())
                found[there] = a[here]
            assert torch.equal(found, b.where(torch.isin(b, a), -1))
