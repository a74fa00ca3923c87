"""Steps that read parts of prompts and single tokens in one pass; and the device that a step runs on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from leyden.model import HybridLM
from leyden.serve import Engine, Request, Sampling, engine_core, runner
from leyden.serve.request import Delta
from leyden.serve.runner import Reading, Runner


def _serve(network: HybridLM, late: list[int]) -> tuple[dict[str, list[int]], list[tuple[int, int]]]:
    """Two requests that decode when a third with a longer prompt comes.

    Returns:
        The tokens of each, and of every pass over the weights how many read single tokens and how many prompts.
    """
    passes: list[tuple[int, int]] = []
    original = Runner.run

    def run(self: Runner, decodes: list[Reading], prefills: list[Reading]) -> torch.Tensor:
        passes.append((len(decodes), len(prefills)))
        return original(self, decodes, prefills)

    tokens: dict[str, list[int]] = {}
    with pytest.MonkeyPatch.context() as patch, Engine(network, None, decoder="torch", step_tokens=256) as served:
        patch.setattr(Runner, "run", run)
        for name, prompt, seed in (("a", [5, 9, 2], None), ("b", [7], 3)):
            sampling = Sampling(max_tokens=12, temperature=0.0 if seed is None else 1.0, seed=seed)
            served.add(Request(prompt, sampling, id=name))
        number = 0
        while served.busy:
            if number == 3:
                served.add(Request(late, Sampling(max_tokens=2, temperature=0.0), id="c"))
            deltas: list[Delta] = served.step()
            for delta in deltas:
                tokens.setdefault(delta.request, []).extend(delta.tokens if delta.error is None else [-1])
            number += 1
    return tokens, passes


def test_prompts_and_single_tokens_share_a_pass_and_change_no_token(
    model: HybridLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = list(range(1, 280)) + list(range(1, 250))
    together, passes = _serve(model, late)
    assert (2, 1) in passes
    monkeypatch.setattr(Runner, "mixes", False)
    apart, passes = _serve(model, late)
    assert all(0 in one for one in passes)
    assert together == apart
    assert {name: len(tokens) for name, tokens in together.items()} == {"a": 12, "b": 12, "c": 2}


def test_a_mixed_step_without_memory_ends_what_may_be_torn(model: HybridLM, monkeypatch: pytest.MonkeyPatch) -> None:
    original, failed = Runner._run, []

    def run(self: Runner, decodes: list[Reading], prefills: list[Reading]) -> torch.Tensor:
        if decodes and prefills and not failed:
            failed.append(len(decodes))
            raise RuntimeError("CUDA out of memory. Tried to allocate")
        return original(self, decodes, prefills)

    monkeypatch.setattr(Runner, "_run", run)
    tokens, _ = _serve(model, list(range(1, 280)))
    assert failed == [2]
    assert [tokens[name][-1] for name in "abc"] == [-1, -1, -1]  # of the prompts, the largest: there was but one


def test_a_step_makes_its_device_the_current_one(
    make_model: Callable[..., HybridLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    entered: list[torch.device] = []
    ran_on: list[int] = []

    @contextmanager
    def on_device(device: torch.device) -> Iterator[None]:
        entered.append(device)
        yield
        entered.pop()

    for module in (engine_core, runner):
        monkeypatch.setattr(module, "on_device", on_device)
    original = Runner._run

    def run(self: Runner, *readings: list[Reading]) -> torch.Tensor:
        ran_on.append(len(entered))
        return original(self, *readings)

    monkeypatch.setattr(Runner, "_run", run)
    with Engine(make_model(), None, decoder="torch") as served:
        served.generate([[1, 2]], Sampling(max_tokens=2))
    assert ran_on == [2, 2]  # the engine's and the runner's own
    assert not entered
