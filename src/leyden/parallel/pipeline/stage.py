"""The part of a model that one pipeline stage computes.

What the routers of a layer contribute to the loss are sums (:class:`leyden.model.RouterSums`), which travel with the
hidden states: each stage adds its own, and the last one, where the loss is, has those of all layers. To autograd they
are an activation like any other, so every router's gradient comes back the same way, once, whatever the form of the
loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import nn

from leyden.core.errors import UserError
from leyden.model import Documents, HybridLM, ModelConfig, RouterLosses, RouterSums, router_sums, total_router_losses
from leyden.model.embedding import embed
from leyden.model.forward_context import lay_out
from leyden.model.losses import TokenLossModel
from leyden.model.vision import Pictures
from leyden.parallel.objective import Row, pictures_of


@dataclass(frozen=True)
class StageFeatures:
    """What the layers of all stages made of a row; the pipeline's :class:`leyden.model.Features`.

    Attributes:
        hidden: [1, T_own, D], normed.
        routed: what :func:`boundary` says of the routers; None without experts.
    """

    hidden: torch.Tensor
    routed: torch.Tensor | None = None


class StageModel(TokenLossModel):
    """Some layers of a model, and what stands before the first or behind the last of all.

    Weights keep the names that they have in the whole model: ``layers.3.mlp.gate.weight`` is that of layer 3.

    Args:
        model: whose modules these will be, possibly on the meta device and cut to this rank's part.
        layers: which of its layers.

    Raises:
        UserError: the output projection is tied to the embedding, which another stage has.
    """

    def __init__(self, model: HybridLM, layers: range) -> None:
        super().__init__()
        self.config, self.ranks, self.numbers = model.config, model.ranks, layers
        if self.config.tie_word_embeddings:
            raise UserError(
                "tie_word_embeddings = true gives the first and the last pipeline stage one weight, which is not "
                "supported; set it to false, or [parallel] pp = 1."
            )
        if self.config.num_nextn_predict_layers:
            raise UserError(
                "the modules for multi-token prediction (num_nextn_predict_layers) stand behind the last layer and "
                "read the embedding, which the first pipeline stage has; set [parallel] pp = 1, or leave them out."
            )
        self.is_first, self.is_last = layers.start == 0, layers.stop == len(model.layers)
        self.embed_tokens = model.embed_tokens if self.is_first else None
        self.vision = model.vision if self.is_first else None
        self.layers = nn.ModuleDict({str(index): model.layers[index] for index in layers})
        self.norm = model.norm if self.is_last else None
        self.lm_head = model.lm_head if self.is_last else None
        self.score = model.score if self.is_last else None
        self.batches: Sequence[Row] = ()
        """The micro-batches of the step that is under way."""

    def forward(
        self, hidden: torch.Tensor | None = None, routed: torch.Tensor | None = None, *, micro_batch: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """What the stage before sent, or nothing for the first one, to what the stage behind needs.

        Args:
            hidden, routed: as :func:`boundary` describes them.
            micro_batch: [1] int64, the number of the row in :attr:`batches`.

        Returns:
            ``hidden``, normed by the last stage, and ``routed`` if the model has experts.
        """
        batch = self.batches[int(micro_batch)]
        device = next(self.parameters()).device
        length = batch.tokens.shape[1]
        part = self.ranks.part(length, batch.cu_seqlens)
        context = lay_out(self.config, length, 0, batch.cu_seqlens, device, part)
        x = self.embed(batch.tokens.to(device), pictures_of(batch, device)) if hidden is None else hidden
        if torch.is_grad_enabled() and not x.requires_grad:
            x.requires_grad_()  # of a frozen embedding: the schedule asks every stage for a backward
        routings = []
        for layer in self.layers.values():
            x, _, routing = layer(x, context, None, None)
            if routing is not None:
                routings.append(routing)
        x = x if self.norm is None else self.norm(x)
        if not self.config.num_local_experts:
            return (x,)
        if not routings:  # no layer of this stage has experts
            wide = torch.promote_types(x.dtype, torch.float32)
            return x, x.new_zeros(sum(_sizes(self.config)), dtype=wide).requires_grad_() if routed is None else routed
        documents = None
        if self.config.router_aux_loss == "sequence":
            documents = Documents.of(batch.tokens.to(device), batch.cu_seqlens, self.ranks)
        own = _pack(router_sums(self.config, routings, self.numbers, self.ranks, documents))
        return x, own if routed is None else routed + own

    def embed(self, tokens: torch.Tensor, inserts: Pictures | None = None) -> torch.Tensor:
        """As :meth:`leyden.model.HybridLM.embed`, in the first stage alone."""
        return embed(self, tokens, inserts, self.config.embedding_multiplier)

    def router_losses(self, features: StageFeatures) -> RouterLosses:
        """As :meth:`leyden.model.HybridLM.router_losses`, of the layers of all stages."""
        assert features.routed is not None, "a model with experts"
        return total_router_losses(self.config, _unpack(features.routed, self.config))

    def extra_repr(self) -> str:
        return f"layers {self.numbers.start} to {self.numbers.stop - 1} of {self.config.num_hidden_layers}"


def boundary(config: ModelConfig, num_tokens: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """What travels from a stage to the next one for a micro-batch, and as gradient back: tensors on the meta device.

    Args:
        config: the model.
        num_tokens: of the row, those that a rank has between its layers.
        dtype: of the computation.

    Returns:
        ``hidden`` [1, num_tokens, D] in ``dtype``; with experts also ``routed``, the fields of
        :class:`leyden.model.RouterSums` one behind the other, float32 or wider.
    """
    hidden = torch.empty(1, num_tokens, config.hidden_size, dtype=dtype, device="meta", requires_grad=True)
    if not config.num_local_experts:
        return (hidden,)
    wide = torch.promote_types(dtype, torch.float32)
    return hidden, torch.empty(sum(_sizes(config)), dtype=wide, device="meta", requires_grad=True)


def _sizes(config: ModelConfig) -> list[int]:
    """Of the fields of :class:`RouterSums`."""
    num_experts = config.num_local_experts
    return [1, num_experts, num_experts, len(config.expert_layers()) * num_experts, 1]


def _pack(sums: RouterSums) -> torch.Tensor:
    return torch.cat([getattr(sums, field.name).flatten() for field in fields(RouterSums)])


def _unpack(routed: torch.Tensor, config: ModelConfig) -> RouterSums:
    loss, chosen, probability, load, dropped = routed.split(_sizes(config))
    return RouterSums(loss[0], chosen, probability, load.view(-1, config.num_local_experts), dropped[0])
