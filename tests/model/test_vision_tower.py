"""The vision tower beside transformers' ``CLIPVisionModel`` and a float64 reading of the formula; packed tiles."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leyden.model.vision import VisionConfig, VisionTower, resized_positions
from leyden.model.vision.initialization import initial_vision_weight
from leyden.model.vision.pixels import normalized


def small_config(**changes: object) -> VisionConfig:
    fields = {
        "hidden_size": 24,
        "intermediate_size": 44,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "image_size": 35,
        "patch_size": 7,
        "image_token_id": 3,
        "image_grid_pinpoints": (),
    }
    return VisionConfig.parse({**fields, **changes}, "test")


def small_tower(config: VisionConfig, dtype: torch.dtype = torch.float32) -> VisionTower:
    tower, generator = VisionTower(config), torch.Generator().manual_seed(0)
    for name, weight in tower.named_parameters():
        drawn = initial_vision_weight(name, tuple(weight.shape), config, generator)
        # Biases and norms that are not their initial values, else nobody would see one left out.
        weight.data.copy_(drawn + 0.2 * torch.randn(weight.shape, generator=generator))
    return tower.to(dtype)


def tiles_of(number: int, height: int, width: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(number, 3, height, width, generator=torch.Generator().manual_seed(1), dtype=dtype)


def by_formula(tower: VisionTower, tiles: torch.Tensor) -> torch.Tensor:
    """A tile at a time, a head at a time, in float64, from the weights by name."""
    weights = {name: weight.detach().double() for name, weight in tower.state_dict().items()}
    config, width = tower.config, tower.config.hidden_size
    size, head = config.patch_size, width // config.num_attention_heads
    found = []
    for tile in tiles.double():
        cells = [
            tile[:, y : y + size, x : x + size].flatten()
            for y in range(0, tile.shape[1], size)
            for x in range(0, tile.shape[2], size)
        ]
        patches = torch.stack(cells) @ weights["patch_embedding.weight"].flatten(1).T
        h = torch.cat([weights["class_embedding"][None], patches]) + weights["position_embedding.weight"]
        h = normed(h, weights, "pre_layernorm", config.layer_norm_eps)
        for index in range(config.num_hidden_layers):
            at = f"layers.{index}."
            n = normed(h, weights, f"{at}layer_norm1", config.layer_norm_eps)
            q, k, v = (affine(n, weights, f"{at}self_attn.{name}_proj") for name in "qkv")
            heads = []
            for start in range(0, width, head):
                span = slice(start, start + head)
                heads.append(((q[:, span] @ k[:, span].T) / math.sqrt(head)).softmax(-1) @ v[:, span])
            h = h + affine(torch.cat(heads, 1), weights, f"{at}self_attn.out_proj")
            n = affine(normed(h, weights, f"{at}layer_norm2", config.layer_norm_eps), weights, f"{at}mlp.fc1")
            n = (
                n * torch.sigmoid(1.702 * n)
                if config.hidden_act == "quick_gelu"
                else n * (1 + torch.erf(n / 2**0.5)) / 2
            )
            h = h + affine(n, weights, f"{at}mlp.fc2")
        found.append(h)
    return torch.stack(found)


def normed(x: torch.Tensor, weights: dict[str, torch.Tensor], name: str, eps: float) -> torch.Tensor:
    x = x - x.mean(-1, keepdim=True)
    x = x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
    return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def affine(x: torch.Tensor, weights: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_the_tower_is_the_formula(activation: str) -> None:
    tower = small_tower(small_config(hidden_act=activation))
    tiles = tiles_of(3, 35, 35)
    torch.testing.assert_close(tower(tiles).double(), by_formula(tower, tiles), rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(tower.double()(tiles), by_formula(tower, tiles), rtol=1e-10, atol=1e-11)


def test_bfloat16_is_as_near_as_its_rounding_lets_it() -> None:
    tower = small_tower(small_config(), torch.bfloat16)
    assert {p.dtype for name, p in tower.named_parameters() if "norm" in name} == {torch.float32}
    tiles = tiles_of(2, 35, 35)
    exact = by_formula(tower, tiles)
    error = (tower(tiles).double() - exact).norm() / exact.norm()
    assert error < 0.02


@given(
    width=st.integers(1, 4),
    heads=st.integers(1, 3),
    side=st.integers(1, 5),
    patch=st.integers(1, 6),
    layers=st.integers(1, 3),
    number=st.integers(1, 3),
)
@settings(max_examples=12)
def test_transformers_computes_the_same(
    width: int, heads: int, side: int, patch: int, layers: int, number: int
) -> None:
    config = small_config(
        hidden_size=5 * width * heads,
        num_attention_heads=heads,
        intermediate_size=7 * width,
        image_size=side * patch,
        patch_size=patch,
        num_hidden_layers=layers,
    )
    tower = small_tower(config)
    tiles = tiles_of(number, side * patch, side * patch)
    theirs = clip_of(tower)(pixel_values=tiles).last_hidden_state
    torch.testing.assert_close(tower(tiles), theirs, rtol=2e-4, atol=2e-5)


def clip_of(tower: VisionTower) -> Any:
    """Stock ``CLIPVisionModel`` with the weights of ``tower``."""
    transformers = pytest.importorskip("transformers")
    config = tower.config
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size")
    shape = {name: getattr(config, name) for name in (*names, "patch_size", "layer_norm_eps", "hidden_act")}
    model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**shape)).eval()
    ours = {their_name(name): weight for name, weight in tower.state_dict().items()}
    missing, unexpected = model.load_state_dict(ours, strict=False)
    assert not unexpected and sorted(missing) == ["post_layernorm.bias", "post_layernorm.weight"]
    return model


def their_name(name: str) -> str:
    if name.startswith("layers."):
        return f"encoder.{name}"
    return name.replace("pre_layernorm", "pre_layrnorm") if name.startswith("pre_") else f"embeddings.{name}"


def test_packed_tiles_are_those_alone() -> None:
    """Of different sizes in one row, outputs and gradients; a tile of NaN spoils no other."""
    tower = small_tower(small_config(), torch.float64)
    groups = [tiles_of(2, 35, 35).double(), tiles_of(1, 14, 21).double(), tiles_of(1, 35, 35).double()]
    alone = [tower(group) for group in groups]
    rows = torch.cat([tower.embed(group).flatten(0, 1) for group in groups])
    bounds = torch.tensor([0, 26, 52, 59, 85])
    packed = tower.encode(rows, bounds)
    torch.testing.assert_close(packed, torch.cat([x.flatten(0, 1) for x in alone]), rtol=1e-12, atol=1e-12)
    weights = list(tower.parameters())
    apart = torch.autograd.grad(torch.cat([x.flatten() for x in alone]).square().sum(), weights)
    together = torch.autograd.grad(packed.square().sum(), weights)
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    rows = rows.detach().clone()
    rows[26:52] = math.nan
    spoiled = tower.encode(rows, bounds)
    assert spoiled[26:52].isnan().all()
    torch.testing.assert_close(spoiled[52:], packed[52:])
    torch.testing.assert_close(spoiled[:26], packed[:26])


def test_positions_of_another_size_are_interpolated_as_in_transformers() -> None:
    tower = small_tower(small_config())
    tiles = tiles_of(2, 49, 28)
    theirs = clip_of(tower)(pixel_values=tiles, interpolate_pos_encoding=True).last_hidden_state
    torch.testing.assert_close(tower(tiles), theirs, rtol=2e-4, atol=2e-5)
    table = tower.position_embedding.weight
    assert resized_positions(table, 5, 5) is table
    flat = torch.ones(26, 4)  # a constant stays one, whatever the size
    torch.testing.assert_close(resized_positions(flat, 9, 3), torch.ones(28, 4))


def test_bytes_are_normalized_as_by_transformers() -> None:
    numpy = pytest.importorskip("numpy")
    processors = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    pixels = torch.randint(0, 256, (2, 3, 35, 35), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tower = small_tower(small_config())
    theirs = processors.CLIPImageProcessorPil(do_resize=False, do_center_crop=False)(
        [numpy.asarray(tile.permute(1, 2, 0)) for tile in pixels], return_tensors="pt"
    )["pixel_values"]
    torch.testing.assert_close(normalized(pixels), theirs, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(tower(pixels), tower(theirs), rtol=1e-5, atol=1e-5)


def test_tiles_of_another_form_are_refused() -> None:
    tower = small_tower(small_config())
    for shape in ((3, 35, 35), (1, 4, 35, 35), (1, 3, 36, 35)):
        with pytest.raises(ValueError, match="multiples of 7; given"):
            tower(torch.zeros(shape))


def test_a_shape_that_cannot_be_is_refused_by_name() -> None:
    from leyden.core.errors import UserError

    with pytest.raises(UserError, match=r"hidden_size \(25\) must be a multiple"):
        small_config(hidden_size=25)
    with pytest.raises(UserError, match=r"image_size \(36\) must be a multiple of patch_size \(7\)"):
        small_config(image_size=36)
    with pytest.raises(UserError, match=r"given \[35, 36\]"):
        small_config(image_grid_pinpoints=((35, 70), (35, 36)))


def test_the_released_shape() -> None:
    config = VisionConfig()
    with torch.device("meta"):
        tower = VisionTower(config)
    assert len(config.image_grid_pinpoints) == 28 and config.grid == 24
    # 303.2 million: the 24 layers, the patches, 577 positions and the class token, the norm before the layers.
    layer = 4 * (1024**2 + 1024) + 2 * 1024 * 4096 + 4096 + 1024 + 4 * 1024
    assert sum(p.numel() for p in tower.parameters()) == 24 * layer + 3 * 196 * 1024 + 578 * 1024 + 2 * 1024
