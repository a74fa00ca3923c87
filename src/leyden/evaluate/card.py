"""``leyden card``: README.md of a model, in the format of the hub's model cards.

It tells what the files say: those of the model, and of the run that it lies in. What no file says is listed under a
heading of its own, and nothing is guessed. The metadata at its head (library, tags, license, figures) are those that
the hub reads (``huggingface_hub.ModelCardData``).
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

import torch

from leyden.checkpoint.hub import find_model
from leyden.checkpoint.model_directory import open_stored
from leyden.checkpoint.model_place import CARD_FILE, CARD_MARK, is_gguf
from leyden.checkpoint.origin import read_recipe, run_of
from leyden.checkpoint.stored_model import StoredModel
from leyden.core.checksums import file_hashes, read_checksums
from leyden.core.errors import UserError
from leyden.core.files import atomic_file
from leyden.core.quantities import bytes_text, count_text
from leyden.evaluate.runs import end_of
from leyden.evaluate.scores_page import read_results
from leyden.model import count_model
from leyden.model.mixers import mixer_of
from leyden.train import read_metrics

_REJECTS_SHOWN = 8
_OWN_DATA = {"bits_per_byte": "the run's held-out documents"}


def write_card(
    model: str | Path, out: Path | None = None, *, license_name: str | None = None, evaluations: Sequence[Path] = ()
) -> Path:
    """Write the card of ``model`` and return its path.

    Args:
        model: a model's directory in any layout, a run, a checkpoint of one, a GGUF file, or a hub id.
        out: of the card; None: ``README.md`` beside the weights.
        license_name: as the hub spells it; None: the card says that none is named.
        evaluations: folders of ``leyden eval --out``, whose figures the card has too.

    Raises:
        UserError: there is no such model, no evaluation in a folder, or a README.md that somebody else wrote.
    """
    place = find_model(model)
    facts = _Facts.of(place, evaluations)
    path = out or (place.parent if is_gguf(place) else place) / CARD_FILE
    if path.exists() and CARD_MARK.encode() not in path.read_bytes():
        raise UserError(
            f"{path} is there, and was not written by leyden card; give another place (--out), or move it away."
        )
    metadata = _metadata(facts, license_name)
    sections = {
        "The model": _model(facts),
        "Data": _data(facts),
        "Training": _training(facts),
        "Evaluation": _evaluation(facts),
        "Exactness": _exactness(facts),
        "Environment": _environment(facts),
    }
    unknown = _unknown(facts, license_name)
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in [*sections.items(), ("What is not known", unknown)])
    with atomic_file(path) as part:
        part.write_text(f"---\n{metadata}\n---\n{CARD_MARK}\n\n# {_inline(facts.name)}\n\n{body}\n", encoding="utf-8")
    return path


@dataclass(frozen=True)
class _Facts:
    """What the files say.

    Attributes:
        place: of the model.
        stored: its names and shapes.
        run: the folder of the run that it lies in; None where it lies in none.
        figures: lines of evaluations, each with ``task`` and ``value``.
    """

    place: Path
    stored: StoredModel
    run: Path | None
    figures: list[dict[str, Any]]

    @classmethod
    def of(cls, place: Path, evaluations: Sequence[Path]) -> "_Facts":
        run = run_of(place)
        inside = run if (run / "recipe.toml").is_file() else None
        lines = [] if inside is None else [one for one in read_metrics(inside / "eval.jsonl") if "stage" not in one]
        for folder in evaluations:
            found = list(read_results(folder))
            if not found:
                raise UserError(f"{folder} holds no figures; name a folder that leyden eval --out wrote.")
            lines += found
        return cls(place, open_stored(place, verify=False), inside, [one for one in lines if _number(one.get("value"))])

    @property
    def name(self) -> str:
        """The recipe's, else that of the run, else of the model."""
        named = self.recipe.get("name")
        return str(named) if named else (self.run or self.place).resolve().name

    @property
    def base(self) -> str | None:
        """The model that the run began from."""
        named = self.json("from.json").get("model")
        return str(named) if named else None

    @cached_property
    def recipe(self) -> dict[str, Any]:
        return {} if self.run is None else read_recipe(self.run)

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        return [] if self.run is None else read_metrics(self.run / "metrics.jsonl")

    def json(self, name: str) -> dict[str, Any]:
        """An object in a file of the run; empty where there is none that can be read."""
        try:
            found = json.loads((self.run / name).read_bytes()) if self.run is not None else {}
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}


def _model(facts: _Facts) -> str:
    config, dtype = facts.stored.config, facts.stored.weights.dtype
    count = count_model(config)
    kinds = Counter(mixer_of(kind).title for kind in config.layer_types)
    tokenizer = facts.stored.tokenizer
    experts = f"{config.num_local_experts}, of which a token meets {config.num_experts_per_tok}"
    rows = {
        "architecture": "MiniMax-01's hybrid of lightning and softmax attention, as Leyden computes it",
        "parameters": f"{count_text(count.parameters)}, of which {count_text(count.active_parameters)} are active",
        "layers": f"{config.num_hidden_layers}: " + ", ".join(f"{number} {kind}" for kind, number in kinds.items()),
        "experts": experts if config.num_local_experts else "none",
        "hidden size": f"{config.hidden_size:,}",
        "positions": f"{config.max_position_embeddings:,}; RoPE on {config.rotary_dim} of {config.head_dim} dims",
        "vocabulary": f"{config.vocab_size:,}" + ("" if tokenizer else "; the directory has no tokenizer"),
        "chat template": "yes" if tokenizer is not None and tokenizer.chat_template else "none",
        "weights": f"{_dtype(dtype)}, {bytes_text(count.weight_bytes(dtype))}, in the layout `{facts.stored.layout}`",
        "state of a sequence": f"{bytes_text(count.fixed_bytes(torch.float32))} of any length, and "
        f"{count.key_value_bytes_per_token(torch.bfloat16):,} bytes a token in bfloat16",
    }
    use = [f"leyden generate {facts.place.name} PROMPT", f"leyden serve {facts.place.name}"]
    return _table(rows) + "\n\nTo use it:\n\n```sh\npip install leyden\n" + "\n".join(use) + "\n```"


def _data(facts: _Facts) -> str:
    said, data = facts.json("data.json"), facts.recipe.get("data", {})
    rows = {key.replace("_", " "): _plain(value) for key, value in said.items() if _is_plain(value)}
    text = [_table(rows)] if rows else ["No file beside the model says what it was trained on."]
    rejects = said.get("rejects")
    if isinstance(rejects, dict) and rejects:
        shown = [f"{count:,} {_inline(reason)}" for reason, count in list(rejects.items())[:_REJECTS_SHOWN]]
        more = f", and for {len(rejects) - len(shown)} more reasons" if len(rejects) > len(shown) else ""
        text.append(f"Not read or set aside: {', '.join(shown)}{more}.")
    if isinstance(data, dict) and data:
        text.append(f"The recipe's table of data:\n\n```json\n{json.dumps(data, indent=1, default=str)}\n```")
    return "\n\n".join(text)


def _training(facts: _Facts) -> str:
    if not facts.metrics:
        base = f" It began from {_inline(facts.base)}." if facts.base else ""
        return f"No metrics of its training are beside the model.{base}"
    rows = [["stage", "objective", "steps", "tokens at its end", "tokens a sequence", "loss at its end"]]
    stages = {stage.get("name"): stage for stage in facts.recipe.get("stage", []) if isinstance(stage, dict)}
    for name in dict.fromkeys(line.get("stage") for line in facts.metrics):
        lines = [line for line in facts.metrics if line.get("stage") == name]
        losses = [line["loss"] for line in end_of(lines) if _number(line.get("loss"))]
        stage = stages.get(name, {})
        rows.append(
            [
                _inline(name),
                _inline(stage.get("objective", "not known")),
                f"{len(lines):,}",
                f"{lines[-1].get('tokens', 0):,}",
                _plain(stage.get("seq_len", "not known")),
                f"{sum(losses) / len(losses):.4f}" if losses else "not known",
            ]
        )
    skipped = sum(bool(line.get("skipped")) for line in facts.metrics)
    train = facts.recipe.get("train", {})
    said = {key: train[key] for key in ("dtype", "seed", "optimizer") if isinstance(train, dict) and key in train}
    text = [_grid(rows), f"{skipped} steps were skipped, since their loss or gradient was not finite."]
    text += [f"It began from {_inline(facts.base)}."] if facts.base else []
    text += [f"The recipe says {', '.join(f'{key} = {_plain(value)}' for key, value in said.items())}."] if said else []
    return "\n\n".join(text) + "\n\nThe loss is in nats a token, the mean of the last tenth of a stage's steps."


def _evaluation(facts: _Facts) -> str:
    if not facts.figures:
        return "No evaluation is beside the model; `leyden eval MODEL --task NAME --out DIR` makes one."
    rows = [["task", "value", "95 % interval", "items", "settings"]]
    for line in facts.figures:
        interval = line.get("interval")
        between = f"{interval[0]:.4f} to {interval[1]:.4f}" if _is_pair(interval) else "not known"
        settings = line.get("settings")
        told = (
            ", ".join(f"{key} {_plain(value)}" for key, value in settings.items()) if isinstance(settings, dict) else ""
        )
        rows.append([_inline(line["task"]), f"{line['value']:.4f}", between, _plain(line.get("n", "not known")), told])
    beside = [line["baselines"] for line in facts.figures if isinstance(line.get("baselines"), dict)]
    named = [f"{_inline(name)} {value:.4f}" for one in beside for name, value in one.items() if _number(value)]
    return _grid(rows) + (f"\n\nBeside it, in bits per byte: {', '.join(named)}." if named else "")


def _exactness(facts: _Facts) -> str:
    """What holds for any model of Leyden's, and the hashes by which these weights are known."""
    general = (
        "Leyden's tests hold for any weights of this architecture: prefill, decoding token by token, chunked prefill "
        "and resuming from a saved state give the same result; packed documents do not see each other; slopes, decays, "
        "states, routers and norms are float32 whatever the weights are. They were not repeated with these weights."
    )
    if is_gguf(facts.place):
        names, folder = [facts.place.name], facts.place.parent
        hashes = dict(zip(names, file_hashes(folder, names), strict=True))
    else:
        hashes = {name: digest for name, digest in read_checksums(facts.place).items() if name.endswith(".safetensors")}
    if not hashes:
        return f"{general}\n\nThe weights have no list of hashes (`SHA256SUMS`)."
    return f"{general}\n\nSHA-256 of the weights:\n\n" + _table(
        {f"`{name}`": f"`{one}`" for name, one in hashes.items()}
    )


def _environment(facts: _Facts) -> str:
    rows = {key: _plain(value) for key, value in facts.json("environment.json").items() if value not in (None, [], "")}
    return (
        _table(rows) if rows else "No file beside the model says on what machine, and with what versions, it was made."
    )


def _unknown(facts: _Facts, license_name: str | None) -> str:
    """What a reader would look for here and does not find."""
    missing = {
        "its license": license_name is None,
        "the run that made it": facts.run is None,
        "what it was trained on": not facts.json("data.json"),
        "how it was trained": not facts.metrics,
        "how good it is": not facts.figures,
        "the machine and the versions that it was made with": not facts.json("environment.json"),
    }
    listed = [f"- {what}" for what, is_missing in missing.items() if is_missing]
    always = [
        "- which languages it knows, and how well, beyond the figures above",
        "- what it says that is false, harmful or private: it was not examined for that",
    ]
    return "\n".join([*listed, *always])


def _metadata(facts: _Facts, license_name: str | None) -> str:
    """The head of the card, in YAML."""
    try:
        from huggingface_hub import EvalResult, ModelCardData
    except ImportError:
        raise UserError("a card's metadata is written by the hub's package: pip install 'leyden[hub]'.") from None
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=str(line["task"]),
            dataset_name=_OWN_DATA.get(str(line["task"]), str(line["task"])),
            metric_type="bits_per_byte" if line["task"] == "bits_per_byte" else "score",
            metric_value=round(float(line["value"]), 6),
        )
        for line in facts.figures
    ]
    return ModelCardData(
        license=license_name,
        library_name="leyden",
        pipeline_tag="text-generation",
        tags=["lightning-attention", "minimax", facts.stored.layout],
        base_model=facts.base,
        model_name=facts.name,
        eval_results=results or None,
    ).to_yaml()


def _table(rows: Mapping[str, str]) -> str:
    return _grid([["", ""], *([key, value] for key, value in rows.items())])


def _grid(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is its head."""
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "|" + " --- |" * len(rows[0]), *body])


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_pair(value: Any) -> TypeGuard[list[float]]:
    return isinstance(value, list) and len(value) == 2 and all(map(_number, value))


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float) or (
        isinstance(value, list) and len(value) < 9 and all(map(_is_plain, value))
    )


def _plain(value: Any) -> str:
    """A value in a cell of a table."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return _inline(", ".join(map(str, value)) if isinstance(value, list) else value)


def _inline(value: Any) -> str:
    """Text of a stranger's in one line of Markdown: no markup, no new cell, no tag."""
    line = " ".join(str(value).split())
    return "".join(f"\\{one}" if one in "\\|`*_[]<>#" else one for one in line)
