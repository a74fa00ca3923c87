"""The hybrid language model: embedding, layers with DeepNorm residuals, norm, output projection."""

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from leyden.core.errors import UserError
from leyden.model.balance import Documents, RouterLosses, router_losses
from leyden.model.cache import Cache
from leyden.model.config import ModelConfig
from leyden.model.embedding import Inserts, embed
from leyden.model.experts import feed_forward_of
from leyden.model.forward_context import ForwardContext, Wanted, at_positions, lay_out, take
from leyden.model.initialization import initialize
from leyden.model.losses import OutputProjection, ScoreHead, TokenLossModel
from leyden.model.mixers import Memory, mixer_of, residual_factors
from leyden.model.nextn import NextTokenModule, look_ahead
from leyden.model.norm import DividedRMSNorm, RMSNorm
from leyden.model.pools import Pools
from leyden.model.ranks import Ranks
from leyden.model.rope import Rope
from leyden.model.rows import Rows
from leyden.model.vision import Pictures, VisionEncoder
from leyden.ops import Routing

if TYPE_CHECKING:
    from leyden.model.adapter_set import AdapterSet


@dataclass(frozen=True)
class Features:
    """What the layers make of the tokens.

    Attributes:
        hidden: [B, T, D], normed and divided by ``logits_scaling``, ready for the output projection.
        routings: where the tokens went, one entry a layer with experts.
        documents: of these tokens, where a loss of the routers is formed of each.
        ahead: the same as ``hidden`` of each module for multi-token prediction, where they were asked for; those that
            have experts have their routings behind those of the layers.
    """

    hidden: torch.Tensor
    routings: list[Routing]
    documents: Documents | None = None
    ahead: tuple[torch.Tensor, ...] = ()


class DecoderLayer(nn.Module):
    """Attention, then experts, each added to its input by ``r * alpha + f(norm(x)) * beta``.

    With ``norm_placement = "after"`` each is added by ``x * alpha + norm(f(x)) * beta`` (OLMo 2, arXiv 2501.00656,
    section 3.1); with ``parallel_block`` both read one norm, and are added at once: ``x * alpha + attention(norm(x)) *
    beta + experts(norm(x)) * beta'`` (PaLM, arXiv 2204.02311, section 2).
    """

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        self.norm_after, self.parallel = config.norm_placement == "after", config.parallel_block
        for name in config.norms_of_layer():
            self.add_module(name, RMSNorm(config.hidden_size, config.rms_norm_eps))
        self.self_attn = mixer_of(config.layer_types[index]).create(config, index)
        self.mlp = feed_forward_of(config.mlp_kinds()[index]).create(config)
        self.attention_factors = residual_factors(config, index)
        self.mlp_factors = config.residual("mlp")
        self.postnorm = config.postnorm

    input_layernorm: RMSNorm
    post_attention_layernorm: RMSNorm
    post_feedforward_layernorm: RMSNorm

    def forward(
        self, x: torch.Tensor, context: ForwardContext, memory: Memory | None, wanted: Wanted
    ) -> tuple[torch.Tensor, Any, Routing | None]:
        """[B, T, D] to the ``wanted`` of its rows, with the mixer's new state and the routing if it has them."""
        if self.norm_after:
            return self._norm_after(x, context, memory, wanted)
        normed = self.input_layernorm(x)
        attended, state = self.self_attn(normed, context, memory, wanted)
        if self.parallel:
            mixed, routing = self.mlp(take(normed, wanted))
            attended = _residual(take(x, wanted), attended, *self.attention_factors)
            return _residual(attended, mixed, *self.mlp_factors), state, routing
        if self.postnorm:
            kept = self.post_attention_layernorm.of_residual(take(normed, wanted), attended, *self.attention_factors)
            normed = kept
        else:
            kept = _residual(take(x, wanted), attended, *self.attention_factors)
            normed = self.post_attention_layernorm(kept)
        mixed, routing = self.mlp(normed)
        return _residual(kept, mixed, *self.mlp_factors), state, routing

    def _norm_after(
        self, x: torch.Tensor, context: ForwardContext, memory: Memory | None, wanted: Wanted
    ) -> tuple[torch.Tensor, Any, Routing | None]:
        """As :meth:`forward`."""
        attended, state = self.self_attn(x, context, memory, wanted)
        kept = _residual(take(x, wanted), self.post_attention_layernorm(attended), *self.attention_factors)
        mixed, routing = self.mlp(kept)
        return _residual(kept, self.post_feedforward_layernorm(mixed), *self.mlp_factors), state, routing


def _residual(kept: torch.Tensor, added: torch.Tensor, alpha: float, beta: float) -> torch.Tensor:
    return torch.add(added if beta == 1 else added * beta, kept, alpha=alpha)


def _output_norm(config: ModelConfig) -> RMSNorm:
    """The norm before the output projection. Logits are divided there, so that whoever projects or scores what it
    gives has the model's logits, without one more tensor of them."""
    if config.logits_scaling == 1:
        return RMSNorm(config.hidden_size, config.rms_norm_eps)
    return DividedRMSNorm(config.hidden_size, config.rms_norm_eps, config.logits_scaling)


class HybridLM(TokenLossModel):
    """A decoder of lightning and softmax attention layers with experts: MiniMax-Text-01 at any size.

    Args:
        config: the shape.
        seed: of the initial weights; the same seed gives the same weights.
    """

    lm_head: OutputProjection

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = _output_norm(config)
        self.lm_head = OutputProjection(config)
        self.score = ScoreHead(config) if config.score_head else None
        every, behind = config.with_nextn(), range(len(self.layers), len(config.with_nextn().layer_types))
        self.mtp = nn.ModuleList(NextTokenModule(config, DecoderLayer(every, index)) for index in behind)
        self.vision = None if config.vision is None else VisionEncoder(config.vision, config.hidden_size)
        self.ranks = Ranks()
        self.adapters: AdapterSet | None = None
        """That rows of :meth:`read` choose among."""
        initialize(self, config, seed)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(
        self, tokens: torch.Tensor, *, cache: Cache | None = None, cu_seqlens: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits of the next token at every position.

        Args:
            tokens: [B, T] int64.
            cache: continue from it, and remember these tokens in it.
            cu_seqlens: [N+1]; the row holds N documents, each by itself (B = 1, no cache).

        Returns:
            [B, T, vocab] float32 (float64 for a float64 model).

        Raises:
            UserError: more positions than ``max_position_embeddings``, an empty row, a batch unlike the cache's, or
                bounds that do not fit the row.
        """
        return self.logits(self.features(tokens, cache=cache, cu_seqlens=cu_seqlens).hidden)

    @property
    def dtype(self) -> torch.dtype:
        """Of the hidden states, and so of keys and values."""
        return getattr(self.embed_tokens, "dtype", self.embed_tokens.weight.dtype)

    def embed(self, tokens: torch.Tensor, inserts: Inserts | Pictures | None = None) -> torch.Tensor:
        """[B, T] int64 to what the first layer reads, [B, T', D] of this rank's own tokens: the only way in.

        Args:
            tokens: of the whole row, where ranks share it.
            inserts: vectors that stand in the place of tokens, or pictures whose vectors do; None for none.

        Raises:
            UserError: inserts that do not fit, or pictures for a model without a vision side.
        """
        return embed(self, tokens, inserts, self.config.embedding_multiplier)

    def set_rope(self, rope: Rope) -> None:
        """Turn positions by this base and scaling from here on; :attr:`config` then says it."""
        self.config = self.config.with_rope(rope)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., D] to [..., vocab] float32 (float64 for float64)."""
        logits = self.lm_head(hidden)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def router_losses(self, features: Features) -> RouterLosses:
        """The losses of the routers that made ``features``; of this rank's tokens, where ranks share the row."""
        config = self.config.with_nextn() if features.ahead else self.config
        return router_losses(config, features.routings, self.ranks, features.documents)

    def features(
        self,
        tokens: torch.Tensor,
        *,
        cache: Cache | None = None,
        cu_seqlens: torch.Tensor | None = None,
        last: int | None = None,
        inserts: Inserts | Pictures | None = None,
        ahead: bool = False,
    ) -> Features:
        """Everything before the output projection.

        Args:
            tokens, cache, cu_seqlens: as in :meth:`forward`.
            inserts: as of :meth:`embed`.
            last: only the last so many positions are asked for, and the last layer computes only what these and the
                cache need: of its softmax attention, the keys and values of all tokens and no more. None for all.
            ahead: those of the modules for multi-token prediction too, of whole texts alone: no cache, no ``last``.

        Where ranks share the row, ``tokens`` and ``cu_seqlens`` are those of the whole row on each of them, and the
        features those of this rank's tokens alone.
        """
        check_tokens(self.config, tokens, cache=cache, cu_seqlens=cu_seqlens, last=last)
        start = 0 if cache is None else cache.length
        part = self.ranks.part(tokens.shape[1], cu_seqlens)
        context = lay_out(self.config, tokens.shape[1], start, cu_seqlens, tokens.device, part)
        x = self.embed(tokens, inserts)
        states: dict[int, Any] = {}
        routings: list[Routing] = []
        for index, layer in enumerate(self.layers):
            wanted = last if index == len(self.layers) - 1 else None
            x, state, routing = layer(x, context, None if cache is None else cache.layers[index], wanted)
            if state is not None and cache is not None:  # else nobody reads it, and it is large
                states[index] = state
            if routing is not None:
                routings.append(routing)
        if cache is not None:
            cache.advance(tokens.shape[1], states)
        documents = None
        if self.config.router_aux_loss == "sequence" and routings:
            documents = Documents.of(tokens, cu_seqlens, self.ranks)
        hidden = self.norm(x)
        if not ahead:
            return Features(hidden, routings, documents)
        if cache is not None or last is not None:
            raise ValueError("multi-token prediction reads whole texts: features(ahead=True) has no cache and no last.")
        further, more = look_ahead(self, hidden, tokens, cu_seqlens, context)
        return Features(hidden, routings + more, documents, further)

    def read(
        self, tokens: torch.Tensor, rows: Rows, pools: Pools, inserts: Inserts | Pictures | None = None
    ) -> torch.Tensor:
        """Tokens of many sequences, which go on from what ``pools`` holds of them and are remembered there.

        Args:
            tokens: [T] int64, possibly with further ones behind those of ``rows``, which belong to nobody: a row's
                result then comes from products of the same form whatever else is read with it.
            rows: whose they are.
            pools: what was read before; changed in place.
            inserts: as of :meth:`embed`.

        Returns:
            [R, D], normed, for the rows that are wanted; where tensor ranks divide the tokens, whose number is then a
            multiple of theirs, the same on each of them.
        """
        context = at_positions(self.config, rows.positions)
        x = self.embed(tokens[None], inserts)
        whole = self.ranks.divide_tokens or self.adapters is not None  # adapters are chosen by the number of a row
        last = None if whole else rows.wanted
        for index, (layer, memory) in enumerate(zip(self.layers, pools.of_layers(rows), strict=True)):
            x, _, _ = layer(x, context, memory, last if index == len(self.layers) - 1 else None)
        hidden = self.ranks.whole(self.norm(x))
        return (take(hidden, rows.wanted) if whole else hidden)[0]

    def extra_repr(self) -> str:
        config = self.config
        return f"vocab={config.vocab_size}, hidden={config.hidden_size}, layers={config.num_hidden_layers}"


def check_tokens(
    config: ModelConfig,
    tokens: torch.Tensor,
    *,
    cache: Cache | None = None,
    cu_seqlens: torch.Tensor | None = None,
    last: int | None = None,
) -> None:
    """Refuse what :meth:`HybridLM.features` cannot read; arguments as there.

    Raises:
        UserError: what is wrong, and what is allowed.
    """
    if tokens.ndim != 2 or tokens.shape[1] == 0:
        raise UserError(f"the model reads tokens [B, T] with T at least 1; given {tuple(tokens.shape)}.")
    if cache is not None and cache.batch_size != tokens.shape[0]:
        raise UserError(f"the cache holds {cache.batch_size} sequences; given {tokens.shape[0]} rows of tokens.")
    if cu_seqlens is not None and (cache is not None or tokens.shape[0] != 1):
        raise UserError("packed documents (cu_seqlens) lie in one row [1, T] and take no cache.")
    if last is not None and (cu_seqlens is not None or not 1 <= last <= tokens.shape[1]):
        raise UserError(
            f"the last 1 to {tokens.shape[1]} positions of these rows can be asked for, and only where they are "
            f"not packed; given last={last}."
        )
    start = 0 if cache is None else cache.length
    longest = start + tokens.shape[1] if cu_seqlens is None else _longest_document(cu_seqlens, tokens.shape[1])
    limit = config.max_position_embeddings
    if longest > limit:
        raise UserError(
            f"{longest} tokens are more than the {limit} positions of this model (max_position_embeddings); "
            "shorten the text."
        )


def _longest_document(cu_seqlens: torch.Tensor, num_tokens: int) -> int:
    bounds = cu_seqlens.tolist()
    lengths = [end - start for start, end in itertools.pairwise(bounds)]
    if not lengths or min(lengths) < 0 or bounds[0] != 0 or bounds[-1] != num_tokens:
        raise UserError(
            f"cu_seqlens must rise from 0 to the row's {num_tokens} tokens, one bound a document and one more; "
            f"given {bounds if len(bounds) <= 8 else f'{len(bounds)} bounds from {bounds[0]} to {bounds[-1]}'}."
        )
    return max(lengths)
