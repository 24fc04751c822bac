"""Which tables a write names as its targets: too many rather than too few."""

from __future__ import annotations

import re
from typing import NamedTuple

from ormcache.sql.lexer import END, Token, last_part, words
from ormcache.sql.names import NAME, fold

_COLUMNS = rf"\(\s*{NAME}(?:\s*,\s*{NAME})*\s*\)"


def _qualified(number: int) -> str:
    return rf"(?P<schema{number}>(?:{NAME}\s*\.\s*)*)(?P<target{number}>{NAME})"


_ONE_TARGET = re.compile(
    rf"""\s*(?:
      (?P<verb>INSERT(?:\s+OR\s+\w+)?(?:\s+IGNORE)?|REPLACE)\s+INTO\s+{_qualified(1)}\s*
        (?:{_COLUMNS}\s*)?(?:OVERRIDING\s+\w+\s+VALUE\s+)?(?:DEFAULT\s+)?VALUES\b
    | UPDATE\s+{_qualified(2)}\s+SET\b
    | DELETE\s+FROM\s+{_qualified(3)}\s*(?:WHERE\b|\Z)
    )""",
    re.VERBOSE | re.IGNORECASE,
)
# What Django sends for many rows at once: INSERT INTO t (a, b) SELECT * FROM UNNEST(…).
_INSERT_SELECT = re.compile(
    rf"\s*INSERT\s+INTO\s+{_qualified(1)}\s*{_COLUMNS}\s*SELECT\b", re.IGNORECASE
)
_FOLLOWED_BY_TARGET = frozenset(
    "into update from table copy truncate view join only exists".split()
)
# What may stand between one of these and the name.
_BEFORE_NAME = frozenset("only if not exists table into".split())
# What may stand between the INTO of a SELECT and its table.
_INTO_WORDS = frozenset("global local temp temporary unlogged".split())

# Up to a word or sign that no name stands before any more. A verb alone in a string is compared
# with something, such as TG_OP, unless the rest of the statement is added to it.
_WRITE_IN_BODY = re.compile(
    r"""(?:(?<!')\b(?:VERBS)\b | \b(?:VERBS)\b(?!'(?!\s*\|\|)))
    ((?:"[^"]*"|`[^`]*`|/\*.*?\*/|--[^\n]*|.)*?)
    (?=[(;]|\b(?:SET|VALUES|SELECT|WHERE|USING|RETURNING|DEFAULT|ON|OF|LIMIT|ORDER)\b|\Z)""".replace(
        "VERBS", "INSERT|REPLACE|UPDATE|DELETE|MERGE|TRUNCATE|COPY"
    ),
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)
# Of MySQL's UPDATE a JOIN b ON … JOIN c ON … SET, any of them may be written.
_UPDATE_IN_BODY = re.compile(r"\bUPDATE\b((?:(?!\bUPDATE\b)[^;])*?)\bSET\b", re.IGNORECASE)
# Of its DELETE c FROM a JOIN b ON … JOIN d AS c ON …, c may be a name that d has there alone.
_DELETE_IN_BODY = re.compile(r"\bDELETE\b(?:(?!\bDELETE\b)[^;])*", re.IGNORECASE)
_CALLED_OTHERWISE = re.compile(rf"({NAME})\s+(?:AS\s+)?(?=({NAME}))", re.IGNORECASE)
_NAME = re.compile(NAME)


class Target(NamedTuple):
    """The one table that a simple statement writes to."""

    name: str
    """Folded, and without a schema."""
    own: str
    """See :attr:`Statement.own <ormcache.sql.Statement.own>`."""
    deletes: bool
    """Whether its rows may vanish."""


def only_target(sql: str) -> Target | None:
    """The target of a plain INSERT, UPDATE or DELETE; None where that takes a look at tokens.

    Quickly, because bulk inserts may be long.
    """
    match = _ONE_TARGET.match(sql)
    if match is None:
        return None
    name = match["target1"] or match["target2"] or match["target3"]
    schema = match["schema1"] or match["schema2"] or match["schema3"]
    # REPLACE removes the row in the way first.
    deletes = bool(match["target3"]) or "replace" in (match["verb"] or "").casefold()
    return Target(fold(name), "" if schema else _own(name), deletes)


def own_target_of_insert(sql: str) -> str:
    """What ``own`` is for an INSERT of a query, see :class:`Target`."""
    match = _INSERT_SELECT.match(sql)
    return _own(match["target1"]) if match is not None and not match["schema1"] else ""


def _own(name: str) -> str:
    """The folded name, if PostgreSQL spells it in this way, too."""
    folded = fold(name)
    spelt = name[1:-1] if name.startswith('"') else name.lower()
    return folded if spelt == folded and folded.isascii() else ""


def targets_of(stream: list[Token]) -> frozenset[str]:
    """The names behind all words that a target may follow."""
    found: set[str] = set()
    ahead = [*stream, END, END]
    at = 0
    while at < len(stream):
        keyword = ahead[at].keyword
        at += 1
        if keyword in _FOLLOWED_BY_TARGET:
            names, at = _names_behind(keyword, ahead, at)
            found |= names
    return frozenset(found - {"select", "set"})


def _names_behind(keyword: str, stream: list[Token], at: int) -> tuple[set[str], int]:
    """The list of names that begins at ``at``, behind ``keyword``, and where it ends."""
    found: set[str] = set()
    while True:
        while stream[at].folded in _BEFORE_NAME:
            at += 1
        if not stream[at].is_name:
            return found, at
        name, at = last_part(stream, at)
        # That of Django's bulk_create(): a function, no table.
        if name != "unnest" or stream[at].text != "(":
            found.add(name)
        if keyword == "into" and name in _INTO_WORDS:
            # SELECT … INTO TEMP t, unless it is a table of this name.
            continue
        if stream[at].text == "*":  # TRUNCATE t *
            at += 1
        if stream[at].text != ",":
            return found, at
        at += 1


def written_in(body: str) -> frozenset[str]:
    """What may be the name of a table that a routine writes: all words behind INSERT and its like.

    Args:
        body: of a trigger or function, in whatever language. What it has in strings counts, too,
            for it may be executed.
    """
    found = frozenset[str]()
    for pattern in (_WRITE_IN_BODY, _UPDATE_IN_BODY):
        found = found.union(*(names_in(match[1]) for match in pattern.finditer(body)))
    for match in _DELETE_IN_BODY.finditer(body):
        tables = {
            (fold(table), fold(alias)) for table, alias in _CALLED_OTHERWISE.findall(match[0])
        }
        found |= {table for table, alias in tables if alias in found}
    return found


def names_in(body: str) -> frozenset[str]:
    """All words of a routine: among them are the routines that it calls.

    Those inside of what looks like a quoted name, too: where a comment or a string has one quote,
    it is not known which of them are.
    """
    return words(body).union(map(fold, _NAME.findall(body)))
