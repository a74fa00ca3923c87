"""The plan: what will be tested, on what, by which rule, and what it can find; written before any result exists.

A pilot comes first: a few runs of the baseline and of an obviously worse variant tell which benchmarks discriminate
and how noisy seeds and items are. The test then uses other seeds. Results are read by the plan alone, and every run
carries the fingerprint of the plan that it was made under.
"""

import datetime as dt
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from leyden.core.errors import UserError
from leyden.core.files import atomic_file
from leyden.study.discriminability import Discriminability, discriminability, select
from leyden.study.experiment import Experiment
from leyden.study.metric import normalised_weights
from leyden.study.power import Noise, measure_noise, minimum_detectable_effect, power_of, seeds_needed
from leyden.study.study import Run, Study, fingerprint, prepare

_REPETITION_TOLERANCE = 0.05
"""Relative, between a run's epochs and the full run's."""
_PILOT_SEED = 1000
"""Of the pilot's first run; the test counts its seeds from 0."""


@dataclass(frozen=True)
class StudyPlan:
    """A plan as it is written.

    Attributes:
        name, hypothesis: the experiment's.
        rule: in words, when the hypothesis is accepted.
        reading, test, alpha, power: see :class:`leyden.study.experiment.Experiment`.
        seeds: of the runs of each variant. No two share one: models of the same seed begin alike, and scores of both
            variants would then move together, which the tests take for independent.
        weights: of the benchmarks that were selected, summing to 1.
        num_items: of each of them.
        epochs: how often a run uses the documents that it uses, by variant.
        discriminability: of every benchmark, selected or not.
        noise: what the pilot measured.
        minimum_detectable_effect: what is found with a chance of ``power``.
        effect, power_at_effect: the smallest effect that matters, where one was given, and the chance to find it.
        study: fingerprint of experiment, items and data.
        written: when, UTC.
    """

    name: str
    hypothesis: str
    rule: str
    reading: str
    test: str
    alpha: float
    power: float
    seeds: dict[str, list[int]]
    weights: dict[str, float]
    num_items: dict[str, int]
    epochs: dict[str, float]
    discriminability: list[Discriminability]
    noise: Noise
    minimum_detectable_effect: float
    effect: float | None
    power_at_effect: float | None
    study: str
    written: str

    @property
    def fingerprint(self) -> str:
        """A hash of everything that the plan says."""
        return fingerprint(asdict(self))

    def runs(self, variant: str) -> list[Run]:
        """The runs of one variant."""
        return [Run("test", variant, seed) for seed in self.seeds[variant]]


def make_plan(experiment: Experiment, directory: Path) -> tuple[Study, StudyPlan]:
    """Prepare a study, run its pilot and write its plan; one that is there already is returned.

    Raises:
        UserError: the directory holds another experiment, no benchmark discriminates, or too many seeds are needed.
        Interrupted: Ctrl-C during the pilot; finished runs are kept.
    """
    study = prepare(experiment, directory)
    _check_repetition(study)
    if (directory / "plan.json").exists():
        return study, read_plan(study)
    if study.has("test"):
        raise UserError(
            f"{directory} holds results, but no plan: a plan that is written after its results decides nothing. Begin "
            "a new study in a new directory."
        )
    runs = {
        variant: [Run("pilot", variant, first + index) for index in range(experiment.pilot_seeds)]
        for variant, first in (("baseline", _PILOT_SEED), ("obvious", _PILOT_SEED + experiment.pilot_seeds))
    }
    study.carry_out([*runs["baseline"], *runs["obvious"]], "pilot")
    plan = _plan(study, runs)
    with atomic_file(directory / "plan.json") as part:
        text = json.dumps({"fingerprint": plan.fingerprint, **asdict(plan)}, indent=1, ensure_ascii=False)
        part.write_text(text + "\n", encoding="utf-8")
    return study, plan


def read_plan(study: Study) -> StudyPlan:
    """The plan of a study.

    Raises:
        UserError: there is none, it was changed since it was written, or the study was.
    """
    path = study.directory / "plan.json"
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        claimed = record.pop("fingerprint")
        found = [Discriminability(**one) for one in record.pop("discriminability")]
        plan = StudyPlan(**record | {"noise": Noise(**record["noise"]), "discriminability": found})
    except FileNotFoundError:
        raise UserError(
            f"{study.directory} has no plan, and results may be read with a plan alone; write it first by leyden study "
            "data plan EXPERIMENT --dir DIR"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); restore it, or begin a new study.") from None
    if plan.fingerprint != claimed:
        raise UserError(
            f"{path} was changed after it was written: its fingerprint is {plan.fingerprint[:12]}, not {claimed[:12]}. "
            "Restore it; a rule that is changed once results exist decides nothing. For another rule begin a new study."
        )
    if plan.study != study.fingerprint:
        raise UserError(
            f"{study.directory / 'study.json'} was changed after the plan was written; restore it, or begin a new "
            "study."
        )
    return plan


def _check_repetition(study: Study) -> None:
    """Refuse runs that do not repeat documents as the full run will."""
    found = study.epochs()
    for name, asked in (study.experiment.full_epochs or {}).items():
        if name not in found:
            raise UserError(f"full_epochs names '{name}', which is not trained here; name of: {', '.join(found)}.")
        if abs(found[name] / max(1.0, asked) - 1) > _REPETITION_TOLERANCE:
            raise UserError(
                f"a run uses documents of '{name}' {found[name]:.2f} times, the full run {asked:g} times. Down-sample "
                'the documents by a stage of kind = "match_repetition", or change train.steps.'
            )


def _plan(study: Study, runs: dict[str, list[Run]]) -> StudyPlan:
    experiment = study.experiment
    better, worse = (study.scores(runs[name], experiment.reading) for name in ("baseline", "obvious"))
    found = discriminability(better, worse)
    chosen = sorted(select(found, experiment.min_discriminability))
    weights = normalised_weights(chosen, experiment.weights)
    num_items = {name: better[name].shape[1] for name in chosen}
    noise, n = measure_noise(better, worse, weights), sum(num_items.values())
    seeds = experiment.seeds
    if seeds is None:
        assert experiment.effect is not None, "an experiment has one of the two"
        seeds = seeds_needed(
            noise, experiment.effect, n, alpha=experiment.alpha, power=experiment.power, most=experiment.max_seeds
        )
    effect = experiment.effect
    return StudyPlan(
        name=experiment.name,
        hypothesis=experiment.hypothesis,
        rule=f"The hypothesis is accepted if the one-sided {experiment.test} test of treatment over baseline, on the "
        f"weighted mean of log acc_norm^2 ({experiment.reading}), has p < {experiment.alpha:g}.",
        reading=experiment.reading,
        test=experiment.test,
        alpha=experiment.alpha,
        power=experiment.power,
        seeds={"baseline": list(range(seeds)), "treatment": list(range(seeds, 2 * seeds))},
        weights=weights,
        num_items=num_items,
        epochs=study.epochs(),
        discriminability=found,
        noise=noise,
        minimum_detectable_effect=minimum_detectable_effect(
            noise, seeds, n, alpha=experiment.alpha, power=experiment.power
        ),
        effect=effect,
        power_at_effect=None if effect is None else power_of(noise, effect, seeds, n, experiment.alpha),
        study=study.fingerprint,
        written=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    )
