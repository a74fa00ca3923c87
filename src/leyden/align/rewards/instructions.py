"""Helpfulness by rule: IFEval's 25 kinds of instructions that can be checked (arXiv 2311.07911)."""

from collections.abc import Mapping, Sequence
from typing import Any

from leyden.align.rewards.reward import Reward
from leyden.core.errors import UserError
from leyden.evaluate.harness.instructions import follows, loose_forms


def grade_instructions(response: str, instructions: Sequence[Mapping[str, Any]]) -> Reward:
    """The share of instructions that a response follows as it is; ``strict`` and ``loose`` are 1 where it follows all.

    Args:
        response: what a model wrote.
        instructions: each with its ``id``, as ``punctuation:no_comma``, and what it needs, as IFEval names it.

    Raises:
        UserError: an instruction that is not IFEval's or lacks something, or none.
    """
    if not instructions or not all(isinstance(one, Mapping) and "id" in one for one in instructions):
        raise UserError("'instructions' has to be a list of objects with an 'id' and what the instruction needs.")
    given = [{key: value for key, value in one.items() if value is not None} for one in instructions]
    strict = [follows(response, one) for one in given]
    forms = loose_forms(response)
    loose = [any(follows(form, one) for form in forms) for one in given]
    share = sum(strict) / len(strict)
    components = {"followed": share, "strict": float(all(strict)), "loose": float(all(loose))}
    failed = [one["id"] for one, done in zip(given, strict, strict=True) if not done]
    return Reward(
        share, components, f"not followed: {', '.join(failed)}" if failed else f"all {len(given)} are followed"
    )


def published_instructions(ids: Sequence[str], arguments: Sequence[Mapping[str, Any] | None]) -> list[dict[str, Any]]:
    """Instructions of the form in which IFEval is published (``instruction_id_list`` and ``kwargs``).

    Raises:
        UserError: there are not as many of one as of the other.
    """
    if len(ids) != len(arguments):
        raise UserError(
            f"'instruction_id_list' has {len(ids)} entries, and 'kwargs' {len(arguments)}; they go together."
        )
    return [{"id": name, **(given or {})} for name, given in zip(ids, arguments, strict=True)]
