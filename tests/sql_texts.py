"""Texts of SQL that Hypothesis makes up, and the dialects in which texts are read."""

from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from ormcache import sql
from ormcache.sql import Kind

VENDORS = ("sqlite", "postgresql", "mysql", "microsoft", "oracle", "")

every_vendor = pytest.mark.parametrize("vendor", VENDORS)


def quickly(max_examples: int = 200) -> Any:
    return hypothesis.settings(max_examples=max_examples, deadline=None)


PIECES = st.sampled_from(
    """
    ' '' " "" ` [ ] ( ) ; , . $ $$ $a$ \\ -- # /* */ /*! @ %s %(a)s : = * \n 1 1.5
    e' E' select from join update insert into values delete with recursive as a b c now
    begin end case set for lock table only lateral is not distinct
    """.split(" ")
)
any_sql = st.one_of(
    st.text(),
    st.lists(PIECES, max_size=40).map("".join),
    st.lists(PIECES, max_size=40).map(" ".join),
)
NAMES = st.from_regex(r"v[a-z0-9_]{2,6}", fullmatch=True)


def kinds(text: str, vendor: str) -> set[Kind]:
    """What the statements of a text do together: one kind, whatever ends the text."""
    found = set()
    for ending in ("", ";", " ;; \n", " -- end"):
        together = Kind.READ
        for statement in sql.classify(text + ending, vendor):
            together |= statement.kind
        found.add(together)
    return found
