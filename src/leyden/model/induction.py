"""Initial weights with which a model finds again what it has read: an induction circuit, roughly drawn.

A small model reads a million tokens before it finds out that a token which it has met before tells what comes next.
With Xavier's initial weights nothing hints at it: the token before cannot be read off linearly where a softmax layer
reads, since embeddings fill all dims, and the slow heads of lightning attention drown the fast ones in their common
norm. Here the circuit of Olsson et al. ("In-context Learning and Induction Heads", 2022) is there from the start,
blurred, for training to sharpen or to undo. The idea, weights that imitate trained ones, is that of Trockman and Kolter
("Mimetic Initialization of Self-Attention Layers", arXiv 2305.09828; for recurrent layers arXiv 2410.11135).

- The residual stream has two halves. Token embeddings fill the first, whose last dim is the same for all tokens. The
  output projection reads the same.
- The mixer of the first layer writes into the second half which tokens came just before: its queries and keys read the
  constant alone, so that only distance counts, and its values read the token. Fast heads count most.
- A softmax layer can tell distances by RoPE. As the first, each of its heads attends to one token before, as far back
  as :data:`_DISTANCES` says, and writes it into its own part of the second half. Softmax layers behind it compare
  exactly: one head looks for this token, others for two of those before, each at its distance. A few dims tell tokens
  apart, so that all tokens are equally long in every :data:`_BLOCK` of them: no token matches another better than
  itself. An output projection of its own reads tokens turned, and all that is looked up is written turned, so that none
  foretells itself.
- Where tokens are looked up (softmax layers behind the first layer; without one, the last layer) keys read the second
  half, less what the token itself has written there, and so tell what came before. In even heads queries read the
  token, in odd heads their own second half: what followed this token, and what followed this context. Values and
  outputs copy. Dims that turn by RoPE have no part in it, where there are others.
- All other layers begin with :data:`QUIET` of the usual output.

Everything follows from the seed, name by name, on any number of ranks.
"""

import itertools
import math
from collections.abc import Callable

import torch

from leyden.model.config import ModelConfig
from leyden.ops import lightning_slopes

QUIET = 0.3
"""The outputs of layers that are not part of the circuit, in units of the usual initial ones."""
_CONSTANT = 0.5
"""The constant dim, in units of the norm of the dims that tell tokens apart."""
_NOISE = 0.2
"""Of the usual initial weights, what is added to the circuit's, so that no two heads stay alike."""
_OWN = 0.5
"""Of what a token itself has written into the second half, the share that keys leave out."""
_LOOKING_SCORE = 16.0
"""The score of a query with the key that it looks for."""
_DISTANCES = (1, 2, 4, 5, 3)
"""How far before a token the heads of a softmax layer attend that is the first; further heads go on from there."""
_PLACE_SCORE = 256.0
"""The score of the token at that distance: so high that it outweighs a hundred thousand others."""
_SLOWER = 0.7
"""Of that score, what each pair of RoPE gives in units of the next faster one: fast pairs tell neighbours apart, slow
ones what is far."""
_CONTEXT_SCORE = 64.0
"""The score of the same tokens before, where they are kept apart by their distance."""
_BLOCK = 4
"""Dims in which the embeddings of all tokens are equally long there."""
_EMBEDDING_SCALE = 32.0
"""Of embeddings there, whose size no layer sees: the first steps of Adam would wipe smaller ones out, and the circuit
with them."""
_OUTPUT_SCALE = 16.0
"""Of an output projection of its own there: what was looked up outweighs what is frequent. The first steps of Adam move
the rows of all rare tokens alike, and would drown smaller ones."""
_SOFTMAX = ("full_attention", "sliding_attention")

Draw = Callable[[str, tuple[int, ...]], torch.Tensor]
"""A name and a shape to standard normal numbers that follow from the seed and the name."""


def induction_weight(name: str, usual: torch.Tensor, config: ModelConfig, draw: Draw) -> torch.Tensor:
    """What the weight ``name`` begins with.

    Args:
        name: as in ``model.named_parameters()``.
        usual: its value by Xavier and DeepNorm, whole; of stacked experts, some or all.
        config: of the model, with DeepNorm residuals.
        draw: gives random numbers by name.

    Returns:
        A float32 tensor of the shape of ``usual``, which may be ``usual``.
    """
    if usual.ndim < 2:
        return usual
    if name in ("embed_tokens.weight", "lm_head.weight"):
        made = _embeddings(usual.shape, config, draw)
        if name == "embed_tokens.weight" and _by_place(config):
            made *= _EMBEDDING_SCALE
        if name == "lm_head.weight" and _by_place(config):
            made *= _OUTPUT_SCALE
            made[:, : config.hidden_size // 2 - 1] @= _turn(config, draw).mT
        return made
    if not name.startswith("layers."):
        return usual
    layer, part = name.removesuffix(".weight").removeprefix("layers.").split(".", 1)
    if not part.startswith("self_attn."):
        return usual * QUIET if part.endswith("down_proj") else usual
    local, index = part.removeprefix("self_attn."), int(layer)
    if index == 0:
        return _WritingMixer(config, draw).weight(local, usual)
    if index in looking_layers(config):
        return _LookingMixer(config, draw, index).weight(local, usual)
    return usual * QUIET if local in ("o_proj", "out_proj") else usual


def _by_place(config: ModelConfig) -> bool:
    """Whether the first layer keeps the tokens before apart by their distance."""
    return config.layer_types[0] in _SOFTMAX and config.rotary_dim > 0


def _turn(config: ModelConfig, draw: Draw) -> torch.Tensor:
    """[tokens, tokens], orthogonal: from a token that is read to the same token as it is foretold.

    Of an output projection of its own, so that no token foretells itself; a tied one knows no difference.
    """
    tokens = config.hidden_size // 2 - 1
    if config.tie_word_embeddings:
        return torch.eye(tokens)
    return torch.linalg.qr(draw("induction.turn", (tokens, tokens)).double())[0].float()


def looking_layers(config: ModelConfig) -> list[int]:
    """Softmax layers behind the first layer; without one, the last layer."""
    found = [index for index, kind in enumerate(config.layer_types) if kind == "full_attention" and index > 0]
    return found or [config.num_hidden_layers - 1]


def _embeddings(shape: torch.Size, config: ModelConfig, draw: Draw) -> torch.Tensor:
    """[vocab, D] of Xavier's mean square: of tokens, then a constant, then zeros."""
    rows, D = shape
    tokens = D // 2 - 1
    made = torch.zeros(rows, D)
    drawn = draw("embed_tokens", (rows, tokens))
    if _by_place(config):
        drawn = torch.cat([_unit(block) * math.sqrt(block.shape[1]) for block in drawn.split(_BLOCK, dim=1)], dim=1)
    made[:, :tokens] = drawn / math.sqrt(tokens)
    made[:, tokens] = _CONSTANT
    return made * math.sqrt(2 * D / (rows + D)) / math.sqrt(1 + _CONSTANT**2)


class _Mixer:
    """A mixer that is part of the circuit: what it reads and writes."""

    def __init__(self, config: ModelConfig, draw: Draw, layer: int) -> None:
        self.config, self.draw, self.layer, self.kind = config, draw, layer, config.layer_types[layer]
        self.D, self.H, self.K = config.hidden_size, config.num_attention_heads, config.head_dim
        self.half, self.tokens = self.D // 2, self.D // 2 - 1
        self.constant = math.sqrt(self.D) * _CONSTANT / math.sqrt(1 + _CONSTANT**2)
        """What the constant dim is behind a norm."""

    @property
    def by_place(self) -> bool:
        """Whether the first layer keeps the tokens before apart by their distance."""
        return _by_place(self.config)

    @property
    def width(self) -> int:
        """Dims of the second half in which each head of the first layer writes, by place."""
        return max(1, min(self.K, (self.D - self.half) // self.H))

    def distances(self) -> list[int]:
        """How far before a token each head of the first layer attends, by place."""
        known = list(_DISTANCES[: self.H])
        return known + list(range(len(_DISTANCES) + 1, self.H + 1))

    def region(self, distance: int) -> slice:
        """Where the token so far before stands in the residual stream, by place."""
        begin = self.half + self.distances().index(distance) * self.width
        return slice(begin, begin + self.width)

    def readings(self) -> torch.Tensor:
        """[H, K, tokens]: rows of norm 1, the directions that the values of each head of the first layer read.

        Heads of softmax attention read the same, so that a token looks alike at every distance; by place, whole blocks
        of its dims in an order that is drawn.
        """
        if self.by_place:
            order = self.draw("induction.readings", (self.tokens // _BLOCK,)).argsort()
            dims = (order[:, None] * _BLOCK + torch.arange(_BLOCK)).flatten()[: self.K]
            read = torch.nn.functional.one_hot(dims, self.tokens).float()
            return torch.nn.functional.pad(read, (0, 0, 0, self.K - len(dims))).repeat(self.H, 1, 1)
        shared = 1 if self.config.layer_types[0] in _SOFTMAX else self.H
        drawn = self.draw("induction.readings", (shared, self.K, self.tokens))
        rows = torch.linalg.qr(drawn.double().mT)[0].mT.float() if self.tokens >= self.K else _unit(drawn)
        return rows.repeat_interleave(self.H // shared, dim=0)

    def strengths(self) -> torch.Tensor:
        """[H] of the first layer's heads: the shorter their memory, the stronger."""
        if self.config.layer_types[0] in _SOFTMAX:
            return torch.ones(self.H)
        forgotten = 1 - self.decays()
        others = torch.cat([torch.ones(1), torch.full((self.H - 1,), 0.5)])
        return others * (forgotten / forgotten[0]).clamp_min(1 / 256)

    def decays(self) -> torch.Tensor:
        """[H]: what a head of the first layer, one of linear attention, keeps from token to token."""
        if self.config.layer_types[0] == "linear_attention":
            return torch.exp(-lightning_slopes(self.H, 0, self.config.num_hidden_layers))
        return 1 - 0.5 ** (1 + torch.arange(self.H).clamp_max(8).float())

    def values(self) -> torch.Tensor:
        """[H, K, D]: what the first layer's values read."""
        made = torch.zeros(self.H, self.K, self.D)
        made[:, :, : self.tokens] = self.readings() * self.strengths()[:, None, None]
        return made

    def places(self) -> torch.Tensor:
        """[H K]: where in the second half each value of the first layer is written."""
        return torch.arange(self.H * self.K) % (self.D - self.half)

    def code(self) -> torch.Tensor:
        """[D - half, tokens]: what a token is written as in the second half, up to a factor."""
        code = torch.zeros(self.D - self.half, self.tokens)
        return code.index_add_(0, self.places(), self.values()[:, :, : self.tokens].flatten(0, 1))


class _WritingMixer(_Mixer):
    """The mixer of the first layer: each head writes down the tokens that came before, as far back as it remembers."""

    def __init__(self, config: ModelConfig, draw: Draw) -> None:
        super().__init__(config, draw, 0)

    def weight(self, local: str, usual: torch.Tensor) -> torch.Tensor:
        """The weight ``local`` of the mixer, of the shape of ``usual``."""
        if local == "qkv_proj":
            rows = (usual * _NOISE).view(self.H, 3, self.K, self.D).clone()
            rows[:, :2, :, self.half - 1] += self._queries_keys()
            rows[:, 2] = self.values()
            return rows.view(usual.shape)
        if local in ("q_proj", "k_proj"):
            return self._by_distance(local, usual * _NOISE)
        if local == "v_proj":
            return self.values()[:: self.H // self.config.num_key_value_heads].flatten(0, 1)
        if local in ("o_proj", "out_proj"):
            return self._output(usual)
        return usual

    def _queries_keys(self) -> torch.Tensor:
        """[H, 2, K]: what queries and keys of linear attention read of the constant."""
        read = torch.full((self.H, 2, self.K), 2.0)
        if self.kind == "hgrn2_attention":  # keys are the gates' logits
            decays = self.decays()
            read[:, 1] = torch.log(decays / (1 - decays))[:, None]
        elif self.kind == "cosformer2_attention":  # queries are turned back by one token
            frequencies = 10_000.0 ** (-2 * torch.arange(self.K // 2) / (self.H * self.K))
            read[:, 0] = 2 * torch.cat([frequencies.cos(), frequencies.sin()])
            read[:, 1] = 2 * torch.cat([torch.ones(self.K // 2), torch.zeros(self.K - self.K // 2)])
        return read / self.constant

    def _by_distance(self, local: str, rows: torch.Tensor) -> torch.Tensor:
        """Queries or keys of softmax attention: each head attends to one distance, as far as RoPE tells."""
        pairs = self.config.rotary_dim // 2
        if not pairs:
            return rows
        rows = rows.view(-1, self.K, self.D).clone()
        shares = torch.tensor([_SLOWER**pair for pair in range(pairs)])
        size = torch.sqrt(shares / shares.sum() * _PLACE_SCORE * math.sqrt(self.K)) / self.constant
        angles = torch.zeros(len(rows), pairs)
        if local == "q_proj":  # turned back, so that the score is highest at that distance
            frequencies = self.config.rope.frequencies(self.config.rotary_dim).float()
            angles = -torch.tensor(self.distances(), dtype=torch.float32)[:, None] * frequencies
        rows[:, :pairs, self.half - 1] += size * angles.cos()
        rows[:, pairs : 2 * pairs, self.half - 1] += size * angles.sin()
        return rows.flatten(0, 1)

    def _output(self, usual: torch.Tensor) -> torch.Tensor:
        """[D, H K]: each value to its place, about as large as the residual beside it."""
        alpha, beta = self.config.residual("full_attn" if self.kind in _SOFTMAX else "linear_attn")
        gain = 2.5 if self.kind in ("linear_attention", "cosformer2_attention") else 1.25
        made = usual * _NOISE * QUIET
        if self.by_place:
            for head, distance in enumerate(self.distances()):
                columns = slice(head * self.K, head * self.K + self.width)
                made[self.region(distance), columns] += gain * alpha / beta * torch.eye(self.width)
            return made
        made[self.half + self.places(), torch.arange(self.H * self.K)] += gain * alpha / beta
        return made


class _LookingMixer(_Mixer):
    """A mixer that finds what followed the token, or the context, when it was met before."""

    def __init__(self, config: ModelConfig, draw: Draw, layer: int) -> None:
        super().__init__(config, draw, layer)
        softmax = self.kind in _SOFTMAX
        self.shared = config.num_key_value_heads if softmax else self.H
        self.turning = config.rotary_dim if softmax and config.rotary_dim < self.K else 0
        self.size = math.sqrt(_LOOKING_SCORE * math.sqrt(self.K) / (self.K - self.turning))

    def weight(self, local: str, usual: torch.Tensor) -> torch.Tensor:
        """The weight ``local`` of the mixer, of the shape of ``usual``."""
        if local == "qkv_proj":
            rows = (usual * _NOISE).view(self.H, 3, self.K, self.D).clone()
            rows[:, 0] += self._queries()
            rows[:, 1] += self._keys()
            rows[:, 2] = self._copies()
            return rows.view(usual.shape)
        if local == "q_proj":
            return usual * _NOISE + self._queries().flatten(0, 1)
        if local == "k_proj":
            return usual * _NOISE + self._keys().flatten(0, 1)
        if local == "v_proj":
            return self._copies().flatten(0, 1)
        if local in ("o_proj", "out_proj"):
            copied = self._copies().repeat_interleave(self.H // self.shared, dim=0).flatten(0, 1).mT
            if self.by_place:
                copied[: self.tokens] = _turn(self.config, self.draw) @ copied[: self.tokens]
            return usual * _NOISE + copied
        return usual

    def _directions(self) -> torch.Tensor:
        """[shared, K, D - half], of norm 1 or zero: of the second half, what keys read."""
        drawn = _unit(self.draw(f"induction.directions.{self.layer}", (self.shared, self.K, self.D - self.half)))
        drawn[:, : self.turning] = 0
        return drawn

    def _contexts(self) -> torch.Tensor:
        """[2, H, K, D]: queries and keys that compare tokens before one by one, by place.

        A head looks for one or two distances d of :meth:`distances`. Its keys read there what stood d before the key,
        and its queries what stood d - 1 before the query, which for d = 1 is the query's own token.
        """
        made = torch.zeros(2, self.H, self.K, self.D)
        known = [distance for distance in self.distances() if distance == 1 or distance - 1 in self.distances()]
        sought = [(1,), *itertools.combinations(known, 2)]
        for head in range(self.H):
            distances = sought[head // (self.H // self.shared) % len(sought)]
            each = max(1, min(self.width, (self.K - self.turning) // len(distances)))
            size = math.sqrt(_CONTEXT_SCORE * math.sqrt(self.K) / (each * len(distances)))
            for number, distance in enumerate(distances):
                rows = (self.turning + number * each + torch.arange(each)).clamp_max(self.K - 1)
                made[1, head, rows, self.region(distance).start + torch.arange(each)] = size
                if distance == 1:
                    made[0, head, rows, : self.tokens] = size * self.readings()[0, :each]
                else:
                    made[0, head, rows, self.region(distance - 1).start + torch.arange(each)] = size
        return made

    def _queries(self) -> torch.Tensor:
        """[H, K, D]."""
        if self.by_place:
            return self._contexts()[0]
        directions = self._directions().repeat_interleave(self.H // self.shared, dim=0)
        queries = torch.zeros(self.H, self.K, self.D)
        queries[0::2, :, : self.tokens] = _unit(directions @ self.code())[0::2]
        queries[1::2, :, self.half :] = directions[1::2]
        return queries * self.size

    def _keys(self) -> torch.Tensor:
        """[shared, K, D]."""
        if self.by_place:
            return self._contexts()[1, :: self.H // self.shared]
        keys, directions = torch.zeros(self.shared, self.K, self.D), self._directions()
        keys[:, :, self.half :] = directions
        if self.config.layer_types[0] not in _SOFTMAX:  # which leaves the token itself out
            keys[:, :, : self.tokens] = -_OWN * _unit(directions @ self.code())
        return keys * self.size

    def _copies(self) -> torch.Tensor:
        """[shared, K, D]: rows of norm 1 that read the token, and write it back."""
        values = torch.zeros(self.shared, self.K, self.D)
        drawn = self.draw(f"induction.values.{self.layer}", (self.shared, self.K, self.tokens))
        values[:, :, : self.tokens] = _unit(drawn)
        return values


def _unit(rows: torch.Tensor) -> torch.Tensor:
    """Each row by its norm; rows of zeros stay."""
    return rows / rows.norm(dim=-1, keepdim=True).clamp_min(1e-12)
