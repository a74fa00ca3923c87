"""The ops of a model one by one: what each computes and moves, by arithmetic on the shape.

Bytes count every input once and every output once: weights, activations, states, and keys and values that are
remembered. What a good kernel keeps on the chip, as the scores of attention or the logits under a loss, counts nothing.
Operations are those of :func:`leyden.model.count_model`. Modules for multi-token prediction are left out.
"""

from collections import Counter
from dataclasses import dataclass

import torch

from leyden.core.roofline import Cost
from leyden.model.config import ModelConfig
from leyden.model.experts import feed_forward_of
from leyden.model.mixers import mean_keys, mixer_of
from leyden.model.mixers.mixer import MixerCount

_FLOAT32 = 4


@dataclass(frozen=True)
class Operation:
    """One op of the model.

    Attributes:
        name: as ``"lightning projections"``.
        layers: that have it.
        cost: of one layer.
    """

    name: str
    layers: int
    cost: Cost


def forward_operations(
    config: ModelConfig, length: int, sequences: int = 1, dtype: torch.dtype = torch.bfloat16
) -> list[Operation]:
    """Those of a forward pass over whole sequences, with the logits of every token, as training computes it.

    Args:
        config: the shape.
        length: tokens of a sequence.
        sequences: how many there are.
        dtype: of weights and activations.
    """
    return _operations(config, sequences * length, sequences, length, dtype, new=False)


def decode_operations(
    config: ModelConfig, length: int, sequences: int, dtype: torch.dtype = torch.bfloat16
) -> list[Operation]:
    """Those of one step of decoding: each of ``sequences`` has ``length`` tokens, of which the last is new.

    Different sequences meet different experts, so more of their weights are read the more sequences there are
    (:meth:`leyden.model.experts.FeedForwardCount.met`).
    """
    return _operations(config, sequences, sequences, length, dtype, new=True)


def _operations(
    config: ModelConfig, tokens: int, sequences: int, length: int, dtype: torch.dtype, *, new: bool
) -> list[Operation]:
    D, size = config.hidden_size, dtype.itemsize
    rows = 2 * tokens * D * size  # the residual stream, read and written
    found: list[Operation] = []
    for kind, layers in Counter(config.layer_types).items():
        mixer, title = mixer_of(kind).count(config), mixer_of(kind).title
        between = tokens * mixer.mixed_values * size
        projections = Cost(mixer.weights * size + rows + between, 2 * mixer.weights * tokens)
        mixing = _decoded(mixer, length, size) * sequences if new else _read(mixer, length, sequences)
        found.append(Operation(f"{title} projections", layers, projections))
        found.append(Operation(f"{title} attention", layers, mixing + Cost(between)))
    share = config.num_experts_per_tok / config.num_local_experts if config.num_local_experts else 1.0
    for kind, layers in Counter(config.mlp_kinds()).items():
        mlp, title = feed_forward_of(kind).count(config), feed_forward_of(kind).title
        if mlp.router:
            scores = tokens * (D * size + config.num_local_experts * _FLOAT32)
            routed = Cost((mlp.router + mlp.bias) * _FLOAT32 + scores, 2 * mlp.router * tokens)
            found.append(Operation("router", layers, routed))
        name = title if mlp.router else f"{title} feed-forward"
        found.append(Operation(name, layers, Cost(mlp.met(tokens, share) * size + rows, 2 * mlp.active * tokens)))
    norms = len(config.norms_of_layer()) * config.num_hidden_layers + 1
    found.append(Operation("norms and residuals", norms, Cost(rows + D * _FLOAT32)))
    output = config.vocab_size * D
    logits = sequences * config.vocab_size * _FLOAT32 if new else 0
    projected = Cost(output * size + tokens * D * size + logits, 2 * output * tokens)
    return [*found, Operation("output projection", 1, projected)]


def _read(mixer: MixerCount, length: int, sequences: int) -> Cost:
    """What mixes the tokens of whole sequences, but for what it gets of each token: states are written once."""
    per_token = mixer.flops_per_token + mixer.flops_per_key * mean_keys(length, mixer.window)
    return Cost(mixer.state_bytes, length * per_token) * sequences


def _decoded(mixer: MixerCount, length: int, size: int) -> Cost:
    """What mixes one token of a sequence with those before it: a state is read and written, all keys are read."""
    keys = length if mixer.window is None else min(length, mixer.window)
    kept = mixer.values_per_token if mixer.window is None else mixer.window_values // mixer.window
    return Cost(2 * mixer.state_bytes + keys * kept * size, mixer.flops_per_token + keys * mixer.flops_per_kept_key)
