"""``leyden bench gpu``: floors by hand, verdicts, the budget, crashes, red tests, and every row's path on the CPU."""

import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch

from leyden.bench.gpu import floors, kernels, serving
from leyden.bench.gpu import run as gpu
from leyden.bench.gpu import tests as gpu_tests
from leyden.bench.gpu.clock import HostClock, measure_speed
from leyden.bench.gpu.kernels import GpuBench, GpuRow, Tokens
from leyden.bench.gpu.models import PackedRows, flatness
from leyden.bench.gpu.result import OpRow, worst_first
from leyden.bench.gpu.run import GpuWorker, GpuWorkerError, run_on
from leyden.bench.gpu.tests import FileResult, run_tests
from leyden.bench.gpu.worker import jobs_of, measured
from leyden.core.errors import UserError
from leyden.core.roofline import Cost, Speed
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


def test_the_floor_is_the_longer_of_moving_and_computing():
    assert SPEED.floor(Cost(bytes=200, flops=1000)) == (2.0, "bytes")
    assert SPEED.floor(Cost(bytes=200, flops=5000)) == (5.0, "FLOPs")


@pytest.mark.parametrize(
    ("cost", "num_bytes", "flops"),
    [
        # 10 tokens of 2 heads, 4 tensors of 4 dims in 2 bytes: 640; 3 states of 2 x 4 x 4 in 4 bytes: 384.
        (floors.lightning_forward(10, 2, 4, 4, documents=3), 1024, 1280),
        # K = 4, V = 8: q, k 8 and v, out 16 elements a token and head.
        (floors.lightning_forward(10, 2, 4, 8, documents=1), 960 + 256, 2560),
        # 4 tensors of the forward and 7 of the backward, 11 x 160 bytes.
        (floors.lightning_training(10, 2, 4, 4, documents=3), 11 * 160 + 384, 3840),
        # The same, and 320 bytes of log decays or their gradients, once or three times.
        (floors.gated_forward(10, 2, 4, 4, documents=3), 1024 + 320, 1280),
        (floors.gated_training(10, 2, 4, 4, documents=3), 11 * 160 + 384 + 960, 3840),
        # 3 x 2 states of 16 elements, 4 bytes, twice; 3 x 2 rows of 16 elements in 2 bytes.
        (floors.lightning_decode(3, 2, 4, 4), 768 + 192, 384),
        (floors.elementwise(100, 5), 1000, 0),
        # 10 tokens: 4 logits and 4 probabilities in 4 bytes, 2 assignments of 12 bytes.
        (floors.routing(10, 4, 2), 560, 0),
        # 3 matrices of 4 x 8 for 2 experts in 2 bytes: 384; 10 rows of 4 in 2 bytes: 80.
        (floors.experts(10, 4, 8, 2, 2, backward=False), 384 + 160, 3840),
        (floors.experts(10, 4, 8, 2, 2, backward=True), 3 * 384 + 400, 11_520),
        # 10 rows and 20 words of 4 in 2 bytes: 240, read and written.
        (floors.cross_entropy_training(10, 4, 20), 480, 4800),
    ],
)
def test_costs_by_hand(cost, num_bytes, flops):
    assert (cost.bytes, cost.flops) == (num_bytes, flops)


def test_the_floor_of_the_first_goal_on_an_h200_data_sheet():
    cost = floors.lightning_forward(8192, 64, 128, 128, documents=1)
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
    floor = SPEED.floor(floors.lightning_forward(64, 2, 16, 16, documents=1))[0]
    job = next(job for job in kernels.kernel_jobs(quick=True) if job.work.startswith("lightning forward, B1"))
    row = job.measure(GpuBench(CPU, FakeClock(1.25 * floor), SPEED))
    assert row.ratio == row.value == pytest.approx(1.25)
    assert (row.verdict, row.goal) == ("met", 1.5)


def test_decoding_is_judged_by_its_share_of_the_copy_bandwidth():
    cost = floors.lightning_decode(3, 2, 16, 16)
    job = next(job for job in serving.serving_jobs(quick=True) if job.work.startswith("decode"))
    row = job.measure(GpuBench(CPU, FakeClock(2 * cost.bytes / 100), SPEED))
    assert row.value == pytest.approx(0.5)
    assert row.verdict == "missed"


def test_softmax_is_beaten_by_as_much_as_its_time_is_longer():
    job = next(job for job in kernels.kernel_jobs(quick=True) if job.work.startswith("against causal softmax"))
    row = job.measure(GpuBench(CPU, FakeClock(6.0, 2.0), SPEED))
    assert (row.seconds, row.value, row.verdict) == (2.0, 3.0, "met")


def test_ragged_documents_fill_the_row_and_none_is_empty():
    bounds = Tokens("w", 1, 100, 2, documents=7).bounds(CPU)
    assert bounds is not None
    assert bounds.dtype == torch.int32
    assert (bounds[0], bounds[-1], len(bounds)) == (0, 100, 8)
    assert (bounds.diff() > 0).all()


def test_input_sets_outgrow_the_cache_and_stay_few():
    assert len(kernels.input_sets(1)) == 32
    assert len(kernels.input_sets(64 * 2**20)) == 4
    assert len(kernels.input_sets(2**40)) == 2


def test_packed_rows_of_equal_documents():
    rows = PackedRows.of(12, 4, 50, CPU)
    assert rows.cu_seqlens.tolist() == [0, 4, 8, 12]
    ends = torch.tensor([3, 7, 11])
    assert (rows.labels[0, ends] == IGNORE_INDEX).all()
    assert (rows.labels[0, :3] == rows.tokens[0, 1:4]).all()


def test_flatness_is_the_slowest_length_over_the_fastest():
    rows = [OpRow(f"1B lightning training step, T{t}", value=v) for t, v in ((2048, 100.0), (8192, 95.0))]
    (flat,) = flatness([*rows, OpRow("1B softmax training step, T2048", value=1.0)])
    assert (flat.value, flat.verdict) == (0.95, "met")
    assert flatness(rows[:1]) == []


class FakeWorker:
    """Answers as it was told to: a row, or an exception; each second that an answer takes passes on the clock."""

    def __init__(self, answers, now=None, seconds=1.0) -> None:
        self._answers, self._now, self._seconds = answers, now or [0.0], seconds
        self.started, self.closed, self.limits = 0, 0, []

    def __call__(self, device, *, quick):
        self.started += 1
        return self

    def ask(self, order, seconds):
        self.limits.append(seconds)
        self._now[0] += self._seconds
        if "row" not in order:
            return [100.0, 1000.0]
        answer = self._answers.get(order["row"], OpRow("", seconds=2.0, floor=1.0, value=2.0))
        if isinstance(answer, Exception):
            raise answer
        return {**asdict(answer), "work": order["row"]}

    def close(self) -> None:
        self.closed += 1


def _jobs(monkeypatch, *names):
    monkeypatch.setattr(gpu, "jobs_of", lambda quick: ([GpuRow(name, lambda bench: OpRow("")) for name in names], []))


@pytest.fixture
def tested(monkeypatch):
    """What the tests come to; all are green unless the list is filled."""
    outcomes = [FileResult("test_rms_norm.py", "green", 1.0)]
    monkeypatch.setattr(gpu, "test_files", lambda device: [one.file for one in outcomes])
    monkeypatch.setattr(gpu, "run_tests", lambda files, device, until, clock: iter(outcomes))
    return outcomes


def test_every_row_runs_on_the_cpu():
    jobs, notes = jobs_of(quick=True)
    assert notes == []
    names = [job.work for job in jobs]
    assert len(set(names)) == len(names)
    assert names.index("routing, 32 tokens to 2 of 16") < names.index("against causal softmax, T32 H2")
    bench = GpuBench(CPU, HostClock(), measure_speed(HostClock(), CPU, quick=True))
    rows = [measured(job, bench) for job in jobs]
    assert [row.work for row in rows] == names
    failed = [row for row in rows if row.missing and "not installed" not in row.missing]
    assert {row.missing for row in failed} == {"needs a GPU"}
    assert [row.work.split(",")[0] for row in failed] == [
        "decode step in a CUDA graph",
        "engine step",
    ]
    assert all(row.seconds for row in rows if not row.missing)


def test_a_row_that_fails_says_so():
    def out_of_memory(bench):
        raise torch.OutOfMemoryError("tried to allocate")

    def broken(bench):
        raise ValueError("a reason\nand more")

    bench = GpuBench(CPU, FakeClock(1.0), SPEED)
    assert measured(GpuRow("first", out_of_memory), bench).missing == "out of memory"
    assert measured(GpuRow("second", broken), bench).missing == "failed: ValueError: a reason"


def test_the_worst_row_comes_first():
    rows = [
        OpRow("met", value=1.2, goal=1.5, at_most=True),
        OpRow("unknown", missing="out of memory"),
        OpRow("twice its floor", seconds=2.0, floor=1.0),
        OpRow("a third of its goal", seconds=2.0, floor=1.0, value=0.2, goal=0.6),
    ]
    assert [row.work for row in worst_first(rows)] == ["a third of its goal", "twice its floor", "met", "unknown"]


def test_all_is_written_after_every_row_and_a_crash_ends_one(tested, monkeypatch, tmp_path, capsys):
    _jobs(monkeypatch, "first", "second", "third", "fourth")
    path, seen = tmp_path / "gpu.json", []

    class Reading(FakeWorker):
        def ask(self, order, seconds):
            seen.append(json.loads(path.read_text()))
            return super().ask(order, seconds)

    worker = Reading(
        {
            "second": GpuWorkerError("its process ended by signal 11"),
            "third": OpRow("", seconds=9.0, floor=1.0, value=9.0, goal=2.0, at_most=True),
        }
    )
    result = run_on(CPU, output=path, start=worker)
    assert worker.started == worker.closed == 2
    assert [row.work for row in result.rows] == ["third", "first", "fourth", "second"]
    assert result.rows[-1].missing == "its process ended by signal 11"
    assert [len(data["rows"]) for data in seen] == [0, 0, 1, 2, 3]
    assert not any(data["finished"] for data in seen)
    assert seen[1]["machine"]["bytes_per_second"] == 100
    data = json.loads(path.read_text())
    assert data["finished"]
    assert [row["work"] for row in data["rows"]] == [row.work for row in result.rows]
    assert data["rows"][0]["verdict"] == "missed"
    assert data["rows"][0]["distance"] == 4.5
    assert data["tests"] == [{"file": "test_rms_norm.py", "outcome": "green", "seconds": 1.0, "failures": []}]
    assert {"gpu", "driver", "date", "commit", "flops_per_second"} <= set(data["machine"])
    assert data["versions"]["torch"] == torch.__version__
    assert data["command"] == "python -m leyden bench gpu --minutes 8"
    told = capsys.readouterr()
    assert all(row.work in told.out for row in result.rows)
    assert "2/4 second" in told.err
    assert re.search(r"\[7:5\d left\]", told.err)


def test_red_tests_mark_the_rows_that_rest_on_them_and_the_others_go_on(tested, monkeypatch, capsys):
    names = ["rms_norm forward and backward", "routing, 8 tokens", "utilisation, 1B hybrid", "rotary, T8"]
    _jobs(monkeypatch, *names)
    failure = "FAILED tests/ops/test_rms_norm_kernels.py::test_y - assert 1 == 2"
    tested[:] = [
        FileResult("test_rms_norm_kernels.py", "red", 1.0, (failure,)),
        FileResult("test_routing_kernels.py", "not run", 1.0, ("no time was left",)),
    ]
    result = run_on(CPU, start=FakeWorker({}))
    marked = {row.work: row.red for row in result.rows}
    assert marked == {name: ("test_rms_norm_kernels.py",) if name[0] in "u" or "norm" in name else () for name in names}
    assert {row.verdict for row in result.rows if row.red} == {"red tests"}
    assert result.has_red_tests
    out = capsys.readouterr().out
    assert failure in out
    assert "test_routing_kernels.py is not run: no time was left" in out


def test_rows_end_with_the_time(tested, monkeypatch):
    _jobs(monkeypatch, "first", "second", "third")
    now = [0.0]
    worker = FakeWorker({}, now, seconds=40.0)
    result = run_on(CPU, start=worker, minutes=2, clock=lambda: now[0])
    assert worker.limits == [60.0, 60.0, 40.0]  # the speed, and two rows
    assert [row.missing for row in result.rows] == ["", "", "no time was left"]
    for bad in (0, -1, float("nan")):
        with pytest.raises(UserError, match="above 0"):
            run_on(CPU, start=worker, minutes=bad)


def test_only_chooses_rows_by_name(tested):
    result = run_on(CPU, "^rotary|routing", quick=True, start=FakeWorker({}))
    assert sorted(row.work.split()[0].rstrip(",") for row in result.rows) == ["rotary", "routing"]
    for bad, message in (("no such row", "found in no row's name"), ("(", "regular expression")):
        with pytest.raises(UserError, match=message):
            run_on(CPU, bad, quick=True)


def test_a_process_measures_and_its_end_is_told():
    worker = GpuWorker(CPU, quick=True)
    try:
        speed = worker.ask({}, 120)
        row = worker.ask({"row": "routing, 32 tokens to 2 of 16", "speed": speed}, 60)
        assert row["seconds"] > 0
        assert row["floor"] == pytest.approx(floors.routing(32, 16, 2).bytes / speed[0])
        worker._process.send_signal(signal.SIGSTOP)  # no answer, however fast it is
        with pytest.raises(GpuWorkerError, match="no answer within 0 s"):
            worker.ask({"row": "routing, 32 tokens to 2 of 16", "speed": speed}, 0)
        worker._process.kill()
        with pytest.raises(GpuWorkerError, match="ended by signal 9"):
            for _ in range(3):  # the answer that came too late may be there yet
                worker.ask({}, 60)
    finally:
        worker.close()


def _checkout(tmp_path, monkeypatch, **files):
    (tmp_path / "tests" / "ops").mkdir(parents=True)
    (tmp_path / "src").mkdir()
    for name, text in files.items():
        (tmp_path / "tests" / "ops" / f"test_{name}.py").write_text(text)
    monkeypatch.setattr(gpu_tests, "CHECKOUT", tmp_path)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # those that are installed take seconds to import


def test_tests_run_a_file_a_process_within_their_time(tmp_path, monkeypatch):
    _checkout(
        tmp_path,
        monkeypatch,
        crash="import os\ndef test(): os.kill(os.getpid(), 11)\n",
        green="def test(): pass\n",
        hang="import time\ndef test(): time.sleep(600)\n",
        red="import os\ndef test_y(): assert os.environ['TRITON_INTERPRET'] == '0'\n",
        empty="",
    )
    files = [f"ops/test_{name}.py" for name in ("green", "crash", "red", "empty")]
    found = {one.file: one for one in run_tests(files, CPU, time.monotonic() + 120)}
    assert {file: one.outcome for file, one in found.items()} == {
        "ops/test_green.py": "green",
        "ops/test_crash.py": "red",
        "ops/test_red.py": "red",
        "ops/test_empty.py": "not run",
    }
    assert found["ops/test_crash.py"].failures[-1] == "its process ended by signal 11"
    assert found["ops/test_red.py"].failures[0].startswith("FAILED tests/ops/test_red.py::test_y")
    late = [*run_tests(["ops/test_hang.py"], CPU, time.monotonic() + 2), *run_tests(["ops/test_green.py"], CPU, 0)]
    assert [(one.outcome, one.failures) for one in late] == [
        ("not run", ("it took longer than there was time",)),
        ("not run", ("no time was left",)),
    ]


def test_a_gpu_runs_the_files_that_have_tests_for_it(tmp_path, monkeypatch):
    _checkout(tmp_path, monkeypatch, a="@pytest.mark.gpu", b="x = 1")
    assert gpu_tests.test_files(torch.device("cuda")) == ["ops/test_a.py"]
    monkeypatch.undo()
    ours = gpu_tests.test_files(torch.device("cuda"))
    assert "ops/test_lightning_kernels.py" in ours
    assert "serve/test_gpu_steps.py" in ours
    works = [job.work for job in jobs_of(quick=False)[0]]
    for file in ours:  # every test for a GPU stands for some row
        if file not in ("ops/test_int8_linear.py", "ops/test_ranged_attention.py"):
            assert any(FileResult(file, "red").touches(work) for work in works), file
    ours.remove("ops/test_launching.py")  # stands for all of them
    assert all(any(FileResult(file, "red").touches(work) for file in ours) for work in works)


def test_without_pytest_no_test_is_run_and_rows_are_measured(tested, monkeypatch):
    monkeypatch.setattr(gpu_tests.importlib.util, "find_spec", lambda name: None)
    (one,) = run_tests(["test_a.py"], CPU, 1e9)
    assert (one.outcome, one.failures) == ("not run", ("pytest is not installed",))


def test_an_installed_package_has_no_tests_to_run(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_tests, "CHECKOUT", tmp_path)
    with pytest.raises(UserError, match="run it in a checkout"):
        run_on(CPU, quick=True)


def test_the_verb_exits_with_1_on_red_tests(monkeypatch, leyden_cli):
    asked = {}

    def red(only, output, **options):
        asked.update(options, only=only)
        return SimpleNamespace(has_red_tests=True)

    monkeypatch.setattr(gpu, "run_gpu", red)
    outcome = leyden_cli("bench", "gpu", "--minutes", "3", "--only", "x")
    assert outcome.code == 1
    assert asked == {"only": "x", "minutes": 3, "quick": False}
    told = leyden_cli("bench", "gpu", "--help").out
    assert "--minutes" in told
    assert "--output" in told


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_user_learns_what_to_run(leyden_cli):
    assert leyden_cli("bench", "gpu").code == 2
    with pytest.raises(UserError, match=r"needs a CUDA GPU.*leyden bench cpu.*pytest"):
        gpu.run_gpu()


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
from leyden.bench.gpu import run as gpu

gpu.run_tests = lambda *rest: iter(())
gpu.GpuWorker.ask = lambda self, order, seconds: [1.0, 1.0] if "row" not in order else {"work": order["row"], "red": []}
gpu.run_on(torch.device("cpu"), "routing|utilisation", quick=True, start=gpu.GpuWorker)
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
        "sys.argv = ['leyden', 'bench', 'gpu', '--only', '(']\n"
        "import importlib.util; found = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'typer' else found(name, *rest)\n"
        "runpy.run_module('leyden', run_name='__main__', alter_sys=True)\n"
    )
    command = [sys.executable, "-c", program]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert finished.returncode == 2, finished.stderr
    assert finished.stderr.startswith("error: "), finished.stderr
