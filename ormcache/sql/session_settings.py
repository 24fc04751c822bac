"""What SET, RESET, PRAGMA and ``set_config()`` change for the session or its transaction.

A setting that is not known to be harmless may change what the connection sees.
"""

from __future__ import annotations

import re

from ormcache.sql.definitions import ROUTINES, object_of
from ormcache.sql.kinds import Kind, Statement
from ormcache.sql.lexer import END, Token, words
from ormcache.sql.names import NAME

# Settings that change neither the rows that a query returns nor their type; nor their order, where
# the query asks for one.
_HARMLESS_SETTINGS = frozenset(
    """
    application_name client_min_messages constraints deadlock_timeout foreign_key_checks
    idle_in_transaction_session_timeout idle_session_timeout innodb_lock_wait_timeout
    lock_timeout log_statement maintenance_work_mem max_execution_time
    max_parallel_workers_per_gather max_statement_time optimizer_switch statement_timeout
    synchronous_commit temp_buffers transaction unique_checks wait_timeout work_mem
    """.split()
)
# The same of PostgreSQL's planner, its statistics and its log, by what their names begin with.
_HARMLESS_FAMILIES = re.compile(
    r"enable_\w+|jit(_\w+)?|log_\w+|track_\w+|(cpu|parallel|random|seq)_\w+_cost"
    r"|(join|from)_collapse_limit|effective_(cache_size|io_concurrency)|geqo(_\w+)?"
    r"|plan_cache_mode|hash_mem_multiplier|min_parallel_\w+_scan_size"
)
_OFF = frozenset({"0", "off", "false"})
# Levels of MySQL under which each statement of a transaction sees the latest commits, and others.
_LEVELS = {
    "read-committed": Kind.READ,
    "repeatable-read": Kind.ISOLATION,
    "serializable": Kind.ISOLATION,
}
# Other forms of SET that commit on MySQL: SET PASSWORD, SET DEFAULT ROLE.
_COMMITTING_SETS = frozenset({"password", "default"})
_HARMLESS_PRAGMAS = frozenset(
    """
    application_id auto_vacuum busy_timeout cache_size defer_foreign_keys foreign_key_check
    foreign_key_list foreign_keys freelist_count function_list incremental_vacuum index_info
    index_list index_xinfo integrity_check journal_mode journal_size_limit legacy_alter_table
    locking_mode mmap_size optimize page_count page_size quick_check synchronous table_info
    table_list table_xinfo temp_store threads user_version wal_autocheckpoint wal_checkpoint
    """.split()
)
# What may stand between SET and the name.
_SCOPES = frozenset({"session", "local", "global", "persist", "persist_only"})
# By these PostgreSQL alters the session in the midst of a statement of any kind.
_SESSION_WORDS = frozenset({"set_config", "pg_settings"})
# So does pg_trgm's set_limit(), which a column may well be called, too, or end in.
_SESSION_CALL = re.compile(
    r'(?<![\w$])set_limit"?(?:\s|/\*.*?\*/|--[^\n]*\n)*\(', re.IGNORECASE | re.DOTALL
)
# So do statements inside of DO. Behind UPDATE t, SET is none of them.
_SESSION_STATEMENTS = frozenset("discard pg_temp reset search_path set temp temporary".split())
_UPDATE_SET = re.compile(
    rf"\bupdate\s+(?:only\s+)?(?!(?:loop|then)\b)(?:{NAME}\s*\.\s*)*{NAME}\s+set\b",
    re.IGNORECASE,
)


# --- SET, RESET and PRAGMA -----------------------------------------------------------------


def classify_setting(stream: list[Token], sql: str, vendor: str) -> Statement:
    """What a SET or RESET does; for SET STATEMENT see :func:`behind_set_statement`."""
    # For MySQL it is another word for SESSION.
    is_local = vendor == "postgresql" and len(stream) > 1 and stream[1].folded == "local"
    rest = _without_scopes(stream)
    name = rest[0].folded if rest else ""
    found = words(sql)
    if name in ("search_path", "schema"):
        # There any CREATE TABLE may make a temporary one, which outlives SET LOCAL.
        kind = Kind.SESSION if names_temporary_schema(sql) else Kind.READ
        if is_local:
            return Statement(Kind.SEARCH_PATH | Kind.LOCAL | kind)
        text = " ".join(token.text for token in stream)
        return Statement(Kind.SEARCH_PATH | kind, detail=text)
    if vendor == "mysql":
        return Statement(_mysql_settings(stream, rest))
    if name == "transaction" and vendor == "postgresql":
        # Outside of transactions it does nothing.
        is_lax = {"read", "committed"} <= found or "isolation" not in found
        return Statement(Kind.READ if is_lax and "snapshot" not in found else Kind.SNAPSHOT)
    if _is_about_isolation(found):
        kind = _isolation(found)
    else:
        is_dotted = len(rest) > 1 and rest[1].text == "."
        is_harmless = name in _HARMLESS_SETTINGS or _HARMLESS_FAMILIES.fullmatch(name)
        kind = Kind.READ if is_harmless and not is_dotted else Kind.SESSION
    return Statement(Kind.LOCAL if is_local and kind else kind)


def names_temporary_schema(text: str) -> bool:
    """Whether a search path may have PostgreSQL's schema of temporary tables, by its own name."""
    folded = text.casefold()
    return "pg_temp" in folded or "u&" in folded or "\\" in folded


def behind_set_statement(stream: list[Token]) -> list[Token] | None:
    """The statement that MariaDB executes: SET STATEMENT name = value FOR that statement.

    None for any other SET.
    """
    rest = _without_scopes(stream)
    if not rest or rest[0].folded != "statement":
        return None
    at = next((i for i, token in enumerate(rest) if token.folded == "for"), len(rest) - 1)
    return rest[at + 1 :] or [END]


def kind_of_pragma(stream: list[Token]) -> Kind:
    """PRAGMA [schema.]name [= value | (value)]"""
    at = 3 if len(stream) > 3 and stream[2].text == "." else 1
    name = stream[at].folded if len(stream) > at else ""
    changes = len(stream) > at + 1 and name not in _HARMLESS_PRAGMAS
    return Kind.SESSION if changes else Kind.READ


def _without_scopes(stream: list[Token]) -> list[Token]:
    """What follows SET or RESET, and words like SESSION and GLOBAL."""
    rest = stream[1:]
    while len(rest) > 1 and rest[0].keyword in _SCOPES:
        rest = rest[1:]
    return rest


def _is_about_isolation(found: frozenset[str]) -> bool:
    return any("isolation" in word for word in found) or "characteristics" in found


def _isolation(found: frozenset[str]) -> Kind:
    if "uncommitted" in found:
        # Then some show what may never be committed, outside of transactions, too.
        return Kind.SESSION
    return Kind.READ if {"read", "committed"} <= found else Kind.ISOLATION


def _mysql_settings(stream: list[Token], rest: list[Token]) -> Kind:
    """SET [scope] name = value, [scope] name = value, …; ``rest`` is without the first scope."""
    if stream[0].folded == "reset":
        # RESET QUERY CACHE, RESET MASTER
        return Kind.SESSION | Kind.IMPLICIT_COMMIT
    first = rest[0].keyword if rest else ""
    if first == "transaction":
        return _mysql_transaction(rest)
    if first in _COMMITTING_SETS:
        return Kind.SESSION | Kind.IMPLICIT_COMMIT
    kind = Kind.READ
    assigned = [
        (rest[at - 1 - (rest[at - 1].text == ":")].folded, _literal(rest, at + 1))
        for at, token in enumerate(rest)
        if token.text == "=" and 0 < at < len(rest) - 1
    ]
    if not assigned and first != "constraints":
        return kind | Kind.SESSION
    for variable, value in assigned:
        name = variable.casefold()
        if name.startswith("@") and not name.startswith("@@"):
            # The user's own: a query that reads one is not cached.
            continue
        kind |= _mysql_setting(name.rpartition(".")[2].lstrip("@"), value)
    return kind


def _mysql_setting(name: str, value: str) -> Kind:
    """What ``name = value`` changes; a value that is not literally there is ``""``."""
    if name == "autocommit":
        # 0 opens a transaction, anything else commits the one that is open, if autocommit was off.
        return Kind.BEGIN if value in _OFF else Kind.COMMIT | Kind.AUTOCOMMIT
    if "isolation" in name:
        # READ UNCOMMITTED shows what may never be committed, outside of transactions, too.
        return _LEVELS.get(value, Kind.SESSION)
    if name == "completion_type":
        # With CHAIN, each COMMIT and ROLLBACK begins a transaction.
        return Kind.SESSION | Kind.IN_DOUBT
    if name == "sql_auto_is_null":
        # Django switches it off.
        return Kind.READ if value in _OFF else Kind.SESSION
    return Kind.READ if name in _HARMLESS_SETTINGS else Kind.SESSION


def _mysql_transaction(rest: list[Token]) -> Kind:
    """[SET SESSION] TRANSACTION ISOLATION LEVEL level, READ ONLY"""
    following = [token.keyword for token in rest]
    if "level" not in following:
        return Kind.SESSION if "isolation" in following else Kind.READ
    at = following.index("level") + 1
    first, second = [*following, "", ""][at : at + 2]
    return _LEVELS.get(first if first == "serializable" else f"{first}-{second}", Kind.SESSION)


def _literal(stream: list[Token], at: int) -> str:
    """The value that is assigned, without its quotes; ``""`` unless it is one word or string."""
    following = stream[at + 1] if at + 1 < len(stream) else END
    if following is not END and following.text != ",":
        return ""
    return stream[at].folded.strip("'\"").casefold()


# --- in the midst of other statements ------------------------------------------------------


def plain_write_alters_session(sql: str) -> bool:
    """Whether PostgreSQL may alter the session while it executes a plain write."""
    folded = sql.casefold()
    return any(word in folded for word in _SESSION_WORDS) or _calls_set_limit(sql)


def _calls_set_limit(sql: str) -> bool:
    # A search for a constant is quicker, and nearly always enough.
    return "set_limit" in sql.casefold() and _SESSION_CALL.search(sql) is not None


def alters_session(verb: str, stream: list[Token], found: frozenset[str], sql: str) -> bool:
    """Whether PostgreSQL may alter the session while it executes what is no SELECT and no SET."""
    if verb == "do" and _calls_set_limit(sql):
        return True
    if verb == "do":
        inside = words(_UPDATE_SET.sub(" ", sql))
        return not inside.isdisjoint(_SESSION_STATEMENTS | _SESSION_WORDS)
    if verb == "create" and object_of(stream) in ROUTINES:
        # Its body is executed later.
        return False
    return not found.isdisjoint(_SESSION_WORDS) or _calls_set_limit(sql)


def kind_of_set_config(arguments: list[Token]) -> Kind:
    """What a call of ``set_config()`` does, given its parentheses and all that follows."""
    return Kind.LOCAL if _is_local(arguments) else Kind.SESSION


def _is_local(arguments: list[Token]) -> bool:
    """Whether the last argument is ``true``."""
    depth = 0
    for index, token in enumerate(arguments):
        depth += (token.text == "(") - (token.text == ")")
        if not depth:
            last = arguments[max(0, index - 2) : index]
            return [one.text.casefold() for one in last] == [",", "true"]
    return False
