"""IFEval: whether an answer follows instructions that can be checked (Zhou et al., arXiv 2311.07911).

An answer is checked as it is (strict), and once more in eight forms, of which one has to follow (loose): with and
without its first line, its last line, and asterisks. Two things are told by other means than in the published code:
languages by py3langid, and sentences by their punctuation; both can differ on odd texts.
"""

import functools
import itertools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from leyden.core.errors import UserError

_SENTENCE_END = re.compile(r"""(?<=[.!?])\s+|(?<=[.!?]["')\]])\s+|\n+""")
_CONSTRAINED = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def ifeval_results(doc: dict[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """Which instructions of a prompt an answer follows."""
    instructions = json.loads(doc["instructions"])
    strict = [follows(results[0], one) for one in instructions]
    forms = loose_forms(results[0])
    loose = [any(follows(form, one) for form in forms) for one in instructions]
    return {
        "prompt_strict": float(all(strict)),
        "prompt_loose": float(all(loose)),
        "instruction_strict": strict,
        "instruction_loose": loose,
    }


def share_of_all(answers: Iterable[Sequence[bool]]) -> float:
    """The share of instructions that were followed, over those of all prompts."""
    every = list(itertools.chain.from_iterable(answers))
    return sum(every) / len(every)


def loose_forms(text: str) -> list[str]:
    """An answer with and without its first line, its last line and its asterisks."""
    lines = text.split("\n")
    cut = ["\n".join(part).strip() for part in (lines, lines[1:], lines[:-1], lines[1:-1])]
    return [text, *cut[1:], *(form.replace("*", "") for form in [text, *cut[1:]])]


def follows(text: str, instruction: dict[str, Any]) -> bool:
    """Whether an answer follows one instruction; an empty one follows none.

    Raises:
        UserError: an instruction that is not IFEval's, or without what it needs.
    """
    name = instruction["id"]
    if name not in CHECKS:
        raise UserError(f"ifeval has no instruction '{name}'; it has {', '.join(CHECKS)}.")
    try:
        return bool(text.strip()) and CHECKS[name](text, **{k: v for k, v in instruction.items() if k != "id"})
    except TypeError as error:
        raise UserError(f"the instruction '{name}' of ifeval is not of the expected form: {error}.") from None


def _compared(count: int, relation: str, bound: int) -> bool:
    return count < bound if relation == "less than" else count >= bound


def _keywords(text: str, keywords: Sequence[str]) -> bool:
    return all(re.search(word, text, re.IGNORECASE) for word in map(re.escape, keywords))


def _forbidden(text: str, forbidden_words: Sequence[str]) -> bool:
    return not any(re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in forbidden_words)


def _keyword_count(text: str, keyword: str, relation: str, frequency: int) -> bool:
    return _compared(len(re.findall(re.escape(keyword), text, re.IGNORECASE)), relation, frequency)


def _letter_count(text: str, letter: str, let_relation: str, let_frequency: int) -> bool:
    return _compared(text.lower().count(letter.lower()), let_relation, let_frequency)


def _language(text: str, language: str) -> bool:
    return _language_of(text) == language


@functools.lru_cache(maxsize=64)
def _language_of(text: str) -> str:
    import py3langid

    return py3langid.classify(text)[0]


def sentences(text: str) -> list[str]:
    """A text's sentences, by their punctuation and by line ends."""
    return [part for part in _SENTENCE_END.split(text.strip()) if re.search(r"\w", part)]


def _sentence_count(text: str, relation: str, num_sentences: int) -> bool:
    return _compared(len(sentences(text)), relation, num_sentences)


def _word_count(text: str, relation: str, num_words: int) -> bool:
    return _compared(len(re.findall(r"\w+", text)), relation, num_words)


def _paragraph_count(text: str, num_paragraphs: int) -> bool:
    """Paragraphs with ``***`` between; only the first and the last may be empty."""
    parts = re.split(r"\s?\*\*\*\s?", text)
    inner = [part.strip() for part in parts]
    if any(not part for part in inner[1:-1]):
        return False
    return sum(map(bool, inner)) == num_paragraphs


def _first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    parts = [part.strip() for part in re.split(r"\n\n", text) if part.strip()]
    if len(parts) != num_paragraphs or not 1 <= nth_paragraph <= len(parts):
        return False
    words = parts[nth_paragraph - 1].split()
    return words[0].strip("'\"").rstrip(".,?!'\"").lower() == first_word.lower()


def _placeholders(text: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[.*?\]", text)) >= num_placeholders


def _postscript(text: str, postscript_marker: str) -> bool:
    marker = postscript_marker.strip().lower()
    pattern = {"p.p.s": r"p\.\s?p\.\s?s", "p.s.": r"p\.\s?s\."}.get(marker, re.escape(marker))
    return re.search(rf"^\s*{pattern}", text.lower(), re.MULTILINE) is not None


def _bullets(text: str, num_bullets: int) -> bool:
    stars = re.findall(r"^\s*\*[^\*].*$", text, re.MULTILINE)
    return len(stars) + len(re.findall(r"^\s*-.*$", text, re.MULTILINE)) == num_bullets


def _constrained(text: str) -> bool:
    return any(option in text.strip() for option in _CONSTRAINED)


def _highlights(text: str, num_highlights: int) -> bool:
    single = [part for part in re.findall(r"\*[^\n\*]*\*", text) if part.strip("*").strip()]
    double = [part for part in re.findall(r"\*\*[^\n\*]*\*\*", text) if part.strip("*").strip()]
    return len(single) + len(double) >= num_highlights


def _sections(text: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.split(rf"\s?{re.escape(section_spliter)}\s?\d+\s?", text)) - 1 >= num_sections


def _json(text: str) -> bool:
    fenced = re.fullmatch(r"\s*```(?:json)?(.*?)```\s*", text, re.DOTALL | re.IGNORECASE)
    try:
        json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return False
    return True


def _title(text: str) -> bool:
    return any(title.strip("<>").strip() for title in re.findall(r"<<[^\n]+>>", text))


def _two_responses(text: str) -> bool:
    parts = [part.strip() for part in text.split("******")]
    if any(not part for part in parts[1:-1]):
        return False
    said = [part for part in parts if part]
    return len(said) == 2 and said[0] != said[1]


def _repeats(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _ends(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _capital_words(text: str, capital_relation: str, capital_frequency: int) -> bool:
    words = re.findall(r"\w+(?:['-]\w+)*", text)
    return _compared(sum(word.isupper() for word in words), capital_relation, capital_frequency)


def _all_capital(text: str) -> bool:
    return text.isupper() and _language(text, "en")


def _all_lowercase(text: str) -> bool:
    return text.islower() and _language(text, "en")


def _no_comma(text: str) -> bool:
    return "," not in text


def _quoted(text: str) -> bool:
    bare = text.strip()
    return len(bare) > 1 and bare[0] == bare[-1] == '"'


CHECKS: dict[str, Callable[..., bool]] = {
    "keywords:existence": _keywords,
    "keywords:frequency": _keyword_count,
    "keywords:forbidden_words": _forbidden,
    "keywords:letter_frequency": _letter_count,
    "language:response_language": _language,
    "length_constraints:number_sentences": _sentence_count,
    "length_constraints:number_paragraphs": _paragraph_count,
    "length_constraints:number_words": _word_count,
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:constrained_response": _constrained,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _json,
    "detectable_format:title": _title,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeats,
    "startend:end_checker": _ends,
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": _all_capital,
    "change_case:english_lowercase": _all_lowercase,
    "punctuation:no_comma": _no_comma,
    "startend:quotation": _quoted,
}
"""What checks each of the 25 kinds of instruction."""
