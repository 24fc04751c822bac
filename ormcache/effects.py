"""What executing a text does: of which kind it is, and which tables it writes.

Worked out once per text.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from ormcache import functions, interruptions, relations, sql, tables
from ormcache.conf import Settings, current
from ormcache.memo import Memo
from ormcache.sql import Kind
from ormcache.stores import EVERYTHING

_TEXT_LIMIT = 8192


class Effect(NamedTuple):
    """What executing a text does."""

    kind: Kind
    tables: frozenset[str]
    search_path: str = ""
    own: str = ""
    """The table, if any, that is written in the schema that is searched first; see
    :mod:`ormcache.routers.tenancy`."""
    is_plain: bool = False
    """Whether it is one statement that changes rows and may stand in any transaction."""
    prepares: bool = False
    """Whether it is PREPARE TRANSACTION: the commit is still to come, from whomever."""


NOTHING = Effect(Kind.READ, frozenset())
UNKNOWN = Effect(Kind.UNNAMED_WRITE, frozenset({EVERYTHING}))
"""Whatever it is, it may write anything."""


_effects: Memo[tuple[str, str], Effect] = Memo()


def effect_of(text: Any, vendor: str, cursor: Any = None) -> Effect:
    """What executing ``text`` on a database of ``vendor`` does.

    Args:
        text: a string, bytes or one of psycopg's composed queries.
        cursor: the driver's cursor, which composed queries need to become text.
    """
    if not isinstance(text, str):
        try:
            text = as_text(text, cursor)
        except Exception as error:
            interruptions.let_through(error)
            # The driver will meet the same error, where Django makes one of its own of it.
            return UNKNOWN
    settings = current()
    memo = _effects.under(settings, tables.known.generation)
    key = (vendor, sql.normalise(text))
    effect = memo.get(key)
    if effect is None or (effect.search_path and key[1] != text):
        effect = _examine(text, vendor, settings)
        # Of a search path it matters where in its text the parameters stand.
        if len(key[1]) <= _TEXT_LIMIT and not (effect.search_path and key[1] != text):
            memo[key] = effect
    return effect


def as_text(text: Any, cursor: Any) -> str:
    """A text, or one of psycopg's composed ones, as it is sent."""
    if isinstance(text, (bytes, bytearray)):
        return bytes(text).decode("utf-8", "replace")
    as_string = getattr(text, "as_string", None)
    return str(as_string(cursor) if as_string is not None else text)


def _examine(text: str, vendor: str, settings: Settings) -> Effect:
    kind, names, path, own = Kind.READ, set[str](), "", ""
    statements = sql.classify(text, vendor)
    for statement in statements:
        does, found = _resolve(statement, text, vendor, settings)
        if found:
            names |= relations.written_with(
                found, _passed_on(statement, settings), deletes=statement.deletes
            )
        if not does & Kind.IMPLICIT_COMMIT and tables.unexplained(statement.targets, settings):
            # Through a view that can be written any table may be.
            names.add(EVERYTHING)
        if does & (Kind.COMMIT | Kind.ROLLBACK):
            # What the text began is over when it has run.
            kind &= ~Kind.BEGIN
        if does & Kind.TEMPORARY:
            does ^= Kind.TEMPORARY
            if statement.targets & tables.known.names():
                # What this session reads under the name is its own.
                does |= Kind.SESSION
        kind |= does
        path = statement.detail or path
        if statement.own and len(statements) == 1 and vendor == "postgresql":
            own = _only_there(statement.own, names, _passed_on(statement, settings))
    if kind & Kind.UNNAMED_WRITE or EVERYTHING in names:
        names = {EVERYTHING}
    if kind & Kind.AUTOCOMMIT and len(statements) > 1:
        # Whether it commits depends on the statements before it.
        kind = kind & ~Kind.AUTOCOMMIT | Kind.IN_DOUBT
    if kind & Kind.IN_DOUBT:
        # What the text began may be over.
        kind &= ~Kind.BEGIN
    if not kind:
        return NOTHING
    is_plain = kind == Kind.WRITE and len(statements) == 1 and _begins_plainly(text, vendor)
    prepares = bool(kind & Kind.COMMIT) and _prepares(text, vendor)
    return Effect(kind, frozenset(names), path, own, is_plain, prepares)


def _prepares(text: str, vendor: str) -> bool:
    """Whether PREPARE TRANSACTION is, or seems to be, one of the statements."""
    keywords = [token.keyword for token in sql.tokens(text, vendor)]
    return ("prepare", "transaction") in itertools.pairwise(keywords)


_PLAIN_VERBS = frozenset("insert update delete replace merge with".split())


def _begins_plainly(text: str, vendor: str) -> bool:
    first = next(sql.tokens(text, vendor), None)
    return first is not None and first.folded in _PLAIN_VERBS


def _only_there(own: str, names: Collection[str], writes: Mapping[str, Iterable[str]]) -> str:
    """``own``, unless something else that changes with it may write a table of that name, too.

    A trigger or a cascade may lead to another schema.
    """
    others = set(names) - {own}
    return "" if others and own in relations.written_with(others, writes) else own


def _resolve(
    statement: sql.Statement, text: str, vendor: str, settings: Settings
) -> tuple[Kind, set[str]]:
    """What a statement does and to which tables, given what the settings say of functions."""
    kind, found = statement.kind, set(statement.targets)
    called = _declared_functions(statement, text, vendor, settings)
    if kind & ~Kind.SESSION == Kind.UNNAMED_WRITE:
        if called and _calls_nothing_else(called, text, vendor):
            return Kind.WRITE | kind & Kind.SESSION, called
        return kind, found
    if kind & Kind.WRITE:
        found |= tables.known.among(statement.mentions)
        found |= statement.mentions & _named_in_settings(settings)
    if called:
        kind |= Kind.WRITE
        found |= called
    return kind, found


def _declared_functions(
    statement: sql.Statement, text: str, vendor: str, settings: Settings
) -> set[str]:
    """Functions that the statement calls and of which ``WRITES`` says what they write."""
    if not settings.WRITES:
        return set()
    # Of a statement with one target nothing else is mentioned, but it may call functions.
    mentions = statement.mentions or sql.words(text)
    declared = {sql.fold(name) for name in settings.WRITES} & mentions
    if not declared:
        return set()
    return declared & (sql.analyse_read(text, vendor).functions | mentions - tables.known.names())


_CALLED = re.compile(
    rf"\s*(?:CALL|EXEC(?:UTE)?)\s+(?:{sql.NAME}\s*\.\s*)*({sql.NAME})", re.IGNORECASE
)


def _calls_nothing_else(declared: set[str], text: str, vendor: str) -> bool:
    """Whether a CALL or DO runs only what is declared, and built-in functions of values.

    The body of PostgreSQL's DO is a string: nothing in it counts as called, nor is known.
    """
    called = set(sql.analyse_read(text, vendor).functions)
    # MySQL can do without the parentheses.
    match = _CALLED.match(text)
    if match is not None:
        called.add(sql.fold(match[1]))
    unknown = {name for name in called - declared if not functions.is_known(name, vendor)}
    return bool(called) and not unknown


def _named_in_settings(settings: Settings) -> set[str]:
    """Tables that may belong to no model, but on which declared views and functions depend."""
    named = [*settings.DEPENDS_ON.values(), *settings.WRITES.values()]
    return {sql.fold(name) for names in named for name in names}


def _passed_on(statement: sql.Statement, settings: Settings) -> Mapping[str, Iterable[str]]:
    """What a write of this statement to one table writes to others."""
    # To create or refresh a view changes none of its tables.
    return settings.WRITES if statement.kind & Kind.IMPLICIT_COMMIT else passed_on(settings)


def passed_on(settings: Settings) -> Mapping[str, Iterable[str]]:
    """What a write to one table writes to others: triggers, and views that can be written."""
    if not settings.DEPENDS_ON:
        return settings.WRITES
    names = {*settings.DEPENDS_ON, *settings.WRITES}
    return {
        name: [*settings.DEPENDS_ON.get(name, ()), *settings.WRITES.get(name, ())]
        for name in names
    }


# --- what is written without a text ----------------------------------------------------------


def write_to(name: str) -> Effect:
    """What writing the table ``name`` does, without a statement that says so."""
    return Effect(Kind.WRITE, frozenset(relations.written_with({name}, current().WRITES)))


_closures: Memo[tuple[str, bool], tuple[frozenset[str], str]] = Memo()


def written(db_table: str, *, deletes: bool) -> tuple[frozenset[str], str]:
    """All tables that change with a write to ``db_table``, and which one in its own schema."""
    settings = current()
    known = _closures.under(settings, tables.known.generation)
    found = known.get((db_table, deletes))
    if found is None:
        table = sql.table_name(db_table)
        names = frozenset(relations.written_with({table}, settings.WRITES, deletes=deletes))
        found = names, _only_there(table, names, settings.WRITES)
        known[db_table, deletes] = found
    return found
