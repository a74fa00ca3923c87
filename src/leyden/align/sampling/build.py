"""``leyden sample``: prompts to a data set of the best responses, with where each of them is from.

``data.jsonl`` has chats, ``pairs.jsonl`` preferences, ``samples.jsonl`` every response, ``report.json`` the counts.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leyden import __version__
from leyden.align.preference.best_and_worst import best_and_worst, shortest_and_longer
from leyden.align.prompts.rows import PromptRow
from leyden.align.rewards.best_of_n import best_of_curve
from leyden.align.rewards.reward import Reward
from leyden.align.sampling.asking import Drawing, Response, draw_responses
from leyden.align.sampling.choice import ChoiceSettings, Chosen, Embed, choose
from leyden.align.sampling.grading import Grading, grade_responses
from leyden.align.sampling.writing import write_json, write_rows
from leyden.core.log import logger
from leyden.data.label.language_model import LanguageModel

_log = logger(__name__)

DATA, SAMPLES, PAIRS, REPORT, ANSWERS = "data.jsonl", "samples.jsonl", "pairs.jsonl", "report.json", "answers"


@dataclass(frozen=True)
class SampleSettings:
    """How responses are drawn, graded and chosen."""

    drawing: Drawing
    grading: Grading
    choice: ChoiceSettings

    def told(self) -> dict[str, Any]:
        """For provenance: all that the data set follows from, beside the model and the prompts."""
        rows = self.grading.rows
        judge = None if rows.judge is None else {"model": rows.judge.model.identity, "rubric": rows.judge.rubric}
        return {
            "drawing": asdict(self.drawing),
            "rewards": [asdict(level) for level in self.grading.levels],
            "judge": judge,
            "reward_models": {kind: model.identity for kind, model in self.grading.models.items()},
            "choice": asdict(self.choice),
            "leyden": __version__,
        }


def build_data_set(
    prompts: Sequence[PromptRow], model: LanguageModel, settings: SampleSettings, folder: Path, embed: Embed | None
) -> dict[str, Any]:
    """Draw, grade, choose, and write what is named above; returns the report.

    Responses are kept in ``answers/`` as they are drawn: the same call after a kill goes on from there, and one with
    another reward or another choice draws nothing.

    Args:
        prompts: of two with one id the first is asked.
        model: is asked.
        settings: how.
        folder: is made if it is not there.
        embed: makes embeddings, where a similarity is set.

    Raises:
        UserError: the model or the judge cannot be asked, there is no sandbox for code, or the disk fails.
    """
    first: dict[str, PromptRow] = {}
    for prompt in prompts:
        first.setdefault(prompt.id, prompt)
    different = list(first.values())
    if len(different) < len(prompts):
        _log.info("%d prompts are there twice, and are asked once", len(prompts) - len(different))
    responses = draw_responses(different, model, settings.drawing, folder / ANSWERS, "responses")
    rewards = grade_responses(responses, settings.grading)
    chosen = choose(responses, rewards, settings.choice, embed)
    made = {"model": model.identity, **settings.told()}
    digest = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:16]
    told = [_provenance(one, reward, digest, model.identity) for one, reward in zip(responses, rewards, strict=True)]
    samples = [
        {
            **one.prompt.row,
            "response": one.text,
            "finish": one.finish,
            "reward": reward.reward,
            "components": dict(reward.components),
            "reason": reward.reason,
            "fate": fate,
            "similarity": similarity,
            "provenance": where,
        }
        for one, reward, fate, similarity, where in zip(
            responses, rewards, chosen.fates, chosen.similarity, told, strict=True
        )
    ]
    pairs = _pairs(samples, settings.choice)
    report = {**_report(different, responses, rewards, chosen), "pairs": len(pairs), "provenance": digest, **made}
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / DATA, (_chat(responses[place], told[place]) for place in chosen.kept))
    write_rows(folder / SAMPLES, samples)
    write_rows(folder / PAIRS, pairs)
    write_json(folder / REPORT, report)
    return report


def _pairs(samples: Sequence[dict[str, Any]], choice: ChoiceSettings) -> Sequence[dict[str, Any]]:
    """Of each prompt the best and the worst, or the shortest that is good enough and a longer one."""
    graded = [(row, row["reward"]) for row in samples]
    made = shortest_and_longer(graded, least=choice.least) if choice.prefer == "short" else best_and_worst(graded)
    return made.pairs


def _chat(response: Response, provenance: dict[str, Any]) -> dict[str, Any]:
    """A row that stages of fine-tuning read."""
    answer = {"role": "assistant", "content": response.text}
    return {"messages": [*response.prompt.messages, answer], "provenance": provenance}


def _provenance(response: Response, reward: Reward, digest: str, model: str) -> dict[str, Any]:
    return {
        "prompt": response.prompt.id,
        "place": response.prompt.place,
        "model": model,
        "settings": digest,
        "temperature": response.temperature,
        "seed": response.seed,
        "reward": reward.reward,
        "components": dict(reward.components),
    }


def _report(
    prompts: Sequence[PromptRow], responses: Sequence[Response], rewards: Sequence[Reward], chosen: Chosen
) -> dict[str, Any]:
    by_temperature: dict[float, list[float]] = {}
    groups: dict[str, list[float | None]] = {}
    for one, reward in zip(responses, rewards, strict=True):
        groups.setdefault(one.prompt.id, []).append(reward.reward)
        if reward.reward is not None:
            by_temperature.setdefault(one.temperature, []).append(reward.reward)
    return {
        "prompts": len(prompts),
        "responses": len(responses),
        "kept": len(chosen.kept),
        "prompts_without": chosen.num_without,
        "prompts_all_alike": chosen.num_alike,
        "fates": chosen.counts(),
        "mean_reward": {str(one): float(np.mean(values)) for one, values in by_temperature.items()},
        "best_of": what_best_is_worth(list(groups.values())),
    }


def what_best_is_worth(groups: Sequence[Sequence[float | None]]) -> dict[str, float]:
    """What the best of 1, 2, 4, ... responses is worth by its own reward, over the prompts of which all have one."""
    most = max(map(len, groups), default=1)
    graded = [[(one, one) for one in group if one is not None] for group in groups]
    return {str(record["best_of"]): record["value"] for record in best_of_curve(graded, least=most)}
