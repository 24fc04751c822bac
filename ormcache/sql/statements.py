"""What executing a text does: splits it into statements and classifies each by its first word."""

from __future__ import annotations

import itertools
import re

from ormcache.sql.definitions import ROUTINES, changes_meanings, is_temporary
from ormcache.sql.kinds import Kind, Statement
from ormcache.sql.lexer import END, Token, escapes_names, tokens, words
from ormcache.sql.session_settings import (
    alters_session,
    behind_set_statement,
    classify_setting,
    kind_of_pragma,
    kind_of_set_config,
    plain_write_alters_session,
)
from ormcache.sql.targets import only_target, own_target_of_insert, targets_of
from ormcache.sql.transaction_control import transaction_control

# ANALYZE and EXPLAIN ANALYZE execute what follows, on some databases.
_READS = frozenset("select with values table explain show describe desc declare analyze".split())
_WRITES = frozenset("insert update delete merge replace into truncate copy load upsert".split())
_EXPLAINS = frozenset("explain analyze describe desc".split())
# What PostgreSQL's EXPLAIN ANALYZE executes, too.
_EXPLAINED = frozenset({"create", "refresh"})
# What does the same whatever follows.
_SIMPLE = {
    **dict.fromkeys(
        """
        vacuum checkpoint fetch close move listen notify unlisten deallocate comment help kill
        reindex cluster
        """.split(),
        Kind.READ,
    ),
    "grant": Kind.IMPLICIT_COMMIT,
    **dict.fromkeys(("use", "attach", "detach", "discard"), Kind.SESSION),
    **dict.fromkeys(("lock", "unlock"), Kind.LOCK | Kind.IMPLICIT_COMMIT),
    "abort": Kind.ROLLBACK,
}
# What may write to any table.
_UNNAMED = frozenset("call do exec execute begin_procedure import".split())
# Of MySQL and MariaDB: what can run anything whatever, such as START TRANSACTION.
_OPAQUE_VERBS = frozenset("execute if case loop while repeat for".split())
_OPAQUE = Kind.UNNAMED_WRITE | Kind.IMPLICIT_COMMIT | Kind.SESSION | Kind.IN_DOUBT
_LOCK_FUNCTION = re.compile(r"pg_(?:try_)?advisory_(?:xact_)?lock(?:_shared)?|get_lock")
_SEPARATORS = "; \t\r\n"


def classify(sql: str, vendor: str = "postgresql") -> list[Statement]:
    """What executing ``sql``, which may be several statements, does."""
    text = sql.rstrip(_SEPARATORS)
    target = only_target(text) if ";" not in text else None
    if target is not None:
        kind = Kind.WRITE
        if vendor == "postgresql" and plain_write_alters_session(text):
            kind |= Kind.SESSION
        names = frozenset({target.name})
        return [Statement(kind, names, deletes=target.deletes, own=target.own)]
    parts = _split(list(tokens(sql, vendor)))
    if vendor == "mysql" and any(map(_is_opaque, parts)):
        # Where a block ends is not known either.
        return [Statement(_OPAQUE, mentions=words(sql))]
    return [
        _classify_one(part, sql[part[0].at : part[-1].at + len(part[-1].text)], vendor)
        for part in parts
    ]


def _is_opaque(stream: list[Token]) -> bool:
    """Whether this runs statements of MySQL and MariaDB that are in a string or in a block.

    Such a block may stand outside of procedures: BEGIN NOT ATOMIC …, IF …, name: LOOP …. Also
    what is in a comment that is executed, if it begins the statement.
    """
    behind = behind_set_statement(stream) if stream[0].keyword == "set" else None
    first, second = [*(behind or stream), END][:2]
    if first.keyword == "begin":
        return second is not END and second.keyword != "work"
    if first.text == "/":
        # Or not, depending on the server's version.
        return next((token.keyword for token in stream if token.is_name), "") not in _WRITES
    is_labelled = first.is_name and second.text == ":"
    return first.keyword in _OPAQUE_VERBS or is_labelled


def _split(stream: list[Token]) -> list[list[Token]]:
    """The statements of a text, without the semicolons between them."""
    parts: list[list[Token]] = [[]]
    depth = 0
    for token in stream:
        part = parts[-1]
        if token.text == ";" and not depth:
            parts.append([])
            continue
        part.append(token)
        if part[0].folded == "create" and token.kind == "word":
            depth = max(0, depth + _nesting(part))
    return [part for part in parts if part]


def _nesting(part: list[Token]) -> int:
    """How much deeper the last word leads into a trigger's or procedure's body.

    A body keeps its semicolons between BEGIN and END.
    """
    word, before = part[-1].folded, part[-2].folded if len(part) > 1 else ""
    if word not in ("begin", "case", "end", "if", "loop", "while", "repeat", "for"):
        return 0
    if all(token.folded not in ROUTINES for token in part[:12]):
        return 0
    if word == "end":
        return -1
    if before == "end":
        # END CASE has been counted; END IF ends nothing that was.
        return 0 if word == "case" else 1
    return 1 if word in ("begin", "case") else 0


def _classify_one(stream: list[Token], sql: str, vendor: str) -> Statement:
    verb = next((token for token in stream if token.text != "("), END).keyword
    if verb in _SIMPLE:
        return Statement(_SIMPLE[verb])
    if verb in _READS:
        return _classify_read(stream, sql, verb, vendor)
    if verb == "copy" and _copies_out(stream):
        return _classify_read(stream[1:], sql, verb, vendor)
    if verb in ("set", "reset"):
        executed = behind_set_statement(stream)
        if executed is not None:
            return _classify_one(executed, sql, vendor)
        return classify_setting(stream, sql, vendor)
    if verb == "pragma":
        return Statement(kind_of_pragma(stream))
    return _classify_other(stream, sql, verb, vendor)


def _classify_other(stream: list[Token], sql: str, verb: str, vendor: str) -> Statement:
    """Transactions, procedures, writes, DDL, and what is not known."""
    found = words(sql)
    control = transaction_control(verb, stream, vendor)
    if control is not None:
        mentions = found if control & Kind.UNNAMED_WRITE else frozenset()
        statement = Statement(control, mentions=mentions)
    elif verb in _UNNAMED:
        statement = Statement(Kind.UNNAMED_WRITE, mentions=found)
    else:
        statement = _classify_write(stream, sql, found, verb, vendor)
    if vendor == "postgresql" and alters_session(verb, stream, found, sql):
        # Also PREPARE p AS SELECT set_config(…): EXECUTE p will not tell.
        return statement._replace(kind=statement.kind | Kind.SESSION)
    return statement


def _classify_write(
    stream: list[Token], sql: str, found: frozenset[str], verb: str, vendor: str
) -> Statement:
    """A write or DDL of the words ``found``; what is not known may be either."""
    kind = Kind.WRITE
    if verb not in _WRITES or verb == "truncate":
        kind |= Kind.IMPLICIT_COMMIT
    # PostgreSQL empties or drops what refers to the named tables, too.
    reaches_others = verb in ("truncate", "drop") and "cascade" in found
    if reaches_others or changes_meanings(verb, stream, found) or escapes_names(sql, vendor):
        kind |= Kind.UNNAMED_WRITE
    if verb == "create" and is_temporary(stream):
        kind |= Kind.TEMPORARY
        head = itertools.takewhile(lambda token: token.folded not in ("as", "("), stream)
        if any(token.kind == "string" for token in head):
            # Names in the way of strings, as SQLite takes them, are no targets.
            kind |= Kind.SESSION
    own = own_target_of_insert(sql) if verb == "insert" else ""
    return Statement(kind, targets_of(stream), found, own=own)


# --- reads, which may write ----------------------------------------------------------------


def _classify_read(stream: list[Token], sql: str, verb: str, vendor: str) -> Statement:
    found = words(sql)
    if verb == "show":
        return Statement(Kind.READ, mentions=found)
    explains = verb in _EXPLAINS
    made = next((i for i, token in enumerate(stream) if token.keyword in _EXPLAINED), 0)
    if explains and made:
        # PostgreSQL's EXPLAIN ANALYZE CREATE TABLE t AS …
        return _classify_write(stream[made:], sql, found, stream[made].keyword, vendor)
    if explains and any(token.folded == "execute" for token in stream[1:]):
        # PostgreSQL's EXPLAIN ANALYZE EXECUTE runs what was prepared, whatever that is.
        return Statement(Kind.UNNAMED_WRITE, mentions=found)
    kind = _effects_within(stream, vendor)
    if kind & Kind.UNNAMED_WRITE:
        return Statement(Kind.UNNAMED_WRITE, mentions=found)
    if verb == "analyze":
        kind |= Kind.IMPLICIT_COMMIT
    # Where a string ends is in doubt behind a backslash, which MySQL can be told to ignore.
    in_doubt = stream[-1].kind == "open" or (vendor == "mysql" and "\\" in sql)
    if in_doubt and found & _WRITES:
        kind |= Kind.WRITE
    if not kind & Kind.WRITE:
        return Statement(kind, mentions=found)
    if escapes_names(sql, vendor):
        # The targets are not found by their names.
        kind = kind & ~Kind.WRITE | Kind.UNNAMED_WRITE
    if "into" in found and is_temporary(stream):
        # SELECT … INTO TEMP t
        kind |= Kind.TEMPORARY
    if vendor == "postgresql" and "pg_settings" in found:
        # EXPLAIN ANALYZE UPDATE pg_settings …
        kind |= Kind.SESSION
    return Statement(kind, targets_of(stream), found)


def _effects_within(stream: list[Token], vendor: str) -> Kind:
    """What the functions, locking clauses and writes in the midst of a read do."""
    # There UPDATE is no name of a function: UPDATE (a JOIN b) SET …
    is_reserved = vendor == "mysql"
    kind = Kind.READ
    following = [*stream[1:], END]
    before = END
    for index, (token, after) in enumerate(zip(stream, following, strict=True)):
        is_update = is_reserved and token.keyword == "update" and before.text != "."
        if token.is_name and after.text == "(" and not is_update:
            if _LOCK_FUNCTION.fullmatch(token.folded):
                kind |= Kind.LOCK
            elif token.folded == "set_config":
                kind |= kind_of_set_config(stream[index + 1 :])
            elif token.folded == "set_limit":
                kind |= Kind.SESSION
            elif token.folded == "clone_schema":
                # A function of PostgreSQL that is passed around; django-tenants has it, too.
                kind |= Kind.UNNAMED_WRITE
        elif token.kind == "word" and before.text != ".":
            if _locks(token, following[index : index + 4]):
                kind |= Kind.LOCK
            elif token.folded in _WRITES and not (kind & Kind.LOCK and _ends_lock(token, before)):
                kind |= Kind.WRITE
        before = token
    return kind


def _copies_out(stream: list[Token]) -> bool:
    """Whether a COPY goes to a file or to the client: COPY t (a, b) TO, COPY (SELECT …) TO."""
    depth = 0
    for token in stream[1:]:
        depth += (token.text == "(") - (token.text == ")")
        if not depth and token.keyword in ("from", "to"):
            return token.keyword == "to"
    return False


def _locks(token: Token, following: list[Token]) -> bool:
    """Whether FOR [NO KEY] UPDATE, FOR [KEY] SHARE or LOCK IN SHARE MODE begins here."""
    if token.folded == "lock":
        return [after.folded for after in following[:2]] == ["in", "share"]
    if token.folded != "for":
        return False
    rest = [after.folded for after in following if after.folded not in ("no", "key")]
    return bool(rest) and rest[0] in ("update", "share")


def _ends_lock(token: Token, before: Token) -> bool:
    """Whether this is the UPDATE of FOR [NO KEY] UPDATE."""
    return token.folded == "update" and before.folded in ("for", "key")
