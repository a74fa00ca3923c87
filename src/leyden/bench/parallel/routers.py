"""``leyden bench routers``: what capacity drops where every rank spends its own share of it, and where all share one.

The ranks are processes on gloo that torchrun starts, as for training, and run what training runs: the router's choice,
the drop, and the drop rate as it is reported. Tokens are random logits with a skew, a liking for some experts: of each
rank its own, as ranks with different documents have it, or the same on all. Before anything is reported, what the
ranks keep together must be what one process with all their tokens keeps.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from leyden import __version__
from leyden.bench.result import BenchResult, ResultRow, show
from leyden.core.environment import machine
from leyden.model import ModelConfig
from leyden.model import experts as alone
from leyden.model.balance import router_losses
from leyden.ops import Routing, route
from leyden.parallel import Plan, RankGroup
from leyden.parallel.experts import GlobalCapacity
from leyden.parallel.ranks import StageRanks
from leyden.parallel.start import team_of
from leyden.parallel.traffic import count_traffic

_FACTORS = (1.0, 1.25, 1.5)
_RULES = ("probability", "position")
_SKEWS = {"ranks skewed each its own way": (0.8, 0.0), "ranks skewed alike": (0.0, 0.8), "no skew": (0.0, 0.0)}
"""Standard deviation, over experts, of what is added to the logits of one rank, and of all ranks."""


@dataclass(frozen=True)
class RouterWork:
    """Micro-batches of random routings.

    Attributes:
        ranks: how many processes.
        tokens: of each rank.
        experts: E.
        top_k: experts a token.
        repeats: micro-batches that the figures are means of.
    """

    ranks: int = 8
    tokens: int = 512
    experts: int = 32
    top_k: int = 2
    repeats: int = 16


def run_routers(*, quick: bool = False, output: Path | None = None) -> BenchResult:
    """Compare both on eight ranks and print the table; one to two minutes on two cores.

    Args:
        quick: two ranks and few tokens, to see that everything runs; its figures mean nothing.
        output: where to write the result as JSON as well.

    Raises:
        RuntimeError: a rank failed, or the ranks do not keep what one process keeps.
    """
    work = RouterWork(ranks=2, tokens=64, repeats=2) if quick else RouterWork()
    found = _on_ranks(work)
    result = BenchResult(
        name="routers",
        rows=[ResultRow(**row) for row in found["rows"]],
        settings={"quick": quick, **asdict(work), "skews": _SKEWS, "threads": 1},
        checks=found["checks"],
        machine=machine(),
        versions={"leyden": __version__, "torch": torch.__version__},
        command="leyden bench routers" + " --quick" * quick,
        notes=[
            "theirs: each rank drops what is over its own share of the capacity; ours: the ranks spend it together",
            f"{work.ranks} ranks on gloo, {work.tokens} tokens each, {work.experts} experts, top-{work.top_k}; tokens, "
            "routing and capacity are the same on both sides",
            *(f"exchanged by a rank in a layer, by {by}: {size:,} bytes" for by, size in found["bytes"].items()),
            *(["quick form: these figures mean nothing"] if quick else []),
        ],
    )
    show(result, output)
    return result


def _on_ranks(work: RouterWork) -> dict:
    """What the first rank wrote."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "found.json")
        launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(work.ranks)]
        given = [str(path), json.dumps(asdict(work))]
        command = [sys.executable, "-m", *launch, "-m", "leyden.bench.parallel.routers", *given]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"the ranks failed:\n{done.stderr}")
        return json.loads(path.read_text(encoding="utf-8"))


def _measure(path: Path, work: RouterWork) -> None:
    """On a rank: all figures, which the first one writes."""
    with team_of(Plan(dp_shard=work.ranks)) as rank_group:
        rank = _Rank(rank_group, work)
        rows = []
        for name, skew in _SKEWS.items():
            for factor in _FACTORS:
                shares = {by: rank.compare(skew, rank.config(factor, by)) for by in _RULES}
                rows.append(_row(f"capacity {factor}, {name}", "% of assignments", *shares[_RULES[0]][:2]))
                if name == next(iter(_SKEWS)):  # how many are dropped is the same by both rules, but not which
                    rows += [_row(f"capacity {factor}, by {by}", "% of weight", *shares[by][2:]) for by in _RULES]
        num_bytes = {by: rank.num_bytes(by) for by in _RULES}
        if rank_group.rank == 0:
            checks = {"assignments_kept_as_by_one_process": rank.compared}
            found = {"rows": [asdict(row) for row in rows], "checks": checks, "bytes": num_bytes}
            path.write_text(json.dumps(found), encoding="utf-8")


def _row(work: str, unit: str, local: float, together: float) -> ResultRow:
    return ResultRow(work, unit, 100 * local, 100 * together, local / together if together else None)


class _Rank:
    """One of the ranks.

    Attributes:
        compared: assignments of which one process kept the same.
    """

    def __init__(self, rank_group: RankGroup, work: RouterWork) -> None:
        assert rank_group.mesh is not None, "there are several ranks"
        stage = rank_group.mesh.groups["stage"]
        assert stage is not None, "all ranks share a micro-batch"
        self._team, self._mesh, self._work = rank_group, rank_group.mesh, work
        self._drop_together = GlobalCapacity(stage)
        self.compared = 0

    def config(self, factor: float, by: str) -> ModelConfig:
        """The rules of a model of one layer."""
        rules = {"num_hidden_layers": 1, "capacity_factor": factor, "token_drop": by}
        shape = {"num_local_experts": self._work.experts, "num_experts_per_tok": self._work.top_k}
        return ModelConfig.model_validate(rules | shape)

    def compare(self, skew: tuple[float, float], config: ModelConfig) -> list[float]:
        """Mean shares dropped: of assignments, by each rank alone and by all together; of routing weights, alike.

        Raises:
            RuntimeError: the ranks keep something else than one process would.
        """
        shares = torch.zeros(4, dtype=torch.float64)
        for repeat in range(self._work.repeats):
            of_all = self._logits(skew, repeat)
            routing = route(of_all[self._team.rank], self._work.top_k)
            one_process = alone.drop(route(of_all.flatten(0, 1), self._work.top_k), config)
            both = alone.drop(routing, config), self._drop_together(routing, config)
            if not torch.equal(_kept(both[1]), _kept(one_process).chunk(self._work.ranks)[self._team.rank]):
                raise RuntimeError("the ranks keep other assignments than one process with all their tokens")
            self.compared += _kept(one_process).numel()
            reported = [router_losses(config, [dropped], StageRanks(self._mesh)).dropped for dropped in both]
            lost = [(routing.weights - dropped.weights).sum() / len(_kept(one_process)) for dropped in both]
            shares += torch.stack(reported + lost)
        (total,) = self._team.sum([shares / self._work.repeats])
        return total.tolist()

    def num_bytes(self, by: str) -> int:
        """What a rank hands to collectives in one layer, to drop together."""
        routing = route(self._logits((0.0, 0.0), 0)[self._team.rank], self._work.top_k)
        with count_traffic(self._mesh) as traffic:
            self._drop_together(routing, self.config(1.0, by))
        return sum(traffic.by_axis().values())

    def _logits(self, skew: tuple[float, float], repeat: int) -> torch.Tensor:
        """[ranks, tokens, E], those of all ranks, the same on each."""
        generator = torch.Generator().manual_seed(repeat)
        shape = self._work.ranks, self._work.tokens, self._work.experts
        of_token, of_rank, of_all = (
            torch.randn(size, generator=generator) for size in (shape, (shape[0], 1, shape[2]), shape[2])
        )
        return of_token + skew[0] * of_rank + skew[1] * of_all


def _kept(routing: Routing) -> torch.Tensor:
    """[N, k] bool."""
    assert routing.kept is not None, "there is a capacity"
    return routing.kept


if __name__ == "__main__":
    _measure(Path(sys.argv[1]), RouterWork(**json.loads(sys.argv[2])))
