"""The report of a tokenizer: ``report.json`` and ``index.html``, which needs nothing else."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from leyden.core.files import atomic_file
from leyden.tokenizer.survey import Efficiency, TokenSurvey
from leyden.tokenizer.training import Training
from leyden.tokenizer.words import WordCounts

_SHOWN = 40
"""Tokens in a list on the page; ``report.json`` has ten times as many."""


def write_report(
    directory: Path, survey: TokenSurvey, training: Training | None = None, counts: WordCounts | None = None
) -> dict[str, Any]:
    """Write ``report.json`` and ``index.html`` into ``directory``.

    Args:
        directory: made where it is missing.
        survey: of the text that the tokenizer is judged by.
        training: how it was trained, if it was.
        counts: what it was trained on.

    Returns:
        What ``report.json`` holds.
    """
    from leyden.core.page import refuse_to_replace_others

    refuse_to_replace_others(directory / "index.html")
    facts = _facts(survey)
    if training is not None and counts is not None:
        facts["training"] = _training_facts(training, counts)
    with atomic_file(directory / "report.json") as part:
        part.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    _write_page(directory / "index.html", facts, survey, training)
    return facts


def _facts(survey: TokenSurvey) -> dict[str, Any]:
    unused, uses = survey.unused(), survey.total_uses
    tokens = [survey.tokenizer.token_bytes(index) for index in range(survey.tokenizer.vocab_size)]
    longest = sorted(range(len(tokens)), key=lambda i: (-len(tokens[i]), i))
    longest = [index for index in longest if not survey.tokenizer.is_special(index)]
    total = survey.total
    return {
        "vocab_size": survey.tokenizer.vocab_size,
        "fingerprint": survey.tokenizer.fingerprint,
        "total": _efficiency(total),
        "by_language": {name: _efficiency(one) for name, one in survey.by_language().items()},
        "by_domain": {name: _efficiency(one) for name, one in survey.by_domain().items()},
        "num_unused": len(unused),
        "unused": [_token(index, tokens, uses) for index in unused[: 10 * _SHOWN].tolist()],
        "longest": [_token(index, tokens, uses) for index in longest[: 10 * _SHOWN]],
    }


def _efficiency(one: Efficiency) -> dict[str, Any]:
    return {
        "documents": one.sizes.num_documents,
        "bytes": one.sizes.num_bytes,
        "words": one.sizes.num_spaced,
        "tokens": one.num_tokens,
        "bytes_per_token": one.bytes_per_token,
        "tokens_per_word": one.tokens_per_word,
    }


def _token(index: int, tokens: list[bytes], uses: np.ndarray) -> dict[str, Any]:
    text = tokens[index].decode("utf-8", errors="backslashreplace")
    return {"id": index, "text": text, "bytes": len(tokens[index]), "uses": int(uses[index])}


def _training_facts(training: Training, counts: WordCounts) -> dict[str, Any]:
    found = training.merges.counts
    return {
        "bytes": counts.total.num_bytes,
        "documents": counts.total.num_documents,
        "distinct_words": training.num_words,
        "occurrences": training.occurrences,
        "forgotten_occurrences": counts.forgotten,
        "largest_undercount": counts.undercount,
        "counter_bits": 64,
        "commonest_pair": int(found.max(initial=0)),
        "rarest_pair": int(found.min(initial=0)) if len(found) else 0,
        "targets": training.targets,
        "rounds": [
            {"weights": one.weights, "bytes_per_token": one.bytes_per_token, "tokens": one.num_tokens}
            for one in training.rounds
        ],
    }


def _write_page(path: Path, facts: Mapping[str, Any], survey: TokenSurvey, training: Training | None) -> None:
    from leyden.core.page import Plot, write_page

    total = facts["total"]
    numbers = [
        (f"{total['bytes_per_token']:.3f}", "", "bytes per token"),
        (f"{total['tokens_per_word']:.3f}", "", "tokens per word"),
        (f"{facts['vocab_size']:,}", "", "tokens in the vocabulary"),
        (f"{facts['num_unused']:,}", "", "of them unused here"),
    ]
    plots = [
        Plot("Compression by language", _compression_plot(survey, training), "Bytes per token; a line is a target."),
        Plot("How often tokens are used", _uses_plot(survey), "Tokens from the commonest to the rarest."),
    ]
    write_page(
        path,
        Path(__file__).with_name("report.html"),
        {
            "title": "Tokenizer",
            "sections": ["Text", "Tokens", *(["Training"] if training is not None else [])],
            "numbers": numbers,
            "plots": plots,
            "tables": [("language", facts["by_language"]), ("domain", facts["by_domain"])],
            "tokens": [("Longest tokens", facts["longest"][:_SHOWN]), ("Unused tokens", facts["unused"][:_SHOWN])],
            "training": facts.get("training"),
        },
    )


def _compression_plot(survey: TokenSurvey, training: Training | None) -> str:
    from leyden.core.page import ACCENT, INK, drawing

    languages = dict(list(survey.by_language().items())[:20])
    targets = training.targets if training is not None else {}
    with drawing("compression", height=0.6 + 0.22 * max(len(languages), 4)) as drawn:
        places = range(len(languages))
        drawn.axes.barh(places, [one.bytes_per_token for one in languages.values()], color=ACCENT)
        for place, language in enumerate(languages):
            if language in targets:
                drawn.axes.plot([targets[language]] * 2, [place - 0.4, place + 0.4], color=INK)
        drawn.axes.set_yticks(places, [language or "unknown" for language in languages])
        drawn.axes.invert_yaxis()
        drawn.axes.grid(axis="x")
        drawn.axes.set_xlabel("bytes per token")
    return drawn.svg


def _uses_plot(survey: TokenSurvey) -> str:
    from leyden.core.page import ACCENT, drawing

    uses = np.sort(survey.total_uses)[::-1]
    uses = uses[uses > 0]
    with drawing("uses") as drawn:
        places = np.unique(np.geomspace(1, max(len(uses), 1), 300).astype(int)) - 1
        drawn.axes.loglog(places + 1, uses[places] if len(uses) else [1], color=ACCENT)
        drawn.axes.set_xlabel("rank")
        drawn.axes.set_ylabel("uses")
    return drawn.svg
