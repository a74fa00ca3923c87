"""Parameters, memory and operations of a model of a given shape, by arithmetic alone."""

from collections import Counter
from dataclasses import dataclass, replace

import torch

from leyden.model.config import ModelConfig
from leyden.model.experts import feed_forward_of
from leyden.model.mixers import mean_keys, mixer_of
from leyden.model.vision.count import VisionCount, count_vision


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
        state_bytes: the float32 states of all recurrent layers, for one sequence of any length.
        window_values: numbers kept in all layers with a window, for one sequence at most, whatever its length.
        key_values_per_token: numbers kept in all layers that keep every token's keys and values, for each token.
        recurrence_flops_per_token: of the recurrences in all layers.
        flops_per_key: for one token and one key that it sees, by the layers' window (None: all keys before it).
        nextn: the same of the modules for multi-token prediction alone, each of which computes the output projection
            too; their weights are counted above as well, what they compute is not. None without any.
        vision: the sizes of the vision side; its weights are counted above as well, what it computes is not. None in a
            model of text alone.
    """

    parameters: int
    active_parameters: int
    output_parameters: int
    float32_parameters: int
    state_bytes: int
    window_values: int
    key_values_per_token: int
    recurrence_flops_per_token: int
    flops_per_key: dict[int | None, int]
    nextn: "ModelCount | None" = None
    vision: VisionCount | None = None

    def weight_bytes(self, dtype: torch.dtype) -> int:
        """Memory of the weights with the matrices in ``dtype``."""
        return (self.parameters - self.float32_parameters) * dtype.itemsize + self.float32_parameters * 4

    def key_value_bytes_per_token(self, dtype: torch.dtype) -> int:
        """Memory of one more token in the cache of one sequence, but for layers with a window."""
        return self.key_values_per_token * dtype.itemsize

    def fixed_bytes(self, dtype: torch.dtype) -> int:
        """Memory of one sequence that does not grow with its length: its states, and its windows once they are full."""
        return self.state_bytes + self.window_values * dtype.itemsize

    def forward_flops_per_token(self, length: int) -> float:
        """Floating-point operations a token, on average over a sequence of ``length`` tokens.

        2 a weight of the active matrices and the output projection; 4 H K V a lightning layer, which is the
        recurrence (K V products and sums for ``k v^T``, as many for ``S^T q``); 4 H D a visible key in a softmax
        layer, of which a token sees ``(length + 1) / 2`` on average, or fewer within a window. Norms, activations and
        the softmax are left out.
        """
        matrices = 2 * (self.active_parameters + self.output_parameters)
        keys = sum(flops * mean_keys(length, window) for window, flops in self.flops_per_key.items())
        return matrices + self.recurrence_flops_per_token + keys

    def training_flops_per_token(self, length: int) -> float:
        """Forward and backward: three times the forward pass, with that of modules for multi-token prediction."""
        ahead = 0 if self.nextn is None else self.nextn.forward_flops_per_token(length)
        return 3 * (self.forward_flops_per_token(length) + ahead)


def count_model(config: ModelConfig) -> ModelCount:
    """Count a model without building it."""
    alone = _count_layers(config)
    if config.vision is not None:
        vision = count_vision(config.vision, config.hidden_size)
        return replace(
            alone,
            parameters=alone.parameters + vision.parameters,
            float32_parameters=alone.float32_parameters + vision.float32_parameters,
            vision=vision,
        )
    if not config.num_nextn_predict_layers:
        return alone
    nextn = _count_nextn(config)
    return replace(
        alone,
        parameters=alone.parameters + nextn.parameters,
        float32_parameters=alone.float32_parameters + nextn.float32_parameters,
        nextn=nextn,
    )


def _count_nextn(config: ModelConfig) -> ModelCount:
    """Of the modules for multi-token prediction alone."""
    number, (mixer, mlp), D = config.num_nextn_predict_layers, config.nextn_kind(), config.hidden_size
    shape = {"num_hidden_layers": number, "layer_types": (mixer,) * number, "mlp_types": (mlp,) * number}
    layers = _count_layers(config.model_copy(update={**shape, "score_head": False}))
    around = layers.output_parameters * (1 if config.tie_word_embeddings else 2) + D  # embeddings and the last norm
    projections, norms = 2 * D * D * number, 3 * D * number
    return replace(
        layers,
        parameters=layers.parameters - around + projections + norms,
        active_parameters=layers.active_parameters + projections,
        output_parameters=layers.output_parameters * number,
        float32_parameters=layers.float32_parameters - D + norms,
    )


def _count_layers(config: ModelConfig) -> ModelCount:
    """Of a model without modules for multi-token prediction."""
    D, num_layers = config.hidden_size, config.num_hidden_layers
    mixers = [(mixer_of(kind).count(config), layers) for kind, layers in Counter(config.layer_types).items()]
    flops_per_key: Counter[int | None] = Counter()
    for mixer, layers in mixers:
        if mixer.flops_per_key:
            flops_per_key[mixer.window] += layers * mixer.flops_per_key
    weights = sum(layers * mixer.weights for mixer, layers in mixers)
    norms = (len(config.norms_of_layer()) * num_layers + 1 + config.score_head) * D + sum(
        layers * mixer.norm_weights for mixer, layers in mixers
    )
    mlps = [(feed_forward_of(kind).count(config), layers) for kind, layers in Counter(config.mlp_kinds()).items()]
    routers = sum(layers * mlp.router for mlp, layers in mlps)
    biases = sum(layers * mlp.bias for mlp, layers in mlps)
    output = config.vocab_size * D
    embeddings = output if config.tie_word_embeddings else 2 * output
    return ModelCount(
        parameters=embeddings + weights + norms + sum(layers * mlp.weights for mlp, layers in mlps) + routers + biases,
        active_parameters=weights + sum(layers * mlp.active for mlp, layers in mlps) + routers,
        output_parameters=output,
        float32_parameters=norms + routers + biases,
        state_bytes=sum(layers * mixer.state_bytes for mixer, layers in mixers),
        window_values=sum(layers * mixer.window_values for mixer, layers in mixers),
        key_values_per_token=sum(layers * mixer.values_per_token for mixer, layers in mixers),
        recurrence_flops_per_token=sum(layers * mixer.flops_per_token for mixer, layers in mixers),
        flops_per_key=dict(flops_per_key),
    )


def prefill_flops(config: ModelConfig, length: int) -> float:
    """Floating-point operations from ``length`` tokens to the logits of the next one and a cache of all of them.

    Counted as in :meth:`ModelCount.forward_flops_per_token`. The output projection, and the last layer but for its
    keys, values and state, meet the last token alone.
    """
    counted, last = count_model(config), mixer_of(config.layer_types[-1]).count(config)
    mlp = feed_forward_of(config.mlp_kinds()[-1]).count(config)
    idle = 2 * (last.idle_weights + mlp.active + mlp.router)
    idle += last.flops_per_key * mean_keys(length - 1, last.window)  # of all tokens but the last
    per_token = counted.forward_flops_per_token(length) - 2 * counted.output_parameters
    return length * per_token - (length - 1) * idle + 2 * counted.output_parameters
