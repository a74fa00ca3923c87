"""What the training loop reads of a stage of reinforcement learning: rows of completions that its own model made.

A round draws completions with the weights as they are, and is learned from in one optimizer step or several. Nothing
that is drawn depends on what was drawn before, but through the weights: prompts and seeds follow from how many prompts
were asked before. A checkpoint between two rounds therefore holds that number alone; one within a round holds its rows
as well, since the weights that drew them are gone, and so does one between two rounds hold the rollouts that are set
aside (``round_tokens``).
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, cast

import numpy as np
import torch

from leyden.align.policy.advantages import advantages
from leyden.align.policy.shaping import overlong_is_worse, shorter_is_better
from leyden.align.rollouts.buffer import packed_text, unpacked
from leyden.align.rollouts.critic import Critic
from leyden.align.rollouts.drawing import Rollout, draw_round
from leyden.align.rollouts.environment import Environment
from leyden.align.rollouts.facts import round_ages, round_facts
from leyden.align.rollouts.prompts import Prompts
from leyden.align.rollouts.rows import pack, scored
from leyden.align.rollouts.sequences import micro_batches_of, share_of
from leyden.align.rollouts.settings import RolloutSettings
from leyden.align.rollouts.waiting import keep_log_probs, packed_waiting, unpacked_waiting
from leyden.checkpoint.starting_model import StartingModel
from leyden.core.errors import UserError
from leyden.core.log import logger, say
from leyden.data import Batch
from leyden.model import PAGE, HybridLM, Pools
from leyden.parallel.attachment import Attached
from leyden.parallel.reshard import Resharding
from leyden.serve import Engine
from leyden.serve.config import EngineConfig
from leyden.tokenizer import Tokenizer
from leyden.train import StepResult, TrainState
from leyden.train.metrics import StepLog
from leyden.train.observing import Finding
from leyden.train.whole import whole_model

_log = logger(__name__)


@dataclass(frozen=True)
class RoundShape:
    """How the rows of a stage are laid out.

    Attributes:
        seq_len: tokens of a sequence.
        micro_batch_tokens: of a micro-batch at most, a multiple of it.
        seed: of the prompts' order and of what is drawn.
        dtype: in which the model computes.
    """

    seq_len: int
    micro_batch_tokens: int
    seed: int
    dtype: torch.dtype = torch.float32


def round_fingerprint(prompts: Prompts, settings: RolloutSettings) -> str:
    """Of what the place in the data counts in, and of the weights of the teacher; with another, it is another place."""
    counts = (settings.prompts_per_step, settings.group_size, settings.updates, settings.mini_batches)
    if settings.round_tokens:
        counts = (*counts, settings.round_tokens, settings.max_rounds)
    teacher = "" if settings.teacher is None else f" {StartingModel.find(settings.teacher).fingerprint}"
    return hashlib.sha256(f"{prompts.fingerprint} {counts}{teacher}".encode()).hexdigest()


class RolloutBatches:
    """The batches of a stage, as :class:`leyden.train.Batches`: close it, or use it as a context manager.

    The loop asks :meth:`micro_batches` before each step; the first of a round draws its completions.

    Args:
        state: whose model draws. Of several ranks, each draws its share of the completions with a whole copy of the
            weights, which follows the trained ones, and all of them learn from all.
        tokenizer: of the model.
        settings: of the stage.
        prompts, environment: what is asked, and who grades.
        shape: of the rows.
        log: gets the rollouts that are kept.
        stage: its name.
        reference: the frozen model, where the algorithm has a ``kl_weight``.
        critic: where the algorithm has one.
    """

    def __init__(
        self,
        state: TrainState,
        tokenizer: Tokenizer,
        settings: RolloutSettings,
        prompts: Prompts,
        environment: Environment,
        shape: RoundShape,
        *,
        log: StepLog,
        stage: str,
        reference: HybridLM | None,
        critic: Critic | None = None,
    ) -> None:
        self._state, self._tokenizer, self._settings = state, tokenizer, settings
        self._prompts, self._environment, self._shape = prompts, environment, shape
        self._log, self._stage, self._reference, self._critic = log, stage, reference, critic
        self._of_step: list[Batch] = []  # what the critic is still to learn from
        self._engine: Engine | None = None
        self._weights: Resharding | None = None  # into the engine's model, where the trained one is divided
        self._place = self._next_place = 0  # of the first prompt of the round, and of the next
        self._step = self._row = 0  # the step is one of the round, the row one of the step
        self._parts: Sequence[Sequence[Batch]] | None = None
        self._buffer: str | None = None
        self._waiting = self._next_waiting = packed_waiting([])  # before the round, and behind it
        self._told_earlier = False
        self._facts: dict[str, Any] = {}
        self._fingerprint = round_fingerprint(prompts, settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End what the engine and the environment have started."""
        if self._engine is not None:
            self._engine.close()
        close: Callable[[], None] | None = getattr(self._environment, "close", None)
        if close is not None:
            close()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        part = self._part()
        micro_batches = self._micro_batches(part)
        row = share_of(micro_batches[self._row], *self._state.rank_group.share)
        self._row += 1
        if self._critic is not None:
            self._of_step.append(row)
        if self._row == len(micro_batches):
            self._row, self._step = 0, self._step + 1
        if self._step == self._settings.steps_per_round:
            self._place, self._step, self._parts, self._buffer = self._next_place, 0, None, None
            self._waiting = self._next_waiting
        return row

    def micro_batches(self, stage_step: int) -> int:
        """How many rows the next step takes; completions are drawn first where a round begins."""
        return len(self._micro_batches(self._part()))

    def _micro_batches(self, sequences: Sequence[Batch]) -> list[Sequence[Batch]]:
        return micro_batches_of(sequences, self._at_once)

    @property
    def _at_once(self) -> int:
        """Sequences that go through a model together."""
        return self._shape.micro_batch_tokens // self._shape.seq_len

    def teach_critic(self, state: TrainState, result: StepResult) -> None:
        """A callback, called as soon as the policy has taken a step: the critic takes one on the same rows."""
        assert self._critic is not None, "it is called where there is one"
        rows, self._of_step = self._of_step, []
        self._facts = {**self._facts, **self._critic.learn(rows, state.stage_step - 1)}

    def step_facts(self) -> Finding:
        """What there is to say of the completions that the step before was the first to learn from; else nothing."""
        facts, self._facts = self._facts, {}
        if "reward" not in facts:
            return Finding(facts, "")
        return Finding(facts, f"reward {facts['reward']:.3f}" if facts["reward"] is not None else "no reward")

    def check(self, state: TrainState, result: StepResult) -> None:
        """A callback: at the first update on new completions, every ratio of probabilities must be exactly 1.

        Of tokens that earlier weights drew it need not be, and it is said once that there are some.
        """
        is_first = self._step == 1 or (self._step == 0 and self._settings.steps_per_round == 1)
        if is_first and result.metrics["off_policy"] > 0:
            _log.warning(
                "step %d: %.2g of the ratios of the first update are not exactly 1: this machine computes the same "
                "operations with other roundings each time",
                state.step,
                result.metrics["off_policy"],
            )
        earlier = result.metrics.get("earlier", 0.0)
        if is_first and earlier > 0 and not self._told_earlier:
            self._told_earlier = True
            say(
                f"step {state.step}: {earlier:.2g} of its tokens were drawn by earlier weights (rl.round_tokens). "
                "Their ratios are not 1 at the first update, as it should be, and off_policy leaves them out"
            )

    def state_dict(self) -> dict[str, Any]:
        """The place: the first prompt of the round and the step in it; within a round, also its rows.

        With ``round_tokens`` also what is set aside for the round that is drawn next.
        """
        place: dict[str, Any] = {"batch": self._place, "step": self._step, "fingerprint": self._fingerprint}
        if self._settings.round_tokens:
            place["waiting"] = self._next_waiting if self._step else self._waiting
        if self._step == 0:
            return place
        if self._buffer is None:
            assert self._parts is not None, "a round that has begun has rows"
            self._buffer = packed_text(self._parts)
        return {**place, "next": self._next_place, "rows": self._buffer}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken.

        Raises:
            UserError: the prompts are others.
        """
        if state["fingerprint"] != self._fingerprint:
            raise UserError(
                "The run cannot be resumed on other prompts, with another seed or teacher, or with other numbers of "
                "completions and updates; restore them, or start a new run."
            )
        self._place, self._step, self._row = state["batch"], state["step"], 0
        self._next_place = state.get("next", self._place)
        self._waiting = self._next_waiting = state.get("waiting", packed_waiting([]))
        self._buffer = state.get("rows")
        self._parts = None if self._buffer is None else unpacked(self._buffer)

    def _part(self) -> Sequence[Batch]:
        """The rows of the step that comes."""
        if self._parts is None:
            self._parts = self._new_round()
        return self._parts[self._step % self._settings.mini_batches]

    def _new_round(self) -> Sequence[Sequence[Batch]]:
        """Draw completions, grade them, and make rows of them."""
        settings, engine, ranks = self._settings, self._ready_engine(), self._state.rank_group
        ranks.at("drawing completions", self._state.step + 1)
        made = draw_round(
            engine,
            self._environment,
            self._prompts,
            settings,
            place=self._place,
            seed=self._shape.seed,
            step=self._state.step + 1,
            waiting=unpacked_waiting(self._waiting, self._prompts),
            ranks=ranks,
        )
        engine.release()
        self._next_place = made.next_place
        rollouts, worth = made.rollouts, self._worth(made.rollouts)
        shape = {"seq_len": self._shape.seq_len, "vocab_size": self._tokenizer.vocab_size}
        parts, drifts = [], [keep_log_probs(made.waiting, partial(self._scored, reference=None), **shape)]
        self._next_waiting = packed_waiting(made.waiting)
        for groups in np.array_split(np.arange(len(made.groups)), settings.mini_batches):
            own = slice(groups[0] * settings.group_size, (groups[-1] + 1) * settings.group_size)
            sequences = pack(
                rollouts[own],
                worth[own],
                settings.algorithm,
                max_tokens=settings.max_tokens,
                partial=bool(settings.round_tokens),
                **shape,
            )
            rows, drift = self._scored(sequences, self._reference)
            parts.append(rows)
            drifts.append(drift)
        self._facts = round_facts(made, torch.cat(drifts)) | (round_ages(made) if settings.round_tokens else {})
        self._check_drift()
        if self._critic is not None:
            judged = self._critic.judge(parts, self._at_once)
            parts, worth, self._facts = judged.parts, judged.means, {**self._facts, **judged.facts}
        self._keep(rollouts, worth)
        return parts

    def _scored(self, sequences: Sequence[Batch], reference: HybridLM | None) -> tuple[list[Batch], torch.Tensor]:
        """Sequences with their log-probabilities, and the drift of each new token; of several ranks, all call this."""
        self._state.rank_group.at("the log-probabilities of completions", self._state.step + 1)
        measured = [
            scored(micro_batch, self._state, reference, self._settings.temperature)
            for micro_batch in self._micro_batches(sequences)
        ]
        return [row for rows, _ in measured for row in rows], torch.cat([drift for _, drift in measured])

    def _worth(self, rollouts: Sequence[Rollout]) -> np.ndarray:
        """[rollouts] float64, their advantages; of a critic, which makes those later, their rewards."""
        settings, shape = self._settings, (-1, self._settings.group_size)
        given = [np.nan if one.reward.reward is None else one.reward.reward for one in rollouts]
        rewards = np.array(given, np.float64).reshape(shape)
        tokens = np.array([one.num_drawn for one in rollouts]).reshape(shape)
        if settings.length_weight:
            rewards = shorter_is_better(rewards, tokens, settings.length_weight)
        if settings.overlong_tokens:
            rewards = overlong_is_worse(rewards, tokens, settings.max_tokens, settings.overlong_tokens)
        if settings.algorithm.baseline == "critic":
            return rewards.flatten()
        return advantages(rewards, settings.algorithm).values.flatten() * settings.algorithm.reward_weight

    def _ready_engine(self) -> Engine:
        """The engine, with memory and with the weights as they are; of several ranks, all call this."""
        state = self._state
        if self._engine is None:
            model: Any = state.model if state.rank_group.alone else whole_model(state, self._shape.dtype)
            self._engine = Engine(model, self._tokenizer, self._engine_config(model))
            if state.rank_group.mesh is not None and not state.rank_group.alone:
                attached = Attached(cast("HybridLM", state.model), state.optimizer.weights)
                self._weights = Resharding(attached, state.rank_group.mesh, model)
        if self._weights is not None:
            self._engine.update_weights(self._weights)
        self._engine.acquire()
        return self._engine

    def _engine_config(self, model: HybridLM) -> EngineConfig:
        """The stage's; with pages for sequences of the stage and not of the model's positions, unless it says more."""
        config = self._settings.engine
        _, page_bytes = Pools.bytes_of(model.config, model.dtype)
        if config.kv_gigabytes is not None or not page_bytes:
            return config
        pages = config.max_sequences * -(-self._shape.seq_len // PAGE)
        return config.model_copy(update={"kv_gigabytes": (pages * page_bytes + 1) / (1 << 30)})

    def _check_drift(self) -> None:
        """Stop where trainer and engine differ by more than they may.

        Raises:
            UserError: they do.
        """
        drift, most = self._facts["drift"], self._settings.max_drift
        if most is not None and (drift is None or drift > most):
            raise UserError(
                f"stage '{self._stage}': before step {self._state.step + 1} the trainer and the engine differ by "
                f"{drift} nats in the log-probability of a token, and max_drift allows {most}: what is learned from is "
                "not what was drawn. In bfloat16 some tenths are usual; in float32 less than 0.001. A model with "
                "capacity_factor drops tokens in training alone."
            )

    def _keep(self, rollouts: Sequence[Rollout], values: np.ndarray) -> None:
        """Write the first completion of the first prompts to the log."""
        step, every = self._state.step + 1, self._settings.group_size
        self._log.keep_until(step - 1)
        for place in range(0, len(rollouts), every)[: self._settings.kept_rollouts]:
            one = rollouts[place]
            self._log.append(
                {
                    "stage": self._stage,
                    "step": step,
                    "prompt": one.prompt.text,
                    "response": one.text,
                    "tokens": one.num_drawn,
                    "turns": one.turns,
                    "cut": one.is_cut,
                    "reward": one.reward.reward,
                    "components": dict(one.reward.components),
                    "reason": one.reward.reason,
                    "advantage": float(values[place]),
                }
            )
