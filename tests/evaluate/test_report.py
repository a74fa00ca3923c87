"""The report: one file that needs nothing else, whole or from a run that has only begun."""

import json
import re
from html.parser import HTMLParser

import pytest

from leyden.evaluate import write_report

VOID = {"meta", "br", "use", "path", "rect", "image", "link"}


class Page(HTMLParser):
    """Checks that tags nest, and collects ids, references and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.links += [value for name, value in attrs if name in ("href", "src", "xlink:href")]

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def step_line(step: int, stage: str = "pretrain", **changes) -> dict:
    line = {
        "stage": stage,
        "step": step,
        "tokens": 4096 * step,
        "loss": 5 - 0.1 * step,
        "aux_loss": 0.08,
        "grad_norm": 1.0,
        "lr": 1e-3,
        "tokens_per_second": 1000.0 + step,
        "mfu": 0.25,
        "expert_load": [[0.5, 0.3, 0.2], [0.3, 0.3, 0.4]],
        "dropped": 0.0,
    }
    return {**line, **changes}


@pytest.fixture
def run_dir(tmp_path):
    lines = [step_line(s, "pretrain" if s < 8 else "decay<b>") for s in range(1, 12)]
    lines[4] = step_line(5, loss=None, grad_norm=None, expert_load=lines[4]["expert_load"])
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    figures = {"unigram_tokens": 4.0, "xz_4096": 2.25, "xz_documents": 1.5}
    results = [{"step": 5, "task": "bits_per_byte", "value": 3.5, "baselines": figures}]
    results.append({**results[0], "step": 11, "value": 1.875})
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in results))
    samples = [{"prompt": "def <f>(", "text": "x):</pre><script>alert(1)</script>"}]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in samples))
    (tmp_path / "recipe.toml").write_text('name = "first <light>"\n[model]\npreset = "tiny"\n')
    (tmp_path / "data.json").write_text(json.dumps({"train_bytes": 1234567, "rejects": {"not UTF-8": 3}}))
    (tmp_path / "environment.json").write_text(json.dumps({"cpu": "a & b", "gpus": [], "commit": None}))
    return tmp_path


def test_a_whole_run(run_dir):
    path = write_report(run_dir)
    assert path == run_dir / "report" / "index.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert len(page.ids) == len(set(page.ids))
    for link in page.links:  # nothing from outside, and nothing dangling
        assert link.startswith("data:") or link.removeprefix("#") in page.ids, link
    for expected in ("1.875", "2.250", "4.000", "1\u2009234\u2009567", "rejects: not UTF-8", "a & b", "first <light>"):
        assert expected in page.text
    assert "3.500" not in page.text  # an earlier evaluation
    assert "x):</pre><script>alert(1)</script>" in page.text
    assert "decay<b>" in page.text
    assert "No token was dropped" in page.text
    assert "No " not in page.text.replace("No token was dropped", "")


def test_the_models_bar_stands_among_its_baselines(run_dir):
    page = write_report(run_dir).read_text(encoding="utf-8")
    widths = [float(width) for width in re.findall(r"<i style=\"width: ([\d.]+)%", page)]
    assert widths == [100.0, 56.25, 46.88, 37.5]
    assert page.index("4 KB at a time") < page.index("This model") < page.index("whole documents")


def test_the_same_run_gives_the_same_page(run_dir):
    first = write_report(run_dir).read_bytes()
    assert write_report(run_dir).read_bytes() == first


def test_an_empty_run_says_what_is_missing(tmp_path):
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    for name in ("eval.jsonl", "metrics.jsonl", "samples.jsonl", "recipe.toml", "data.json", "environment.json"):
        assert name in page.text
    assert tmp_path.name in page.text


def test_one_step_of_a_dense_model(tmp_path):
    line = step_line(1, expert_load=[], dropped=0.0)
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "No expert load was logged" in page.text
    assert "4.9" in page.text


def test_drops_are_drawn(run_dir):
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(step_line(12, dropped=0.125)) + "\n")
    page = Page(write_report(run_dir).read_text(encoding="utf-8"))
    assert "Dropped assignments" in page.text
    assert "No token was dropped" not in page.text
