"""The reward on prompts that nothing is learned from, measured while a run trains."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from leyden.align.rollouts.call_limit import CallLimit
from leyden.align.rollouts.drawing import Rollout, graded
from leyden.align.rollouts.environment import Environment
from leyden.align.rollouts.prompts import Prompt
from leyden.align.rollouts.settings import RolloutSettings
from leyden.align.rollouts.turns import Drawn, go_on
from leyden.serve import Engine
from leyden.tokenizer import Tokenizer
from leyden.train import TrainState
from leyden.train.generators import generators_kept
from leyden.train.observing import Finding
from leyden.train.whole import whole_model


class HeldOutReward:
    """A :class:`leyden.train.observing.Watcher`: answers by the likeliest tokens, graded by the stage's environment.

    The weights are copied into a model of their own, whose engine answers, as for the tasks of an evaluation. Of
    several ranks each takes part in bringing the weights together, and the first asks.

    Args:
        stage: the name of the stage of reinforcement learning that it is of, or of what else asks.
        prompts: are asked, in this order.
        environment: grades.
        settings: of the stage.
        tokenizer: of the model.
        dtype: in which it computes.
        every_steps: how often; 0: at the end of a stage alone.
    """

    def __init__(
        self,
        stage: str,
        prompts: Sequence[Prompt],
        environment: Environment,
        settings: RolloutSettings,
        tokenizer: Tokenizer,
        *,
        dtype: torch.dtype,
        every_steps: int,
    ) -> None:
        self._stage, self._prompts, self._environment, self._settings = stage, prompts, environment, settings
        self._tokenizer, self._dtype, self._every_steps = tokenizer, dtype, every_steps

    def __call__(self, state: TrainState, last: bool, /) -> Sequence[Finding]:
        """See :class:`leyden.train.observing.Watcher`."""
        if not (last or (self._every_steps and state.step % self._every_steps == 0)):
            return ()
        state.rank_group.at("the weights of all ranks in one model", state.step)
        with generators_kept():
            model = whole_model(state, self._dtype)
            line = state.rank_group.first(lambda: self._line(Engine(model, self._tokenizer, self._settings.engine)))
        return [Finding(line, f"held-out reward {line['value']:.3f}" if line["value"] is not None else "no reward")]

    def _line(self, engine: Engine) -> dict[str, Any]:
        try:
            rollouts = likeliest_answers(engine, self._prompts, self._environment, self._settings)
        finally:
            engine.close()
        samples = [{"prompt": one.prompt.text, "answer": one.text} for one in first_of_each_kind(rollouts)]
        return {"task": "held_out_reward", "of": self._stage, **summary(rollouts), "samples": samples}


def likeliest_answers(
    engine: Engine, prompts: Sequence[Prompt], environment: Environment, settings: RolloutSettings
) -> list[Rollout]:
    """To each prompt the answer of the likeliest tokens, graded; of several turns where the settings allow them."""
    drawn = [Drawn(prompt, place) for place, prompt in enumerate(prompts)]
    limit = CallLimit(settings.call_seconds)
    go_on(engine, environment, drawn, settings, limit, seed=0, temperature=0)
    return [graded(environment, one, limit) for one in drawn]


def first_of_each_kind(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """Of answers with the same components of a reward the first."""
    found = dict[tuple[str, ...], Rollout]()
    for one in rollouts:
        found.setdefault(tuple(one.reward.components), one)
    return [*found.values()]


def summary(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """The mean reward (``value``, None where nothing was measured), its standard error, and means of components."""
    rewards = [one.reward.reward for one in rollouts if one.reward.reward is not None]
    components = defaultdict[str, list[float]](list)
    for one in rollouts:
        for name, value in one.reward.components.items():
            if value is not None:
                components[name].append(value)
    return {
        "value": float(np.mean(rewards)) if rewards else None,
        "stderr": float(np.std(rewards, ddof=1) / len(rewards) ** 0.5) if len(rewards) > 1 else None,
        "components": {name: float(np.mean(values)) for name, values in sorted(components.items())},
        "n": len(rewards),
        "unmeasured": len(rollouts) - len(rewards),
        "timed_out": sum(one.timed_out for one in rollouts),
        "cut": float(np.mean([one.is_cut for one in rollouts])),
    }
