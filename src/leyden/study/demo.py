"""The demonstration: a data set that is planted worse goes through plan, runs, verdict and null experiments."""

from collections.abc import Callable
from pathlib import Path

from leyden.study.experiment import DEMO, Experiment, load_experiment
from leyden.study.plan import make_plan
from leyden.study.report import read_null, read_verdict, tell_plan
from leyden.study.verdict import run_plan

_NULL_RUNS = 24


def demo_experiment(*, quick: bool) -> Experiment:
    """The shipped experiment; ``quick`` has fewer steps, items, bytes and seeds."""
    experiment = load_experiment(DEMO)
    if not quick:
        return experiment
    changes = {
        "seeds": 2,
        "pilot_seeds": 2,
        "min_discriminability": 0.5,
        "items": experiment.items.model_copy(update={"per_benchmark": 20}),
        "train": experiment.train.model_copy(update={"steps": 40, "batch_tokens": 1024}),
    }
    return experiment.model_copy(update=changes)


def run_demo(directory: Path, *, quick: bool, tell: Callable[[str], None]) -> None:
    """Carry it out in ``directory``, or go on there.

    Raises:
        Interrupted: Ctrl-C; finished runs are kept.
    """
    _, plan = make_plan(demo_experiment(quick=quick), directory)
    tell(tell_plan(plan))
    run_plan(directory)
    tell(read_verdict(directory))
    if quick:
        tell(read_null(directory, num_runs=4, num_splits=20, num_simulated=50))
    else:
        tell(read_null(directory, num_runs=_NULL_RUNS))
