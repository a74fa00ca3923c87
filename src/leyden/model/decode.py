"""The native decoding step of a model: what it covers, and where its weights and its pools lie in memory."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from leyden.model.attention_options import lightning_scale, options_said
from leyden.model.experts import DenseMLP, Experts, GroupRouter, MixtureOfExperts, Router, SharedExpert, SwiGLU
from leyden.model.lm import DecoderLayer, HybridLM
from leyden.model.losses import OutputProjection
from leyden.model.mixers import Mixer
from leyden.model.mixers.cosformer2 import Cosformer2Attention
from leyden.model.mixers.hgrn2 import Hgrn2Attention
from leyden.model.mixers.lightning import LightningAttention, Slopes
from leyden.model.mixers.sliding_window import SlidingWindowAttention
from leyden.model.mixers.softmax import SoftmaxAttention
from leyden.model.norm import DividedRMSNorm, GroupedRMSNorm, RMSNorm
from leyden.model.pools import Pools
from leyden.model.quantized import (
    QuantizedEmbedding,
    QuantizedExperts,
    QuantizedLinear,
    QuantizedOutputProjection,
)
from leyden.model.ranks import Ranks
from leyden.model.rows import PAGE
from leyden.ops.decode import (
    KINDS,
    LANES,
    MIXERS,
    DecodeBatch,
    LayerAddresses,
    MatrixAddress,
    ModelAddresses,
    UnavailableError,
    decode_step,
    library,
)
from leyden.ops.native import in_reach

Tensors = Mapping[str, torch.Tensor]
"""What one layer has in pools, by name."""


class Decode(Protocol):
    """What one sequence reads in a step; :class:`leyden.serve.runner.Reading` says what each is."""

    @property
    def tokens(self) -> Sequence[int]: ...
    @property
    def start(self) -> int: ...
    @property
    def pages(self) -> Sequence[int]: ...
    @property
    def states(self) -> Sequence[int]: ...
    @property
    def wanted(self) -> int: ...
    @property
    def inserts(self) -> Sequence[Any]: ...


class NativeDecoder:
    """Reads the next tokens of many sequences as ``model.read`` would, in one native call.

    Activations are float32 between the products of a bfloat16 model, whose inputs alone are rounded, so its logits are
    nearer to the float32 model's than those of the modules. The weights are those at construction: make a new decoder
    after ``model.to`` or after other weights were put in.

    Args:
        model: float32 or bfloat16, its matrices possibly int8.
        pools: of the sequences, in the dtype that the model computes in.

    Raises:
        UnavailableError: this model, or this machine, has no native step; the message says why.
    """

    def __init__(self, model: HybridLM, pools: Pools) -> None:
        _check(model, pools)
        library()
        self._dtype = pools.dtype
        self._batch: DecodeBatch | None = None
        self._left = 0
        self._kept: list[torch.Tensor] = []  # what the addresses point into
        config = self._config = model.config
        self._layers = (LayerAddresses * config.num_hidden_layers)()
        for addresses, layer, memory in zip(self._layers, model.layers, pools.layers, strict=True):
            assert isinstance(layer, DecoderLayer)
            self._residuals(addresses, layer)
            addresses.mixer, fill = _MIXERS[type(layer.self_attn)]
            fill(self, addresses, layer.self_attn, memory)
            self._feed_forward(addresses, layer.mlp)
        turning = config.lightning_rotary_dim
        self._model = ModelAddresses(
            bfloat16=pools.dtype == torch.bfloat16,
            hidden_size=config.hidden_size,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            rotary_dim=config.rotary_dim,
            lightning_silu=config.lightning_activation == "silu",
            lightning_rotary_dim=turning,
            lightning_scale=lightning_scale(config),
            norm_groups=config.lightning_norm_groups,
            embedding_scale=config.embedding_multiplier,
            expert_width=config.intermediate_size if config.num_local_experts else 0,
            top_k=config.num_experts_per_tok if config.num_local_experts else 0,
            most_experts=config.num_local_experts,
            widest_shared=max(addresses.shared_width for addresses in self._layers),
            vocab_size=config.vocab_size,
            num_layers=config.num_hidden_layers,
            num_groups=config.n_group,
            chosen_groups=config.topk_group,
            group_best=2 if config.group_score == "top2_sum" else 1,
            weights_normed=config.norm_topk_prob,
            weights_scale=config.routed_scaling_factor,
            postnorm=config.postnorm,
            norm_eps=config.rms_norm_eps,
            output_norm_eps=config.lightning_norm_eps,
            rotary_scale=config.rope.scale,
            expert_rows=2 * config.intermediate_size,
            inverse_frequencies=self._frequencies(config.rotary_dim),
            lightning_frequencies=self._frequencies(turning) if turning else None,
            turning_frequencies=self._turning(model),
            embedding=self._matrix(model.embed_tokens, config.vocab_size, config.hidden_size),
            final_norm=self._at(model.norm.weight / config.logits_scaling, config.hidden_size),
            lm_head=self._matrix(model.lm_head, config.vocab_size, config.hidden_size),
            layers=self._layers,
            num_slots=pools.num_states,
            num_pages=pools.num_pages,
        )

    def run(self, decodes: Sequence[Decode]) -> torch.Tensor:
        """Read them all; the logits [R, V] of the wanted tokens, in float32 and in order.

        A token's logits are the same bits whatever is read beside it, and for every number of threads.

        Args:
            decodes: of tokens in the vocabulary, with slots and pages of the pools.

        Raises:
            ValueError: a token, slot or page that is outside of those, or an insert: the step looks the vectors of its
                tokens up in the vocabulary.
        """
        if any(decode.inserts for decode in decodes):
            raise ValueError("tokens that decode were drawn from the vocabulary, and have no inserts; prompts may.")
        tokens: list[int] = []
        pages: list[int] = []
        cu_seqlens, wanted = [0], list[int]()
        stop = 0
        for decode in decodes:
            table, position, states = len(pages), decode.start, decode.states
            pages += decode.pages
            for i, token in enumerate(decode.tokens):
                tokens += token, position + i, states[i], states[i + 1], table
            stop += len(decode.tokens)
            cu_seqlens.append(stop)
            wanted += range(stop - decode.wanted, stop)
        self._batch = None
        batch = DecodeBatch(tokens, cu_seqlens, wanted, pages)
        logits = decode_step(self._model, batch)
        if all(len(decode.tokens) == decode.wanted == 1 for decode in decodes):
            self._batch = batch
            self._left = min((len(one.pages) * PAGE - one.start - 1 for one in decodes), default=0)
        return logits

    @property
    def goes_on(self) -> bool:
        """Whether :meth:`run_next` can read what follows the last call's tokens: one of each sequence, in its pages."""
        return self._batch is not None and self._left > 0

    def run_next(self, ids: Sequence[int]) -> torch.Tensor:
        """Read the next token of each sequence of the last call, with the state behind it in its slot.

        What was prepared for the last call serves again, so that this costs Python next to nothing.

        Args:
            ids: in the last call's order.

        Returns:
            As of :meth:`run`; good until the next call.

        Raises:
            ValueError: the last call's sequences cannot go on so, or other ones are given.
        """
        if self._batch is None or self._left <= 0:
            raise ValueError("the sequences of the last step do not go on by one token each; use run.")
        batch, self._batch = self._batch, None  # not to be gone on from where a step fails
        batch.advance(ids)
        logits = decode_step(self._model, batch)
        self._batch = batch
        self._left -= 1
        return logits

    def _at(self, values: torch.Tensor, *shape: int, dtype: torch.dtype = torch.float32) -> int:
        """The address of a tensor, which is kept from now on; the step reads as much as ``shape`` says."""
        values = values.detach().contiguous()
        if values.shape != shape or values.dtype != dtype or not in_reach(values):
            given = f"{list(values.shape)} in {values.dtype} on {values.device}"
            raise UnavailableError(f"a tensor of the model is {given}, where {list(shape)} in {dtype} is wanted")
        self._kept.append(values)
        return values.data_ptr()

    def _matrix(
        self, module: nn.Module, *shape: int, weight: str = "weight", scale: str = "scale", row: int = 0
    ) -> MatrixAddress:
        """A weight [..., out, in] from row ``row`` on, with the scales [..., out] of an int8 one."""
        values, scales = getattr(module, weight), getattr(module, scale, None)
        dtypes = {self._dtype, torch.bfloat16} if scales is None else {torch.int8}
        if values.dtype not in dtypes:
            raise UnavailableError(f"a weight is {values.dtype}, where the model computes in {self._dtype}")
        first = row * values.shape[-1] * values.element_size()
        scale_at = None if scales is None else self._at(scales, *shape[:-1]) + row * scales.element_size()
        return MatrixAddress(self._at(values, *shape, dtype=values.dtype) + first, scale_at, KINDS[values.dtype])

    def _residuals(self, addresses: LayerAddresses, layer: DecoderLayer) -> None:
        addresses.attention_alpha, addresses.attention_beta = layer.attention_factors
        addresses.mlp_alpha, addresses.mlp_beta = layer.mlp_factors
        addresses.input_norm = self._at(layer.input_layernorm.weight, self._config.hidden_size)
        addresses.post_attention_norm = self._at(layer.post_attention_layernorm.weight, self._config.hidden_size)

    def _frequencies(self, rotary_dim: int) -> int:
        """Of the pairs of dims that turn by RoPE."""
        frequencies = self._config.rope.frequencies(rotary_dim, torch.device("cpu"))
        return self._at(frequencies, rotary_dim // 2, dtype=torch.float64)

    def _norms_of_heads(self, addresses: LayerAddresses, mixer: LightningAttention | SoftmaxAttention) -> None:
        if mixer.q_norm is not None and mixer.k_norm is not None:
            addresses.q_norm = self._at(mixer.q_norm.weight, self._config.head_dim)
            addresses.k_norm = self._at(mixer.k_norm.weight, self._config.head_dim)

    def _turning(self, model: HybridLM) -> int | None:
        """How fast the heads of cosFormer2 turn, which is the same in all of its layers; None without any."""
        turning = (module for module in model.modules() if isinstance(module, Cosformer2Attention))
        first = next(turning, None)
        if first is None:
            return None
        return self._at(first.frequencies(torch.device("cpu")), first.head_dim // 2, dtype=torch.float64)

    def _lightning(self, addresses: LayerAddresses, mixer: LightningAttention, memory: Tensors) -> None:
        config = self._config
        inner = config.num_attention_heads * config.head_dim
        self._states(addresses, mixer, memory)
        addresses.output_gate = self._matrix(mixer.output_gate, inner, config.hidden_size)
        addresses.slopes = self._at(mixer.slopes.values, config.num_attention_heads)
        self._norms_of_heads(addresses, mixer)

    def _hgrn2(self, addresses: LayerAddresses, mixer: Hgrn2Attention, memory: Tensors) -> None:
        self._states(addresses, mixer, memory)
        addresses.lower_bound, addresses.above_bound = mixer.lower_bound, 1 - mixer.lower_bound

    def _states(self, addresses: LayerAddresses, mixer: LightningAttention | Hgrn2Attention, memory: Tensors) -> None:
        """The pool of states, and what all kinds of linear attention have."""
        config, states = self._config, memory[mixer.state_name]
        hidden, heads, width = config.hidden_size, config.num_attention_heads, config.head_dim
        inner = heads * width
        addresses.states = self._at(states, len(states), heads, width, width)
        addresses.qkv_proj = self._matrix(mixer.qkv_proj, 3 * inner, hidden)
        addresses.out_proj = self._matrix(mixer.out_proj, hidden, inner)
        addresses.output_norm = self._at(mixer.norm.weight, inner)

    def _softmax(self, addresses: LayerAddresses, mixer: SoftmaxAttention, memory: Tensors) -> None:
        self._keys_and_values(addresses, mixer, memory["keys"], memory["values"], PAGE)

    def _keys_and_values(
        self,
        addresses: LayerAddresses,
        mixer: SoftmaxAttention,
        keys: torch.Tensor,
        values: torch.Tensor,
        num_tokens: int,
    ) -> None:
        """The projections, and the pools [slots or pages, num_tokens, Hkv, D]."""
        config = self._config
        hidden, inner = config.hidden_size, config.num_attention_heads * config.head_dim
        shared = config.num_key_value_heads * config.head_dim
        pool = (len(keys), num_tokens, config.num_key_value_heads, config.head_dim)
        addresses.keys = self._at(keys, *pool, dtype=self._dtype)
        addresses.values = self._at(values, *pool, dtype=self._dtype)
        addresses.q_proj = self._matrix(mixer.q_proj, inner, hidden)
        addresses.k_proj = self._matrix(mixer.k_proj, shared, hidden)
        addresses.v_proj = self._matrix(mixer.v_proj, shared, hidden)
        addresses.out_proj = self._matrix(mixer.o_proj, hidden, inner)
        if mixer.output_gate is not None:
            addresses.output_gate = self._matrix(mixer.output_gate, inner, hidden)
        self._norms_of_heads(addresses, mixer)

    def _window(self, addresses: LayerAddresses, mixer: SlidingWindowAttention, memory: Tensors) -> None:
        assert mixer.window is not None, "a SlidingWindowAttention has one"
        addresses.window = mixer.window
        self._keys_and_values(addresses, mixer, memory["window_keys"], memory["window_values"], mixer.window)

    def _feed_forward(self, addresses: LayerAddresses, mlp: nn.Module) -> None:
        shared, config = mlp, self._config
        hidden, inner = config.hidden_size, config.intermediate_size
        if isinstance(mlp, MixtureOfExperts):
            experts, number = mlp.experts, config.num_local_experts
            addresses.num_experts = number
            addresses.router = self._at(mlp.gate.weight, number, hidden)
            if isinstance(mlp.gate, GroupRouter):
                addresses.expert_bias = self._at(mlp.gate.expert_bias, number)
            both = (number, 2 * inner, hidden)
            addresses.gate_proj = self._matrix(experts, *both, weight="gate_up_proj", scale="gate_up_scale")
            addresses.up_proj = self._matrix(experts, *both, weight="gate_up_proj", scale="gate_up_scale", row=inner)
            addresses.down_proj = self._matrix(experts, number, hidden, inner, weight="down_proj", scale="down_scale")
            if mlp.shared is None:
                return
            if mlp.shared.coefficient is None:
                addresses.shared_added = 1
            else:
                addresses.shared_coefficient = self._at(mlp.shared.coefficient.weight.float(), 1, hidden)
            shared, inner = mlp.shared.mlp, config.shared_intermediate_size
        else:
            inner = config.dense_width
        addresses.shared_width = inner
        addresses.shared_gate_proj = self._matrix(shared.get_submodule("gate_proj"), inner, hidden)
        addresses.shared_up_proj = self._matrix(shared.get_submodule("up_proj"), inner, hidden)
        addresses.shared_down_proj = self._matrix(shared.get_submodule("down_proj"), hidden, inner)


_MIXERS: Mapping[type[nn.Module], tuple[int, Callable[..., None]]] = {
    LightningAttention: (MIXERS["lightning"], NativeDecoder._lightning),
    SoftmaxAttention: (MIXERS["softmax"], NativeDecoder._softmax),
    SlidingWindowAttention: (MIXERS["sliding window"], NativeDecoder._window),
    Cosformer2Attention: (MIXERS["cosFormer2"], NativeDecoder._lightning),
    Hgrn2Attention: (MIXERS["HGRN2"], NativeDecoder._hgrn2),
}
"""The mixers that the step has a body for, by their exact class: its number there, and what fills in its addresses."""

_KNOWN = {
    *_MIXERS,
    *(nn.ModuleList, DecoderLayer, RMSNorm, GroupedRMSNorm, DividedRMSNorm, Slopes),
    *(MixtureOfExperts, Router, GroupRouter, Experts, SharedExpert, SwiGLU, DenseMLP, QuantizedExperts),
    *(nn.Embedding, nn.Linear, OutputProjection, QuantizedEmbedding, QuantizedLinear, QuantizedOutputProjection),
}
"""The exact classes of the modules that the step computes; it takes a model of no others."""


_NOT_COMPUTED = ("attn_logit_softcapping", "final_logit_softcapping")
"""Options that the step has no body for."""


def _check(model: HybridLM, pools: Pools) -> None:
    config = model.config
    if said := options_said(config, _NOT_COMPUTED):
        raise UnavailableError(f"the native step does not compute with {', '.join(said)}")
    for name, module in model.named_modules():
        if name.split(".")[0] == "mtp":  # it guesses, and reads no tokens
            continue
        if module is not model and type(module) not in _KNOWN:
            raise UnavailableError(f"the native step has no body for {type(module).__name__} (of {name})")
        if isinstance(module, Mixer) and getattr(module, module.seam) is not type(module).alone:
            raise UnavailableError(f"{name} has another {module.seam} than that of one process")
    if config.norm_placement != "pre" or config.parallel_block:
        raise UnavailableError("the native step has no body for norms after their parts, nor for parallel blocks")
    if type(model.ranks) is not Ranks:
        raise UnavailableError("several ranks compute the model together")
    if pools.device.type != "cpu" or model.norm.weight.device.type != "cpu":
        raise UnavailableError(f"the model is on {model.norm.weight.device.type}, not on the CPU")
    if pools.dtype not in (torch.float32, torch.bfloat16):
        raise UnavailableError(f"the model computes in {pools.dtype}; float32 and bfloat16 have one")
    dense = config.dense_width if "dense" in config.mlp_kinds() else 0
    experts = (config.intermediate_size, config.shared_intermediate_size) if config.num_local_experts else ()
    widths = [config.hidden_size, config.head_dim, dense, *experts]
    if any(width % LANES for width in widths):
        raise UnavailableError(f"hidden, head, dense and expert widths {widths} are not all multiples of {LANES}")
