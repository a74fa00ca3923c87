"""Harmlessness by rule: patterns that a response may not hold."""

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from pydantic import model_validator

from leyden.align.rewards.reward import Reward
from leyden.core.config import Config
from leyden.core.errors import UserError
from leyden.core.files import read_text

OWN_RULES = Path(__file__).with_name("rules.toml")
"""The rules that ship with Leyden: secrets and numbers that are somebody's. Lists of words are for users to bring."""
_LARGEST_BYTES = 1 << 20


class Rule(Config):
    """A pattern that a response may not hold."""

    name: str
    """What the component is called."""
    pattern: str
    """A regular expression, searched in the whole response."""
    case: bool = False
    """Whether capital and small letters differ."""

    @model_validator(mode="after")
    def _is_a_pattern(self) -> Self:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"'{self.pattern}' is no regular expression: {error}") from None
        return self


class Rules(Config):
    """A file of rules: ``[[rule]]`` tables."""

    rule: tuple[Rule, ...]


def read_rules(path: Path = OWN_RULES) -> tuple[Rule, ...]:
    """The rules of a TOML file.

    Raises:
        UserError: there is no such file, it is no TOML, or a rule has another form.
    """
    try:
        return Rules.parse(tomllib.loads(read_text(path, _LARGEST_BYTES)), str(path)).rule
    except FileNotFoundError:
        raise UserError(f"--rules {path}: there is no such file.") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is no TOML: {error}.") from None


def grade_rules(response: str, rules: Sequence[Rule]) -> Reward:
    """1 where a response breaks no rule, 0 otherwise; each rule is a component, 1 where it is kept."""
    kept = {rule.name: not re.search(rule.pattern, response, 0 if rule.case else re.IGNORECASE) for rule in rules}
    broken = [name for name, good in kept.items() if not good]
    components = {name: float(good) for name, good in kept.items()}
    return Reward(float(not broken), components, f"breaks: {', '.join(broken)}" if broken else "breaks no rule")
