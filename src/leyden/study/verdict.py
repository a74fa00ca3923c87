"""The verdict: the planned test on the planned runs, and beside it every other test, for the reader to compare."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

from leyden.core.files import atomic_file
from leyden.study.hypothesis import TESTS, TestResult, bootstrap_interval, flip_items, permute_runs
from leyden.study.metric import Reading, ScoreTable
from leyden.study.plan import StudyPlan, read_plan
from leyden.study.study import Study


@dataclass(frozen=True)
class Findings:
    """Everything that one reading of byte normalisation gives.

    Attributes:
        tests: by name, as in :data:`leyden.study.hypothesis.TESTS`.
        permuted_runs: p over all ways to name the runs.
        flipped_items: p over random flips of the items' differences.
        bootstrap: interval of the effect over runs and items, with confidence ``1 - 2 alpha``.
        by_benchmark: the planned test of each selected benchmark alone.
    """

    tests: dict[str, TestResult]
    permuted_runs: float
    flipped_items: float
    bootstrap: tuple[float, float]
    by_benchmark: dict[str, TestResult]


@dataclass(frozen=True)
class Verdict:
    """What became of a hypothesis.

    Attributes:
        accepted: whether the planned rule accepts H1.
        decisive: the planned test by the planned reading.
        findings: by reading.
        plan: fingerprint of the plan.
        sentence: the verdict in words.
    """

    accepted: bool
    decisive: TestResult
    findings: Mapping[str, Findings]
    plan: str
    sentence: str


def run_plan(directory: Path) -> StudyPlan:
    """Train and score every run that the plan names and that is not there yet.

    Raises:
        UserError: there is no plan, or it was changed.
        Interrupted: Ctrl-C; finished runs are kept.
    """
    study = Study(directory)
    plan = read_plan(study)
    study.carry_out([*plan.runs("baseline"), *plan.runs("treatment")], "runs of the test", plan.fingerprint)
    return plan


def give_verdict(directory: Path) -> tuple[StudyPlan, Verdict]:
    """Read the results by the plan; write ``verdict.json``.

    Raises:
        UserError: there is no plan, it was changed, or a run is missing or was made under another plan.
    """
    study = Study(directory)
    plan = read_plan(study)
    findings = {}
    for reading in get_args(Reading):
        treatment, baseline = (study.scores(plan.runs(v), reading, plan.fingerprint) for v in ("treatment", "baseline"))
        findings[reading] = find(treatment, baseline, plan.weights, plan.test, plan.alpha)
    decisive = findings[plan.reading].tests[plan.test]
    verdict = Verdict(decisive.significant, decisive, findings, plan.fingerprint, _sentence(plan, decisive))
    with atomic_file(directory / "verdict.json") as part:
        part.write_text(json.dumps(asdict(verdict), indent=1) + "\n", encoding="utf-8")
    return plan, verdict


def find(
    treatment: ScoreTable, baseline: ScoreTable, weights: Mapping[str, float], test: str, alpha: float
) -> Findings:
    """Every test of two variants' scores."""
    return Findings(
        tests={name: run(treatment, baseline, weights, alpha) for name, run in TESTS.items()},
        permuted_runs=permute_runs(treatment, baseline, weights),
        flipped_items=flip_items(treatment, baseline, weights),
        bootstrap=bootstrap_interval(treatment, baseline, weights, confidence=1 - 2 * alpha),
        by_benchmark={name: TESTS[test](treatment, baseline, {name: 1.0}, alpha) for name in weights},
    )


def _sentence(plan: StudyPlan, found: TestResult) -> str:
    figures = (
        f"effect {found.effect:+.4g}, p = {found.p:.2g}; above {found.lower:+.4g} with {1 - plan.alpha:.0%} confidence"
    )
    if found.significant:
        return f"Accepted: {plan.hypothesis} ({figures})"
    if found.effect < 0:
        return f"Not accepted: the treatment did worse than the baseline ({figures})."
    return (
        f"Not accepted ({figures}): the difference could be noise. An effect of {plan.minimum_detectable_effect:.3g} "
        f"or more would have been found with a chance of {plan.power:.0%}; a smaller one may exist."
    )
