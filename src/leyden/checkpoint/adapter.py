"""Adapters on disk, in PEFT's layout: ``adapter_config.json`` and ``adapter_model.safetensors``.

The names are those that PEFT gives the adapters of transformers' native MiniMax, and so is the order of rows: of query
and key projections B has the rows of that model (:mod:`leyden.checkpoint.layouts.transformers`). Both projections of
stacked experts are ``target_parameters`` there: PEFT wraps the module twice, and stacks A by experts along its rows
and B, interleaved, along its columns.

The file's metadata name the fingerprint of the model that the adapter was trained on.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from leyden.checkpoint.layouts.transformers import TRANSFORMERS
from leyden.checkpoint.rules import order_rows
from leyden.checkpoint.tensor_files import TensorFiles, read_json, write_json
from leyden.core.checksums import SUMS, changed_files, write_checksums
from leyden.core.errors import UserError
from leyden.core.files import atomic_directory
from leyden.model import HybridLM, ModelConfig
from leyden.model.lora import EXPERTS, LORA, ExpertsLowRank, LowRank, adapter_for, attach
from leyden.tokenizer import Tokenizer

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model.model."
_BASE = "base_fingerprint"
"""The key of the metadata that names the model's fingerprint."""

_WITHOUT_EFFECT: Mapping[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "trainable_token_indices": (None, []),
    "layer_replication": (None, []),
    "use_bdlora": (None, False),
    "use_qalora": (None, False),
}
"""Keys of adapter_config.json that mean another kind of adapter, and the values with which they do not."""

_HALVES = {"gate_up": "gate_up_proj", "down": "down_proj"}
_NAME = re.compile(r"(?P<module>layers\.\d+\..+?)(?P<inner>\.base_layer)?\.lora_(?P<matrix>[AB])(?:\.default)?\.weight")


class _Files(TensorFiles):
    def _files(self) -> list[Path]:
        if not (self.directory / WEIGHTS_FILE).exists():
            raise UserError(f"{self.directory} holds no {WEIGHTS_FILE}; an adapter is that and {CONFIG_FILE}.")
        return [self.directory / WEIGHTS_FILE]


@dataclass(frozen=True, eq=False)
class StoredAdapter:
    """An adapter on disk.

    Attributes:
        directory: of its files.
        base: what the model is called that it was trained on; empty where the file does not say it.
        fingerprint: of that model (:attr:`leyden.checkpoint.starting_model.StartingModel.fingerprint`); None where the
            file does not say it, as one that PEFT wrote.
        rank: of every addition.
        scale: what additions are multiplied by.
        weights: by our names, as ``layers.3.self_attn.q_proj.lora.a``, with our order of rows; float32.
    """

    directory: Path
    base: str
    fingerprint: str | None
    rank: int
    scale: float
    weights: Mapping[str, torch.Tensor]

    @property
    def modules(self) -> list[str]:
        """The names of the modules that it adapts."""
        return sorted({name.partition(f".{LORA}.")[0] for name in self.weights})

    def adapts(self, weight: str) -> bool:
        """Whether the weight ``weight`` of the model is one that it adds to."""
        return self._own_name(weight) + "a" in self.weights

    def add_to(self, weight: str, plain: torch.Tensor) -> torch.Tensor:
        """A weight that it :meth:`adapts` with what it adds: in float64, matrix by matrix, rounded once to its dtype.

        Args:
            weight: its name.
            plain: [F, D] or [E, F, D].
        """
        matrices, added = plain.view(-1, *plain.shape[-2:]), torch.empty_like(plain)
        a, b = (self.weights[self._own_name(weight) + x].double() for x in "ab")
        a, b = a.view(len(matrices), -1, a.shape[-1]), b.view(len(matrices), -1, b.shape[-1])
        for one, sum_of_both, a_of_one, b_of_one in zip(matrices, added.view_as(matrices), a, b, strict=True):
            sum_of_both.copy_(one.double() + self.scale * (b_of_one @ a_of_one))
        return added

    @staticmethod
    def _own_name(weight: str) -> str:
        module, _, leaf = weight.rpartition(".")
        return f"{module}.{LORA}." + ("" if leaf == "weight" else f"{leaf.removesuffix('_proj')}_")


def is_adapter_directory(path: Path) -> bool:
    """Whether an adapter lies in ``path``."""
    return (path / CONFIG_FILE).is_file()


def find_adapter(name: str | Path) -> Path:
    """The directory of an adapter: itself, or a run whose ``final/`` it is.

    Raises:
        UserError: there is none.
    """
    for path in (Path(name), Path(name) / "final"):
        if is_adapter_directory(path):
            return path
    raise UserError(
        f"{name} holds no adapter; that is a directory with {CONFIG_FILE} and {WEIGHTS_FILE}, as PEFT writes it, or a "
        "run with [train.lora] that is finished."
    )


def base_of(directory: Path) -> str:
    """What the model is called that the adapter in ``directory`` was trained on.

    Raises:
        UserError: its file does not say it.
    """
    base = read_json(directory / CONFIG_FILE).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UserError(
            f"{directory / CONFIG_FILE} does not say what the adapter was trained on (base_model_name_or_path); write "
            f"it there, or name the model: leyden convert MODEL DIR --lora {directory}"
        )
    return base


def read_adapter(directory: Path, config: ModelConfig) -> StoredAdapter:
    """The adapter in ``directory``, as it fits a model.

    Args:
        directory: with both files.
        config: of the model.

    Raises:
        UserError: it is another kind of adapter, of another model, damaged, or not there.
    """
    data, where = read_json(directory / CONFIG_FILE), directory / CONFIG_FILE
    scale = _scale(data, where)
    files = _Files(directory)
    if changed_files(directory, [WEIGHTS_FILE]):
        raise UserError(
            f"{directory / WEIGHTS_FILE}: not what was written there by {SUMS}; it is damaged, or was changed. Restore "
            f"it from a copy; if the change was meant, remove {directory / SUMS}."
        )
    shapes, pairs = _adaptable(config), dict[tuple[str, str], dict[str, torch.Tensor]]()
    strange = [*files.problems, *(f"{name} is truncated" for name, one in files.stored.items() if not one.complete)]
    for name in files if not strange else ():
        match = _NAME.fullmatch(name.removeprefix(_PREFIX))
        if not name.startswith(_PREFIX) or match is None or match["module"] not in shapes:
            strange.append(f"{name} belongs to no projection of this model")
        else:
            pair = pairs.setdefault((match["module"], match["inner"] or ""), {})
            pair[match["matrix"]] = files[name].float()
    found: dict[str, torch.Tensor] = {}
    for (module, inner), pair in pairs.items() if not strange else ():
        problem = _problem(pair, int(data["r"]), config.num_local_experts if "weight" not in shapes[module] else 1)
        ours = {} if problem else _ours(module, pair, shapes[module], config)
        if not ours:
            strange.append(f"{module}{inner}: {problem or _unfit(pair)}")
        found |= ours
    if strange:
        more = f"; and {len(strange) - 4} more" if len(strange) > 4 else ""
        raise UserError(
            f"the adapter {directory} does not fit this model: {'; '.join(strange[:4])}{more}. Take the model that it "
            f"was trained on{_said(data)}."
        )
    if not found:
        raise UserError(f"{directory / WEIGHTS_FILE} holds no weights; the adapter adds nothing.")
    with safe_open(directory / WEIGHTS_FILE, framework="pt") as file:
        fingerprint = (file.metadata() or {}).get(_BASE)
    base = data.get("base_model_name_or_path") or ""
    return StoredAdapter(directory, str(base), fingerprint, int(data["r"]), scale, found)


def _scale(data: dict[str, Any], where: Path) -> float:
    rank, alpha = data.get("r"), data.get("lora_alpha")
    if data.get("peft_type") != "LORA":
        raise UserError(f"{where}: peft_type is {data.get('peft_type')!r}; Leyden reads adapters of type 'LORA'.")
    other = [f"{key} = {data[key]!r}" for key, allowed in _WITHOUT_EFFECT.items() if data.get(key) not in allowed]
    if other:
        raise UserError(f"{where}: {', '.join(other)}: Leyden computes plain LoRA of one rank alone, which has none.")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise UserError(f"{where}: r must be a number from 1 and lora_alpha a number; given {rank!r} and {alpha!r}.")
    return alpha / (math.sqrt(rank) if data.get("use_rslora") else rank)


def _said(data: dict[str, Any]) -> str:
    base = data.get("base_model_name_or_path")
    return f", {base}" if base else ""


def _adaptable(config: ModelConfig) -> dict[str, dict[str, tuple[int, ...]]]:
    """The shapes of the weights of every module that can have an adapter, by its name."""
    with torch.device("meta"):
        model = HybridLM(config)
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, weight in model.named_parameters():
        module, _, leaf = name.rpartition(".")
        if name.startswith("layers.") and weight.ndim >= 2 and not module.endswith(("mlp.gate", "coefficient")):
            found.setdefault(module, {})[leaf] = tuple(weight.shape)
    return found


def _problem(pair: Mapping[str, torch.Tensor], rank: int, count: int) -> str | None:
    """What is wrong with an A and a B, of ``count`` stacked matrices, whatever they belong to; None: nothing."""
    if len(pair) < 2:
        return f"lora_{next(iter(pair))} has no lora_{'B' if 'A' in pair else 'A'} beside it"
    a, b = pair["A"], pair["B"]
    if a.ndim != 2 or b.ndim != 2:
        return _unfit(pair)
    if a.shape[0] != b.shape[1] or a.shape[0] != rank * count:
        own = " and ".join(sorted({f"{a.shape[0] / count:g}", f"{b.shape[1] / count:g}"}))
        return f"it has rank {own}, and {CONFIG_FILE} says r = {rank}"
    if not bool(a.isfinite().all() & b.isfinite().all()):
        return "it holds a number that is infinite or none"
    return None


def _unfit(pair: Mapping[str, torch.Tensor]) -> str:
    given = " and ".join(f"lora_{matrix} {list(value.shape)}" for matrix, value in sorted(pair.items()))
    return f"{given} fit no projection of that name here"


def _ours(
    module: str, pair: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]], config: ModelConfig
) -> dict[str, torch.Tensor]:
    """A and B of the file by our names and in our form; empty where their shapes do not fit."""
    a, b = pair["A"], pair["B"]
    for leaf, shape in shapes.items():
        if (b.shape[0], a.shape[1]) != shape[-2:]:
            continue
        if len(shape) == 2:
            rows = _rows(module, config)
            return {f"{module}.{LORA}.a": a, f"{module}.{LORA}.b": b if rows is None else order_rows(b, rows.argsort())}
        # PEFT wraps one projection of the experts around the other, in either order: their shapes tell which is which.
        half, E = f"{module}.{LORA}.{leaf.removesuffix('_proj')}", shape[0]
        a, b = a.unflatten(0, (E, -1)), b.unflatten(1, (-1, E)).permute(2, 0, 1)
        return {f"{half}_a": a.contiguous(), f"{half}_b": b.contiguous()}
    return {}


def _rows(module: str, config: ModelConfig) -> torch.Tensor | None:
    """[head_dim], as of :class:`leyden.checkpoint.rules.WeightRule`."""
    rules = [rule for rule in TRANSFORMERS.rules if rule.match(f"{module}.weight", config) is not None]
    return rules[0].rows(config) if rules and rules[0].rows else None


def write_adapter(
    weights: Mapping[str, torch.Tensor],
    config: ModelConfig,
    directory: Path,
    *,
    rank: int,
    alpha: float,
    base: str,
    fingerprint: str | None,
    tokenizer: Tokenizer | None = None,
) -> None:
    """Write an adapter that PEFT and :func:`read_adapter` open; an older one in ``directory`` is replaced.

    Args:
        weights: by our names.
        config: of the model.
        directory: where to.
        rank, alpha: see :class:`leyden.model.lora.LoraConfig`.
        base, fingerprint: of the model that it was trained on.
        tokenizer: written beside it; None to write none.

    Raises:
        UserError: the disk is full.
    """
    modules = {name.partition(f".{LORA}.")[0] for name in weights}
    leaves = sorted({module.rpartition(".")[2] for module in modules} - {EXPERTS})
    stacked = any(module.endswith(EXPERTS) for module in modules)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "use_dora": False,
        "use_rslora": False,
        "target_modules": leaves,
        "target_parameters": [f"mlp.{EXPERTS}.{leaf}" for leaf in _HALVES.values()] if stacked else None,
    }
    # One key: of two, the format's own writer puts either first, and a run would not end with the same bits twice.
    metadata = {_BASE: fingerprint} if fingerprint else {"format": "pt"}
    with atomic_directory(directory) as part:
        write_json(part / CONFIG_FILE, settings)
        save_file(dict(_theirs(weights, config)), part / WEIGHTS_FILE, metadata=metadata)
        if tokenizer is not None:
            tokenizer.save(part)
        write_checksums(part, [part / WEIGHTS_FILE])


def _theirs(weights: Mapping[str, torch.Tensor], config: ModelConfig) -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in weights.items():
        module, _, own = name.partition(f".{LORA}.")
        value = value.detach().cpu()
        half, _, letter = own.rpartition("_")
        if not half:
            rows = _rows(module, config) if letter == "b" else None
            value = value if rows is None else order_rows(value, rows)
        else:
            module += ".base_layer" if half == "gate_up" else ""
            value = value.flatten(0, 1) if letter == "a" else value.permute(1, 2, 0).flatten(1)
        yield f"{_PREFIX}{module}.lora_{letter.upper()}.weight", value.contiguous()


def fill_adapters(model: HybridLM, adapter: StoredAdapter) -> None:
    """Attach ``adapter`` to a model that has none, in place."""
    for name, made in modules_of(model, adapter).items():
        attach(model.get_submodule(name), made)


def modules_of(model: HybridLM, adapter: StoredAdapter) -> dict[str, LowRank | ExpertsLowRank]:
    """The parts of ``adapter``, by the names of the modules of ``model`` that they belong to; float32, frozen."""
    found = {}
    for name in adapter.modules:
        made = adapter_for(model.get_submodule(name), adapter.rank, adapter.scale)
        for leaf, parameter in made.named_parameters():
            stored = adapter.weights.get(f"{name}.{LORA}.{leaf}")  # PEFT may adapt one projection of experts alone
            if stored is not None:
                parameter.data.copy_(stored)
        found[name] = made.requires_grad_(False)
    return found
