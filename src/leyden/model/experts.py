"""The feed-forward half of a layer: a router with its experts, or one dense SwiGLU; and the tables that find them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import nn
from torch.nn.functional import silu

from leyden.model.balance import with_load
from leyden.model.config import ModelConfig
from leyden.model.float32 import Float32Module
from leyden.model.kinds import entry_of
from leyden.ops import (
    Groups,
    Int8Matrices,
    LowRankExperts,
    Routing,
    drop_over_capacity,
    expert_capacity,
    route,
    route_in_groups,
    swiglu_experts,
    swiglu_experts_low_rank,
)


@dataclass(frozen=True)
class FeedForwardCount:
    """What the feed-forward of one layer holds.

    Attributes:
        weights: all but the router's.
        active: those of them that one token meets.
        router: those of the router's matrix, which are float32.
        bias: numbers of the bias by which the router chooses, float32 too.
    """

    weights: int
    active: int
    router: int = 0
    bias: int = 0

    def met(self, tokens: int, share: float) -> float:
        """Weights that ``tokens`` tokens meet together, in expectation.

        Args:
            tokens: how many.
            share: of the experts, that one token is sent to; each token to any of them alike. An expert is met by none
                with the probability ``(1 - share) ** tokens``.
        """
        return self.weights - (self.weights - self.active) * (1 - share) ** (tokens - 1)


class FeedForward(nn.Module):
    """One kind of feed-forward. A subclass gives what follows.

    Attributes:
        title: what the kind is called in texts for users.
    """

    title: ClassVar[str]

    @classmethod
    def create(cls, config: ModelConfig) -> Self:
        """The module of a layer."""
        raise NotImplementedError

    @classmethod
    def count(cls, config: ModelConfig) -> FeedForwardCount:
        """By arithmetic alone."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, Routing | None]:
        """[B, T, D] to [B, T, D], and where its tokens went, if they were routed."""
        raise NotImplementedError


class Router(Float32Module):
    """Scores every token against every expert, in float32 whatever the model's dtype."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.num_local_experts, config.hidden_size, dtype=torch.float32))
        self.top_k = config.num_experts_per_tok

    def forward(self, x: torch.Tensor) -> Routing:
        """[N, D] to the routing of N tokens."""
        return route(torch.nn.functional.linear(x.to(self.weight.dtype), self.weight), self.top_k)


class GroupRouter(Router):
    """Sigmoid scores, and a bias that takes part in the choice alone (:func:`leyden.ops.route_in_groups`).

    Attributes:
        expert_bias: [E] float32, saved with the weights. The loss has no gradient for it; in its place stands the load
            of the experts, by which training moves it (:func:`leyden.model.balance.with_load`).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.expert_bias = nn.Parameter(torch.zeros(config.num_local_experts, dtype=torch.float32))
        self.groups = Groups(config.n_group, config.topk_group, config.group_score)
        self.normalize, self.scale = config.norm_topk_prob, config.routed_scaling_factor

    def forward(self, x: torch.Tensor) -> Routing:
        """[N, D] to the routing of N tokens."""
        logits = torch.nn.functional.linear(x.to(self.weight.dtype), self.weight)
        bias = self.expert_bias
        routing = route_in_groups(
            logits, bias.detach(), self.top_k, self.groups, normalize=self.normalize, scale=self.scale
        )
        return with_load(routing, bias)


def compute(
    x: torch.Tensor,
    gate_up: torch.Tensor | Int8Matrices,
    down: torch.Tensor | Int8Matrices,
    routing: Routing,
    additions: LowRankExperts | None = None,
) -> torch.Tensor:
    """:func:`leyden.ops.swiglu_experts` where one process has all experts; with ``additions``, of frozen weights."""
    if additions is not None:
        return swiglu_experts_low_rank(x, gate_up, down, additions, routing.experts, routing.weights, routing.kept)
    return swiglu_experts(x, gate_up, down, routing.experts, routing.weights, routing.kept)


Additions = Callable[[torch.dtype], tuple[LowRankExperts, ...]]
"""From the dtype of the tokens to the additions to the weights of experts: one, or none."""


def no_additions(dtype: torch.dtype) -> tuple[LowRankExperts, ...]:
    """Those of experts without an adapter."""
    return ()


def drop(routing: Routing, config: ModelConfig) -> Routing:
    """Drop what is over the capacity that these tokens give an expert, if the configuration has one."""
    if config.capacity_factor is None:
        return routing
    num_tokens, top_k = routing.experts.shape
    capacity = expert_capacity(num_tokens, config.num_local_experts, top_k, config.capacity_factor)
    return drop_over_capacity(routing, capacity, config.token_drop)


class Experts(nn.Module):
    """The weights of all experts of a layer, stacked: ``gate_up_proj`` [E, 2F, D] and ``down_proj`` [E, D, F]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        E, D, F = config.num_local_experts, config.hidden_size, config.intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(E, 2 * F, D))
        self.down_proj = nn.Parameter(torch.empty(E, D, F))
        self.compute = compute
        """What the experts do; where ranks share them, tokens travel to their experts and back."""
        self.additions: Additions = no_additions
        """To the weights, of an adapted model (:mod:`leyden.model.lora`)."""

    def forward(self, x: torch.Tensor, routing: Routing) -> torch.Tensor:
        """[N, D] to [N, D]."""
        return self.compute(x, self.gate_up_proj, self.down_proj, routing, *self.additions(x.dtype))


class SwiGLU(nn.Module):
    """``down( silu(gate(x)) * up(x) )``."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., D] to [..., D]."""
        return self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))


class SharedExpert(nn.Module):
    """A SwiGLU for every token, mixed in by ``moe * (1 - c) + shared * c``, c = sigmoid(x w) (released code).

    Without a gate it is added: ``moe + shared`` (DeepSeek-V2, arXiv 2405.04434, section 2.2.1).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.mlp = SwiGLU(config.hidden_size, config.shared_intermediate_size)
        self.coefficient = nn.Linear(config.hidden_size, 1, bias=False) if config.shared_expert_gate else None

    def forward(self, x: torch.Tensor, routed: torch.Tensor) -> torch.Tensor:
        """Mix the shared expert's output for x [N, D] into the routed experts' [N, D]."""
        if self.coefficient is None:
            return routed + self.mlp(x)
        wide = torch.promote_types(x.dtype, torch.float32)
        c = torch.sigmoid(x.to(wide) @ self.coefficient.weight.to(wide).t()).to(x.dtype)
        return routed * (1 - c) + self.mlp(x) * c


class MixtureOfExperts(FeedForward):
    """Top-k experts a token; in training an expert over its capacity drops tokens, if the configuration has one."""

    title = "experts"

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = entry_of(ROUTERS, config.router, "is no router")(config)
        self.experts = Experts(config)
        self.shared = SharedExpert(config) if config.shared_intermediate_size else None
        self.config = config
        self.drop = drop
        """What enforces capacity; where ranks share it, they spend it together."""

    @classmethod
    def create(cls, config: ModelConfig) -> Self:
        return cls(config)

    @classmethod
    def count(cls, config: ModelConfig) -> FeedForwardCount:
        """A token meets the k experts that it is sent to, and the shared one with its coefficient if it has one."""
        D, S = config.hidden_size, config.shared_intermediate_size
        one, shared = 3 * D * config.intermediate_size, 3 * D * S + config.shared_expert_gate * D if S else 0
        return FeedForwardCount(
            weights=config.num_local_experts * one + shared,
            active=config.num_experts_per_tok * one + shared,
            router=config.num_local_experts * D,
            bias=config.num_local_experts if config.router == "sigmoid_groups" else 0,
        )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, Routing]:
        """[B, T, D] to [B, T, D], and where its tokens went."""
        tokens = x.flatten(0, -2)
        routing = self.gate(tokens)
        if self.training:
            routing = self.drop(routing, self.config)
        out = self.experts(tokens, routing)
        if self.shared is not None:
            out = self.shared(tokens, out)
        return out.view_as(x), routing


class DenseMLP(FeedForward):
    """A SwiGLU for every token; it routes nothing."""

    title = "dense"

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.dense_width, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.dense_width, bias=False)
        self.down_proj = nn.Linear(config.dense_width, config.hidden_size, bias=False)

    @classmethod
    def create(cls, config: ModelConfig) -> Self:
        return cls(config)

    @classmethod
    def count(cls, config: ModelConfig) -> FeedForwardCount:
        weights = 3 * config.hidden_size * config.dense_width
        return FeedForwardCount(weights, weights)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        """[B, T, D] to [B, T, D], and None."""
        return self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x)), None


FEED_FORWARDS: Mapping[str, type[FeedForward]] = {"dense": DenseMLP, "experts": MixtureOfExperts}
"""By the names of ``mlp_types``."""

ROUTERS: Mapping[str, type[Router]] = {"softmax_topk": Router, "sigmoid_groups": GroupRouter}
"""By the names of ``router``. A router is called with tokens [N, D] and gives their :class:`leyden.ops.Routing`."""


def feed_forward_of(kind: str) -> type[FeedForward]:
    """The feed-forward of a layer of ``kind``.

    Raises:
        UserError: there is none.
    """
    return entry_of(FEED_FORWARDS, kind, "has no feed-forward")
