"""``leyden bench traffic``: the bytes that context ranks exchange, predicted beside counted, by the length of a row.

A lightning layer (LASP+) exchanges states, whose size has nothing to do with the length; a softmax layer (ring
attention) passes keys and values around. The ranks are processes on gloo that torchrun starts, and run the forward and
backward that training runs; what they hand to collectives is counted where it passes PyTorch's dispatcher, and
predicted from shapes alone.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from leyden import __version__
from leyden.core.environment import machine
from leyden.core.files import atomic_file
from leyden.model import LayerType, ModelConfig, RowPart
from leyden.model.forward_context import ForwardContext, lay_out
from leyden.ops import lightning_slopes
from leyden.parallel import Mesh, Plan, coordinates
from leyden.parallel.planner import StepShape
from leyden.parallel.planner.rank import Rank
from leyden.parallel.planner.traffic import by_axis, predict_attention
from leyden.parallel.sequence import LaspPlus, RingAttention
from leyden.parallel.start import team_of
from leyden.parallel.traffic import count_traffic


def _lasp(mesh: Mesh, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, context: ForwardContext) -> torch.Tensor:
    return LaspPlus(mesh)(q, k, v, lightning_slopes(q.shape[2], 0, 1), None, context)[0]


def _ring(mesh: Mesh, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, context: ForwardContext) -> torch.Tensor:
    return RingAttention(mesh)(q, k, v, context)


_EXCHANGES: dict[LayerType, tuple[str, bool, Callable[..., torch.Tensor]]] = {
    "linear_attention": ("LASP+", False, _lasp),
    "full_attention": ("ring attention", True, _ring),
}
"""The name of each exchange, whether it has key heads of its own, and what computes it."""


@dataclass(frozen=True)
class TrafficWork:
    """What is measured.

    Attributes:
        ranks: that share a row.
        lengths: tokens of the rows.
        document_tokens: a row is packed with documents of so many.
        heads, key_value_heads, head_dim: of a layer, in bfloat16.
    """

    ranks: int = 4
    lengths: tuple[int, ...] = (1024, 8192, 65_536)
    document_tokens: int = 8192
    heads: int = 4
    key_value_heads: int = 1
    head_dim: int = 32


@dataclass(frozen=True)
class Exchanged:
    """One layer's forward and backward over one row.

    Attributes:
        layer: ``LASP+`` or ``ring attention``.
        tokens: of the row.
        predicted, counted: bytes that a rank hands to collectives, the most of any rank.
    """

    layer: str
    tokens: int
    predicted: int
    counted: int


def run_traffic(*, quick: bool = False, output: Path | None = None) -> list[Exchanged]:
    """Count on four ranks and print the table; about a minute on two cores.

    Args:
        quick: two ranks and short rows.
        output: where to write the result as JSON as well.

    Raises:
        RuntimeError: a rank failed, or counted something else than was predicted.
    """
    work = TrafficWork(ranks=2, lengths=(64, 512)) if quick else TrafficWork()
    rows = _on_ranks(work)
    if output is not None:
        facts = {
            "command": "leyden bench traffic" + " --quick" * quick,
            "machine": machine(),
            "versions": {"leyden": __version__, "torch": torch.__version__},
            "settings": {"quick": quick, **asdict(work)},
            "rows": [asdict(row) for row in rows],
        }
        with atomic_file(output) as part:
            part.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    _print(rows, work)
    return rows


def _print(rows: list[Exchanged], work: TrafficWork) -> None:
    title = f"Bytes a rank hands over in a layer's forward and backward, {work.ranks} ranks"
    table = Table("layer", "tokens of the row", "predicted", "counted", box=box.SIMPLE_HEAD, title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(row.layer, f"{row.tokens:,}", f"{row.predicted:,}", f"{row.counted:,}")
    Console(width=100).print(table)


def _on_ranks(work: TrafficWork) -> list[Exchanged]:
    """What the first rank wrote."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "found.json")
        launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(work.ranks)]
        command = [
            sys.executable,
            "-m",
            *launch,
            "-m",
            "leyden.bench.parallel.traffic",
            str(path),
            json.dumps(asdict(work)),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"the ranks failed:\n{done.stderr}")
        return [Exchanged(**row) for row in json.loads(path.read_text(encoding="utf-8"))]


def _measure(path: Path, work: TrafficWork) -> None:
    """On a rank: all figures, which the first one writes."""
    with team_of(Plan(cp=work.ranks)) as rank_group:
        assert rank_group.mesh is not None, "there are several ranks"
        rows = []
        for kind, (layer, _, _) in _EXCHANGES.items():
            for tokens in work.lengths:
                both = _exchange(rank_group.mesh, work, kind, tokens)
                if both[0] != both[1]:
                    raise RuntimeError(f"{layer} over {tokens} tokens: predicted {both[0]} bytes, counted {both[1]}")
                of_all = [torch.zeros(work.ranks, dtype=torch.float64) for _ in both]
                for values, value in zip(of_all, both, strict=True):
                    values[rank_group.rank] = value
                predicted, counted = (int(values.max()) for values in rank_group.sum(of_all))
                rows.append(asdict(Exchanged(layer, tokens, predicted, counted)))
        if rank_group.rank == 0:
            path.write_text(json.dumps(rows), encoding="utf-8")


def _exchange(mesh: Mesh, work: TrafficWork, kind: LayerType, tokens: int) -> tuple[int, int]:
    """Bytes of this rank, predicted and counted."""
    model = ModelConfig(
        num_hidden_layers=1,
        layer_types=(kind,),
        num_attention_heads=work.heads,
        num_key_value_heads=work.key_value_heads,
        head_dim=work.head_dim,
        rotary_dim=work.head_dim // 2,
    )
    documents = (*range(0, tokens, work.document_tokens), tokens)
    bounds = tuple(tokens * index // work.ranks for index in range(work.ranks + 1))
    part = RowPart(bounds, mesh.at["cp"], documents)
    context = lay_out(model, tokens, 0, torch.tensor(documents, dtype=torch.int32), mesh.device, part)
    _, has_key_heads, exchange = _EXCHANGES[kind]
    shared = work.key_value_heads if has_key_heads else work.heads
    q, k, v = (
        torch.randn(1, part.stop - part.start, heads, work.head_dim, dtype=torch.bfloat16, requires_grad=True)
        for heads in (work.heads, shared, shared)
    )
    with count_traffic(mesh) as traffic:
        exchange(mesh, q, k, v, context).sum().backward()
    step = StepShape(tokens, tokens)
    rank = Rank(model, mesh.plan, step, coordinates(mesh.plan, mesh.rank), torch.bfloat16, documents)
    return by_axis(predict_attention(rank, kind))["cp"], traffic.by_axis()["cp"]


if __name__ == "__main__":
    _measure(Path(sys.argv[1]), TrafficWork(**json.loads(sys.argv[2])))
