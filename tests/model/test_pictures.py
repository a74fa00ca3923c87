"""Pictures in a language model: prefill = decode = chunked prefill, packed = alone, and the same as their vectors."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from leyden.core.errors import UserError
from leyden.model import Cache, HybridLM, ModelConfig, count_model
from leyden.model.embedding import Inserts
from leyden.model.vision import Pictures, VisionEncoder

VISION: dict[str, Any] = {
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 6,
    "patch_size": 2,
    "image_token_id": 5,
    "image_grid_pinpoints": ((6, 6), (6, 12)),
}
PATCHES = 9


def picture_model(random_model: Any, dtype: torch.dtype = torch.float64) -> HybridLM:
    model = random_model(vision=VISION)
    generator = torch.Generator().manual_seed(4)
    for weight in vision_of(model).parameters():
        weight.data.add_(0.3 * torch.randn(weight.shape, generator=generator))
    return model.to(dtype)


def vision_of(model: HybridLM) -> VisionEncoder:
    assert model.vision is not None
    return model.vision


def pictures(places: list[int], num_tiles: int = 3, seed: int = 0) -> Pictures:
    """Random patches of random tiles, some places the end of a row."""
    generator = torch.Generator().manual_seed(seed)
    tiles = torch.randn(num_tiles, 3, 6, 6, generator=generator, dtype=torch.float64)
    rows = torch.randint(-1, num_tiles * PATCHES, (len(places),), generator=generator)
    rows[2] = -1
    return Pictures(tiles, rows, torch.tensor(places))


PLACES = [1, 2, 3, 9, 10, 11, 12, 17, 18]


def tokens_of(length: int = 23, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 101, (1, length), generator=torch.Generator().manual_seed(seed))


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def test_they_are_the_projected_features_of_their_patches(random_model: Any) -> None:
    """Read off one vector at a time, beside the vector that ends a row."""
    model, shown = picture_model(random_model), pictures(PLACES)
    vision = vision_of(model)
    features = vision.tower(shown.tiles)
    expected = model.embed_tokens(tokens_of()).detach().clone()
    for place, row in zip(PLACES, shown.rows.tolist(), strict=True):
        tile, patch = divmod(row, PATCHES)
        vector = vision.image_newline if row < 0 else vision.projector(features[tile, 1 + patch])
        expected[0, place] = vector
    close(model.embed(tokens_of(), shown), expected)


def test_prefill_is_decode_is_chunked_prefill(random_model: Any) -> None:
    model, tokens, shown = picture_model(random_model).eval(), tokens_of(), pictures(PLACES)
    with torch.no_grad():
        whole = model.logits(model.features(tokens, inserts=shown).hidden)
        for sizes in ([23], [2, 8, 6, 7], [1] * 23):
            cache, start, found = Cache(model.config), 0, []
            for size in sizes:
                here = (shown.places >= start) & (shown.places < start + size)
                part = shown.taken(here, shown.places[here] - start, PATCHES)
                hidden = model.features(tokens[:, start : start + size], cache=cache, inserts=part).hidden
                found.append(model.logits(hidden))
                start += size
            close(torch.cat(found, 1), whole)
        assert (whole - model(tokens)).abs().max() > 0.1


def test_packed_documents_are_those_alone(random_model: Any) -> None:
    """Outputs, and the gradients of every weight."""
    model = picture_model(random_model).train()
    texts = [(tokens_of(9, 1), pictures([0, 4, 5], 1, 1)), (tokens_of(14, 2), pictures([2, 3, 7, 13], 2, 2))]
    alone = [model.features(tokens, inserts=shown).hidden for tokens, shown in texts]
    row = torch.cat([tokens for tokens, _ in texts], 1)
    (_, first), (_, second) = texts
    shifted = Pictures(second.tiles, second.rows, second.places + 9)
    bounds = torch.tensor([0, 9, 23], dtype=torch.int32)
    packed = model.features(row, cu_seqlens=bounds, inserts=Pictures.joined([first, shifted], PATCHES)).hidden
    close(packed, torch.cat(alone, 1))
    weights = [weight for name, weight in model.named_parameters() if name != "lm_head.weight"]
    apart = torch.autograd.grad(torch.cat(alone, 1).pow(3).sum(), weights)
    together = torch.autograd.grad(packed.pow(3).sum(), weights)
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7)
    assert all(gradient.abs().max() > 0 for gradient in together)


def test_they_are_what_inserts_of_their_vectors_are(random_model: Any) -> None:
    model, tokens, shown = picture_model(random_model), tokens_of(), pictures(PLACES)
    vectors = Inserts(shown.places, vision_of(model)(shown.tiles, shown.rows))
    assert torch.equal(model.embed(tokens, shown), model.embed(tokens, vectors))


def test_pictures_that_show_nothing_are_ends_of_rows(random_model: Any) -> None:
    model, places = picture_model(random_model), torch.tensor([3, 4])
    ends = Pictures(torch.empty(0, 3, 6, 6), torch.tensor([-1, -1]), places)
    found = model.embed(tokens_of(), ends)
    assert torch.equal(found[0, 3], vision_of(model).image_newline) and torch.equal(found[0, 4], found[0, 3])


def test_what_is_taken_of_them_keeps_its_tiles_and_no_others() -> None:
    shown = Pictures(
        torch.arange(4.0)[:, None, None, None].expand(4, 3, 6, 6),
        torch.tensor([30, -1, 5, 29]),
        torch.tensor([0, 1, 2, 3]),
    )
    part = shown.taken(torch.tensor([True, True, False, True]), torch.tensor([7, 8, 9]), PATCHES)
    assert part.tiles[:, 0, 0, 0].tolist() == [3.0] and part.rows.tolist() == [3, -1, 2]
    both = Pictures.joined([part, shown], PATCHES)
    assert both.rows.tolist() == [3, -1, 2, 39, -1, 14, 38] and len(both.tiles) == 5


def test_a_model_of_text_alone_refuses_them(random_model: Any) -> None:
    with pytest.raises(UserError, match="has no vision side"):
        random_model().embed(tokens_of(), pictures(PLACES))


def test_shapes_that_do_not_go_together_are_refused(random_model: Any) -> None:
    with pytest.raises(UserError, match=r"vision.image_token_id \(200025\) must be a token of the vocabulary"):
        ModelConfig.parse({"vision": {**VISION, "image_token_id": 200_025}}, "test")
    with pytest.raises(UserError, match="modules for multi-token prediction"):
        ModelConfig.parse({"vision": VISION, "num_nextn_predict_layers": 1}, "test")


def test_the_count_is_that_of_the_modules(random_model: Any) -> None:
    model = picture_model(random_model)
    count = count_model(model.config)
    assert count.parameters == sum(weight.numel() for weight in model.parameters())
    assert count.vision is not None
    assert count.vision.parameters == sum(weight.numel() for weight in vision_of(model).parameters())
    float32 = sum(w.numel() for w in model.to(torch.bfloat16).parameters() if w.dtype == torch.float32)
    # A model of float64 that becomes bfloat16 keeps its norms as wide as they were.
    wide = sum(w.numel() for w in model.parameters() if w.dtype == torch.float64)
    assert count.float32_parameters == max(float32, wide)
