"""The native decoding step of a model: what it covers, and where its weights and its cache lie in memory."""

import torch
from torch import nn

from leyden.model.cache import Cache, LightningState
from leyden.model.experts import DenseMLP, MixtureOfExperts
from leyden.model.lightning import LightningAttention
from leyden.model.lm import DecoderLayer, HybridLM
from leyden.ops.decode import LANES, UnavailableError, library
from leyden.ops.decode.single import LayerAddresses, ModelAddresses, single_step


class SingleDecoder:
    """Reads single tokens as ``model(tokens, cache=cache)`` would, in one native call each.

    Activations stay float32 between the layers of a bfloat16 model, so its logits are nearer to the float32 model's
    than those of the plain forward. The weights are those at construction: make a new decoder after ``model.to``.

    Raises:
        UnavailableError: this model, or this machine, has no native step; the message says why.
    """

    def __init__(self, model: HybridLM) -> None:
        _check(model)
        library()
        config = model.config
        self._model = model
        self._weights: list[torch.Tensor] = []  # what the addresses point into
        self._layers = (LayerAddresses * config.num_hidden_layers)()
        for addresses, layer in zip(self._layers, model.layers, strict=True):
            assert isinstance(layer, DecoderLayer)
            self._fill(addresses, layer)
        self._addresses = ModelAddresses(
            bfloat16=model.lm_head.weight.dtype == torch.bfloat16,
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            rotary_dim=config.rotary_dim,
            intermediate=config.intermediate_size,
            experts=config.num_local_experts,
            top_k=config.num_experts_per_tok if config.num_local_experts else 1,
            vocab=config.vocab_size,
            layers=config.num_hidden_layers,
            postnorm=config.postnorm,
            eps=config.rms_norm_eps,
            head_eps=config.lightning_norm_eps,
            theta=config.rope_theta,
            embedding=self._at(model.embed_tokens.weight),
            final_norm=self._at(model.norm.weight),
            head=self._at(model.lm_head.weight),
            layer=self._layers,
        )

    def step(self, token: int, cache: Cache) -> torch.Tensor:
        """Read one token after at least one that the model has read; the logits [V] of the next, in float32."""
        for addresses, memory in zip(self._layers, cache.layers, strict=True):
            if isinstance(memory, LightningState):
                assert memory.state is not None, "the first token goes through the model"
                memory.state = memory.state.contiguous()
                addresses.state = memory.state.data_ptr()
            else:
                keys, values = memory.reserve(cache.length + 1)
                addresses.keys, addresses.values = keys.data_ptr(), values.data_ptr()
                addresses.capacity = keys.shape[1]
        logits = single_step(self._addresses, token, cache.length)
        cache.advance(1, {})
        return logits

    def _at(self, weight: torch.Tensor) -> int:
        """The address of a weight, which is kept from now on."""
        weight = weight.detach().contiguous()
        self._weights.append(weight)
        return weight.data_ptr()

    def _fill(self, addresses: LayerAddresses, layer: DecoderLayer) -> None:
        addresses.attention_alpha, addresses.attention_beta = layer.attention_factors
        addresses.mlp_alpha, addresses.mlp_beta = layer.mlp_factors
        addresses.input_norm = self._at(layer.input_layernorm.weight)
        addresses.post_norm = self._at(layer.post_attention_layernorm.weight)
        attention = layer.self_attn
        if isinstance(attention, LightningAttention):
            addresses.lightning = 1
            addresses.first, addresses.second = map(self._at, _weights(attention.qkv_proj, attention.output_gate))
            addresses.out = self._at(attention.out_proj.weight)
            addresses.head_norm = self._at(attention.norm.weight)
            addresses.slopes = self._at(attention.slopes.values)
        else:
            projections = _weights(attention.q_proj, attention.k_proj, attention.v_proj)
            addresses.first, addresses.second, addresses.third = map(self._at, projections)
            addresses.out = self._at(attention.o_proj.weight)
        mlp = layer.mlp
        if isinstance(mlp, MixtureOfExperts):
            gate_up, down = mlp.experts.gate_up_proj, mlp.experts.down_proj
            addresses.router = self._at(mlp.gate.weight)
            addresses.gate, addresses.down = self._at(gate_up), self._at(down)
            addresses.up = addresses.gate + gate_up[0].numel() // 2 * gate_up.element_size()
            addresses.up_stride, addresses.down_stride = gate_up[0].numel(), down[0].numel()
        else:
            assert isinstance(mlp, DenseMLP)
            weights = _weights(mlp.gate_proj, mlp.up_proj, mlp.down_proj)
            addresses.gate, addresses.up, addresses.down = map(self._at, weights)


def _weights(*projections: nn.Linear) -> list[torch.Tensor]:
    return [projection.weight for projection in projections]


def _check(model: HybridLM) -> None:
    config, weight = model.config, model.lm_head.weight
    if weight.device.type != "cpu":
        raise UnavailableError(f"the model is on {weight.device.type}, not on the CPU")
    if weight.dtype not in (torch.float32, torch.bfloat16):
        raise UnavailableError(f"the model is {weight.dtype}; float32 and bfloat16 have one")
    if config.shared_intermediate_size:
        raise UnavailableError("the model has a shared expert")
    widths = (config.hidden_size, config.head_dim, config.intermediate_size)
    if any(width % LANES for width in widths):
        raise UnavailableError(f"hidden, head and expert widths {widths} are not all multiples of {LANES}")
