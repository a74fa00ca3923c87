"""Rules of a grammar in xgrammar's EBNF, and those of them that no text can fulfil taken out."""

from collections import Counter
from collections.abc import Iterable

from .numbers import INTEGER, NUMBER
from .patterns import PatternError, pattern_term
from .regular import Chars, Concatenation, Either, Ranges, Repeat, Term, automaton, common, complement

SPACE = "ws"
"""Between the parts of a JSON text: nothing, a space or a line feed. More, and a model that knows nothing better to
write would write nothing else."""

_VALUES = {
    "ws": r"[ \n]?",
    "value": r'object | array | string | number | "true" | "false" | "null"',
    "object": r'"{" ws ("}" | string ws ":" ws value ws ("," ws string ws ":" ws value ws)* "}")',
    "array": r'"[" ws ("]" | value ws ("," ws value ws)* "]")',
    "string": r'"\"" char* "\""',
    "char": r'[\x20-\x21\x23-\x5b\x5d-\ud7ff\ue000-\U0010ffff] | "\\" escape',
    "escape": r'["\\/bfnrt] | "u" ([0-9a-cA-Ce-fE-F] [0-9a-fA-F]{3} | [dD] [0-7] [0-9a-fA-F]{2}'
    r' | [dD] [89abAB] [0-9a-fA-F]{2} "\\u" [dD] [c-fC-F] [0-9a-fA-F]{2})',
    "number": NUMBER,
    "integer": INTEGER,
    "boolean": '"true" | "false"',
    "null": '"null"',
}
_ESCAPED: Ranges = ((0, 31), (34, 34), (92, 92))
_MOST_DEPTH = 16
"""Of groups inside each other in one rule."""
_PLAIN: Ranges = complement(_ESCAPED)
_SHORT = {8: "b", 9: "t", 10: "n", 12: "f", 13: "r", 34: '"', 92: "\\"}


class RuleReference(str):
    """The name of a rule, as a part of an alternative."""


class Many(str):
    """A rule several times, at least once where it is all that an alternative has of it.

    Attributes:
        rule: which.
    """

    rule: RuleReference

    def __new__(cls, rule: RuleReference, least: int, most: int | None) -> "Many":
        many = super().__new__(cls, f"{rule}{{{least},{'' if most is None else most}}}")
        many.rule = rule
        return many


Alternative = tuple[str, ...]
"""What stands one after the other: the names of rules, all of which are needed, and pieces of EBNF."""


class GrammarRules:
    """The rules of one grammar, made while it is written."""

    def __init__(self) -> None:
        self._rules: dict[str, list[Alternative]] = {}

    def new(self, name: str = "r") -> RuleReference:
        """A rule that has no alternatives yet."""
        rule = RuleReference(f"{name}{len(self._rules)}")
        self._rules[rule] = []
        return rule

    def add(self, rule: RuleReference, *alternatives: Alternative) -> RuleReference:
        """Let ``rule`` be one of these, too."""
        self._rules[rule].extend(alternatives)
        return rule

    def text(self, root: RuleReference) -> str | None:
        """The grammar that begins with ``root``; None where no text fulfils it.

        A rule that one other alone uses becomes a part of it: what xgrammar sends from process to process grows with
        the square of the number of rules.
        """
        alive = self._alive()
        if root not in alive:
            return None
        order, uses, kept = [root], Counter([root]), {}
        for rule in order:
            kept[rule] = list(dict.fromkeys(a for a in self._rules[rule] if _needed(a) <= alive))
            for part in (part for alternative in kept[rule] for part in alternative):
                many = isinstance(part, Many)
                used = part.rule if many else part
                if isinstance(used, RuleReference) and used in self._rules:
                    order += [] if uses[used] else [used]
                    uses[used] += 2 if many else 1
        lines: list[str] = []
        inside: dict[str, tuple[str, int]] = {}  # a rule that is a part of another one, and its depth
        for rule in reversed(order):  # a rule comes before those that it alone uses
            alternatives = [" ".join(inside.get(part, (part, 0))[0] for part in a) or '""' for a in kept[rule]]
            depth = max((inside.get(part, ("", 0))[1] for a in kept[rule] for part in a), default=0)
            body = " | ".join(alternatives)
            if rule != root and uses[rule] == 1 and depth < _MOST_DEPTH:
                inside[rule] = (body, depth) if len(alternatives) == 1 else (f"({body})", depth + 1)
            else:
                lines.append(f"{rule} ::= {body}")
        return "\n".join([f"root ::= {root}", *lines, *(f"{name} ::= {body}" for name, body in _VALUES.items())])

    def _alive(self) -> set[RuleReference]:
        """The rules that some text fulfils."""
        users: dict[str, list[tuple[str, int]]] = {}
        missing: dict[tuple[str, int], int] = {}
        waiting: list[str] = []
        for rule, alternatives in self._rules.items():
            for place, alternative in enumerate(alternatives):
                needed = {part for part in _needed(alternative) if part in self._rules}
                missing[rule, place] = len(needed)
                for part in needed:
                    users.setdefault(part, []).append((rule, place))
                if not needed:
                    waiting.append(rule)
        alive: set[str] = set()
        while waiting:
            rule = waiting.pop()
            if rule in alive:
                continue
            alive.add(rule)
            for user in users.get(rule, ()):
                missing[user] -= 1
                if not missing[user]:
                    waiting.append(user[0])
        return {RuleReference(rule) for rule in (*alive, *_VALUES)}

    def language(self, term: Term, *, quoted: bool, behind: str = "") -> RuleReference:
        """A rule for the texts of ``term``, with what comes behind them.

        Args:
            term: a regular language.
            quoted: as in a JSON string, where some characters are escaped; every one has one spelling.
            behind: a piece of EBNF.

        Raises:
            TooLargeError: it needs too many rules.
        """
        if _simple(term):
            return self.add(self.new("s"), (_spelled(term, quoted), behind))
        states = automaton(term)
        names = [self.new("s") for _ in states] or [self.new("s")]
        for name, state in zip(names, states, strict=False):
            for ranges, to in state.steps:
                self.add(name, (_characters(ranges, quoted), names[to]))
            if state.final:
                self.add(name, (behind or '""',))
        return names[0]


def _needed(alternative: Alternative) -> set[RuleReference]:
    rules = (part.rule if isinstance(part, Many) else part for part in alternative)
    return {rule for rule in rules if isinstance(rule, RuleReference)}


def pattern_grammar(pattern: str) -> str:
    """The grammar of the texts that a regular expression matches as a whole.

    Raises:
        PatternError: it is no regular expression, or one of more than a regular language.
    """
    rules = GrammarRules()
    text = rules.text(rules.language(pattern_term(pattern, whole=True), quoted=False))
    if text is None:
        raise PatternError("no text matches it")
    return text


def literal(text: str) -> str:
    """``text`` as it is, in EBNF: any character by its code."""
    return '"' + "".join(c if c.isascii() and c.isalnum() else f"\\U{ord(c):08x}" for c in text) + '"'


def group(pieces: Iterable[str]) -> str:
    """One of several pieces of EBNF."""
    pieces = list(pieces)
    return pieces[0] if len(pieces) == 1 else f"({' | '.join(pieces)})"


def _simple(term: Term) -> bool:
    """Whether a term can be spelled as it is."""
    if isinstance(term, Chars):
        return bool(term.ranges)
    if isinstance(term, Concatenation):
        return all(map(_simple, term.parts))
    if isinstance(term, Either):
        return all(map(_simple, term.terms))
    return isinstance(term, Repeat) and _simple(term.term)


def _spelled(term: Term, quoted: bool) -> str:
    if isinstance(term, Chars):
        return _characters(term.ranges, quoted)
    if isinstance(term, Concatenation):
        return " ".join(_spelled(part, quoted) for part in term.parts) or '""'
    if isinstance(term, Either):
        return group(sorted(_spelled(each, quoted) for each in term.terms))
    assert isinstance(term, Repeat)
    inner = _spelled(term.term, quoted)
    return f"({inner}){{{term.least},{'' if term.most is None else term.most}}}"


def _characters(ranges: Ranges, quoted: bool) -> str:
    """One of these characters; in a JSON string some are spelled by an escape."""
    plain = common(ranges, _PLAIN) if quoted else ranges
    pieces = [f"[{''.join(map(_range, plain))}]"] if plain else []
    if quoted:
        escaped = [point for low, high in common(ranges, _ESCAPED) for point in range(low, high + 1)]
        pieces += [literal(f"\\{_SHORT.get(point) or f'u{point:04x}'}") for point in escaped]
    return group(pieces)


def _range(ends: tuple[int, int]) -> str:
    low, high = ends
    return f"\\U{low:08x}" if low == high else f"\\U{low:08x}-\\U{high:08x}"
