"""The released MiniMax-VL-01 layout: each of its 8,637 keys is accounted for, and a model passes through unchanged."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_layouts_minimax import TEXT_01

from leyden.checkpoint import load, save
from leyden.checkpoint.layouts import LAYOUTS, layout_of
from leyden.checkpoint.stored_model import bindings_of
from leyden.core.errors import UserError
from leyden.model import HybridLM, preset
from leyden.model.vision import Pictures

LAYOUT = LAYOUTS["minimax_vl"]
VL_01: dict[str, Any] = {
    "architectures": ["MiniMaxVL01ForConditionalGeneration"],
    "ignore_index": -100,
    "image_seq_length": 576,
    "image_token_index": 200025,
    "model_type": "minimax_vl_01",
    "multimodal_projector_bias": True,
    "process_image_mode": "anyres",
    "projector_hidden_act": "gelu",
    "text_config": TEXT_01 | {"max_position_embeddings": 8192, "shared_intermediate_size": [0]},
    "tie_word_embeddings": False,
    "vision_config": {
        "auto_map": {"AutoModel": "modeling_clip.CLIPVisionModel"},
        "hidden_act": "gelu",
        "hidden_size": 1024,
        "image_size": 336,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": 4096,
        "layer_norm_eps": 1e-5,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_channels": 3,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 6144,
        "vocab_size": 32000,
    },
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "default",
}
SHA256 = "d0caf1b714cdfc4caa65b56cbec591668d77b0e2a5d6cf3b5af169531311c886"
"""Of the released tensors' names, sorted, a line each."""
SMALL = {
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 6,
    "patch_size": 2,
    "image_token_id": 5,
    "image_grid_pinpoints": ((6, 6), (6, 12)),
}


def changed(**changes: Any) -> dict[str, Any]:
    return {key: value for key, value in (VL_01 | changes).items() if value != "absent"}


def test_all_8637_keys_of_vl_01_are_accounted_for() -> None:
    config = LAYOUT.read_config(VL_01, "config.json")
    bindings, _ = bindings_of(LAYOUT, config)
    ours = {name: tuple(binding.part_shape) for binding in bindings for name in binding.theirs}
    assert len(ours) == 8637
    assert hashlib.sha256("\n".join(sorted(ours)).encode()).hexdigest() == SHA256
    tower = "vision_tower.vision_model."
    assert ours["image_newline"] == (6144,) and ours["language_model.lm_head.weight"] == (200064, 6144)
    assert ours[f"{tower}embeddings.patch_embedding.weight"] == (1024, 3, 14, 14)
    assert ours[f"{tower}embeddings.position_embedding.weight"] == (577, 1024)
    assert ours[f"{tower}encoder.layers.23.mlp.fc1.weight"] == (4096, 1024)
    assert ours["multi_modal_projector.linear_1.weight"] == (6144, 1024)


def test_the_released_config_is_the_preset_and_back() -> None:
    assert layout_of(VL_01, "config.json") is LAYOUT
    config = LAYOUT.read_config(VL_01, "config.json")
    assert config == preset("vl-01")
    assert LAYOUT.read_config(LAYOUT.write_config(config, torch.bfloat16, None), "config.json") == config
    fixed = LAYOUT.read_config(changed(process_image_mode="resize"), "config.json")
    assert fixed.vision is not None and fixed.vision.image_grid_pinpoints == ()
    assert LAYOUT.read_config(LAYOUT.write_config(fixed, torch.bfloat16, None), "config.json") == fixed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_goes_there_and_back(random_model: Callable[..., HybridLM], tmp_path: Path, dtype: torch.dtype) -> None:
    model, generator = random_model(vision=SMALL), torch.Generator().manual_seed(4)
    assert model.vision is not None
    for weight in model.vision.parameters():
        weight.data.add_(0.3 * torch.randn(weight.shape, generator=generator))
    model = model.to(dtype)
    save(model, None, tmp_path / "m", layout="minimax_vl")
    found, _ = load(tmp_path / "m")
    assert found.config == model.config
    tokens, tiles = torch.tensor([[3, 5, 5, 5, 9]]), torch.randn(2, 3, 6, 6, generator=generator)
    pictures = Pictures(tiles, torch.tensor([4, 11, -1]), torch.tensor([1, 2, 3]))
    with torch.no_grad():
        assert torch.equal(
            found.features(tokens, inserts=pictures).hidden, model.eval().features(tokens, inserts=pictures).hidden
        )
    save(found, None, tmp_path / "again", layout="minimax_vl")
    one, other = (load_file(path / "model.safetensors") for path in (tmp_path / "m", tmp_path / "again"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert (tmp_path / "m" / "config.json").read_text() == (tmp_path / "again" / "config.json").read_text()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"vision_config": "absent"}, "needs the sections text_config and vision_config"),
        ({"vision_feature_layer": -2}, "vision_feature_layer is -2, and Leyden computes with -1 alone"),
        ({"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy is 'full'"),
        ({"image_token_index": "absent"}, "image_token_index is missing"),
        ({"process_image_mode": "crop"}, "process_image_mode is 'crop'"),
        ({"qformer_layers": 3}, "qformer_layers is not known"),
        ({"vision_config": {**VL_01["vision_config"], "num_channels": 1}}, "vision_config.num_channels is 1"),
        ({"vision_config": {"hidden_size": 8}}, "vision_config.intermediate_size is missing; "),
        ({"vision_config": {**VL_01["vision_config"], "use_cls": True}}, "vision_config.use_cls is not known"),
        ({"text_config": {**TEXT_01, "postnorm": 3}}, "postnorm"),
        ({"image_token_index": 300_000}, r"vision.image_token_id \(300000\) must be a token of the vocabulary"),
    ],
)
def test_what_leyden_does_not_compute_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        LAYOUT.read_config(json.loads(json.dumps(changed(**changes))), "config.json")


def test_a_vision_side_is_dropped_by_no_layout(random_model: Callable[..., HybridLM], tmp_path: Path) -> None:
    model = random_model(vision=SMALL)
    for layout in ("minimax", "transformers", "gguf"):
        with pytest.raises(UserError, match=f"the {layout} layout cannot express .*a vision side"):
            save(model, None, tmp_path / f"{layout}.gguf", layout=layout)
    save(model, None, tmp_path / "own", layout="leyden")
    assert load(tmp_path / "own")[0].config == model.config
    with pytest.raises(UserError, match="this one has none"):
        save(random_model(), None, tmp_path / "vl", layout="minimax_vl")
