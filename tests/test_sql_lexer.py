"""Tokens of a text in the dialects, and its normal form."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ormcache import sql
from tests.sql_texts import VENDORS, any_sql, every_vendor, quickly


def spell(text: str, vendor: str) -> list[str]:
    return [f"{token.kind} {token.text}" for token in sql.tokens(text, vendor)]


@pytest.mark.parametrize(
    ("vendor", "text", "expected"),
    [
        ("postgresql", "a -- b\nc", ["word a", "word c"]),
        ("postgresql", "a -- b\rc", ["word a", "word c"]),
        ("sqlite", "a -- b\rc", ["word a"]),
        ("mysql", "a -- b\nc", ["word a", "word c"]),
        ("mysql", "5--1", ["number 5", "mark -", "mark -", "number 1"]),
        ("mysql", "a # it's\nb", ["word a", "word b"]),
        ("postgresql", "a # b", ["word a", "mark #", "word b"]),
        ("sqlite", "a /* b /* c */ d", ["word a", "word d"]),
        ("postgresql", "a /* b /* ' */ */ d", ["word a", "word d"]),
        ("mysql", "/*+ hint */ a", ["word a"]),
        ("sqlite", "'a''b' c", ["string 'a''b'", "word c"]),
        ("sqlite", r"'a\' b", [r"string 'a\'", "word b"]),
        ("postgresql", r"'a\' b", [r"string 'a\'", "word b"]),
        ("postgresql", r"E'a\' b' c", [r"string E'a\' b'", "word c"]),
        ("mysql", r"'a\' b' c", [r"string 'a\' b'", "word c"]),
        ("mysql", r'"a\" b" c', [r'quoted "a\" b"', "word c"]),
        ("mysql", "'a\\\\' b", ["string 'a\\\\'", "word b"]),
        ("postgresql", "$$a'b$$ c", ["string $$a'b$$", "word c"]),
        ("postgresql", "$x$a$$b$x$ c", ["string $x$a$$b$x$", "word c"]),
        ("postgresql", "$1 a", ["mark $", "number 1", "word a"]),
        ("mysql", "a$$b", ["word a$$b"]),
        ("sqlite", "[a b] c", ["quoted [a b]", "word c"]),
        ("microsoft", "[a]]b] c", ["quoted [a]]b]", "word c"]),
        ("postgresql", "a[b]", ["word a", "mark [", "word b", "mark ]"]),
        ("mysql", "`a``b` c", ["quoted `a``b`", "word c"]),
        ("postgresql", '"a""b" c', ['quoted "a""b"', "word c"]),
        ("postgresql", '"" c', ['quoted ""', "word c"]),
        ("mysql", "@a @@b.c", ["variable @a", "variable @@b.c"]),
        ("sqlite", "%s %(a)s", ["placeholder %s", "placeholder %(a)s"]),
        ("sqlite", "1.5e3 0x1F", ["number 1.5", "word e3", "number 0", "word x1F"]),
        ("sqlite", "äöü", ["word äöü"]),
    ],
)
def test_tokens_of_a_dialect(vendor: str, text: str, expected: list[str]) -> None:
    assert spell(text, vendor) == expected


@pytest.mark.parametrize(
    ("vendor", "text"),
    [
        *((vendor, text) for vendor in VENDORS for text in ("'a b", '"a b', "/* a b", "'a''b")),
        ("postgresql", "$x$ a b"),
        ("postgresql", "E'a\\' b"),
        ("postgresql", "/* a /* b */ c"),
        ("sqlite", "[a b"),
        ("sqlite", "`a b"),
        ("mysql", "'a\\' b"),
    ],
)
def test_what_is_never_closed_is_one_open_token(vendor: str, text: str) -> None:
    assert [token.kind for token in sql.tokens(text, vendor)][-1:] == ["open"]


@every_vendor
@pytest.mark.parametrize("text", ["/*! a */", "/*M! a */", "/*!50001 a */"])
def test_comments_that_mysql_executes_are_comments_only_elsewhere(vendor: str, text: str) -> None:
    assert ("word a" in spell(text, vendor)) == (vendor == "mysql")


@given(any_sql, st.sampled_from(VENDORS))
@quickly(300)
def test_tokens_lose_nothing_but_spaces_and_comments(text: str, vendor: str) -> None:
    at = 0
    for token in sql.tokens(text, vendor):
        between = text[at : token.at].lstrip()
        assert not between or between.startswith(("--", "#", "/*"))
        assert text.startswith(token.text, token.at)
        at = token.at + len(token.text)
    assert not text[at:].strip() or text[at:].lstrip().startswith(("--", "#", "/*"))


@given(st.integers(1, 50), st.integers(1, 50))
@quickly(20)
def test_lists_of_any_length_have_one_normal_form(one: int, other: int) -> None:
    text = "SELECT a FROM b WHERE c IN (%s) AND d = %%s"
    assert sql.normalise(text % ", ".join(["%s"] * one)) == sql.normalise(
        text % ", ".join(["%s"] * other)
    )


def test_normal_form_tells_texts_of_different_words_apart() -> None:
    texts = ["SELECT %s, a FROM b", "SELECT %s, now() FROM b", "SELECT a FROM b WHERE c IN (%s)"]
    assert len({sql.normalise(text) for text in texts}) == 3
