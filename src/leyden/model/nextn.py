"""Multi-token prediction: modules behind the layers that foretell the tokens behind the next one.

Module k (arXiv 2412.19437, section 2.2) makes of the hidden state h of a position i, and of the token k places behind
it, a hidden state whose logits are of the token k + 1 places behind it:

    h_i^k = norm(layer(W [norm_e(embedding(t_{i+k})); norm_h(h_i^{k-1})]))

with h^0 behind the model's last norm, one layer that sees the positions before it, and the model's own embedding and
output projection. The report writes h before the embedding in the brackets, and leaves open whether a norm stands
before norm_h. The released weights of DeepSeek-V3 and of Ling-2.5 have the embedding first, and the code that comes
with them gives a module what the last norm has made, as here.

In training every module reads the true tokens. A position of which t_{i+k} lies in another document has none: it reads
its document's last token instead, nobody asks for what becomes of it, and no position before it sees it.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from leyden.core.transfers import sent
from leyden.model.config import ModelConfig
from leyden.model.forward_context import ForwardContext, Wanted
from leyden.model.mixers import Memory
from leyden.model.norm import RMSNorm
from leyden.ops import IGNORE_INDEX, Routing

if TYPE_CHECKING:
    from leyden.model.lm import HybridLM


class NextTokenModule(nn.Module):
    """One module.

    Args:
        config: of the model.
        block: its layer.
    """

    def __init__(self, config: ModelConfig, block: nn.Module) -> None:
        super().__init__()
        self.enorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hnorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.eh_proj = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.block = block
        self.final_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        embedded: torch.Tensor,
        hidden: torch.Tensor,
        context: ForwardContext,
        memory: Memory | None,
        wanted: Wanted,
    ) -> tuple[torch.Tensor, Any, Routing | None]:
        """The next hidden states, normed and ready for the output projection.

        Args:
            embedded: [B, T, D], of each position the token that the module reads there.
            hidden: [B, T, D], normed: of the model, or of the module before.
            context, memory, wanted: as of a layer.

        Returns:
            [B, wanted rows, D], the mixer's new state, and the routing if there is one.
        """
        x = self.eh_proj(torch.cat([self.enorm(embedded), self.hnorm(hidden)], dim=-1))
        x, state, routing = self.block(x, context, memory, wanted)
        return self.final_layernorm(x), state, routing


def look_ahead(
    model: "HybridLM",
    hidden: torch.Tensor,
    tokens: torch.Tensor,
    cu_seqlens: torch.Tensor | None,
    context: ForwardContext,
) -> tuple[tuple[torch.Tensor, ...], list[Routing]]:
    """What the modules of ``model`` make of a row, in training.

    Args:
        model: with its modules.
        hidden: [B, T', D] of this rank's own tokens, behind the last norm.
        tokens: [B, T], of the whole row.
        cu_seqlens: the bounds of its documents; None: each row is one.
        context: of the row.

    Returns:
        The hidden states of each module, and where its tokens went, if its layer has experts.
    """
    found, routings = [], list[Routing]()
    for places, module in enumerate(model.mtp, start=1):
        embedded = model.embed(tokens_behind(tokens, places, cu_seqlens))
        hidden, _, routing = module(embedded, hidden, context, None, None)
        found.append(hidden)
        if routing is not None:
            routings.append(routing)
    return tuple(found), routings


def tokens_behind(tokens: torch.Tensor, places: int, cu_seqlens: torch.Tensor | None) -> torch.Tensor:
    """[B, T], of each position the token so many places behind it, or the last of its document."""
    source, _ = _places_behind(tokens.shape[1], places, cu_seqlens)
    return tokens.index_select(1, sent(source, tokens.device))


def labels_behind(labels: torch.Tensor, places: int, cu_seqlens: torch.Tensor | None) -> torch.Tensor:
    """[B, T], of each position the label so many places behind it; none where that is another document's."""
    source, same = _places_behind(labels.shape[1], places, cu_seqlens)
    moved = labels.index_select(1, sent(source, labels.device))
    return moved.masked_fill(~sent(same, labels.device), IGNORE_INDEX)


def _places_behind(length: int, places: int, cu_seqlens: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """[T] int64, where a row's positions look, at most at the end of their document, and whether it is in there."""
    bounds = torch.tensor([0, length]) if cu_seqlens is None else cu_seqlens.long().cpu()
    ends = bounds[1:].repeat_interleave(bounds.diff(), output_size=length)
    behind = torch.arange(length) + places
    return torch.minimum(behind, ends - 1), behind < ends
