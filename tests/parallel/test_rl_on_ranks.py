"""Reinforcement learning and preferences under torchrun: what one process draws and learns, stopped within a round."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rank_runs
from safetensors.torch import load_file

from leyden.core.config import dump_toml
from leyden.tokenizer import Tokenizer

ENVIRONMENT = """
class Vowels:
    def prompts(self):
        return [{"prompt": f"Is {number} so?"} for number in range(9)]

    def held_out(self):
        return [{"prompt": "Is it not so?"}]

    def score(self, row, response):
        return sum(letter in "aeiou" for letter in response) / 16
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("rl")
    Tokenizer.train(["Is it so? Yes, it is so. No, it is not.\n" * 9], vocab_size=270).save(place / "tokenizer")
    pairs = [{"prompt": f"Is {n} so?", "chosen": f"Yes, {n} is.", "rejected": "No."} for n in range(20)]
    (place / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
    (place / "own.py").write_text(ENVIRONMENT, encoding="utf-8")
    engine = {"max_sequences": 8, "cache_gigabytes": 0.001, "swap_gigabytes": 0.001}
    rl = {
        "environment": f"{place / 'own.py'}:Vowels",
        "group_size": 4,
        "prompts_per_step": 3,
        "max_tokens": 8,
        "updates": 2,
        "round_tokens": 5,  # rollouts are set aside when step 5 is stopped at
        "engine": engine,
    }
    model = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "layer_types": ["linear_attention", "full_attention"],
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rotary_dim": 8,
        "intermediate_size": 32,
        "num_local_experts": 4,
        "max_position_embeddings": 512,
    }
    stages = [
        {"name": "dpo", "objective": "preference", "steps": 2, "seq_len": 128, "batch_tokens": 256},
        {"name": "rl", "objective": "rl", "steps": 4, "seq_len": 64, "micro_batch_tokens": 256, "rl": rl},
    ]
    given = {
        "model": model,
        "tokenizer": {"path": str(place / "tokenizer")},
        "data": {"preferences": [str(place / "pairs.jsonl")], "held_out_fraction": 0.2},
        "train": {"dtype": "float32", "checkpoint_steps": 100},
        "stage": stages,
        "evaluate": {"every_steps": 3},
    }
    path = place / "recipe.toml"
    path.write_text(dump_toml(given), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def alone(recipe: Path, leyden_cli: Callable[..., Any]) -> Path:
    outcome = leyden_cli("run", recipe, "--dir", recipe.parent / "alone")
    assert outcome.code == 0, outcome.err
    return recipe.parent / "alone"


@pytest.fixture(scope="module")
def with_critic(recipe: Path) -> Path:
    """The same, with a critic in place of groups."""
    given = tomllib.loads(recipe.read_text(encoding="utf-8"))
    of_rl = given["stage"][1]["rl"]
    of_rl |= {"group_size": 1, "prompts_per_step": 5, "algorithm": {"preset": "ppo"}, "critic": {"lr": 2e-3}}
    given["stage"][0]["steps"] = 1
    path = recipe.parent / "ppo.toml"
    path.write_text(dump_toml(given), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def critic_alone(with_critic: Path, leyden_cli: Callable[..., Any]) -> Path:
    outcome = leyden_cli("run", with_critic, "--dir", with_critic.parent / "critic-alone")
    assert outcome.code == 0, outcome.err
    return with_critic.parent / "critic-alone"


OF_CRITIC = ("value_loss", "value_clipped", "critic_grad_norm", "value_mean", "return_mean", "explained_variance")


@pytest.mark.slow
@pytest.mark.parametrize("plan", [{"dp_shard": 2}, {"tp": 2}, {"cp": 2, "ep": 2}], ids=str)
def test_a_critic_on_two_ranks_is_that_of_one_process(
    plan: dict[str, int], with_critic: Path, critic_alone: Path, tmp_path: Path
) -> None:
    """Stopped between two updates of a round, and gone on with."""
    directory = tmp_path / "run"
    settings = [word for axis, size in plan.items() for word in ("--set", f"parallel.{axis}={size}")]
    stopped = rank_runs.torchrun("run", with_critic, "--dir", directory, *settings, fault=("terminate", 1, 4))
    assert stopped.code == 1 and "Stopped after step 4" in stopped.said, stopped.said
    ended = rank_runs.torchrun("run", with_critic, "--dir", directory, *settings)
    assert ended.code == 0, ended.said
    for found, expected in zip(rank_runs.metrics(directory), rank_runs.metrics(critic_alone), strict=True):
        for name in ("step", "loss", "grad_norm", "reward", "kl", *OF_CRITIC):
            assert (name in found) == (name in expected), (name, found["step"])
            if name in expected:
                assert found[name] == pytest.approx(expected[name], rel=1e-4, abs=2e-6), (name, found["step"])
        if "reward" in found:
            assert found["off_policy"] == found["value_clipped"] == 0, "nothing has changed at a first update"
    for name in ("final", "critic/rl"):
        weights, others = (load_file(path / name / "model.safetensors") for path in (directory, critic_alone))
        assert max(float((weights[one] - others[one]).abs().max()) for one in others) < 2e-5, name


@pytest.mark.slow
@pytest.mark.parametrize("plan", [{"dp_replicate": 2}, {"dp_shard": 2}, {"tp": 2}, {"cp": 2, "ep": 2}], ids=str)
def test_two_ranks_are_one_process_also_stopped_within_a_round(
    plan: dict[str, int], recipe: Path, alone: Path, tmp_path: Path
) -> None:
    """Step 5 is the first of the second round's two updates; it is gone on with from its completions."""
    directory = tmp_path / "run"
    settings = [word for axis, size in plan.items() for word in ("--set", f"parallel.{axis}={size}")]
    stopped = rank_runs.torchrun("run", recipe, "--dir", directory, *settings, fault=("terminate", 1, 5))
    assert stopped.code == 1 and "Stopped after step 5" in stopped.said, stopped.said
    ended = rank_runs.torchrun("run", recipe, "--dir", directory, *settings)
    assert ended.code == 0, ended.said
    ours, theirs = rank_runs.metrics(directory), rank_runs.metrics(alone)
    for found, expected in zip(ours, theirs, strict=True):
        for name in ("step", "loss", "grad_norm", "reward", "kl", "entropy", "accuracy", "margin"):
            assert (name in found) == (name in expected), (name, found["step"])
            if name in expected:
                assert found[name] == pytest.approx(expected[name], rel=2e-5, abs=2e-6), (name, found["step"])
        if "reward" in found:
            assert found["off_policy"] == 0 and found["drift"] < 1e-3, "the ratios of a first update are exactly 1"
    told, expected = (
        [json.loads(line)["response"] for line in (path / "rollouts.jsonl").read_text().splitlines()]
        for path in (directory, alone)
    )
    assert told == expected
    weights, others = (load_file(path / "final" / "model.safetensors") for path in (directory, alone))
    assert max(float((weights[name] - others[name]).abs().max()) for name in others) < 1e-5
    rewards = [
        [line["value"] for line in map(json.loads, (path / "eval.jsonl").read_text().splitlines()) if "of" in line]
        for path in (directory, alone)
    ]
    assert rewards[0] == rewards[1] and rewards[0]
