"""Weight-only int8 models: every projection and all experts in 8 bits, with one float32 scale a row.

Norms, routers and slopes stay float32; the embedding and the output projection stay as they are unless asked for.
MiniMax-01 was served so on one machine of 8 GPUs (arXiv 2501.08313, section 2: 456 billion parameters).
"""

from collections.abc import Callable
from typing import Literal, Self

import torch
from torch import nn

from leyden.model.experts import Additions, Experts, compute, no_additions
from leyden.model.float32 import Float32Module
from leyden.model.lm import HybridLM
from leyden.model.losses import OutputProjection, soft_capped
from leyden.ops import IGNORE_INDEX, Int8Matrices, Routing, int8_linear, quantize_rows
from leyden.ops.cross_entropy.autograd import constant_weights, sum_of_losses

Int8 = Literal["none", "layers", "all"]
"""Which weights are held in 8 bits: none; every projection and all experts; the embedding and output projection too."""

_LOGITS = 4 << 20
"""Of a row of losses, how many logits exist at once: 16 MiB in float32."""


class QuantizedLinear(Float32Module):
    """:class:`torch.nn.Linear` without bias: ``weight`` [F, D] int8 and ``scale`` [F] float32."""

    def __init__(self, out_features: int, in_features: int, device: torch.device) -> None:
        super().__init__()
        self.weight: torch.Tensor
        self.scale: torch.Tensor
        self.register_buffer("weight", torch.empty(out_features, in_features, dtype=torch.int8, device=device))
        self.register_buffer("scale", torch.empty(out_features, dtype=torch.float32, device=device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., D] to [..., F]."""
        return int8_linear(x, self.weight, self.scale)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}"


class QuantizedOutputProjection(QuantizedLinear):
    """From hidden states to the vocabulary, or straight to the loss, which has no gradient.

    Attributes:
        softcap: as of :class:`leyden.model.losses.OutputProjection`.
    """

    softcap: float | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., D] to logits [..., V]."""
        return soft_capped(super().forward(x), self.softcap)

    def token_nll(
        self, hidden: torch.Tensor, labels: torch.Tensor, temperature: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """:func:`leyden.ops.linear_token_nll` of hidden [N, D] and labels [N], under logits over ``temperature``."""
        nll, log_z = hidden.new_zeros(2, len(hidden), dtype=torch.promote_types(hidden.dtype, torch.float32)).unbind()
        step = max(16, _LOGITS // len(self.weight))
        for start in range(0, len(hidden), step):
            rows = slice(start, start + step)
            logits, valid = self(hidden[rows]).to(nll.dtype) / temperature, labels[rows] != IGNORE_INDEX
            z = logits.logsumexp(-1)
            target = logits.gather(-1, labels[rows].clamp(min=0)[:, None])[:, 0]
            nll[rows], log_z[rows] = (z - target).where(valid, 0), z.where(valid, 0)
        return nll, log_z

    def cross_entropy(
        self, hidden: torch.Tensor, labels: torch.Tensor, z_loss: float, weights: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """:func:`leyden.ops.linear_cross_entropy` of hidden [N, D], labels [N] and weights [N]."""
        return sum_of_losses(*self.token_nll(hidden, labels), constant_weights(weights, hidden), z_loss)


class QuantizedEmbedding(Float32Module):
    """:class:`torch.nn.Embedding`: ``weight`` [V, D] int8 and ``scale`` [V] float32.

    Attributes:
        dtype: of the rows it gives; ``model.to(dtype)`` changes it.
    """

    def __init__(self, num_words: int, dim: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.weight: torch.Tensor
        self.scale: torch.Tensor
        self.register_buffer("weight", torch.empty(num_words, dim, dtype=torch.int8, device=device))
        self.register_buffer("scale", torch.empty(num_words, dtype=torch.float32, device=device))
        self.dtype = dtype

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[...] int64 to [..., D]."""
        return (self.weight[tokens] * self.scale[tokens].unsqueeze(-1)).to(self.dtype)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.weight.device)).dtype
        return super()._apply(fn, recurse)


class QuantizedExperts(Float32Module):
    """:class:`leyden.model.experts.Experts`, of which one expert at a time becomes floats.

    Attributes:
        gate_up_proj: [E, 2F, D] int8.
        gate_up_scale: [E, 2F] float32.
        down_proj: [E, D, F] int8.
        down_scale: [E, D] float32.
    """

    def __init__(self, gate_up: tuple[int, ...], down: tuple[int, ...], device: torch.device) -> None:
        super().__init__()
        self.gate_up_proj: torch.Tensor
        self.gate_up_scale: torch.Tensor
        self.down_proj: torch.Tensor
        self.down_scale: torch.Tensor
        for name, shape in (("gate_up", gate_up), ("down", down)):
            self.register_buffer(f"{name}_proj", torch.empty(shape, dtype=torch.int8, device=device))
            self.register_buffer(f"{name}_scale", torch.empty(shape[:-1], dtype=torch.float32, device=device))
        self.compute: Callable[..., torch.Tensor] = compute
        """What the experts do; where ranks share them, tokens travel to their experts and back."""
        self.additions: Additions = no_additions
        """As of :class:`leyden.model.experts.Experts`."""

    def forward(self, x: torch.Tensor, routing: Routing) -> torch.Tensor:
        """[N, D] to [N, D]."""
        gate_up = Int8Matrices(self.gate_up_proj, self.gate_up_scale, x.dtype)
        down = Int8Matrices(self.down_proj, self.down_scale, x.dtype)
        return self.compute(x, gate_up, down, routing, *self.additions(x.dtype))


def scale_of(name: str) -> str:
    """The name of the scales that belong to the weight ``name``, as ``layers.3.mlp.experts.down_proj``."""
    return f"{name.removesuffix('_proj')}_scale" if name.endswith("_proj") else f"{name.removesuffix('weight')}scale"


def quantize(model: HybridLM, head: bool = False) -> HybridLM:
    """Turn the weights of ``model`` into 8 bits, in place and a module at a time, so that no second copy exists.

    Args:
        model: its weights cannot be trained afterwards. A rank's part of a model becomes its part of an 8-bit
            one; of a model on the meta device the modules are replaced, and their weights are still to come.
        head: the embedding and the output projection as well. The vision side stays as it is.

    Returns:
        The model.

    Raises:
        ValueError: a weight is infinite or no number, or has an adapter; the message names it.
    """
    for name in [name for name, module in model.named_modules() if _is_quantized(module, name, head)]:
        module = model.get_submodule(name)
        if any(module.children()):
            raise ValueError(f"{name} has an adapter, which 8 bits have no room for; merge it into the weights first.")
        twin = _empty_twin(module)
        for leaf, weight in module.named_parameters(recurse=False):
            if not weight.is_meta:
                _fill(twin, name, leaf, weight.detach())
        model.set_submodule(name, twin)
    if head and model.config.tie_word_embeddings:
        tie(model)
    return model.requires_grad_(False)


def tie(model: HybridLM) -> None:
    """Let the output projection of a quantised model have the embedding's weight and scales."""
    for name in ("weight", "scale"):
        model.lm_head.register_buffer(name, model.embed_tokens.get_buffer(name))


def _is_quantized(module: nn.Module, name: str, head: bool) -> bool:
    if name.startswith("vision."):  # a small part of the weights, used once a picture
        return False
    if isinstance(module, nn.Embedding | OutputProjection):
        return head
    return isinstance(module, Experts) or (isinstance(module, nn.Linear) and not name.endswith("coefficient"))


def _empty_twin(module: nn.Module) -> nn.Module:
    """The module in 8 bits, with room for its weights."""
    weight = next(module.parameters())
    if isinstance(module, Experts):
        twin = QuantizedExperts(module.gate_up_proj.shape, module.down_proj.shape, weight.device)
        twin.compute = module.compute
        return twin
    rows, columns = weight.shape
    if isinstance(module, nn.Embedding):
        return QuantizedEmbedding(rows, columns, weight.dtype, weight.device)
    if not isinstance(module, OutputProjection):
        return QuantizedLinear(rows, columns, weight.device)
    twin = QuantizedOutputProjection(rows, columns, weight.device)
    twin.softcap = module.softcap
    return twin


def _fill(twin: nn.Module, name: str, leaf: str, weight: torch.Tensor) -> None:
    try:
        values, scale = quantize_rows(weight)
    except ValueError as error:
        raise ValueError(f"{name}.{leaf}: {error}") from None
    twin.register_buffer(leaf, values)
    twin.register_buffer(scale_of(leaf), scale)
