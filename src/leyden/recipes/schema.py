"""What a recipe says: the model, the data, and an ordered list of stages."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from leyden.align.chats.batches import Normalise
from leyden.align.preference import PreferenceSettings
from leyden.align.reward_models import RewardModelSettings
from leyden.align.rollouts.settings import RolloutSettings
from leyden.checkpoint.starting_model import NewRows
from leyden.core.config import Config
from leyden.core.errors import UserError, suggest
from leyden.data.loader.mixture_schedule import MixtureSchedule
from leyden.model import ModelConfig, RopeScaling, preset
from leyden.parallel import ParallelConfig
from leyden.recipes.adapters import check_lora
from leyden.recipes.filling import FillingSettings
from leyden.recipes.fp8 import check_fp8
from leyden.recipes.multi_token import MultiTokenSettings, check_multi_token
from leyden.recipes.objectives import OBJECTIVES, ON_PROMPTS, check_rows, check_stage
from leyden.recipes.routers import check_biases
from leyden.recipes.sections import DataSection, EvaluateSection, TokenizerSection
from leyden.serve.config import EngineConfig
from leyden.train import BatchSchedule, LearningRate, RunSettings


class TrainingStage(LearningRate, PreferenceSettings, RewardModelSettings, MultiTokenSettings, FillingSettings):
    """One stretch of training with one objective, one length and one learning rate, whose keys are among its own, as
    are those of a loss over pairs, of reward models, of multi-token prediction and of fill-in-the-middle."""

    name: str = Field(min_length=1)
    objective: str
    """A name in :data:`leyden.recipes.objectives.OBJECTIVES`."""
    tokens: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=1)
    minutes: float | None = Field(default=None, gt=0)
    epochs: float | None = Field(default=None, gt=0)
    """The length: ``tokens``, ``steps``, or ``minutes``, which a measurement before the first step turns into steps, or
    ``epochs``, how often the stage's data or prompts are gone through (the resolved recipe then says both)."""

    seq_len: int = Field(default=2048, ge=1)
    batch_tokens: int | tuple[tuple[int, int], ...] = 8192
    """Tokens of one optimizer step; a multiple of ``micro_batch_tokens``, or no larger than it. Several pairs
    [tokens, size]: the size of the steps that begin after so many tokens of the stage."""
    batch: Literal["stated", "critical"] = "stated"
    """``critical``: the batch begins as ``batch_tokens`` says, and doubles wherever the critical batch, fitted to the
    noise scale that the run measures, allows it. The stage has the same tokens."""
    max_batch_tokens: int | None = Field(default=None, ge=1)
    """The critical batch never makes it larger; None: there is no other limit."""
    lr_changes: tuple[tuple[int, float], ...] = ()
    """Pairs [tokens, rate]: the peak rate of the steps that begin after so many tokens of the stage, in place of
    ``lr``."""
    decay_tokens: int | None = Field(default=None, ge=1)
    """Tokens at the end of the stage in which the rate decays; None: ``decay_share`` of the steps."""
    micro_batch_tokens: int = Field(default=8192, ge=1)
    """Tokens that go through the model at once; bounds memory."""
    packing: Literal["concatenate", "best_fit"] = "concatenate"
    """``concatenate`` cuts a document where a sequence ends; ``best_fit`` cuts none that fits."""
    normalise: Normalise = "tokens"
    """What counts alike in the loss on chats: each token to learn, or each chat, by the mean over its tokens."""
    mixture: MixtureSchedule | None = None
    """Weights of the groups of tokens, over the steps; packed by best fit. None: each as many as it has."""
    rope_theta: float | None = Field(default=None, gt=1)
    """The RoPE base from this stage on; None keeps it."""
    rope_scaling: RopeScaling | None = None
    """How RoPE is stretched from this stage on, by position interpolation or YaRN; None keeps what was."""
    data: DataSection | None = None
    """Documents of the stage's own, a table of the keys of ``[data]``. None: those of the run."""
    rl: RolloutSettings | None = None
    """Of reinforcement learning, a table: prompts, rewards and the algorithm."""

    @model_validator(mode="before")
    @classmethod
    def _rows_of_completions(cls, given: Any) -> Any:
        """The completions of a step are as many tokens as they are, in as many micro-batches as that takes."""
        if not isinstance(given, dict) or given.get("objective") not in ON_PROMPTS:
            return given
        return {**given, "batch_tokens": given.get("batch_tokens", given.get("micro_batch_tokens", 8192))}

    @field_validator("batch_tokens", mode="before")
    @classmethod
    def _sizes(cls, given: Any) -> Any:
        pairs = given if isinstance(given, list | tuple) else [(0, given)]
        if not all(isinstance(pair, list | tuple) and len(pair) == 2 and _whole(*pair) and pair[1] for pair in pairs):
            raise ValueError("must be a number of tokens, or pairs [tokens, number]: [[0, 65536], [1e9, 131072]]")
        marks = tuple((int(at), int(size)) for at, size in pairs)
        return marks if pairs is given else marks[0][1]

    @field_validator("objective")
    @classmethod
    def _known(cls, objective: str) -> str:
        if objective not in OBJECTIVES:
            known = " or ".join(f"'{name}'" for name in OBJECTIVES)
            raise ValueError(f"must be {known}{suggest(objective, OBJECTIVES)}")
        return objective

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        given = [name for name in ("tokens", "steps", "minutes", "epochs") if getattr(self, name) is not None]
        if not given:
            raise ValueError(f"stage '{self.name}' has no length; give it steps, tokens, minutes or epochs")
        if len(given) > 1 and given not in (["steps", "minutes"], ["steps", "epochs"]):  # as a run settles them
            raise ValueError(
                f"stage '{self.name}' has two lengths; give it steps, tokens, minutes or epochs, not several"
            )
        if self.epochs is not None and self.mixture is not None and self.mixture.has_shares_of_the_stage:
            raise ValueError(
                f"{self._owner}its mixture has marks that are shares of its length, and epochs follow from what is "
                "mixed; give it steps or tokens"
            )
        with _said_of(self):
            micro_batch = self.batch_schedule.micro_batch_tokens
        if self.decay_tokens is not None and self.decay_share != LearningRate().decay_share:
            raise ValueError(f"{self._owner}a decay has one length: decay_tokens or decay_share, not both")
        marks = [mark for mark, _ in self.lr_changes]
        if marks != sorted(set(marks)) or any(mark < 1 or rate <= 0 for mark, rate in self.lr_changes):
            raise ValueError(
                f"{self._owner}lr_changes are pairs of tokens, that rise, and a rate above 0: [[1e9, 1e-4]]; given "
                f"{[list(pair) for pair in self.lr_changes]}"
            )
        if self.lr_changes and self.final_lr is not None and self.final_lr > self.lr_changes[-1][1]:
            raise ValueError(
                f"{self._owner}final_lr ({self.final_lr}) must not exceed the last of lr_changes "
                f"({self.lr_changes[-1][1]})"
            )
        if micro_batch % self.seq_len:
            raise ValueError(
                f"{self._owner}the {micro_batch} tokens that go through the model at once (the smaller of "
                f"batch_tokens and micro_batch_tokens) must be a multiple of seq_len ({self.seq_len})"
            )
        self._check_growth()
        with _said_of(self):
            check_stage(self)
        return self

    @property
    def rollouts(self) -> RolloutSettings:
        """The table of a stage of reinforcement learning."""
        assert self.rl is not None, "only such a stage is asked for it, and it has one"
        return self.rl

    @property
    def _owner(self) -> str:
        return f"stage '{self.name}': "

    def _check_growth(self) -> None:
        """Refuse a batch that is to grow and cannot."""
        if self.batch == "stated" and self.max_batch_tokens is not None:
            raise ValueError(f"{self._owner}max_batch_tokens is the limit of batch = 'critical'; leave it out")
        if self.batch == "stated":
            return
        if not isinstance(self.batch_tokens, int):
            raise ValueError(
                f"{self._owner}with batch = 'critical' the run decides where the batch doubles, and batch_tokens says "
                f"it too: {[list(mark) for mark in self.batch_tokens]}; give the first size alone, or leave batch out"
            )
        if self.batch_tokens == self.micro_batch:
            raise ValueError(
                f"{self._owner}batch = 'critical' compares the gradients of a step's micro-batches, and the first "
                "steps have one; lower micro_batch_tokens, or raise batch_tokens"
            )
        if self.max_batch_tokens is not None and self.max_batch_tokens < 2 * self.batch_tokens:
            raise ValueError(
                f"{self._owner}a batch of {self.batch_tokens} tokens cannot double within max_batch_tokens "
                f"({self.max_batch_tokens}); give at least {2 * self.batch_tokens}, or leave batch out"
            )

    @property
    def max_batch_factor(self) -> int:
        """How many times the stated batch the critical one may make it; 1: it never grows."""
        if self.batch == "stated":
            return 1
        if self.max_batch_tokens is None:
            return self.total_steps or 1
        return self.max_batch_tokens // self.batch_schedule.tokens_at(0)

    @property
    def batch_schedule(self) -> BatchSchedule:
        """The batch size of every step, as it is stated."""
        return BatchSchedule.of(self.batch_tokens, self.micro_batch_tokens)

    def peak_at(self, step: int) -> float:
        """The rate of ``step`` without warm-up and decay."""
        if not self.lr_changes:
            return self.lr
        tokens = self.batch_schedule.tokens_before(step)
        return next((rate for mark, rate in reversed(self.lr_changes) if mark <= tokens), self.lr)

    def decay_steps(self, total_steps: int) -> int:
        """How many of ``total_steps`` the rate is to decay in, at their end."""
        if self.decay_tokens is None:
            return super().decay_steps(total_steps)
        before = max(0, self.batch_schedule.tokens_before(total_steps) - self.decay_tokens)
        return total_steps - self.batch_schedule.steps_for(before)

    @property
    def micro_batch(self) -> int:
        """Tokens of one micro-batch."""
        return self.batch_schedule.micro_batch_tokens

    @property
    def total_steps(self) -> int | None:
        """Optimizer steps; None while they are still to be measured."""
        if self.tokens is not None:
            return self.batch_schedule.steps_for(self.tokens)
        return self.steps


_BESIDE_SHAPE = {"from": "starts_from", "new_rows": "new_rows"}
"""Keys of ``[model]`` that are no part of its shape, and our names for them."""


class Recipe(Config):
    """A run: model, tokenizer, data and stages.

    ``[model] from`` and ``new_rows`` stand beside the shape in a file and are fields of their own here.
    """

    model: ModelConfig
    starts_from: str | None = Field(default=None, exclude=True)
    """The model that the run begins with the weights of: a directory, a run, a checkpoint or a hub id. None: initial
    weights."""
    new_rows: NewRows = Field(default="mean", exclude=True)
    """What the rows of tokens begin as that the model has not had."""
    tokenizer: TokenizerSection = TokenizerSection()
    data: DataSection = DataSection()
    train: RunSettings = RunSettings()
    stage: tuple[TrainingStage, ...] = Field(min_length=1)
    evaluate: EvaluateSection = EvaluateSection()
    parallel: ParallelConfig = ParallelConfig()
    serve: EngineConfig = EngineConfig()
    """How ``leyden serve`` serves the run's models, unless its options say otherwise."""

    @model_validator(mode="before")
    @classmethod
    def _take_from(cls, data: Any) -> Any:
        """What ``model`` says of another model as fields of the recipe."""
        for key, name in _BESIDE_SHAPE.items():
            if isinstance(data, dict) and name in data:
                raise ValueError(f"unknown key '{name}'; of the model that a run begins from, [model] {key} says it")
        model = data.get("model") if isinstance(data, dict) else None
        if not isinstance(model, dict):
            return data
        if "new_rows" in model and "from" not in model:
            raise ValueError("model.new_rows is for a model that the run begins from; give model.from, or leave it out")
        shape = {key: value for key, value in model.items() if key not in _BESIDE_SHAPE}
        if _some_stage_scores(data.get("stage")):
            shape["score_head"] = True
        return {**data, "model": shape, **{name: model[key] for key, name in _BESIDE_SHAPE.items() if key in model}}

    @model_serializer(mode="wrap")
    def _give_from(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The inverse of :meth:`_take_from`."""
        data = handler(self)
        if self.starts_from is not None and "model" in data:
            data["model"] = {"from": self.starts_from, "new_rows": self.new_rows, **data["model"]}
        return data

    @field_validator("stage")
    @classmethod
    def _distinct(cls, stages: tuple[TrainingStage, ...]) -> tuple[TrainingStage, ...]:
        names = [stage.name for stage in stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stages must have different names; given {', '.join(names)}")
        return stages

    @property
    def reads_data(self) -> bool:
        """Whether the run reads data beside those of its stages: some stage has none of its own, ``[data]`` says
        something, a task asks about what is held out of them, or the tokenizer is trained on them."""
        reading = [stage for stage in self.stage if stage.objective not in ON_PROMPTS]
        wanted = self.data != DataSection() or any(task.held_out for task in self.evaluate.task)
        return bool(reading) and (
            wanted or not self._tokenizer_is_there or any(stage.data is None for stage in reading)
        )

    @property
    def _tokenizer_is_there(self) -> bool:
        return self.tokenizer.path is not None or self.starts_from is not None

    @model_validator(mode="after")
    def _data_fits(self) -> Self:
        if not self._tokenizer_is_there and all(stage.objective in ON_PROMPTS for stage in self.stage):
            raise ValueError(
                "reinforcement learning trains no tokenizer: begin from a model (model.from), or name a tokenizer "
                "(tokenizer.path)"
            )
        for stage in self.stage:
            if stage.objective in ON_PROMPTS:
                continue
            data = stage.data or self.data
            with _said_of(stage):
                check_rows(stage, data)
            trains_tokenizer = self.data.build is None and not self._tokenizer_is_there
            if data.rows is not None and data is self.data and trains_tokenizer:
                raise ValueError(
                    f"[data] {data.rows} train no tokenizer: begin from a model (model.from), or name a tokenizer "
                    "(tokenizer.path)"
                )
            if stage.data is not None and (data.build is not None or data.tokens) and trains_tokenizer:
                raise ValueError(
                    f"stage '{stage.name}': its data have a tokenizer that made them, and this run would train another "
                    "on its text; name that one by tokenizer.path"
                )
            groups = data.groups
            named = set() if stage.mixture is None or data.build is not None else set(stage.mixture.sources) - groups
            if named:
                raise ValueError(
                    f"stage '{stage.name}': its mixture names {', '.join(sorted(named))}, and the groups of its data "
                    f"are {', '.join(sorted(groups))}"
                )
        return self

    @model_validator(mode="after")
    def _noise_can_be_measured(self) -> Self:
        growing = [stage.name for stage in self.stage if stage.batch == "critical"]
        if growing and not self.train.noise_scale_steps:
            raise ValueError(
                f"stage '{growing[0]}': batch = 'critical' decides by the noise scale, which is not measured; give "
                "train.noise_scale_steps = 10, say"
            )
        if not self.train.noise_scale_steps:
            return self
        if self.parallel.pp > 1:
            raise ValueError(
                f"train.noise_scale_steps compares the gradients of micro-batches, which share theirs in a pipeline "
                f"(parallel.pp = {self.parallel.pp}); set it to 0, or pp to 1"
            )
        if all(stage.batch_schedule.most_micro_batches == 1 for stage in self.stage):
            raise ValueError(
                "train.noise_scale_steps compares the gradients of a step's micro-batches, and no stage has more than "
                "one; lower micro_batch_tokens, or raise batch_tokens"
            )
        return self

    @model_validator(mode="after")
    def _lora_fits(self) -> Self:
        check_biases(self.model, self.stage, frozen=self.train.lora is not None)
        if self.train.lora is not None:
            check_lora(self.starts_from, self.stage)
        return self

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_multi_token(self)
        check_fp8(self)
        longest = max(stage.seq_len for stage in self.stage)
        if longest > self.model.max_position_embeddings:
            raise ValueError(
                f"a stage's seq_len ({longest}) exceeds the model's max_position_embeddings "
                f"({self.model.max_position_embeddings}); say model.max_position_embeddings = {longest} to give the "
                "model more positions, most often with a larger rope_theta or with rope_scaling; or shorten seq_len"
            )
        return self


def _some_stage_scores(stages: Any) -> bool:
    """Whether some stage, as it is given, trains a score head."""
    given = stages if isinstance(stages, list | tuple) else ()
    names = [stage.get("objective") if isinstance(stage, dict) else None for stage in given]
    return any(isinstance(name, str) and name in OBJECTIVES and OBJECTIVES[name].scores for name in names)


@contextmanager
def _said_of(stage: TrainingStage) -> Iterator[None]:
    """What is wrong inside is said with the stage's name."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"stage '{stage.name}': {error}") from None


def _whole(*given: Any) -> bool:
    return all(isinstance(x, int | float) and not isinstance(x, bool) and x >= 0 and x == x // 1 for x in given)


def model_section(section: Any, vocab_size: int | None) -> dict[str, Any]:
    """The ``[model]`` table with its preset written out; the vocabulary is the tokenizer's where it is not said.

    Args:
        section: as it was read.
        vocab_size: the tokenizer's; None where the section says its own, and the tokenizer is not known.

    Raises:
        UserError: an unknown preset or field, a shape that cannot be, or too small a vocabulary.
    """
    if not isinstance(section, dict):
        raise UserError(f"[model] must be a table; given {section!r}.")
    fields = {key: value for key, value in section.items() if key not in _BESIDE_SHAPE}
    known = {} if vocab_size is None else {"vocab_size": vocab_size}
    config = preset(fields.pop("preset", "tiny"), **known | fields)
    if vocab_size is not None and config.vocab_size < vocab_size:
        raise UserError(
            f"model.vocab_size ({config.vocab_size}) is smaller than the tokenizer's vocabulary ({vocab_size}); leave "
            "model.vocab_size out, or make it that large."
        )
    return config.model_dump() | {key: section[key] for key in _BESIDE_SHAPE if key in section}
