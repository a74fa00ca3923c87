"""Our own layout: the fields of ``ModelConfig`` and our parameter names, as they are."""

from typing import Any

import torch

from leyden.checkpoint.layouts.layout import Layout
from leyden.checkpoint.rules import WeightRule
from leyden.model import ModelConfig
from leyden.tokenizer import Tokenizer


def _read_config(data: dict[str, Any], source: str) -> ModelConfig:
    return ModelConfig.parse({key: value for key, value in data.items() if key != "model_type"}, source)


def _write_config(config: ModelConfig, dtype: torch.dtype, tokenizer: Tokenizer | None) -> dict[str, Any]:
    return {"model_type": "leyden", **config.model_dump(mode="json")}


LEYDEN = Layout(
    name="leyden",
    model_types=("leyden",),
    rules=(WeightRule("{name}", ("{name}",)),),
    read_config=_read_config,
    write_config=_write_config,
)
