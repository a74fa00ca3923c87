"""``leyden bench ops``: floors by hand, verdicts, the refusal on red tests, and every row's path on the CPU."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from leyden.bench import ops, ops_floors, ops_rows, ops_serving
from leyden.bench.ops_clock import HostClock, measure_speed
from leyden.bench.ops_floors import Cost, Speed
from leyden.bench.ops_models import Rows, flatness
from leyden.bench.ops_result import OpRow
from leyden.bench.ops_rows import Bench, Job, Tokens
from leyden.core.errors import UserError
from leyden.ops import IGNORE_INDEX

CPU = torch.device("cpu")
SPEED = Speed(bytes_per_second=100.0, flops_per_second=1000.0)


class FakeClock:
    """Runs each call once and says what it was told to say, the next at every measurement."""

    def __init__(self, *seconds: float) -> None:
        self._seconds = list(seconds)
        self.calls = 0

    def __call__(self, calls) -> float:
        for call in calls:
            call()
        self.calls += len(calls)
        return self._seconds.pop(0) if len(self._seconds) > 1 else self._seconds[0]


@pytest.fixture
def green(monkeypatch):
    """The ops' tests pass."""
    monkeypatch.setattr(ops, "failing_tests", lambda device: [])


def test_the_floor_is_the_longer_of_moving_and_computing():
    assert SPEED.floor(Cost(bytes=200, flops=1000)) == (2.0, "bytes")
    assert SPEED.floor(Cost(bytes=200, flops=5000)) == (5.0, "FLOPs")


@pytest.mark.parametrize(
    ("cost", "num_bytes", "flops"),
    [
        # 10 tokens of 2 heads, 4 tensors of 4 dims in 2 bytes: 640; 3 states of 2 x 4 x 4 in 4 bytes: 384.
        (ops_floors.lightning_forward(10, 2, 4, 4, documents=3), 1024, 1280),
        # K = 4, V = 8: q, k 8 and v, out 16 elements a token and head.
        (ops_floors.lightning_forward(10, 2, 4, 8, documents=1), 960 + 256, 2560),
        # 4 tensors of the forward and 7 of the backward, 11 x 160 bytes.
        (ops_floors.lightning_training(10, 2, 4, 4, documents=3), 11 * 160 + 384, 3840),
        # 3 x 2 states of 16 elements, 4 bytes, twice; 3 x 2 rows of 16 elements in 2 bytes.
        (ops_floors.lightning_decode(3, 2, 4, 4), 768 + 192, 384),
        (ops_floors.elementwise(100, 5), 1000, 0),
        # 10 tokens: 4 logits and 4 probabilities in 4 bytes, 2 assignments of 12 bytes.
        (ops_floors.routing(10, 4, 2), 560, 0),
        # 3 matrices of 4 x 8 for 2 experts in 2 bytes: 384; 10 rows of 4 in 2 bytes: 80.
        (ops_floors.experts(10, 4, 8, 2, 2, backward=False), 384 + 160, 3840),
        (ops_floors.experts(10, 4, 8, 2, 2, backward=True), 3 * 384 + 400, 11_520),
        # 10 rows and 20 words of 4 in 2 bytes: 240, read and written.
        (ops_floors.cross_entropy_training(10, 4, 20), 480, 4800),
    ],
)
def test_costs_by_hand(cost, num_bytes, flops):
    assert (cost.bytes, cost.flops) == (num_bytes, flops)


def test_the_floor_of_the_first_goal_on_an_h200_data_sheet():
    cost = ops_floors.lightning_forward(8192, 64, 128, 128, documents=1)
    seconds, bound = Speed(4.8e12, 989e12).floor(cost)
    assert bound == "bytes"
    assert seconds == pytest.approx(112.7e-6, rel=1e-3)  # 541 MB


def test_speed_is_bytes_both_ways_and_two_operations_a_product():
    speed = measure_speed(FakeClock(2.0, 4.0), CPU, quick=True)
    assert speed.bytes_per_second == 2 * 2**20 / 2
    assert speed.flops_per_second == 2 * 64**3 / 4


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        (OpRow("w", value=1.4, goal=1.5, at_most=True), "met"),
        (OpRow("w", value=1.6, goal=1.5, at_most=True), "missed"),
        (OpRow("w", value=0.8, goal=0.8), "met"),
        (OpRow("w", value=0.79, goal=0.8), "missed"),
        (OpRow("w", value=0.79), ""),
        (OpRow("w", goal=2.0, missing="out of memory"), "not measured"),
    ],
)
def test_verdict(row, verdict):
    assert row.verdict == verdict


def test_a_row_held_to_its_floor():
    floor = SPEED.floor(ops_floors.lightning_forward(64, 2, 16, 16, documents=1))[0]
    job = next(job for job in ops_rows.kernel_jobs(quick=True) if job.work.startswith("lightning forward, B1"))
    row = job.measure(Bench(CPU, FakeClock(1.25 * floor), SPEED))
    assert row.ratio == row.value == pytest.approx(1.25)
    assert (row.verdict, row.goal) == ("met", 1.5)


def test_decoding_is_judged_by_its_share_of_the_copy_bandwidth():
    cost = ops_floors.lightning_decode(3, 2, 16, 16)
    job = next(job for job in ops_serving.serving_jobs(quick=True) if job.work.startswith("decode"))
    row = job.measure(Bench(CPU, FakeClock(2 * cost.bytes / 100), SPEED))
    assert row.value == pytest.approx(0.5)
    assert row.verdict == "missed"


def test_prefill_beside_decode_does_the_work_of_one_after_another():
    shape = {"decodes": 3, "prompts": 2, "length": 5, "heads": 2, "dim": 16}
    together, apart = ops_serving._mixed_calls(CPU, **shape)[0][1], ops_serving._mixed_calls(CPU, **shape)[1][1]
    assert torch.equal(together(), apart())
    assert torch.equal(together(), apart())  # and goes on from the same states


def test_softmax_is_beaten_by_as_much_as_its_time_is_longer():
    job = next(job for job in ops_rows.kernel_jobs(quick=True) if job.work.startswith("against causal softmax"))
    row = job.measure(Bench(CPU, FakeClock(6.0, 2.0), SPEED))
    assert (row.seconds, row.value, row.verdict) == (2.0, 3.0, "met")


def test_ragged_documents_fill_the_row_and_none_is_empty():
    bounds = Tokens("w", 1, 100, 2, documents=7).bounds(CPU)
    assert bounds is not None
    assert bounds.dtype == torch.int32
    assert (bounds[0], bounds[-1], len(bounds)) == (0, 100, 8)
    assert (bounds.diff() > 0).all()


def test_input_sets_outgrow_the_cache_and_stay_few():
    assert len(ops_rows.input_sets(1)) == 32
    assert len(ops_rows.input_sets(64 * 2**20)) == 4
    assert len(ops_rows.input_sets(2**40)) == 2


def test_packed_rows_of_equal_documents():
    rows = Rows.of(12, 4, 50, CPU)
    assert rows.cu_seqlens.tolist() == [0, 4, 8, 12]
    ends = torch.tensor([3, 7, 11])
    assert (rows.labels[0, ends] == IGNORE_INDEX).all()
    assert (rows.labels[0, :3] == rows.tokens[0, 1:4]).all()


def test_flatness_is_the_slowest_length_over_the_fastest():
    rows = [OpRow(f"1B lightning training step, T{t}", value=v) for t, v in ((2048, 100.0), (8192, 95.0))]
    (flat,) = flatness([*rows, OpRow("1B softmax training step, T2048", value=1.0)])
    assert (flat.value, flat.verdict) == (0.95, "met")
    assert flatness(rows[:1]) == []


def test_every_row_runs_and_the_json_holds_them(green, tmp_path, capsys):
    path = tmp_path / "ops.json"
    result = ops.run_on(CPU, HostClock(), output=path, quick=True)
    failed = [row for row in result.rows if row.missing and "not installed" not in row.missing]
    assert [row.work.split(",")[0] for row in failed] == ["decode step in a CUDA graph", "prefill beside decode"]
    assert {row.missing for row in failed} == {"needs a GPU"}
    data = json.loads(path.read_text())
    assert [OpRow(**{k: v for k, v in row.items() if k not in ("ratio", "verdict")}) for row in data["rows"]] == (
        result.rows
    )
    assert [row["verdict"] for row in data["rows"]] == [row.verdict for row in result.rows]
    assert {"gpu", "driver", "date", "commit", "bytes_per_second", "flops_per_second"} <= set(data["machine"])
    assert data["versions"]["torch"] == torch.__version__
    assert data["command"] == "python -m leyden bench ops --quick"
    table = capsys.readouterr().out
    for row in result.rows:
        assert row.work in table


def test_only_chooses_rows_by_name(green, capsys):
    result = ops.run_on(CPU, HostClock(), "^rotary|routing", quick=True)
    assert [row.work.split()[0].rstrip(",") for row in result.rows] == ["rotary", "routing"]
    for bad, message in (("no such row", "found in no row's name"), ("(", "regular expression")):
        with pytest.raises(UserError, match=message):
            ops.run_on(CPU, HostClock(), bad, quick=True)


def test_a_row_that_fails_says_so_and_the_others_go_on(green, monkeypatch, capsys):
    def out_of_memory(bench):
        raise torch.OutOfMemoryError("tried to allocate")

    def broken(bench):
        raise ValueError("a reason\nand more")

    good = OpRow("", seconds=2.0, floor=1.0, value=2.0, goal=2.0, at_most=True)
    jobs = [Job("first", out_of_memory), Job("second", broken), Job("third", lambda bench: good)]
    monkeypatch.setattr(ops, "_jobs", lambda quick: (jobs, ["a note"]))
    result = ops.run_on(CPU, FakeClock(1.0), quick=True)
    assert [row.missing for row in result.rows] == ["out of memory", "failed: ValueError: a reason", ""]
    assert result.rows[2] == replace(good, work="third")
    out = capsys.readouterr().out
    assert "out of memory" in out
    assert "a note" in out


def _pytest_that(monkeypatch, code, stdout):
    seen = {}

    def run(command, **options):
        seen.update(options, command=command)
        return subprocess.CompletedProcess(command, code, stdout, "")

    monkeypatch.setattr(ops.subprocess, "run", run)
    return seen


def test_the_tests_that_run_first_are_those_of_the_device(monkeypatch):
    seen = _pytest_that(monkeypatch, 0, "")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert ops.failing_tests(torch.device("cuda")) == []
    assert seen["command"][1:6] == ["-m", "pytest", "-q", "-m", "gpu"]
    assert "TRITON_INTERPRET" not in seen["env"]
    assert (Path(seen["cwd"]) / "tests" / "ops").is_dir()
    ops.failing_tests(CPU)
    assert seen["command"][5] == "not gpu"
    assert seen["env"]["TRITON_INTERPRET"] == "1"


def test_red_tests_forbid_figures(monkeypatch, capsys):
    red = "FAILED tests/ops/test_x.py::test_y - assert 1 == 2"
    _pytest_that(monkeypatch, 1, f"..F\n{red}\n1 failed, 2 passed\n")
    clock = FakeClock(1.0)
    with pytest.raises(ops.RedTestsError, match=r"test_x\.py::test_y"):
        ops.run_on(CPU, clock, quick=True)
    assert clock.calls == 0
    assert capsys.readouterr().out == ""


def test_nothing_collected_is_red_too(monkeypatch):
    _pytest_that(monkeypatch, 5, "no tests ran in 0.1s\n")
    assert ops.failing_tests(CPU) == ["no tests ran in 0.1s"]


def test_an_installed_package_has_no_tests_to_run(monkeypatch, tmp_path):
    monkeypatch.setattr(ops, "_CHECKOUT", tmp_path)
    with pytest.raises(UserError, match="run it in a checkout"):
        ops.failing_tests(CPU)


def test_the_verb_exits_with_1_on_red_tests(monkeypatch, leyden_cli):
    def red(*arguments, **options):
        raise ops.RedTestsError("tests fail: FAILED tests/ops/test_x.py")

    monkeypatch.setattr(ops, "run_ops", red)
    outcome = leyden_cli("bench", "ops")
    assert outcome.code == 1
    assert outcome.out == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_user_learns_what_to_run(leyden_cli):
    assert leyden_cli("bench", "ops").code == 2
    with pytest.raises(UserError, match=r"needs a CUDA GPU.*leyden bench cpu.*pytest"):
        ops.run_ops()


BARE = """
import sys

class Blocked:
    names = {"pydantic", "rich", "typer", "tokenizers", "transformers", "safetensors", "tomli_w", "jinja2", "pyarrow",
             "zstandard", "matplotlib", "prompt_toolkit", "huggingface_hub"} - set(sys.argv[1:])

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"blocked: {name}", name=name)

sys.meta_path.insert(0, Blocked())
import warnings
warnings.simplefilter("ignore")
import torch
from leyden.bench import ops
from leyden.bench.ops_clock import HostClock

ops.failing_tests = lambda device: []
ops.run_on(torch.device("cpu"), HostClock(), "routing|utilisation", quick=True)
"""


@pytest.mark.parametrize(("has", "wanted"), [("torch", "rows with a model are left out"), ("pydantic", "utilisation")])
def test_rows_of_ops_need_torch_alone_and_those_of_models_pydantic(has, wanted):
    command = [sys.executable, "-c", BARE, has]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert finished.returncode == 0, finished.stderr
    assert "routing" in finished.stdout
    assert wanted in finished.stdout


def test_the_command_runs_without_the_command_lines_packages():
    program = (
        "import sys, runpy\n"
        "for name in ('typer', 'rich', 'pydantic'): sys.modules[name] = None\n"
        "sys.argv = ['leyden', 'bench', 'ops', '--only', '(']\n"
        "import importlib.util; found = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'typer' else found(name, *rest)\n"
        "runpy.run_module('leyden', run_name='__main__', alter_sys=True)\n"
    )
    command = [sys.executable, "-c", program]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert finished.returncode == 2, finished.stderr
    assert finished.stderr.startswith("error: "), finished.stderr
