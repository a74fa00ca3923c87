"""What a line of metrics says of the completions of a round."""

from typing import Any

import numpy as np
import torch

from leyden.align.rollouts.drawing import Round
from leyden.align.rollouts.held_out import summary
from leyden.train.metrics import finite


def round_facts(made: Round, drift: torch.Tensor) -> dict[str, Any]:
    """What a line of metrics says of the completions; of all that were drawn, whether they are learned from or not."""
    drawn = [one for group in made.drawn for one in group.rollouts]
    rewards = [one.reward.reward for one in drawn if one.reward.reward is not None]
    tokens = [one.num_drawn for one in drawn]
    return {
        "reward": float(np.mean(rewards)) if rewards else None,
        "drawn": len(drawn),
        "unmeasured": len(drawn) - len(rewards),
        "timed_out": sum(one.timed_out for one in drawn),
        "no_signal": float(np.mean([not group.has_signal for group in made.drawn])),
        "completion_tokens_mean": float(np.mean(tokens)),
        "cut": float(np.mean([one.is_cut for one in drawn])),
        "turns_mean": float(np.mean([one.turns for one in drawn])),
        "out_of_turns": float(np.mean([one.out_of_turns for one in drawn])),
        "drift": finite(float(drift.abs().max())) if len(drift) else 0.0,
        "rollout_tokens_per_second": round(made.tokens / made.seconds, 1),
        **{f"reward_{name}": mean for name, mean in summary(drawn)["components"].items()},
    }


def round_ages(made: Round) -> dict[str, Any]:
    """What a line of metrics says of rollouts that go on over several rounds."""
    learned = made.rollouts
    return {
        "groups": len(made.groups),
        "continued": made.continued,
        "waiting": sum(not one.has_ended for group in made.waiting for one in group),
        "age_mean": float(np.mean([one.age for one in learned])),
        "age_max": max(one.age for one in learned),
        "out_of_rounds": float(np.mean([one.out_of_rounds for one in learned])),
    }
