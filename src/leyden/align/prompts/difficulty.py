"""How difficult prompts are for a policy: the share of its responses that are right, and the weight that follows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from leyden.align.prompts.rows import PromptRow
from leyden.align.sampling.asking import Drawing, draw_responses
from leyden.align.sampling.grading import Grading, grade_responses
from leyden.data.label.language_model import LanguageModel


@dataclass(frozen=True)
class PassRate:
    """Of one prompt.

    Attributes:
        measured: responses with a reward; one that was cut is graded as it is.
        passed: the sum of their rewards.
    """

    measured: int
    passed: float

    @property
    def rate(self) -> float | None:
        """From 0 to 1; None where no response has a reward."""
        return self.passed / self.measured if self.measured else None

    @property
    def weight(self) -> float:
        """4 p (1 - p) with p = (passed + 1/2) / (measured + 1): 1 for middling success, small at both ends, never 0.

        p (1 - p) is the variance of a right-or-wrong reward, and so what a group of responses can be told apart by.
        The half is Jeffreys' prior: of few responses that are all right or all wrong, little is known, so that such a
        prompt is still asked at times. A prompt that was not measured has weight 1.
        """
        p = (self.passed + 0.5) / (self.measured + 1)
        return 4 * p * (1 - p)


def pass_rates(
    prompts: Sequence[PromptRow], model: LanguageModel, drawing: Drawing, grading: Grading, answers: Path
) -> dict[str, PassRate]:
    """The pass rate of each prompt, by its id.

    Args:
        prompts: any.
        model: the policy.
        drawing: how responses are drawn.
        grading: by what they are graded.
        answers: a folder, where the policy's answers are kept: what is there is not asked for again.

    Raises:
        UserError: the model cannot be asked, or there is no sandbox and it is code.
    """
    responses = draw_responses(prompts, model, drawing, answers, "pass rates")
    found = {prompt.id: (0, 0.0) for prompt in prompts}
    for response, reward in zip(responses, grade_responses(responses, grading), strict=True):
        if reward.reward is not None:
            measured, passed = found[response.prompt.id]
            found[response.prompt.id] = (measured + 1, passed + reward.reward)
    return {id: PassRate(*counts) for id, counts in found.items()}
