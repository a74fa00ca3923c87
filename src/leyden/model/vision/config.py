"""The shape of the vision side, in the field names of transformers' ``CLIPVisionConfig`` where the meaning is equal."""

from typing import Literal, Self

from pydantic import Field, model_validator

from leyden.core.config import Config

_LONGEST = {336: 6, 672: 6, 1008: 6, 1344: 4, 1680: 3, 2016: 3}
RELEASED_PINPOINTS = tuple((height, 336 * n) for height, most in _LONGEST.items() for n in range(1, most + 1))
"""The 28 canvases (height, width) of MiniMax-VL-01, in the order of its configuration."""

_MOST_CANVASES, _MOST_TILES = 1024, 4096


class VisionConfig(Config):
    """The vision tower of a model and how pictures are cut for it; the defaults are those of MiniMax-VL-01.

    The tower is CLIP's ViT (arXiv 2103.00020): square patches, a class token, learned positions, layers with pre-norm.
    """

    hidden_size: int = Field(default=1024, ge=1, le=2**20)
    intermediate_size: int = Field(default=4096, ge=1, le=2**20)
    num_hidden_layers: int = Field(default=24, ge=1, le=4096)
    num_attention_heads: int = Field(default=16, ge=1, le=2**14)
    image_size: int = Field(default=336, ge=1, le=2**14)
    """The side of a tile, in pixels."""
    patch_size: int = Field(default=14, ge=1, le=2**10)
    """The side of a patch, in pixels; every patch is a token."""
    layer_norm_eps: float = Field(default=1e-5, gt=0)
    hidden_act: Literal["gelu", "quick_gelu"] = "gelu"
    """Between the two matrices of a feed-forward: GELU by the error function, or ``x sigmoid(1.702 x)`` as OpenAI's
    CLIP has it."""
    image_token_id: int = Field(default=200_025, ge=0)
    """The token that stands in a text where a vector of a picture goes."""
    image_grid_pinpoints: tuple[tuple[int, int], ...] = RELEASED_PINPOINTS
    """The canvases (height, width), in pixels, on one of which a picture is laid before it is cut into tiles. Empty: a
    picture is one tile, whatever its size."""

    @property
    def grid(self) -> int:
        """Patches along a side of a tile."""
        return self.image_size // self.patch_size

    @model_validator(mode="after")
    def _fits(self) -> Self:
        problems = []
        if self.hidden_size % self.num_attention_heads:
            problems.append(
                f"hidden_size ({self.hidden_size}) must be a multiple of num_attention_heads "
                f"({self.num_attention_heads})"
            )
        if self.image_size % self.patch_size:
            problems.append(f"image_size ({self.image_size}) must be a multiple of patch_size ({self.patch_size})")
        odd = [canvas for canvas in self.image_grid_pinpoints if not all(self._is_side(side) for side in canvas)]
        if odd or len(self.image_grid_pinpoints) > _MOST_CANVASES:
            shown = f"given {list(odd[0])}" if odd else f"given {len(self.image_grid_pinpoints):,} of them"
            problems.append(
                f"image_grid_pinpoints lists at most {_MOST_CANVASES:,} canvases (height, width) whose sides are "
                f"multiples of image_size ({self.image_size}) by 1 to {_MOST_TILES}; {shown}"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _is_side(self, side: int) -> bool:
        return side % self.image_size == 0 and 1 <= side // self.image_size <= _MOST_TILES

    def problems_with(self, vocab_size: int, num_nextn_predict_layers: int) -> list[str]:
        """What keeps a decoder of this shape from having this vision side."""
        problems = []
        if self.image_token_id >= vocab_size:
            problems.append(
                f"vision.image_token_id ({self.image_token_id}) must be a token of the vocabulary, of which there are "
                f"{vocab_size} (vocab_size)"
            )
        if num_nextn_predict_layers:
            problems.append(
                "modules for multi-token prediction (num_nextn_predict_layers) embed the next token, and a picture has "
                "none; leave them out, or leave out vision"
            )
        return problems
