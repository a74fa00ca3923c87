"""The evaluation at the end of a run: bits per byte on unseen documents, and samples of text."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from leyden.checkpoint import load
from leyden.core.device import default_device
from leyden.core.errors import UserError
from leyden.core.files import atomic_file
from leyden.core.log import console, say
from leyden.data import TokenShards
from leyden.evaluate import baselines, bits_per_byte
from leyden.recipes.answers import ANSWERED, EVALUATED, tell_answers
from leyden.recipes.prepare import Prepared
from leyden.recipes.schema import Recipe
from leyden.serve import Engine, Sampling
from leyden.train import read_metrics
from leyden.train.observing import EVALUATIONS


def evaluate_run(recipe: Recipe, prepared: Prepared, directory: Path) -> dict[str, float]:
    """Measure the finished model on the held-out documents; the last line of ``eval.jsonl`` says it.

    A model that has read no documents, which taught its tokenizer alone, is not asked for them.

    Returns:
        Bits per byte by name: ``"model"``, and each baseline's.
    """
    path = directory / EVALUATIONS
    while_training = [earlier for earlier in read_metrics(path) if "stage" in earlier]
    has_read = recipe.starts_from is not None or any(stage.objective == "pretrain" for stage in recipe.stage)
    if not (prepared.held_out and has_read):  # chats, which are measured at the end of their stage
        _write_lines(path, while_training)
        return {}
    model, tokenizer = load(directory / "final", dtype=getattr(torch, recipe.train.dtype), device=default_device())
    assert tokenizer is not None, "a run saves its tokenizer"
    texts = [document.text for document in prepared.held_out]
    result = bits_per_byte(model, tokenizer, texts)
    groups = [shards for group, shards in prepared.shards.items() if group != recipe.data.recall_group]
    others = baselines(tokenizer, _token_counts(groups, tokenizer.vocab_size), texts)
    line = {"task": "bits_per_byte", "value": result.bits_per_byte, "baselines": others, "bytes": result.num_bytes}
    _write_lines(path, [*while_training, line])
    return {"model": result.bits_per_byte, **others}


def write_samples(recipe: Recipe, directory: Path) -> list[tuple[str, str]]:
    """Let the finished model complete the recipe's prompts; write ``samples.jsonl``.

    Returns:
        (prompt, continuation) pairs.
    """
    if not recipe.evaluate.prompts:
        return []
    engine = Engine(*load(directory / "final"))
    # A small model that looks up what it read repeats its own words; a penalty on frequent ones lets it go on.
    sampling = Sampling(
        max_tokens=recipe.evaluate.sample_tokens,
        temperature=0.7,
        top_p=0.95,
        frequency_penalty=0.5,
        seed=recipe.train.seed,
    )
    completions = engine.generate(recipe.evaluate.prompts, sampling)
    failed = next((completion.error for completion in completions if completion.error is not None), None)
    if failed is not None:
        raise UserError(f"a sample could not be drawn: {failed}.")
    samples = [(p, c.text) for p, c in zip(recipe.evaluate.prompts, completions, strict=True)]
    with atomic_file(directory / "samples.jsonl") as part:
        part.write_text("".join(json.dumps({"prompt": p, "text": t}) + "\n" for p, t in samples), encoding="utf-8")
    return samples


def tell_outcome(directory: Path) -> None:
    """Print bits per byte beside the baselines, the first sample, what tasks found, and where things are."""
    records = read_metrics(directory / EVALUATIONS)
    measured = [record for record in records if record.get("held_out_loss") is not None]
    answered = next((record for record in records if record["task"] == ANSWERED), None)
    records = [record for record in records if record is not answered]
    on_rows = all("stage" in record for record in records)  # documents are measured once more at the end
    if measured and (on_rows or "held_out_accuracy" in measured[-1]):
        say(_on_held_out_rows(measured[-1]))
    for record in records:
        if "stage" in record:  # of the model while it was trained
            continue
        named = ", ".join(f"{name} {value:.3f}" for name, value in record["baselines"].items())
        say(f"bits per byte on unseen documents: {record['value']:.3f} (beside: {named})")
    samples = directory / "samples.jsonl"
    if samples.exists():
        first = json.loads(samples.read_text(encoding="utf-8").splitlines()[0])
        console.rule("a sample")
        say(first["prompt"] + first["text"])
        console.rule()
    if answered is not None:
        tell_answers(answered, directory)
    for record in _last_of_each_task(records):
        if record["value"] is not None:
            say(f"{record['task']}: {record['value']:.3f} of {record['n']} items{_by_length(record)}")
    say(f"model:  {directory / 'final'}")
    say(f"report: {directory / 'report' / 'index.html'}")


def _last_of_each_task(records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """What the tasks of the recipe (``[[evaluate.task]]``) said last, and the rewards of stages on held-out prompts."""
    told = [one for one in records if "stage" in one and one["task"] != "held_out" and one.get("of") != EVALUATED]
    return list({one["task"]: one for one in told}.values())


def _by_length(record: Mapping[str, Any]) -> str:
    """The mean of the cells of each length, where there are several lengths."""
    by_length: dict[int, list[float]] = {}
    for cell in record.get("cells", ()):
        if "length" in cell:
            by_length.setdefault(cell["length"], []).append(cell["value"])
    if len(by_length) < 2:
        return ""
    means = ", ".join(f"{np.mean(values):.2f} in {length:,}" for length, values in sorted(by_length.items()))
    return f" ({means} tokens)"


def _on_held_out_rows(record: Mapping[str, Any]) -> str:
    """What the last stage reached, on chats, pairs or solutions."""
    loss, accuracy = record["held_out_loss"], record.get("held_out_accuracy")
    if accuracy is None:
        return f"loss on held-out chats: {loss:.3f} nats"
    if "held_out_margin" not in record:
        return f"on held-out solutions: loss {loss:.3f}; the score tells right steps from wrong in {accuracy:.1%}"
    ranking = record.get("held_out_ranking_accuracy")
    if ranking is None:
        return f"on held-out pairs: loss {loss:.3f}; the chosen answer has the higher score in {accuracy:.1%}"
    return (
        f"on held-out pairs: loss {loss:.3f}; the chosen answer has the larger reward in {accuracy:.1%}, and the "
        f"larger log-probability in {ranking:.1%}"
    )


def _write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    with atomic_file(path) as part:
        part.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def _token_counts(groups: Iterable[TokenShards], vocab_size: int) -> np.ndarray:
    """How often each token occurs in the training documents, bos left out, since nothing predicts it."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for shards in groups:
        for index in range(shards.num_documents):
            counts += np.bincount(shards.document(index)[1:], minlength=vocab_size)
    return counts
