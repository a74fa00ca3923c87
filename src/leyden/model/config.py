"""The shape of a hybrid language model, in the field names of transformers' MiniMax configuration."""

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from leyden.core.config import Config
from leyden.model.attention_options import (
    LightningActivation,
    LightningScale,
    SlopeFactor,
    block_problems,
    latent_problems,
    option_problems,
)
from leyden.model.rope import Rope, RopeScaling
from leyden.model.router_options import router_problems
from leyden.model.vision.config import VisionConfig

_MAX_LAYERS = 4096

LayerType = Literal[
    "linear_attention",
    "full_attention",
    "sliding_attention",
    "cosformer2_attention",
    "hgrn2_attention",
    "latent_attention",
]

_ROTARY = ("full_attention", "sliding_attention")
"""Those whose heads of ``head_dim`` turn by RoPE."""

MlpType = Literal["dense", "experts"]
LayerKind = tuple[LayerType, MlpType]
RouterType = Literal["softmax_topk", "sigmoid_groups"]


class ModelConfig(Config):
    """A MiniMax-Text-01-shaped model; the defaults are the preset ``tiny``.

    A layer is lightning attention (``"linear_attention"``), softmax attention (``"full_attention"``), softmax
    attention within a window (``"sliding_attention"``), cosFormer2 (``"cosformer2_attention"``), HGRN2
    (``"hgrn2_attention"``) or multi-head latent attention (``"latent_attention"``), then experts
    (a dense SwiGLU where ``num_local_experts`` is 0), each with the DeepNorm residual of the release:
    ``r * alpha + f(n) * beta`` with ``n = norm(x)`` and ``r = n`` (``postnorm``) or ``r = x`` (plain pre-norm).
    """

    # The upper bounds lie far above any model; within them no number that is computed from a stranger's config.json
    # overflows, and nothing that is made of it takes minutes.
    vocab_size: int = Field(default=8192, ge=1, le=2**31)
    hidden_size: int = Field(default=256, ge=1, le=2**20)
    num_hidden_layers: int = Field(default=8, ge=1, le=_MAX_LAYERS)
    layer_types: tuple[LayerType, ...] = ()
    """One entry a layer. Empty: every eighth layer is softmax attention, the others lightning."""

    sliding_window: int | None = Field(default=None, ge=1, le=2**24)
    """How many keys a token of a ``"sliding_attention"`` layer sees, its own the last of them."""

    num_attention_heads: int = Field(default=4, ge=1, le=2**14)
    num_key_value_heads: int = Field(default=2, ge=1, le=2**14)
    head_dim: int = Field(default=64, ge=1, le=2**14)
    rotary_dim: int = Field(default=32, ge=0)
    """How many dims of a softmax head turn by RoPE; the others carry no position. With latent attention it is
    ``qk_rope_head_dim``, and may be left out."""
    q_lora_rank: int | None = Field(default=None, ge=1, le=2**20)
    """Of a ``"latent_attention"`` layer: the width between the two projections of its queries; None: there is one."""
    kv_lora_rank: int | None = Field(default=None, ge=1, le=2**20)
    """Of a ``"latent_attention"`` layer: the width of the latent that keys and values are made of."""
    qk_nope_head_dim: int | None = Field(default=None, ge=1, le=2**14)
    """Of a head there: dims of queries and keys that carry no position."""
    qk_rope_head_dim: int | None = Field(default=None, ge=2, le=2**14)
    """Of a head there: dims that turn by RoPE, behind those; their key is the same for all heads."""
    v_head_dim: int | None = Field(default=None, ge=1, le=2**14)
    """Of a head there: dims of its values."""
    rope_interleave: bool = False
    """Whether the dims that turn there lie in pairs (2i, 2i + 1), as released by DeepSeek, or (i, i + R / 2)."""
    qk_norm: tuple[LayerType, ...] = ()
    """The kinds of layers that norm queries and keys, head by head and before they turn, with ``rms_norm_eps``."""
    attn_output_gate: bool = False
    """Whether what softmax heads give is multiplied by ``sigmoid(output_gate(x))`` before the output projection."""
    lightning_rotary_dim: int = Field(default=0, ge=0)
    """How many dims of a lightning head's queries and keys turn by RoPE; 0: none, as released."""
    lightning_slope_factor: SlopeFactor = "layer"
    """What multiplies the slopes of the decays in layer i of L: ``1 - i / (L - 1) + 1e-5`` as released,
    ``1 - (i - 1) / (L - 1) + 1e-5`` (``previous_layer``), or nothing (``none``); see docs/ling.md."""
    lightning_activation: LightningActivation = "silu"
    """Of queries, keys and values of lightning heads."""
    lightning_scale: LightningScale = "none"
    """What multiplies the queries of lightning heads; d is ``head_dim``."""
    lightning_norm_groups: int = Field(default=1, ge=1, le=2**14)
    """How many groups the heads of linear attention form whose outputs are normed, each group by itself."""
    attn_logit_softcapping: float | None = Field(default=None, gt=0, le=2**20)
    """The scores s of softmax heads count as ``c tanh(s / c)`` (Gemma 2, arXiv 2408.00118, section 2); None: as s."""
    rope_theta: float = Field(default=10_000.0, gt=1)
    rope_scaling: RopeScaling = RopeScaling()
    """How RoPE is stretched over more positions than before: by position interpolation or YaRN."""
    max_position_embeddings: int = Field(default=1_048_576, ge=1, le=2**53)

    mlp_types: tuple[MlpType, ...] = ()
    """One entry a layer. Empty: all layers have experts, or where ``num_local_experts`` is 0 a dense SwiGLU."""
    intermediate_size: int = Field(default=512, ge=1, le=2**20)
    """Hidden width of one expert, and of a dense SwiGLU unless ``dense_intermediate_size`` says another."""
    dense_intermediate_size: int | None = Field(default=None, ge=1, le=2**20)
    """Hidden width of a dense SwiGLU; None: ``intermediate_size``."""
    num_local_experts: int = Field(default=8, ge=0, le=2**16)
    num_experts_per_tok: int = Field(default=2, ge=1)
    router: RouterType = "softmax_topk"
    """How a router chooses experts: the ``num_experts_per_tok`` of the highest softmax probability, or of the highest
    sum of sigmoid and bias, in a few groups of experts (DeepSeek-V3, arXiv 2412.19437, section 2.1.2)."""
    n_group: int = Field(default=1, ge=1)
    """Of ``"sigmoid_groups"``: into how many groups the experts are cut, consecutive and of one size."""
    topk_group: int = Field(default=1, ge=1)
    """Of ``"sigmoid_groups"``: of how many groups the experts of a token may be."""
    group_score: Literal["top2_sum", "max"] = "top2_sum"
    """Of ``"sigmoid_groups"``: groups are chosen by the sum of their two best scores (V3), or by the best (V2)."""
    norm_topk_prob: bool = True
    """Of ``"sigmoid_groups"``: whether the weights of a token's experts are divided by their sum."""
    routed_scaling_factor: float = Field(default=1.0, gt=0)
    """Of ``"sigmoid_groups"``: the factor of these weights."""
    shared_intermediate_size: int = Field(default=0, ge=0, le=2**20)
    """Hidden width of a shared expert; 0: none, as released."""
    shared_expert_gate: bool = True
    """Whether a shared expert is mixed in by a sigmoid gate, or added as it is."""
    capacity_factor: float | None = Field(default=None, gt=0)
    """An expert takes at most this share of an even split of tokens, in training alone. None: dropless."""
    token_drop: Literal["probability", "position"] = "probability"
    router_aux_loss_coef: float = Field(default=0.01, ge=0)
    """Weight of the balance loss; with ``"sigmoid_groups"`` 0 unless it is given."""
    router_aux_loss: Literal["gshard", "switch", "sequence"] = "gshard"
    """``gshard``: the paper's, a layer at a time. ``switch``: the released code's, over all layers at once.
    ``sequence``: DeepSeek-V3's, a layer and a document at a time."""
    router_group_loss_coef: float = Field(default=0.0, ge=0)
    """Of ``"sigmoid_groups"``: weight of DeepSeek-V2's balance loss over devices, here over the groups."""
    router_z_loss_coef: float = Field(default=0.0, ge=0)
    z_loss_coef: float = Field(default=0.0, ge=0)

    rms_norm_eps: float = Field(default=1e-5, gt=0)
    lightning_norm_eps: float = Field(default=1e-6, gt=0)
    """Epsilon of the norm over lightning attention's heads: 1e-6 in the released code, whatever ``rms_norm_eps``."""
    postnorm: bool = True
    norm_placement: Literal["pre", "after"] = "pre"
    """Whether attention and feed-forward read the norm of the residual, or are normed before they are added to it (OLMo
    2's reordered norm, arXiv 2501.00656, section 3.1)."""
    parallel_block: bool = False
    """Whether attention and feed-forward of a layer read the same norm and are added at once (PaLM, arXiv 2204.02311,
    section 2)."""
    full_attn_alpha_factor: float | None = None
    full_attn_beta_factor: float = 1.0
    linear_attn_alpha_factor: float | None = None
    linear_attn_beta_factor: float = 1.0
    mlp_alpha_factor: float | None = None
    mlp_beta_factor: float = 1.0
    """Alphas left None become DeepNorm's ``(2 N)^(1/4)`` with ``postnorm`` and 1 without (arXiv 2203.00555)."""
    embedding_multiplier: float = Field(default=1.0, gt=0, le=2**20)
    """What the rows of the embedding are multiplied by before the first layer."""
    logits_scaling: float = Field(default=1.0, gt=0, le=2**20)
    """What the logits are divided by."""
    final_logit_softcapping: float | None = Field(default=None, gt=0, le=2**20)
    """The logits x, so divided, become ``c tanh(x / c)`` (Gemma 2, arXiv 2408.00118, section 2); None: they stay x."""
    tie_word_embeddings: bool = False
    score_head: bool = False
    """Beside the output projection a second one, from a hidden state to one number: what reward models answer with."""
    num_nextn_predict_layers: int = Field(default=0, ge=0, le=16)
    """Modules for multi-token prediction: the first foretells the token behind the next one, and so on
    (:mod:`leyden.model.nextn`). They take part in training, and guess tokens for speculation."""
    nextn_layer_type: LayerType | None = None
    """The mixer of these modules' layers; None: that of the last layer."""
    nextn_mlp_type: MlpType | None = None
    """Their feed-forward; None: that of the last layer."""
    initialization: Literal["xavier", "normal", "induction"] = "xavier"
    """What training begins with: Xavier's weights, OLMo 2's normal ones, or with Xavier's a rough circuit that looks
    up what was read before (:mod:`leyden.model.induction`)."""

    vision: VisionConfig | None = None
    """The tower that reads pictures and how they are cut for it (docs/vision.md); None: a model of text alone."""

    @model_validator(mode="before")
    @classmethod
    def _derive(cls, data: Any) -> Any:
        """Fill in the layer pattern and the alphas, so that a written configuration says them."""
        if not isinstance(data, dict):
            return data
        data = dict(data)
        layers = data.get("num_hidden_layers", cls.model_fields["num_hidden_layers"].default)
        if not isinstance(layers, int) or not 1 <= layers <= _MAX_LAYERS:
            return data
        if not data.get("layer_types"):
            data["layer_types"] = tuple(
                "full_attention" if (i + 1) % 8 == 0 else "linear_attention" for i in range(layers)
            )
        if data.get("qk_rope_head_dim") is not None:
            data.setdefault("rotary_dim", data["qk_rope_head_dim"])
        experts = data.get("num_local_experts", cls.model_fields["num_local_experts"].default)
        mlps, usual = data.get("mlp_types"), "experts" if experts else "dense"
        if isinstance(mlps, list | tuple) and len(mlps) == layers == mlps.count(usual):
            data["mlp_types"] = ()  # one way to say one thing
        if data.get("router") == "sigmoid_groups" and data.get("router_aux_loss_coef") is None:
            data["router_aux_loss_coef"] = 0.0  # its bias balances the load
        alpha = (2 * layers) ** 0.25 if data.get("postnorm", True) else 1.0
        for name in ("full_attn_alpha_factor", "linear_attn_alpha_factor", "mlp_alpha_factor"):
            if data.get(name) is None:
                data[name] = alpha
        return data

    @field_validator("rope_scaling", mode="before")
    @classmethod
    def _null(cls, value: Any) -> Any:
        """``null``, as other projects write it, is no scaling."""
        return RopeScaling() if value is None else value

    @field_validator("rotary_dim", "lightning_rotary_dim")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2:
            raise ValueError("must be even, since RoPE turns pairs of dims")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        problems = []
        if len(self.layer_types) != self.num_hidden_layers:
            problems.append(
                f"layer_types has {len(self.layer_types)} entries and num_hidden_layers is {self.num_hidden_layers}; "
                "give one entry a layer, or leave layer_types out"
            )
        every = self.with_nextn()
        windowed = "sliding_attention" in every.layer_types
        if windowed != (self.sliding_window is not None):
            problems.append(
                "layer_types has sliding_attention, and sliding_window is missing; say how many keys a token sees"
                if windowed
                else f"sliding_window is {self.sliding_window}, and no layer is of type sliding_attention; leave it "
                "out, or say in layer_types which layers have the window"
            )
        if "cosformer2_attention" in every.layer_types and self.head_dim % 2:
            problems.append(f"head_dim ({self.head_dim}) must be even, since cosformer2_attention turns pairs of dims")
        problems += self._mlp_problems() + block_problems(self) + self._nextn_problems()
        problems += latent_problems(self) + option_problems(self)
        if self.vision is not None:
            problems += self.vision.problems_with(self.vocab_size, self.num_nextn_predict_layers)
        room = self.postnorm and self.num_hidden_layers > 1 and self.hidden_size > 3
        if self.initialization == "induction" and not room:
            problems.append(
                'initialization = "induction" lays its circuit through two layers with DeepNorm residuals, in halves '
                "of the hidden size; set postnorm = true, num_hidden_layers to 2 or more and hidden_size to 4 or more, "
                'or take initialization = "xavier"'
            )
        if self.num_attention_heads % self.num_key_value_heads:
            problems.append(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of num_key_value_heads "
                f"({self.num_key_value_heads})"
            )
        if self.rotary_dim > self.head_dim and not set(self.layer_types).isdisjoint(_ROTARY):
            problems.append(f"rotary_dim ({self.rotary_dim}) must not exceed head_dim ({self.head_dim})")
        if self.num_local_experts and self.num_experts_per_tok > self.num_local_experts:
            problems.append(
                f"num_experts_per_tok ({self.num_experts_per_tok}) must not exceed num_local_experts "
                f"({self.num_local_experts})"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _mlp_problems(self) -> list[str]:
        kinds, problems = self.mlp_types, []
        if kinds and len(kinds) != self.num_hidden_layers:
            problems.append(
                f"mlp_types has {len(kinds)} entries and num_hidden_layers is {self.num_hidden_layers}; give one entry "
                "a layer, or leave mlp_types out"
            )
        if kinds and "experts" not in kinds:
            problems.append(
                f"mlp_types has no layer with experts, and num_local_experts is {self.num_local_experts}; set it to 0"
            )
        if "experts" in kinds and not self.num_local_experts:
            problems.append("mlp_types has layers with experts, and num_local_experts is 0; say how many there are")
        somewhere = "dense" in kinds or self.nextn_mlp_type == "dense"
        if self.dense_intermediate_size is not None and self.num_local_experts and not somewhere:
            problems.append(
                f"dense_intermediate_size is {self.dense_intermediate_size}, and no layer has a dense feed-forward; "
                "leave it out, or say in mlp_types which layers have one"
            )
        if not self.shared_expert_gate and not self.shared_intermediate_size:
            problems.append(
                "shared_expert_gate is false, and there is no shared expert; leave it out, or say its width, "
                "shared_intermediate_size"
            )
        return problems + router_problems(self)

    def _nextn_problems(self) -> list[str]:
        said = [name for name in ("nextn_layer_type", "nextn_mlp_type") if getattr(self, name) is not None]
        if said and not self.num_nextn_predict_layers:
            return [
                f"{' and '.join(said)} of the modules for multi-token prediction, of which there are none; say how "
                "many in num_nextn_predict_layers, or leave it out"
            ]
        if self.num_nextn_predict_layers and self.logits_scaling != 1:
            return [
                f"num_nextn_predict_layers is {self.num_nextn_predict_layers} and logits_scaling "
                f"{self.logits_scaling}, which no published model has together; leave one of them out"
            ]
        if self.nextn_mlp_type == "experts" and not self.num_local_experts:
            return ["nextn_mlp_type is experts, and num_local_experts is 0; say how many there are"]
        return []

    @property
    def rope(self) -> Rope:
        """The base and the scaling of RoPE."""
        return Rope(self.rope_theta, self.rope_scaling)

    def with_rope(self, rope: Rope) -> "ModelConfig":
        """This shape with another base and scaling."""
        return self.model_copy(update={"rope_theta": rope.theta, "rope_scaling": rope.scaling})

    def norms_of_layer(self) -> tuple[str, ...]:
        """The names of a layer's norms over the hidden size."""
        if self.norm_placement == "after":
            return "post_attention_layernorm", "post_feedforward_layernorm"
        return ("input_layernorm",) if self.parallel_block else ("input_layernorm", "post_attention_layernorm")

    def mlp_kinds(self) -> tuple[MlpType, ...]:
        """The kind of feed-forward of each layer."""
        return self.mlp_types or ("experts" if self.num_local_experts else "dense",) * self.num_hidden_layers

    def nextn_kind(self) -> LayerKind:
        """The kinds of mixer and feed-forward of the modules for multi-token prediction."""
        return self.nextn_layer_type or self.layer_types[-1], self.nextn_mlp_type or self.mlp_kinds()[-1]

    def with_nextn(self) -> "ModelConfig":
        """This shape with the layers of the modules for multi-token prediction behind its own, as if they were more.

        It has no such modules itself; without any, it is the shape.
        """
        more = self.num_nextn_predict_layers
        if not more:
            return self
        mixer, mlp = self.nextn_kind()
        return self.model_copy(
            update={
                "num_hidden_layers": self.num_hidden_layers + more,
                "layer_types": self.layer_types + (mixer,) * more,
                "mlp_types": self.mlp_kinds() + (mlp,) * more,
                "num_nextn_predict_layers": 0,
                "nextn_layer_type": None,
                "nextn_mlp_type": None,
            }
        )

    def layer_kinds(self) -> tuple[LayerKind, ...]:
        """The kinds of mixer and feed-forward of each layer."""
        return tuple(zip(self.layer_types, self.mlp_kinds(), strict=True))

    def expert_layers(self, layers: range | None = None) -> list[int]:
        """Those of ``layers``, or of all, that have experts."""
        kinds = self.mlp_kinds()
        layers = range(self.num_hidden_layers) if layers is None else layers
        return [index for index in layers if kinds[index] == "experts"]

    @property
    def dense_width(self) -> int:
        """Hidden width of a dense feed-forward."""
        return self.dense_intermediate_size or self.intermediate_size

    def residual(self, part: str) -> tuple[float, float]:
        """The residual factors (alpha, beta) of ``part``: ``"linear_attn"``, ``"full_attn"`` or ``"mlp"``."""
        alpha, beta = getattr(self, f"{part}_alpha_factor"), getattr(self, f"{part}_beta_factor")
        assert alpha is not None, "filled in by ModelConfig._derive"
        return alpha, beta
