"""``leyden prompts``: sets of prompts to one that can be trained on, with a report."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leyden.align.prompts.cleaning import CleaningSettings, Dropped, clean, contamination_report
from leyden.align.prompts.difficulty import PassRate
from leyden.align.prompts.rows import PromptRow, read_prompts
from leyden.align.prompts.tags import difficulty_of, domain_of, task_of
from leyden.align.sampling.writing import write_json, write_rows
from leyden.core.errors import UserError
from leyden.data.documents import Reject
from leyden.data.hold_out_rule import border, draw

TRAIN, HELD_OUT, DROPPED, SET_ASIDE, REPORT = (
    "train.jsonl",
    "held_out.jsonl",
    "dropped.jsonl",
    "set_aside.jsonl",
    "report.json",
)
WORK = "work"

Measure = Callable[[Sequence[PromptRow]], Mapping[str, PassRate]]
"""Pass rates of prompts, by their ids."""


@dataclass(frozen=True)
class PromptSettings:
    """What becomes of prompts.

    Attributes:
        paths: files of prompts.
        against: files of evaluation sets.
        cleaning: what counts as the same.
        held_out: the share of prompts that is not to be trained on; 0: none.

    Raises:
        UserError: the share is not from 0 to below 1.
    """

    paths: tuple[str, ...]
    against: tuple[str, ...] = ()
    cleaning: CleaningSettings = field(default_factory=CleaningSettings)
    held_out: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise UserError(f"held-out is a share, from 0 to below 1; given: {self.held_out}.")


def build_prompts(settings: PromptSettings, folder: Path, measure: Measure | None) -> dict[str, Any]:
    """Read, clean, hold out, measure, tag, and write; returns the report.

    ``train.jsonl`` and ``held_out.jsonl`` hold each row as it was, with ``prompt`` and what it is graded by in one
    form, ``prompt_id``, ``task``, ``domain``, ``difficulty``; where it was measured, ``pass_rate`` and ``weight``, by
    which stages of reinforcement learning draw. What goes is in ``dropped.jsonl`` and ``set_aside.jsonl``, with why.

    Args:
        settings: what becomes of the prompts.
        folder: is made if it is not there.
        measure: gives pass rates; None: none are measured.

    Raises:
        UserError: a file cannot be read, no prompt is left, or the model cannot be asked.
    """
    rejects: list[Reject] = []
    prompts = read_prompts(settings.paths, rejects)
    folder.mkdir(parents=True, exist_ok=True)
    kept, dropped = clean(prompts, settings.against, settings.cleaning, folder / WORK, rejects)
    if not kept:
        raise UserError(
            f"of {len(prompts):,} prompts none is left: all are of evaluation sets or duplicates; is a set that is "
            "trained on among those of --against?"
        )
    out = _held_out(kept, settings.held_out)
    rates = {} if measure is None else measure(kept)
    rows = {prompt.id: _row(prompt, rates.get(prompt.id)) for prompt in kept}
    parts = {TRAIN: [p for p in kept if p.id not in out], HELD_OUT: [p for p in kept if p.id in out]}
    for name, part in parts.items():
        write_rows(folder / name, (rows[prompt.id] for prompt in part))
    write_rows(folder / DROPPED, map(_dropped_row, dropped))
    write_rows(
        folder / SET_ASIDE,
        ({"source": r.source, "place": r.place, "reason": r.reason, "detail": r.detail} for r in rejects),
    )
    report = {
        "prompts": len(prompts),
        "set_aside": dict(Counter(reject.reason for reject in rejects)),
        "dropped": dict(Counter(one.reason for one in dropped)),
        "contamination": contamination_report(dropped, len(prompts)),
        "trained_on": len(parts[TRAIN]),
        "held_out": len(parts[HELD_OUT]),
        "tags": {
            tag: dict(Counter(row[tag] for row in rows.values()).most_common())
            for tag in ("task", "domain", "difficulty")
        },
        "unmeasured": sum(rate.measured == 0 for rate in rates.values()),
    }
    write_json(folder / REPORT, report)
    return report


def _held_out(prompts: Sequence[PromptRow], share: float) -> set[str]:
    """The ids of those that are held out, by the rule of the whole project: their content alone decides."""
    if not share:
        return set()
    draws = {prompt.id: draw(prompt.text.encode()) for prompt in prompts}
    if len(set(draws.values())) < 2:
        raise UserError("one prompt alone cannot be divided; give more, or --held-out 0.")
    below = border(share, min(draws.values()), max(draws.values()))
    return {id for id, number in draws.items() if number < below}


def _row(prompt: PromptRow, rate: PassRate | None) -> dict[str, Any]:
    measured = None if rate is None else rate.rate
    made = {
        **prompt.row,
        "prompt_id": prompt.id,
        "task": task_of(prompt),
        "domain": domain_of(prompt),
        "difficulty": difficulty_of(measured),
    }
    return made if rate is None else {**made, "pass_rate": measured, "measured": rate.measured, "weight": rate.weight}


def _dropped_row(one: Dropped) -> dict[str, Any]:
    why = {"reason": one.reason, "detail": one.detail, "evaluation_set": one.evaluation_set}
    return {"place": one.prompt.place, **why, "prompt": one.prompt.row["prompt"]}
