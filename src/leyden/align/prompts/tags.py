"""Tags of a prompt by task and domain, by rule: from what a row says itself, from what it has, and from its words."""

import re
from collections.abc import Mapping

from leyden.align.prompts.rows import PromptRow

_DOMAINS: Mapping[str, str] = {
    "code": r"\bdef \w+\(|\bclass \w+[:(]|```|\b(?:python|javascript|java|sql|algorithm|source code|debug)\b|c\+\+|"
    r"\b(?:write|implement|fix|complete)\b[^.?!]{0,40}\b(?:function|program|script|code|query)\b",
    "mathematics": r"\\(?:frac|sqrt|sum|int|boxed)|\$[^$\n]+\$|\b(?:how (?:many|much)|equation|integer|triangle|solve|"
    r"calculate|probability|percent|polynomial|sum of|product of)\b|\d\s*[-+*/=]\s*\d",
    "science": r"\b(?:physics|chemi\w+|biolog\w+|molecul\w+|energy|planet|species|cells?|atoms?|gravity|evolution)\b",
    "medicine": r"\b(?:patient|disease|symptoms?|treatment|doctor|medic\w+|vaccine)\b",
    "law and finance": r"\b(?:law|legal|contract|court|tax|invest\w*|bank|stocks?|budget)\b",
    "translation": r"\btranslat\w+\b",
    "writing": r"\b(?:write|rewrite|essay|story|poem|letter|e-?mail|blog|haiku|lyrics|summar\w+|paragraph)\b",
    "history and society": r"\b(?:histor\w+|war|century|politic\w+|president|culture|religion|country)\b",
}
"""By name, what a prompt of the domain says; the first that is found counts, letters in any case."""
_SEARCHED = {name: re.compile(pattern, re.IGNORECASE) for name, pattern in _DOMAINS.items()}
OTHER = "other"


def task_of(prompt: PromptRow) -> str:
    """The row's own ``task``; else by what its responses can be graded: ``code``, ``instructions``, ``mathematics``
    (a reference with a digit or a LaTeX command), ``question`` (another reference), ``chat`` (several turns), ``open``.
    """
    row = prompt.row
    if isinstance(row.get("task"), str) and row["task"]:
        return row["task"]
    if row.get("tests") is not None:
        return "code"
    if row.get("instructions") is not None or row.get("instruction_id_list") is not None:
        return "instructions"
    if row.get("reference") is not None:
        return "mathematics" if re.search(r"\d|\\[a-z]", str(row["reference"])) else "question"
    return "chat" if sum(message["role"] == "user" for message in prompt.messages) > 1 else "open"


def domain_of(prompt: PromptRow) -> str:
    """The row's own ``domain``, or ``category``; else ``code`` where it has tests; else the first domain whose words
    its last message has; of a mathematical task without such words, mathematics.
    """
    for name in ("domain", "category"):
        if isinstance(prompt.row.get(name), str) and prompt.row[name]:
            return prompt.row[name]
    task, asked = task_of(prompt), prompt.messages[-1]["content"]
    if task == "code":
        return task
    found = next((name for name, pattern in _SEARCHED.items() if pattern.search(asked)), OTHER)
    return task if task == "mathematics" and found == OTHER else found


def difficulty_of(pass_rate: float | None) -> str:
    """A word for the share of a policy's responses that are right."""
    if pass_rate is None:
        return "unknown"
    if pass_rate in (0.0, 1.0):
        return "solved" if pass_rate else "unsolved"
    return "hard" if pass_rate < 1 / 3 else "easy" if pass_rate > 2 / 3 else "medium"
