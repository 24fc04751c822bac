"""Of any text something is said, and soon."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ormcache import sql
from tests.sql_texts import VENDORS, any_sql, quickly


@given(any_sql, st.sampled_from(VENDORS))
@quickly(300)
def test_any_text_can_be_read_and_classified(text: str, vendor: str) -> None:
    read = sql.analyse_read(text, vendor)
    assert read.words == sql.words(text)
    for statement in sql.classify(text, vendor):
        assert statement.mentions <= read.words


# Each of these made longer is a text that some way of looking for its end looks at in vain.
NEVER_CLOSED = "' \" ` [ /* /*' $$ $a$ e'\\' '\\ --".split()
PATHOLOGICAL = [
    *("''", '""', "(", "$", "]", ")", "()", ";", ",", "."),
    *("/**/", "/*!", "*/", "-- \n", "#", "\\"),
    *("a", "a ", "a.", "a,", "a(", "(a", "1", "@", "%s, ", "e'", "select ", "(select ", "from "),
    *("from (", "from a, ", "as (", "with a as (", ", a(b) as (select ", "a() as (select "),
    *("begin ", "case ", "end ", "create trigger begin ", "for update ", "for ", "pg_advisory_"),
    *("lock", "insert into ", "insert into a (a, ", "update a.", "delete from ", "set a = 1, "),
    *("a/* ", "$a", "'$$", "as", "is distinct from ", "join ", "table ", "\n", "\t "),
]


def seconds_for(text: str, vendor: str) -> float:
    began = time.process_time()
    sql.analyse_read(text, vendor)
    sql.classify(text, vendor)
    return time.process_time() - began


@pytest.mark.parametrize("piece", NEVER_CLOSED)
def test_end_that_is_not_there_is_looked_for_once(piece: str) -> None:
    """Looking for it from each beginning would take minutes."""
    text = piece * (100_000 // len(piece))
    for vendor in ("sqlite", "postgresql", "mysql"):
        assert seconds_for(text, vendor) < 5


@pytest.mark.parametrize(
    ("vendor", "head"),
    [("sqlite", ""), ("postgresql", "insert into t ("), ("mysql", "select a from b where ")],
)
def test_long_text_takes_no_longer_than_its_length_asks_for(vendor: str, head: str) -> None:
    for piece in PATHOLOGICAL:
        text = head + piece * (10_000 // len(piece))
        assert seconds_for(text, vendor) < 1, piece


def test_tag_that_is_not_there_is_looked_for_once() -> None:
    """Each dollar quote of PostgreSQL may have a tag of its own."""
    text = " ".join(f"$a{number}$" for number in range(10_000))
    assert seconds_for(text, "postgresql") < 5
