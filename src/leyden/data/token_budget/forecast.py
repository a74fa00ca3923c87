"""A mixture's plan for documents that lie on the disk, without a build: what a budget would take of them."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from leyden.core.errors import UserError
from leyden.data.engine import DataEngine
from leyden.data.stage import Corpus
from leyden.data.token_budget.plan import MixturePlan
from leyden.data.token_budget.plots import draw_mixture
from leyden.data.token_budget.stage import PLAN, PlanMixture


def forecast(paths: Sequence[Path], settings: PlanMixture, directory: Path, *, workers: int = 1) -> MixturePlan:
    """Plan, and write ``plan.json``, ``plan.txt`` and ``plan.svg``.

    Args:
        paths: Parquet files of documents as a build writes them, or folders of such.
        settings: the budget among them.
        directory: gets the files.
        workers: processes that read.

    Raises:
        UserError: no documents, or a budget that repeats them too often.
    """
    files = [file for path in paths for file in (sorted(path.rglob("*.parquet")) if path.is_dir() else [path])]
    missing = [str(file) for file in files if not file.is_file()]
    if missing or not files:
        raise UserError(f"no documents in Parquet files at {', '.join(missing or map(str, paths))}.")
    with tempfile.TemporaryDirectory() as work:
        shards = {f"{index:06d}": file for index, file in enumerate(files)}
        settings.prepare(Corpus(shards, Path(work), DataEngine(workers)))
        plan = MixturePlan.load(Path(work) / PLAN)
    plan.save(directory / "plan.json")
    (directory / "plan.txt").write_text(plan.table() + "\n", encoding="utf-8")
    draw_mixture(plan, directory / "plan.svg")
    return plan
