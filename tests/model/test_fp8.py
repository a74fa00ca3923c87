"""A model that computes in 8-bit tiles: which of its products do, and that they are what the op gives."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from leyden.model import HybridLM
from leyden.model.experts import Experts
from leyden.model.fp8 import Fp8Linear, compute_in_fp8, use_fp8

ModelMaker = Callable[..., HybridLM]

EVERYTHING = {
    "layer_types": ("linear_attention", "full_attention", "hgrn2_attention"),
    "mlp_types": ("dense", "experts", "experts"),
    "shared_intermediate_size": 8,
    "attn_output_gate": True,
    "num_nextn_predict_layers": 1,
}
PLAIN = ("embed_tokens", "lm_head", "mlp.gate", "coefficient")


def test_which_products_are_of_8_bits(random_model: ModelMaker) -> None:
    model = random_model(**EVERYTHING)
    names, weights = list(model.state_dict()), dict(model.named_parameters())
    use_fp8(model)
    assert list(model.state_dict()) == names
    assert all(weight is weights[name] for name, weight in model.named_parameters())
    for name, module in model.named_modules():
        if isinstance(module, Experts):
            assert module.compute is compute_in_fp8
        elif isinstance(module, nn.Linear | nn.Embedding):
            assert isinstance(module, Fp8Linear) != name.endswith(PLAIN), name
    kinds = [name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, Fp8Linear)]
    assert {"qkv_proj", "output_gate", "out_proj", "q_proj", "o_proj", "gate_proj", "down_proj", "eh_proj"} <= set(
        kinds
    )


@pytest.mark.parametrize("matrix", ["layers.1.self_attn.o_proj.weight", "layers.1.mlp.experts.down_proj"])
def test_less_than_8_bits_of_a_weight_changes_nothing(random_model: ModelMaker, matrix: str) -> None:
    """But for its largest number, by which the scale goes. In the model without tiles it does."""
    model = random_model(torch.float64, layer_types=("linear_attention", "full_attention", "linear_attention"))
    tokens = torch.randint(101, (1, 40), generator=torch.Generator().manual_seed(0))
    weight = model.get_parameter(matrix)
    place = weight.abs().flatten().argmin()
    with torch.no_grad():
        logits = []
        for blocks in (False, True):
            if blocks:
                use_fp8(model)
            logits.append(model(tokens))
            weight.view(-1)[place] *= 1.0001
            logits.append(model(tokens))
    assert not torch.equal(logits[0], logits[1]) and torch.equal(logits[2], logits[3])
    far = (logits[2] - logits[1]).abs().max() / logits[1].abs().max()
    assert 1e-3 < far < 1  # of 3 bits a factor, in large random weights


def test_gradients_point_where_those_of_the_plain_model_do(random_model: ModelMaker) -> None:
    tokens = torch.randint(101, (1, 150), generator=torch.Generator().manual_seed(0))
    found = []
    for blocks in (False, True):
        model = random_model(initialization="normal", **EVERYTHING)
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and not name.endswith("gate.weight"):
                nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
        if blocks:
            use_fp8(model)
        loss, _ = model.cross_entropy(model.features(tokens).hidden, tokens.roll(-1))
        loss.backward()
        found.append({name: p.grad.flatten() for name, p in model.named_parameters() if p.grad is not None})
    plain, tiles = found
    assert plain.keys() == tiles.keys()
    alike = {name: float(torch.cosine_similarity(tiles[name], plain[name], dim=0)) for name in plain}
    assert min(alike.values()) > 0.7, min(alike.items(), key=lambda item: item[1])
    assert sorted(alike.values())[len(alike) // 2] > 0.95
