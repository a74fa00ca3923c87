"""What a model of a given shape holds, remembers and computes, by arithmetic alone."""

from dataclasses import dataclass

import torch

from leyden.model.config import ModelConfig
from leyden.model.kinds import entry_of


@dataclass(frozen=True)
class ModelCount:
    """The sizes of a model.

    Attributes:
        parameters: all weights, a tied embedding once.
        active_parameters: weights of the matrices that one token meets in the layers: attention, router, the k
            experts it is sent to, the shared expert. Norms, the embedding and the output projection are not counted
            (45.943 billion for MiniMax-Text-01, as its makers count).
        output_parameters: weights of the output projection, tied or not.
        float32_parameters: norms and routers, which are float32 whatever the model's dtype.
        lightning_state_bytes: the float32 states of all lightning layers, for one sequence of any length.
        key_values_per_token: keys and values kept in all softmax layers for each token.
        lightning_flops_per_token: of the recurrence in all lightning layers.
        softmax_flops_per_key: of all softmax layers, for one token and one key that it sees.
    """

    parameters: int
    active_parameters: int
    output_parameters: int
    float32_parameters: int
    lightning_state_bytes: int
    key_values_per_token: int
    lightning_flops_per_token: int
    softmax_flops_per_key: int

    def weight_bytes(self, dtype: torch.dtype) -> int:
        """Memory of the weights with the matrices in ``dtype``."""
        return (self.parameters - self.float32_parameters) * dtype.itemsize + self.float32_parameters * 4

    def key_value_bytes_per_token(self, dtype: torch.dtype) -> int:
        """Memory of one more token in the cache of one sequence."""
        return self.key_values_per_token * dtype.itemsize

    def forward_flops_per_token(self, length: int) -> float:
        """Floating-point operations a token, on average over a sequence of ``length`` tokens.

        2 a weight of the active matrices and the output projection; 4 H K V a lightning layer, which is the
        recurrence (K V products and sums for ``k v^T``, as many for ``S^T q``); 4 H D a visible key in a softmax
        layer, of which a token sees ``(length + 1) / 2`` on average. Norms, activations and the softmax are left out.
        """
        matrices = 2 * (self.active_parameters + self.output_parameters)
        return matrices + self.lightning_flops_per_token + self.softmax_flops_per_key * (length + 1) / 2

    def training_flops_per_token(self, length: int) -> float:
        """Forward and backward: three times the forward pass."""
        return 3 * self.forward_flops_per_token(length)


def count_model(config: ModelConfig) -> ModelCount:
    """Count a model without building it."""
    D, width = config.hidden_size, config.num_attention_heads * config.head_dim
    shared_width = config.num_key_value_heads * config.head_dim
    num_layers = config.num_hidden_layers
    for kind in config.layer_types:
        entry_of({"linear_attention": 0, "full_attention": 0}, kind, "is not counted")
    num_lightning = config.layer_types.count("linear_attention")
    num_softmax = num_layers - num_lightning

    attention = num_lightning * 5 * D * width + num_softmax * 2 * D * (width + shared_width)
    norms = (2 * num_layers + 1) * D + num_lightning * width
    feed_forward, active_feed_forward, router = _feed_forward(config)
    output = config.vocab_size * D
    embeddings = output if config.tie_word_embeddings else 2 * output
    state = config.num_attention_heads * config.head_dim**2
    return ModelCount(
        parameters=embeddings + attention + norms + num_layers * (feed_forward + router),
        active_parameters=attention + num_layers * (active_feed_forward + router),
        output_parameters=output,
        float32_parameters=norms + num_layers * router,
        lightning_state_bytes=num_lightning * state * 4,
        key_values_per_token=num_softmax * 2 * shared_width,
        lightning_flops_per_token=num_lightning * 4 * state,
        softmax_flops_per_key=num_softmax * 4 * width,
    )


def prefill_flops(config: ModelConfig, length: int) -> float:
    """Floating-point operations from ``length`` tokens to the logits of the next one and a cache of all of them.

    Counted as in :meth:`ModelCount.forward_flops_per_token`. The output projection, and the last layer but for its
    keys, values and state, meet the last token alone.
    """
    counted, width = count_model(config), config.num_attention_heads * config.head_dim
    _, active_feed_forward, router = _feed_forward(config)
    # Queries and output of softmax attention, gate and output of lightning attention: as many weights.
    idle = 2 * (2 * config.hidden_size * width + active_feed_forward + router)
    if config.layer_types[-1] == "full_attention":
        idle += 4 * width * length / 2  # the earlier tokens see 1 to ``length - 1`` keys, on average half of ``length``
    per_token = counted.forward_flops_per_token(length) - 2 * counted.output_parameters
    return length * per_token - (length - 1) * idle + 2 * counted.output_parameters


def _feed_forward(config: ModelConfig) -> tuple[int, int, int]:
    """Weights of one layer's feed-forward half: all but the router, those that one token meets, the router."""
    D, num_experts = config.hidden_size, config.num_local_experts
    one = 3 * D * config.intermediate_size
    if num_experts == 0:
        return one, one, 0
    shared = 3 * D * config.shared_intermediate_size + D if config.shared_intermediate_size else 0
    return num_experts * one + shared, config.num_experts_per_tok * one + shared, num_experts * D
