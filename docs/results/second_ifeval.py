"""A second, independent reading of IFEval's 25 kinds of instructions, written from their published descriptions alone.

It shares no line with ``leyden.evaluate.harness.instructions`` and works by other means: characters, lines and
``str`` methods where that one has regular expressions. ``docs/results/graders.py`` counts where the two differ.
Source of the descriptions: Zhou et al., arXiv 2311.07911, table 1 and appendix.
"""

import json
import string
import unicodedata

MARKS = string.punctuation


def more(count, relation, bound):
    return count >= bound if relation == "at least" else count < bound


def words(text):
    """Runs of letters, digits and underscores."""
    found, run = [], ""
    for sign in text + " ":
        if (
            sign == "_"
            or sign.isalnum()
            or (run and unicodedata.category(sign) in ("Mn", "Mc") and sign.isidentifier())
        ):
            run += sign
        elif run:
            found.append(run)
            run = ""
    return found


def has_word(text, word):
    """Whether a word stands in a text with no letter, digit or underscore beside it."""
    text, word, at = text.lower(), word.lower(), -1
    while (at := text.find(word, at + 1)) >= 0:
        around = text[at - 1 : at] + text[at + len(word) : at + len(word) + 1]
        if not any(sign.isalnum() or sign == "_" for sign in around):
            return True
    return False


def num_sentences(text):
    """Line by line, a sentence ends at . ! or ? (and what closes a quotation behind it) before white space."""
    count = 0
    for line in text.splitlines():
        run = ""
        for piece in line.split():
            run += piece + " "
            if piece.rstrip("\"')]").endswith((".", "!", "?")) and len(piece) - len(piece.rstrip("\"')]")) <= 1:
                count, run = count + any(sign.isalnum() for sign in run), ""
        count += any(sign.isalnum() for sign in run)
    return count


def bracketed(text):
    """How many [ ... ] stand on one line each, each begun at the first open bracket."""
    count = 0
    for line in text.split("\n"):
        at = line.find("[")
        while at >= 0 and (end := line.find("]", at + 1)) >= 0:
            count, at = count + 1, line.find("[", end + 1)
    return count


def bullets(text, wanted):
    lines = [line.lstrip() for line in text.split("\n")]
    stars = sum(line[:1] == "*" and len(line) > 1 and line[1] != "*" for line in lines)
    return stars + sum(line[:1] == "-" for line in lines) == wanted


def highlights(text, wanted):
    """*this* and **this**, each on one line and not empty."""
    count = 0
    for line in text.split("\n"):
        for mark in ("*", "**"):
            at = line.find(mark)
            while at >= 0:
                begin = at + len(mark)
                end = line.find("*", begin)
                if end < 0:
                    break
                if line.startswith(mark, end):
                    count += bool(line[begin:end].strip())
                    at = line.find(mark, end + len(mark))
                else:
                    at = line.find(mark, at + 1)
    return count >= wanted


def sections(text, name, wanted):
    count, at = 0, text.find(name)
    while at >= 0:
        behind = at + len(name)
        rest = text[behind + 1 :] if text[behind : behind + 1].isspace() else text[behind:]
        count += rest[:1].isdigit()
        at = text.find(name, behind)
    return count >= wanted


def title(text):
    for line in text.split("\n"):
        at, end = line.find("<<"), line.rfind(">>")
        if 0 <= at < end - 2 and line[at : end + 2].strip("<>").strip():
            return True
    return False


def is_json(text):
    bare = text.strip()
    if bare.startswith("```") and bare.endswith("```") and len(bare) >= 6:
        bare = bare[3:-3]
        bare = bare[4:] if bare[:4].lower() == "json" else bare
    try:
        json.loads(bare)
    except ValueError:
        return False
    return True


def two_responses(text):
    parts = [part.strip() for part in text.split("******")]
    while parts and not parts[0]:
        parts = parts[1:]
        break
    if parts and not parts[-1]:
        parts = parts[:-1]
    return len(parts) == 2 and all(parts) and parts[0] != parts[1]


def paragraphs(text, wanted):
    parts = [part.strip() for part in text.split("***")]
    if parts and not parts[0]:
        parts = parts[1:]
    if parts and not parts[-1]:
        parts = parts[:-1]
    return all(parts) and len(parts) == wanted


def first_word(text, total, nth, word):
    parts = [part for part in text.split("\n\n") if part.strip()]
    if len(parts) != total or not 0 < nth <= total:
        return False
    return parts[nth - 1].split()[0].strip(MARKS).lower() == word.lower()


def postscript(text, marker):
    """A line that begins with the marker; a space may stand behind each inner point of P.S. and of P.P.S."""
    wanted = marker.strip().lower()
    for line in text.lower().split("\n"):
        line = line.lstrip()
        if wanted in ("p.s.", "p.p.s"):
            letters = wanted.replace(".", "")
            ok = True
            for place, letter in enumerate(letters):
                ok = ok and line[:1] == letter
                line = line[1:]
                if place < len(letters) - 1 or wanted.endswith("."):
                    ok = ok and line[:1] == "."
                    line = line[1:]
                if place < len(letters) - 1 and line[:1].isspace():
                    line = line[1:]
            if ok:
                return True
        elif line.startswith(wanted):
            return True
    return False


def capitals(text, relation, bound):
    """Words in capitals; what a hyphen or an apostrophe joins is one word."""
    spaced = "".join(sign if sign.isalnum() or sign in "_-'" else " " for sign in text)
    return more(sum(piece.strip("-'").isupper() for piece in spaced.split()), relation, bound)


CHECKS = {
    "keywords:existence": lambda t, keywords: all(word.lower() in t.lower() for word in keywords),
    "keywords:frequency": lambda t, keyword, relation, frequency: more(
        t.lower().count(keyword.lower()), relation, frequency
    ),
    "keywords:forbidden_words": lambda t, forbidden_words: not any(has_word(t, word) for word in forbidden_words),
    "keywords:letter_frequency": lambda t, letter, let_relation, let_frequency: more(
        sum(sign == letter.lower() for sign in t.lower()), let_relation, let_frequency
    ),
    "length_constraints:number_sentences": lambda t, relation, num_sentences: more(
        globals()["num_sentences"](t), relation, num_sentences
    ),
    "length_constraints:number_paragraphs": lambda t, num_paragraphs: paragraphs(t, num_paragraphs),
    "length_constraints:number_words": lambda t, relation, num_words: more(len(words(t)), relation, num_words),
    "length_constraints:nth_paragraph_first_word": lambda t, num_paragraphs, nth_paragraph, first_word: globals()[
        "first_word"
    ](t, num_paragraphs, nth_paragraph, first_word),
    "detectable_content:number_placeholders": lambda t, num_placeholders: bracketed(t) >= num_placeholders,
    "detectable_content:postscript": lambda t, postscript_marker: postscript(t, postscript_marker),
    "detectable_format:number_bullet_lists": lambda t, num_bullets: bullets(t, num_bullets),
    "detectable_format:constrained_response": lambda t: any(f"My answer is {a}." in t for a in ("yes", "no", "maybe")),
    "detectable_format:number_highlighted_sections": lambda t, num_highlights: highlights(t, num_highlights),
    "detectable_format:multiple_sections": lambda t, section_spliter, num_sections: sections(
        t, section_spliter, num_sections
    ),
    "detectable_format:json_format": is_json,
    "detectable_format:title": title,
    "combination:two_responses": two_responses,
    "combination:repeat_prompt": lambda t, prompt_to_repeat: (
        t.strip().lower()[: len(prompt_to_repeat.strip())] == prompt_to_repeat.strip().lower()
    ),
    "startend:end_checker": lambda t, end_phrase: (
        t.strip().strip('"').lower()[-len(end_phrase.strip()) :] == end_phrase.strip().lower()
    ),
    "change_case:capital_word_frequency": lambda t, capital_relation, capital_frequency: capitals(
        t, capital_relation, capital_frequency
    ),
    "change_case:english_capital": lambda t: t == t.upper() and any(sign.isupper() for sign in t) and english(t),
    "change_case:english_lowercase": lambda t: t == t.lower() and any(sign.islower() for sign in t) and english(t),
    "punctuation:no_comma": lambda t: t.count(",") == 0,
    "startend:quotation": lambda t: len(t.strip()) >= 2 and t.strip().startswith('"') and t.strip().endswith('"'),
    "language:response_language": lambda t, language: language_of(t) == language,
}

SCRIPTS = {
    "CYRILLIC": "ru",
    "ARABIC": "ar",
    "DEVANAGARI": "hi",
    "BENGALI": "bn",
    "THAI": "th",
    "HANGUL": "ko",
    "TAMIL": "ta",
    "TELUGU": "te",
    "KANNADA": "kn",
    "GUJARATI": "gu",
    "GURMUKHI": "pa",
    "HIRAGANA": "ja",
    "HEBREW": "he",
    "GREEK": "el",
}
FREQUENT = {
    "en": "the of and to in is a that it for you with are this on as be or was by not i",
    "de": "der die und das ist nicht ein eine zu mit den von auf für im sich dem",
    "fr": "le la les des et est un une dans que pour qui pas sur au du",
    "es": "el la los las de y que en un una es por con para no se del",
    "pt": "o a os as de e que em um uma é por com para não do da",
    "it": "il la di e che un una è per non con del della le i gli",
    "fi": "ja on ei se että oli hän mutta ovat kun tai myös",
    "sv": "och att det som en är på för av inte med den",
    "vi": "và của là có các không được cho một những",
    "sw": "na ya wa kwa ni katika za la kuwa hii",
    "bg": "и на да се в от не за",
    "ne": "छ र को मा हो",
    "mr": "आहे आणि च्या",
    "fa": "و در به از که این",
    "ur": "کے میں ہے کی اور",
}


def language_of(text):
    """By the script of most letters, then by frequent words."""
    scripts = {}
    for sign in text:
        if sign.isalpha():
            name = unicodedata.name(sign, "").split(" ")[0]
            scripts[name] = scripts.get(name, 0) + 1
    most = max(scripts, key=scripts.get, default="LATIN")
    own = {word.strip(MARKS).lower() for word in text.split()}
    rated = {code: len(own & set(listed.split())) for code, listed in FREQUENT.items()}
    best = max(rated, key=rated.get)
    if most == "LATIN":
        return best if rated[best] else None
    if most in ("CYRILLIC", "ARABIC", "DEVANAGARI"):
        near = {"CYRILLIC": ("bg",), "ARABIC": ("fa", "ur"), "DEVANAGARI": ("ne", "mr")}[most]
        nearest = max(near, key=rated.get)
        return nearest if rated[nearest] > 1 else SCRIPTS[most]
    return SCRIPTS.get(most)


def english(text):
    return language_of(text) == "en"
