"""What the finished model of a run answers to prompts that it never saw, graded by an environment."""

import json
from collections import Counter
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from leyden.align.rollouts.environment import Environment, open_environment
from leyden.align.rollouts.held_out import likeliest_answers, summary
from leyden.align.rollouts.prompts import Prompt, prompts_of
from leyden.align.rollouts.settings import RolloutSettings
from leyden.checkpoint import load
from leyden.core.device import default_device
from leyden.core.errors import UserError
from leyden.core.files import atomic_file
from leyden.core.log import console, say
from leyden.recipes.schema import Recipe
from leyden.serve import Engine
from leyden.tokenizer import Tokenizer
from leyden.train.observing import EVALUATIONS

ANSWERED = "held_out_answers"
"""The task of their line in ``eval.jsonl``."""

EVALUATED = "evaluate"
"""What asks them at the end of a stage: ``of`` in its line of ``eval.jsonl``, in place of the name of a stage."""

ANSWERS = "answers.jsonl"
"""In the folder of a run: prompts, answers and rewards."""

_SHOWN = 5
"""Answers that are printed, each to another kind of prompt where there are several."""


def held_out_prompts(recipe: Recipe, tokenizer: Tokenizer) -> tuple[list[Prompt], Environment]:
    """The prompts of ``[evaluate] environment``, and who grades the answers.

    Raises:
        UserError: there is no such environment, or it has no held-out prompts that fit the model.
    """
    section = recipe.evaluate
    environment: Any = open_environment(answer_settings(recipe))
    rows, aside = environment.held_out() if hasattr(environment, "held_out") else (), Counter[str]()
    longest = recipe.model.max_position_embeddings - section.answer_tokens
    found = list(islice(prompts_of(rows, tokenizer, longest, aside), section.environment_prompts))
    if not found:
        why = ", ".join(f"{count} {reason}" for reason, count in aside.items()) or "its method held_out() gives none"
        raise UserError(f"[evaluate] environment {section.environment} has no held-out prompts to ask: {why}.")
    return found, environment


def answer_settings(recipe: Recipe) -> RolloutSettings:
    """How the prompts of ``[evaluate] environment`` are answered."""
    section = recipe.evaluate
    return RolloutSettings(environment=section.environment, max_tokens=section.answer_tokens, engine=recipe.serve)


def write_answers(recipe: Recipe, directory: Path) -> None:
    """Ask the finished model, if the recipe says what; write ``answers.jsonl`` and a line of ``eval.jsonl``."""
    section = recipe.evaluate
    if section.environment is None:
        return
    model, tokenizer = load(directory / "final", dtype=getattr(torch, recipe.train.dtype), device=default_device())
    assert tokenizer is not None, "a run saves its tokenizer"
    prompts, environment = held_out_prompts(recipe, tokenizer)
    settings = answer_settings(recipe)
    answers = likeliest_answers(Engine(model, tokenizer, settings.engine), prompts, environment, settings)
    with atomic_file(directory / ANSWERS) as part, part.open("w", encoding="utf-8") as file:
        for one in answers:
            line = {"prompt": one.prompt.text, "answer": one.text, "reward": one.reward.reward}
            file.write(json.dumps({**line, "kinds": [*one.reward.components]}) + "\n")
    with (directory / EVALUATIONS).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"task": ANSWERED, **summary(answers)}) + "\n")


def tell_answers(record: Mapping[str, Any], directory: Path) -> None:
    """Print how many answers are right, and some of them.

    Args:
        record: their line of ``eval.jsonl``.
        directory: the run's.
    """
    parts = ", ".join(f"{name} {value:.2f}" for name, value in record["components"].items())
    mean = "no reward" if record["value"] is None else f"{record['value']:.2f}"
    say(f"answers to {record['n']} prompts that it never saw: mean reward {mean}" + (f" ({parts})" if parts else ""))
    shown = dict[tuple[str, ...], dict[str, Any]]()
    for line in (directory / ANSWERS).read_text(encoding="utf-8").splitlines():
        one = json.loads(line)
        shown.setdefault(tuple(one["kinds"]), one)
    console.rule("a chat")
    for one in islice(shown.values(), _SHOWN):
        say(f"You:   {_short(one['prompt'])}\nModel: {_short(one['answer'])}")
    console.rule()


def _short(text: str) -> str:
    """A long text without its middle."""
    return text if len(text) <= 300 else f"{text[:140]} [...] {text[-140:]}"
