"""CLIP's vision transformer (arXiv 2103.00020, section 2.4), over tiles that are packed in one row.

It computes what transformers' ``CLIPVisionModel`` does up to the last layer: MiniMax-VL-01 takes the last hidden states
as they are, without the norm behind them. Norms and their weights are float32 whatever the dtype of the matrices.

Shapes: N tiles, P patches a tile and one class token before them, T = N (P + 1) positions, D the width.
"""

import torch
from torch import nn
from torch.nn.functional import gelu, interpolate, layer_norm

from leyden.model.float32 import Float32Module
from leyden.model.vision.config import VisionConfig
from leyden.model.vision.pixels import normalized
from leyden.ops import bidirectional_attention


class LayerNorm(Float32Module):
    """Layer norm with weight and bias, computed in float32 (float64 for float64)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(width, dtype=torch.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., D] to the same in the dtype of x."""
        return layer_norm(x.to(self.weight.dtype), self.weight.shape, self.weight, self.bias, self.eps).to(x.dtype)


class SelfAttention(nn.Module):
    """Attention of every position of a tile to all of it."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        width = config.hidden_size
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
        """[T, D] to [T, D]."""
        q, k, v = (project(x).unflatten(-1, (self.heads, -1)) for project in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(bidirectional_attention(q, k, v, cu_seqlens).flatten(-2))


class FeedForward(nn.Module):
    """Two matrices with a GELU in between."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.quick = config.hidden_act == "quick_gelu"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., D] to [..., D]."""
        hidden = self.fc1(x)
        return self.fc2(hidden * torch.sigmoid(1.702 * hidden) if self.quick else gelu(hidden))


class TowerLayer(nn.Module):
    """Attention, then a feed-forward, each of the norm of the residual and added to it."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layer_norm1 = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.self_attn = SelfAttention(config)
        self.layer_norm2 = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
        """[T, D] to [T, D]."""
        x = x + self.self_attn(self.layer_norm1(x), cu_seqlens)
        return x + self.mlp(self.layer_norm2(x))


class VisionTower(nn.Module):
    """From the pixels of tiles to a vector for each patch.

    Args:
        config: the shape. Weights are those of ``nn.Linear`` until somebody fills them, as
            :func:`leyden.model.initialization.initialize` does.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        width, size = config.hidden_size, config.patch_size
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.patch_embedding = nn.Conv2d(3, width, size, stride=size, bias=False)
        self.position_embedding = nn.Embedding(config.grid**2 + 1, width)
        self.pre_layernorm = LayerNorm(width, config.layer_norm_eps)
        self.layers = nn.ModuleList(TowerLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """The last hidden states.

        Args:
            tiles: [N, 3, H, W], pixels in uint8, or normalized ones in any floating dtype; H and W multiples of
                ``patch_size``. Where they are not ``image_size``, the positions are interpolated
                (:func:`resized_positions`).

        Returns:
            [N, P + 1, D] in the dtype of the matrices, the class token first.

        Raises:
            ValueError: tiles of another form.
        """
        size = self.config.patch_size
        if tiles.ndim != 4 or tiles.shape[1] != 3 or tiles.shape[2] % size or tiles.shape[3] % size:
            raise ValueError(
                f"the tower reads tiles [N, 3, H, W] whose sides are multiples of {size}; given {tuple(tiles.shape)}."
            )
        x = self.embed(tiles)
        number, length = x.shape[:2]
        cu_seqlens = torch.arange(number + 1, device="cpu") * length
        return self.encode(x.flatten(0, 1), cu_seqlens).view_as(x)

    def embed(self, tiles: torch.Tensor) -> torch.Tensor:
        """Class token and patches with their positions, [N, P + 1, D]; tiles as in :meth:`forward`."""
        patches = self.patch_embedding(normalized(tiles).to(self.patch_embedding.weight.dtype))
        first = self.class_embedding.expand(len(patches), 1, -1)
        x = torch.cat([first, patches.flatten(2).transpose(1, 2)], dim=1)
        return x + resized_positions(self.position_embedding.weight, *patches.shape[2:])

    def encode(self, x: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
        """Positions of packed tiles, perhaps of different sizes, to their last hidden states.

        Args:
            x: [T, D], of each tile what :meth:`embed` gives.
            cu_seqlens: [N + 1] integers on the CPU, where each tile begins, and the end.

        Returns:
            [T, D]; no tile sees another.
        """
        x = self.pre_layernorm(x)
        for layer in self.layers:
            x = layer(x, cu_seqlens)
        return x

    def extra_repr(self) -> str:
        config = self.config
        return f"width={config.hidden_size}, layers={config.num_hidden_layers}, tile={config.image_size}"


def resized_positions(table: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """A table of positions for another number of patches, by bicubic interpolation of the square that was learned.

    Args:
        table: [1 + S * S, D]; the first row is that of the class token, and stays.
        rows, columns: of the patches that are to have positions.

    Returns:
        [1 + rows * columns, D], the table itself where it has this size; differentiable.
    """
    side = round((len(table) - 1) ** 0.5)
    if (rows, columns) == (side, side):
        return table
    square = table[1:].unflatten(0, (side, side)).permute(2, 0, 1)[None]
    resized = interpolate(square, size=(rows, columns), mode="bicubic", align_corners=False)
    return torch.cat([table[:1], resized[0].permute(1, 2, 0).flatten(0, 1)])
