"""Ranks that serve a model together: logits and greedy tokens are those of one process."""

import base64
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from gloo_ranks import mesh_of
from one_process import small_model

from leyden.checkpoint import load, save
from leyden.core.errors import UserError
from leyden.model import PAGE, HybridLM, Pools, preset
from leyden.model.quantized import Int8
from leyden.parallel import ParallelConfig, Plan
from leyden.parallel.announce import Announcer
from leyden.parallel.serving import serving_plan
from leyden.serve import Engine, Sampling
from leyden.serve import ranks as ranks_module
from leyden.serve.config import EngineConfig
from leyden.serve.ranks import dismiss, follow, join, lead
from leyden.serve.request import Request
from leyden.serve.runner import Reading, Runner
from leyden.tokenizer import Tokenizer

_PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5] * 27, [7, 7, 2], list(range(40))]


def _greedy(model: HybridLM) -> tuple[torch.Tensor, torch.Tensor]:
    """Three prompts read in one step, one of them in two parts; five greedy tokens of each: tokens and all logits."""
    pools = Pools(model.ranks.held(model.config), 4, 8, dtype=torch.float32)
    runner = Runner(model.eval(), pools)
    pages = [[0, 5], [1], [2]]
    runner.run([], [Reading(_PROMPTS[0][:256], 0, pages[0], [0], wanted=0)])
    starts = [256, 0, 0]
    parts = [Reading(p[s:], s, g, [i]) for i, (p, s, g) in enumerate(zip(_PROMPTS, starts, pages, strict=True))]
    seen = [runner.run([], parts)]
    tokens = [seen[-1].argmax(-1)]
    for step in range(5):
        drawn = tokens[-1].tolist()
        decodes = [Reading([drawn[i]], len(prompt) + step, pages[i], [i, i]) for i, prompt in enumerate(_PROMPTS)]
        seen.append(runner.run(decodes, []))
        tokens.append(seen[-1].argmax(-1))
    return torch.stack(tokens), torch.stack(seen)


def _compare(plan: Plan, directory: str, int8: Int8) -> float:
    """How far the logits of these ranks lie from those of one process."""
    whole, _ = load(directory, int8=int8)
    model, _ = load(directory, int8=int8, mesh=mesh_of(plan))
    held, everything = (sum(b.nbytes for b in (*m.parameters(), *m.buffers())) for m in (model, whole))
    assert plan.ep * plan.etp == 1 or held < (1.2 / plan.world + 0.1) * everything
    expected_tokens, expected = _greedy(whole)
    tokens, logits = _greedy(model)
    assert torch.equal(tokens, expected_tokens)
    return float((logits - expected).abs().max() / expected.abs().max())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("model")
    save(small_model(torch.float32, shared_intermediate_size=8), None, directory, layout="minimax")
    return str(directory)


@pytest.mark.parametrize(
    ("plan", "int8"),
    [
        (Plan(tp=2), "none"),
        (Plan(tp=2, ep=2), "layers"),
        (Plan(tp=2, etp=2), "none"),
        (Plan(tp=4, ep=2, etp=2), "layers"),
    ],
    ids=str,
)
def test_tokens_are_those_of_one_process(ranks: Callable[..., list[Any]], plan: Plan, int8: Int8, saved: str) -> None:
    assert max(ranks(plan.world, _compare, plan, saved, int8)) < 1e-5


def test_windows_and_dense_layers_among_others(ranks: Callable[..., list[Any]], tmp_path: Path) -> None:
    model = small_model(
        torch.float32,
        layer_types=("sliding_attention", "full_attention", "sliding_attention"),
        sliding_window=37,
        mlp_types=("dense", "experts", "experts"),
        dense_intermediate_size=12,
    )
    save(model, None, tmp_path / "m", layout="leyden")
    assert max(ranks(2, _compare, Plan(tp=2), str(tmp_path / "m"), "none")) < 1e-5


_CONFIG = EngineConfig(max_sequences=2, step_tokens=256, kv_gigabytes=0.001, cache_gigabytes=0.01, decoder="torch")


def _generate(engine: Engine) -> list[tuple[int, ...]]:
    """Greedy and drawn completions of more prompts than run at once, some with the same beginning."""
    prompts = [*_PROMPTS, [*_PROMPTS[0], 8, 9], _PROMPTS[0][:200]]
    found = engine.generate(prompts, Sampling(max_tokens=6, temperature=0))
    found += engine.generate(prompts[1:], Sampling(max_tokens=6, seed=3, n=2))
    stream = engine.stream(prompts[0], Sampling(max_tokens=50, temperature=0))
    begun = next(stream).token
    stream.close()  # is aborted, and the others learn of it
    engine.read_ahead([*range(100)] * 3)
    engine.rest()
    (scored,) = engine.generate(prompts[2:3], Sampling(max_tokens=1, temperature=0, prompt_logprobs=1))
    best = [told.top[0][0] for told in scored.prompt_logprobs or () if told is not None]
    return [*(completion.tokens for completion in found), (begun,), tuple(best), *_generate_anew(engine)]


def _generate_anew(engine: Engine) -> list[tuple[int, ...]]:
    """Completions behind a release, new weights that are the old ones, and an update that aborts a request."""
    engine.release()
    engine.acquire()
    found = engine.generate(_PROMPTS, Sampling(max_tokens=3, temperature=0))
    engine.update_weights()
    found += engine.generate(_PROMPTS, Sampling(max_tokens=3, temperature=0))
    engine.add(Request(_PROMPTS[1], Sampling(max_tokens=50, temperature=0), "aborted"))
    engine.step()
    engine.update_weights(running="abort")
    found += engine.generate(_PROMPTS[:2], Sampling(max_tokens=3, temperature=0))
    assert [completion.weights_version for completion in found] == [0, 0, 0, 1, 1, 1, 2, 2]
    return [completion.tokens for completion in found]


def _engines(plan: Plan, directory: str, store: str) -> list[tuple[int, ...]] | None:
    """What the first rank's engine makes of some prompts; the others follow."""
    mesh = mesh_of(plan)
    announcer = Announcer(torch.distributed.FileStore(store, plan.world), plan.world)
    model, _ = load(directory, mesh=mesh)
    if mesh.rank:
        follow(join(model, None, announcer), announcer)
        return None
    engine = lead(model, None, _CONFIG, announcer, plan.world)
    try:
        with pytest.raises(UserError, match="a part of a conversation each"):
            engine.save_conversation(Path("chat"), [1, 2])
        return _generate(engine)
    finally:
        dismiss(engine)


def test_an_engine_on_ranks_is_one_engine(ranks: Callable[..., list[Any]], saved: str, tmp_path: Path) -> None:
    plan = Plan(tp=2, ep=2)
    found, nothing = ranks(2, _engines, plan, saved, str(tmp_path / "store"))
    assert nothing is None
    assert found == _generate(Engine(load(saved)[0], None, _CONFIG))


def test_an_engine_s_memory_is_the_same_on_all_ranks() -> None:
    model = small_model(torch.float32)
    settled = ranks_module._divided_by_ranks(model, EngineConfig(max_sequences=3), 2)
    engine = Engine(model, None, settled)
    assert settled.decoder == "torch" and settled.kv_gigabytes and settled.cache_gigabytes
    assert 1 <= engine.memory.pools.num_pages <= 3 * -(-model.config.max_position_embeddings // PAGE)


def test_plans_that_cannot_serve_are_refused() -> None:
    tiny = preset("tiny")
    assert serving_plan(ParallelConfig(), 2, tiny) == Plan(tp=2, ep=2, settings=ParallelConfig())
    assert serving_plan(ParallelConfig(etp=2), 2, tiny).ep == 1
    assert serving_plan(ParallelConfig(), 2, preset("tiny", num_local_experts=5)).etp == 2
    for config, world, words in (
        (ParallelConfig(cp=2), 2, "cp = 2 is for training"),
        (ParallelConfig(pp=2, tp=2), 4, "pp = 2 is for training"),
        (ParallelConfig(), 3, "tp = 3 does not divide 16"),
        (ParallelConfig(tp=2), 4, "there are 4"),
        (ParallelConfig(ep=4), 2, "does not divide the"),
        (ParallelConfig(tp=1), 2, "tp = 1 cannot be kept"),
        (ParallelConfig(), 3, "Numbers of ranks that can serve it: 1, 2."),
    ):
        with pytest.raises(UserError, match=words):
            serving_plan(config, world, tiny)
    with pytest.raises(UserError, match=r"1 key-value heads(.|\n)*can serve it: 1\."):
        serving_plan(ParallelConfig(), 2, preset("tiny", num_key_value_heads=1))


def _serve(directory: Path, world: int) -> list[str]:
    """Texts from ``leyden serve`` on so many ranks, started and ended as a user does."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"] if world > 1 else []
    command = [sys.executable, *launcher, "-m", "leyden", "serve", str(directory), "--port", "0", "--int8", "layers"]
    command += ["--kv-gigabytes", "0.01", "--decoder", "torch"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "COLUMNS": "200"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stderr is not None
        try:
            url = next(found[0] for line in server.stderr if (found := re.search(r"http://[\d.]+:\d+", line)))
            ask = {"prompt": "a jar", "max_tokens": 8, "seed": 3, "temperature": 0.7}
            answers = [httpx.post(f"{url}/v1/completions", json=ask | {"n": n}, timeout=60).json() for n in (1, 2)]
        finally:
            server.terminate()
            server.communicate(timeout=60)
    return [choice["text"] for answer in answers for choice in answer["choices"]]


@pytest.mark.slow
def test_torchrun_serves_what_one_process_does(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["a jar keeps lightning, a jar keeps it"] * 3, vocab_size=265)
    save(small_model(torch.float32, vocab_size=tokenizer.vocab_size), tokenizer, tmp_path)
    assert _serve(tmp_path, 2) == _serve(tmp_path, 1)


def test_what_is_announced_is_json_and_runs_nothing(tmp_path: Path) -> None:
    """A store takes values from whoever reaches its port."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 2)
    teller, listener = Announcer(store, 2), Announcer(store, 2)
    sampling = Sampling(max_tokens=3, temperature=0.1, logit_bias={5: 1.5}, stop=("é",), seed=7, stop_token_ids=(3,))
    request = Request([1, 2], sampling, "a", priority=2, cache_completion=False, watched=False, salt="b/c")
    teller.tell([ranks_module._told(request)])
    (told,) = listener.hear()
    heard = ranks_module._heard(told)
    assert {**vars(heard), "sampling": None} == {**vars(request), "sampling": None} and heard.sampling == sampling
    store.set("announced/1", base64.b64encode(pickle.dumps(print)).decode())
    with pytest.raises(ValueError, match="Expecting value"):
        listener.hear()
