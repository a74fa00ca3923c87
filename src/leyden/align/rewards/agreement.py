"""Correctness where there is no key: how many of a prompt's responses give the same answer (arXiv 2203.11171)."""

from collections.abc import Sequence

from leyden.align.rewards.mathematics import MathReward, find_answer
from leyden.align.rewards.reward import Reward


def agreement(responses: Sequence[str], mathematics: MathReward) -> list[Reward]:
    """A reward for each response to one prompt: 1 where its answer is the one that most give, 0 otherwise.

    ``agreement`` is the share of responses, itself among them, that give its answer. Of groups of one size the one
    whose answer came first counts as the most; where no two agree, nothing is told, and the rewards are None. The same
    answer is what math-verify takes for the same.
    """
    answers = [find_answer(response) for response in responses]
    groups: list[list[int]] = []
    for place, answer in enumerate(answers):
        if answer is None:
            continue
        for group in groups:
            first = answers[group[0]]
            if first is not None and mathematics.same(answer.text, first.text)[0]:
                group.append(place)
                break
        else:
            groups.append([place])
    sizes = {place: len(group) for group in groups for place in group}
    most = max(groups, key=len, default=[])
    rewards = []
    for place, answer in enumerate(answers):
        components = {"agreement": sizes.get(place, 0) / len(responses)}
        if len(most) < 2:
            rewards.append(Reward(None, components, f"no two of {len(responses)} responses agree"))
        elif answer is None:
            rewards.append(Reward(0.0, components, "no answer was found"))
        else:
            reason = f"{sizes[place]} of {len(responses)} responses say {answer.text[:100]}"
            rewards.append(Reward(float(place in most), components, reason))
    return rewards
