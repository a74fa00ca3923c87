"""Repair, masks, lists, languages; which documents a stage judges; nested documents; bad settings."""

import ipaddress
import pickle
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leyden.core.errors import UserError
from leyden.data.documents import Document, Documents, Message
from leyden.data.rules import (
    C4,
    FineWeb,
    GopherQuality,
    GopherRepetition,
    Language,
    Length,
    Personal,
    RuleStage,
    Script,
    Unicode,
    Urls,
)
from leyden.data.rules.addresses import host, parent_domains, plain_url
from leyden.data.rules.lists import HashedSet, load

WORK = Path()


def _documents(*texts, **columns):
    rows = [{name: values[i] for name, values in columns.items()} for i in range(len(texts))]
    return Documents.of(
        [Document(**{"id": str(i), "text": text, "source": "memory", **rows[i]}) for i, text in enumerate(texts)]
    )


def _reasons(stage, documents):
    return stage.apply(documents, "", WORK).column("reason")


# Which documents


def test_sources_and_languages_choose():
    documents = _documents("", "", "", "", source=["web", "a.py", "b.md", "c.py"], language=["en", None, "de", "en"])
    reason = "length: characters"
    for settings_, expected in (
        ({}, "1111"),
        ({"sources": ("*.py",)}, "0101"),
        ({"sources": ("*.py", "web"), "except_sources": ("c.*",)}, "1100"),
        ({"languages": ("en",)}, "1001"),
        ({"languages": ("en", "de"), "except_sources": ("web",)}, "0011"),
    ):
        assert _reasons(Length(min_characters=1, **settings_), documents) == [
            reason if flag == "1" else None for flag in expected
        ]


NESTED = Document("n", "", "chat", messages=(Message("user", "Who? joe@corp.org\r\n"), Message("assistant", "schÃ¶n")))


def test_nested_documents_keep_their_messages():
    documents = Documents.of([Document("a", "b", "web"), NESTED])
    masked = Unicode().apply(Personal().apply(documents, "", WORK), "", WORK)
    user, assistant = next(d for d in masked if d.id == "n").messages
    assert (user.content, assistant.content) == ("Who? email@example.com\n", "schön")
    assert [d.id for d in masked] == ["a", "n"]
    assert masked.scores("masked")[1] == 1 and np.isnan(masked.scores("masked")[0])
    judged = C4(min_sentences=1, min_line_words=1).apply(documents, "", WORK)
    assert judged.column("reason") == ["c4: lines that stay", "c4: lines that stay"]
    assert [d.messages for d in judged] == [(), NESTED.messages]
    assert _reasons(Length(max_words=2), documents) == [None, "length: words"]


def test_only_chosen_documents_are_rewritten():
    documents = _documents("a@b.org", "a@b.org", "a@b.org", source=["x", "y", "x"])
    masked = Personal(sources=("x",)).apply(documents, "", WORK)
    assert masked.column("text") == ["email@example.com", "a@b.org", "email@example.com"]
    assert masked.column("id") == ["0", "1", "2"]


@pytest.mark.parametrize(
    "stage",
    [C4(), FineWeb(), GopherQuality(), GopherRepetition(), Language(), Length(), Personal(), Script(keep=("Latin",))],
    ids=lambda stage: stage.kind,
)
def test_a_batch_of_nothing(stage):
    assert len(stage.apply(Documents.of([]), "", WORK)) == 0
    assert issubclass(type(stage), RuleStage)


# Unicode


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ("schÃ¶n â€” sÃ¼ÃŸ\nplain", "schön — süß\nplain"),
        ("a\r\nb\rc\n", "a\nb\nc\n"),
        ("e\u0301", "é"),
        ("a\x00b\x07c\ufeff", "abc"),
        ("“curly” ﬁ ＡＢ &amp; <b>", "“curly” ﬁ ＡＢ &amp; <b>"),
        ("tab\tspace  \n\n", "tab\tspace  \n\n"),
        ("", ""),
    ],
)
def test_repair(given_, expected):
    assert Unicode().repair(given_) == expected


def test_repair_settings():
    assert Unicode(html_entities=True).repair("a &amp; b\nc &lt; d") == "a & b\nc < d"
    assert Unicode(form="none").repair("e\u0301") == "e\u0301"
    assert Unicode(form="NFKC").repair("ﬁ") == "fi"
    assert Unicode(encoding=False).repair("schÃ¶n") == "schÃ¶n"
    repaired = Unicode().apply(_documents("ok", "schÃ¶n\nok\nschÃ¶n"), "", WORK)
    assert np.array_equal(repaired.scores("repaired_lines"), [np.nan, 2], equal_nan=True)


@settings(max_examples=100, derandomize=True)
@given(st.text(max_size=60))
def test_repair_gives_normal_text_once_and_for_all(text):
    once = Unicode(encoding=False).repair(text)
    assert once == unicodedata.normalize("NFC", once)
    assert Unicode(encoding=False).repair(once) == once


QUOTING = [
    "O título é “{}” em maiúsculas, e a manhã não acabou.",
    "A palavra do dia é «{}».",
    "Sonuç: “{}” geçerli, çünkü ağaç öğrendi.",
    "Le mot « {} » n’est pas là… où est-il ?",
    "Từ này là “{}”, và nó rất phổ biến ở Việt Nam.",
    "Słowo „{}” jest wielkimi literami, więc źle.",
    "Slovo „{}“ je psáno velkými písmeny — příliš žluťoučký kůň.",
    "Das Wort „{}“ ist groß geschrieben, schön für süße Mädchen.",
    "Ordet ”{}” är skrivet med stora bokstäver på en ö.",
    "Ordet «{}» er skrevet på norsk, så får vi håpe.",
    "Cuvântul „{}” este scris cu majuscule în română.",
    "Orðið „{}“ er með stórum stöfum, það er allt í lagi.",
    "A(z) »{}« szó nagybetűs, őrült árvíztűrő.",
    "Слово «{}» написано прописными буквами.",
    "Η λέξη «{}» είναι με κεφαλαία.",
    "このことば「{}」は大文字です。",
]
WORDS = [
    "IRMÃ",
    "MAÇÃ",
    "HÂLÂ",
    "CAFÉ",
    "NHÀ",
    "XÃ",
    "MIÓD",
    "TÖÖ",
    "MENÜ",
    "SMÅ",
    "CASĂ",
    "HLÝ",
    "HŐ",
    "ЦАРЬ",
    "ΠΆΝΩ",
    "Ã",
]
BEHIND = ["", "…", "®", "?", " E", ","]


def test_sound_text_is_never_repaired():
    sound = [sentence.format(word + behind) for sentence in QUOTING for word in WORDS[:-1] for behind in BEHIND]
    sound += [sentence.format(WORDS[-1]) for sentence in QUOTING]  # of one letter
    repaired = Unicode(form="none").repair("\n".join(sound)).split("\n")
    assert [pair for pair in zip(sound, repaired, strict=True) if len(set(pair)) > 1] == []
    alone = [f"{word}{mark}" for word in WORDS[:-1] for mark in ("”", "»", "…", "“ ", "’, ", "™")]
    assert [Unicode(form="none").repair(text) for text in alone] == alone


def test_wrongly_decoded_text_is_repaired_in_bulk():
    import ftfy.bad_codecs.sloppy  # noqa: F401  Windows-1252 as programs decode it, without gaps

    sound = [sentence.format(word) for sentence in QUOTING for word in WORDS]
    for encoding in ("sloppy-windows-1252", "latin-1"):
        wrong = [text.encode().decode(encoding) for text in sound]
        lines = [Unicode().repair(text) for text in wrong]
        assert sum(a == b for a, b in zip(lines, sound, strict=True)) > 0.97 * len(sound)
        pages = Unicode().repair("\n".join(wrong)).split("\n")
        assert sum(a == b for a, b in zip(pages, sound, strict=True)) > 0.97 * len(sound)


@pytest.mark.parametrize("text", ["10 × 15 cm", "KÖLN", "l’hôtel “Ô”, où", "é uma à tarde", "был ли он мил"])
def test_what_looks_like_the_end_of_a_word_is_repaired_where_all_is_wrong(text):
    assert Unicode().repair(text.encode().decode("latin-1")) == text


# Personal data


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ("joe.x+y@foo.co.uk.", "E."),
        ("<a@b.com>,c@d.org", "<E>,E"),
        ("x@example.com y@sub.example z@a.test", None),
        ("a@b @ c@.com d@-x.com @e.com", None),
        ("8.8.8.8 (1.1.1.1), 9.9.9.9:53/8", "4 (4), 4:53/8"),
        ("Version 8.8.8.8, ver. 8.8.8.8; section 8.8.8.8, § 8.8.8.8. Firmware\n8.8.8.8", None),
        ("<img src=logo@2x.png> a@3x.webp", None),
        ("10.0.0.1 127.0.0.1 192.168.1.1 224.0.0.1x 999.8.8.8 08.8.8.8 v8.8.8.8 1.2.3.4.5", None),
        ("2606:4700:4700::1111 2001:4860::8888.", "6 6."),
        ("fe80::1 ::1 2001:db8::5 std::a 12:34:56 2606:zz::", None),
        ("+44 20 7946 0958 (415) 555-2671 or 212-555-1234.", "P P or P."),
        ("012-555-1234 +0 20 7946 0958 +12 2026-10-11 555-12345", None),
    ],
)
def test_masks(given_, expected):
    stage = Personal(phones=True, email="E", ipv4="4", ipv6="6", phone="P")
    masked, number = stage.mask(given_)
    assert masked == (given_ if expected is None else expected)
    assert number == (
        0 if expected is None else sum(sign in "E46P" for sign in masked.split("/")[0].replace(":53", ""))
    )


@settings(max_examples=100, derandomize=True)
@given(st.ip_addresses(), st.emails(domains=st.sampled_from(["corp.org", "a-b.co.uk", "example.net"])))
def test_masks_of_generated_addresses(address, email):
    public = address.is_global and (address.version == 4 or address in ipaddress.ip_network("2000::/3"))
    text, number = Personal(emails=False).mask(f"at {address}, so")
    assert number == public and (str(address) in text) != public
    text, number = Personal().mask(f"to {email} ")
    in_use = re.search(r"[A-Za-z0-9_.+%&-]*\Z", email.rpartition("@")[0])  # of "a'b@c.de", b@c.de is masked
    assert number == (re.search("[A-Za-z0-9_]", in_use[0]) is not None and not email.endswith("example.net"))
    assert ("email@example.com" in text) == number


def test_masking_twice_is_masking_once():
    text = "joe@corp.org 8.8.8.8 2606:4700:4700::1111"
    once, number = Personal().mask(text)
    assert (once, number) == ("email@example.com 192.0.2.1 2001:db8::1", 3)
    assert Personal().mask(once) == (once, 0)


# Lists


@pytest.fixture
def lists(tmp_path):
    def write(name, *entries):
        (tmp_path / name).write_text("\n".join(entries))
        return tmp_path / name

    return write


def test_domains(lists):
    stage = Urls(domains=lists("d", "# ads", "", "Example.org", "ads.co.uk", "bücher.de"))
    urls = [
        "http://www.EXAMPLE.org:80/x",
        "example.org",
        "https://anexample.org/",
        "http://co.uk",
        "http://x.ads.co.uk",
    ]
    urls += ["http://xn--bcher-kva.de/", "http://[broken", None, "", "http://" + "é." * 100_000 + "example.org"]
    documents = _documents(*"abcdefghij", url=urls)
    judged = stage.apply(documents, "", WORK)
    dropped = [reason == "url: domain" for reason in judged.column("reason")]
    assert dropped == [True, True, False, False, True, True, False, False, False, False]
    assert judged.column("detail")[4] == "ads.co.uk; none is allowed"


def test_addresses_words_and_parts(lists):
    urls = ["https://www.a.org/x/?q=1#top", "http://a.org/y", "http://b.org/casino-win", "http://b.org/casinos"]
    urls += ["http://b.org/free_sexy", "http://b.org/free", "http://b.org/p-o-k-e-r"]
    documents = _documents(*"abcdefg", url=urls)
    stage = Urls(
        urls=lists("u", "a.org/x/?q=1", "http://a.org/z"),
        words=lists("w", "Casino"),
        soft_words=lists("s", "free", "sexy"),
        parts=lists("p", "poker"),
    )
    assert _reasons(stage, documents) == [
        *("url: address", None, "url: word", None, "url: soft words", None, "url: part"),
    ]
    assert len(stage.files()) == 4


def test_url_forms():
    assert host("https://user@WWW.x.org.:8080/p") == "www.x.org"
    assert parent_domains("a.b.org") == ["a.b.org", "b.org", "org"]
    assert plain_url("https://www.x.org:443/a/?b#c") == plain_url("x.org/a/?b") == "x.org/a/?b"
    assert plain_url("http://x.org:99999/") == "http://x.org:99999/"


def test_lists_that_cannot_be_read(lists, tmp_path):
    documents = _documents("a", url=["http://a.org"])
    for path, message in (
        (tmp_path / "none", "cannot be read: No such file"),
        (tmp_path, "cannot be read: Is a directory"),
        (lists("empty", "# nothing"), "holds no entry"),
    ):
        with pytest.raises(UserError, match=message):
            Urls(domains=path).apply(documents, "", WORK)
    (tmp_path / "latin").write_bytes(b"ok\n\xff")
    with pytest.raises(UserError, match="not UTF-8 at byte 3"):
        load(tmp_path / "latin", list)


@settings(max_examples=50, derandomize=True)
@given(st.lists(st.text(max_size=3)), st.lists(st.text(max_size=3)))
def test_hashed_set(members, asked):
    assert HashedSet(members).contains(asked).tolist() == [name in members for name in asked]


def test_bad_words(lists):
    stage = C4(min_sentences=1, min_line_words=1, bad_words=lists("b", "Darn", "two words", "c++", "最悪", "$%!"))
    pages = [
        "oh DARN.",
        "darned.",
        "xdarn.",
        "two words.",
        "two  words.",
        "c++.",
        "c.",
        "これは最悪だ.",
        "a$%!b.",
        "two wordsx.",
    ]
    reason = "c4: listed words"
    judged = stage.apply(_documents(*pages), "", WORK)
    expected = [reason, None, None, reason, None, reason, None, reason, reason, None]
    assert judged.column("reason") == expected
    assert judged.column("detail")[0] == "darn; none is allowed"
    assert stage.files() == (stage.bad_words,)


# Language

SENTENCES = {
    "en": "The quick brown fox jumps over the lazy dog while everyone is watching it from the window.",
    "de": "Der schnelle braune Fuchs springt über den faulen Hund, während alle aus dem Fenster zusehen.",
    "fr": "Le renard brun et rapide saute par-dessus le chien paresseux pendant que tout le monde regarde.",
    "zh": "敏捷的棕色狐狸跳过了懒狗，而每个人都在窗口观看着它。",
    "ru": "Быстрая коричневая лиса прыгает через ленивую собаку, пока все смотрят на неё из окна.",
}


def test_languages_are_found():
    documents = _documents(*SENTENCES.values(), "", "12 345 !")
    labelled = Language().apply(documents, "", WORK)
    assert labelled.column("language") == [*SENTENCES, None, None]
    assert (labelled.scores("language")[:5] > 0.65).all() and np.isnan(labelled.scores("language")[5:]).all()
    judged = Language(keep=("en", "de")).apply(documents, "", WORK)
    other = "language: not among those to keep"
    assert judged.column("reason") == [None, None, *[other] * 5]
    details = judged.column("detail")
    assert re.fullmatch(r"fr, [01]\.\d{3} sure; kept: en, de", details[2]) and details[5] == "no letters; kept: en, de"
    assert _reasons(Language(keep=("en",), min_confidence=1, among=("en", "de")), _documents("of it")) in (
        ["language: unsure"],
        ["language: not among those to keep"],
    )


def test_long_documents_are_sampled():
    menu, body = SENTENCES["fr"] * 20, SENTENCES["en"] * 100
    stage = Language(pieces=3, piece_characters=200)
    text = menu + body
    assert len(stage.sample(text)) == 602 and all(part in text for part in stage.sample(text).split("\n"))
    assert stage.sample(menu[:600]) == menu[:600]
    assert stage.identify(menu + body + menu)[0] == "en"


def test_other_columns_of_documents_that_are_not_chosen_stay():
    documents = _documents(SENTENCES["de"], SENTENCES["de"], source=["a", "b"], language=["en", "en"])
    documents = documents.score("language", [0.5, 0.5])
    labelled = Language(sources=("a",)).apply(documents, "", WORK)
    assert labelled.column("language") == ["de", "en"]
    assert labelled.scores("language")[1] == 0.5


# Settings


@pytest.mark.parametrize(
    ("stage", "data", "message"),
    [
        (Urls, {}, "give at least one list"),
        (Script, {"keep": ["Klingon"]}, "'Klingon' is no script of Unicode"),
        (Script, {"keep": []}, "at least 1 item"),
        (Script, {"keep": ["Latin"], "min_share": 2}, "less than or equal to 1"),
        (GopherRepetition, {"max_top_ngrams": {}}, "did you mean 'max_top_ngram'"),
        (GopherRepetition, {"max_top_ngram": {"x": 1}}, "valid integer"),
        (Unicode, {"form": "NFX"}, "'NFC'"),
        (Language, {"pieces": 0}, "greater than or equal to 1"),
    ],
)
def test_bad_settings(stage, data, message):
    with pytest.raises(UserError, match=message):
        stage.parse(data, "recipe")


def test_stages_go_to_processes_and_fingerprints_whole(lists):
    stages = [C4(bad_words=lists("b", "x")), GopherRepetition(max_top_ngram={2: 0.5}), Urls(words=lists("w", "x"))]
    for stage in stages:
        assert pickle.loads(pickle.dumps(stage)) == stage
        assert type(stage).model_validate_json(stage.model_dump_json()) == stage


def test_a_language_that_the_classifier_does_not_know():
    with pytest.raises(UserError, match="'xx' is not known"):
        Language(keep=("xx",)).apply(_documents("text"), "", WORK)


def test_ngram_thresholds_from_a_recipe():
    stage = GopherRepetition.parse({"max_top_ngram": {"2": 0.5}, "max_duplicate_ngrams": {}}, "recipe")
    assert stage.max_top_ngram == {2: 0.5}
    assert _reasons(stage, _documents("a b a b a b.")) == ["gopher: characters in the top 2-gram"]
    assert _reasons(GopherRepetition(max_top_ngram={}, max_duplicate_ngrams={}), _documents("a b a b a b.")) == [None]
