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


def test_what_was_measured_while_training_is_drawn(run_dir):
    noise = {"noise_scale": 900.0, "noise_loss": 4.0, "critical_batch": None, "labels": 4096}
    metrics = [step_line(s, **(noise if s % 2 == 0 else {})) for s in range(1, 9)]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    part = {"loss": 2.0, "bits_per_byte": 1.0, "labels": 10}
    lines = []
    for step in (4, 8):
        sources = {"web<i>": part, "code": part} if step == 8 else {"code": part}
        line = {"task": "held_out", "held_out_loss": 2.0, "sources": sources, "lengths": {"1-8": part, "9-": part}}
        cells = [{"depth": depth, "length": length, "value": 0.5} for depth in (0, 100) for length in (1024, 2048)]
        lines += [line, {"task": "niah", "value": 0.5, "n": 4, "cells": cells}]
        lines += [{"task": "bits_per_byte", "value": 1.25, "n": 3}]
        for added in lines[-3:]:
            added |= {"stage": "pretrain", "step": step}
    lines.append({"task": "bits_per_byte", "value": 1.875, "baselines": {"xz_4096": 2.25}})
    (run_dir / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    spike = {"number": 1, "stage": "pretrain", "step": 6, "loss": 9.5, "loss_limit": 5.25, "grad_norm": 1.5}
    spike |= {"grad_norm_limit": 2.0, "action": "rewind", "to_step": 4, "repeated_share": 0.125}
    documents = [{"source": "web", "id": f"doc<{n}>", "offset": 0, "length": 9} for n in range(9)]
    spike |= {"usual_repeated_share": 0.0, "documents": documents}
    (run_dir / "spikes.jsonl").write_text(json.dumps(spike) + "\n")
    page = Page(write_report(run_dir).read_text(encoding="utf-8"))
    assert len(page.ids) == len(set(page.ids))
    for expected in ("Held-out documents by source", "web<i>", "by length in tokens", "niah", "2k", "noise scale"):
        assert expected in page.text
    for expected in (
        "9.500 (limit 5.250)",
        "12.5% of the tokens (usually 0.0%)",
        "rewind to step 4",
        "web doc<4> and 4 more",
    ):
        assert expected in page.text
    assert "1.875" in page.text, "the finished model's, and not one of the measurements while it was trained"
    assert "validation" in page.ids and "spikes" in page.ids


def test_a_run_without_them_has_no_such_sections(run_dir):
    page = Page(write_report(run_dir).read_text(encoding="utf-8"))
    assert not {"validation", "spikes"} & set(page.ids)
