"""What DDL is about, and whether it changes what queries mean that do not mention it."""

from __future__ import annotations

from ormcache.sql.lexer import END, Token

ROUTINES = frozenset({"trigger", "procedure", "function", "event", "package"})
"""What has a body of statements."""
_DEFINES = frozenset("create alter drop rename reassign".split())
# What CREATE, ALTER or DROP is about: the first of these words.
_OBJECTS = frozenset(
    """
    aggregate cast collation column constraint conversion database domain event extension foreign
    function index language operator package policy procedure publication role routine rule schema
    search sequence server statistics subscription synonym table tablespace transform trigger type
    user view
    """.split()
)
# A change of these changes what queries answer, and names no table whose queries they are; or what
# triggers write. SEARCH is that of TEXT SEARCH CONFIGURATION and its like.
_MEANINGS = frozenset(
    "aggregate cast function operator package policy procedure routine rule search".split()
)
_MEANINGS_ONCE_THERE = frozenset("collation domain extension schema type".split())
# Words of DDL that may change what a name means, what a query sees of it, or what is written with
# it, without naming it.
_HINTS = frozenset(
    """
    attach detach engine inherit inherits owned partition rename schema security server trigger
    view virtual
    """.split()
)


def object_of(stream: list[Token]) -> str:
    """What kind of thing DDL is about."""
    return next((token.keyword for token in stream[1:] if token.keyword in _OBJECTS), "")


def changes_meanings(verb: str, stream: list[Token], found: frozenset[str]) -> bool:
    """Whether a statement of the words ``found`` changes functions, types, views and the like.

    Queries that it does not mention may then mean something else.
    """
    if verb == "revoke":
        return True
    if verb not in _DEFINES:
        return False
    # FOREIGN TABLE, not FOREIGN KEY
    if not found.isdisjoint(_HINTS) or ("foreign" in found and "key" not in found):
        return True
    what = object_of(stream)
    return what in _MEANINGS or (verb != "create" and what in _MEANINGS_ONCE_THERE)


def is_temporary(stream: list[Token]) -> bool:
    """Whether the table that is made is one of this session alone."""
    for token, after in zip(stream, [*stream[1:], END], strict=True):
        if token.keyword in ("temp", "temporary"):
            return True
        # A column may be called "temp". SQLite takes a string for a name.
        name = token.folded.strip("'").casefold()
        if after.text == "." and (name == "temp" or name.startswith("pg_temp")):
            return True
        if token.keyword == "u" and after.text == "&":
            # U&"pg!005ftemp"
            return True
    return False
