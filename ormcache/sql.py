"""What a SQL text says about itself: the tables it names, the functions it calls, what it does.

Pure functions of text: nothing here knows Django, a connection or the settings. The text is
split into tokens, never parsed: where tokens are not enough to be sure, the answer errs on
the side of naming too much (a write) or of :attr:`Read.unclear` (a read).
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator
from typing import NamedTuple

NAME = r'(?:"(?:[^"]|"")+"|`(?:[^`]|``)+`|\[[^\]\n]+\]|[^\W\d][\w$]*)'

_TOKEN = re.compile(
    r"""
    (?P<space>\s+|--[^\n]*|/\*(?!!).*?\*/)
  | (?P<string>[eE]'(?:[^'\\]|''|\\.)*'|\$(?P<tag>\w*)\$.*?\$(?P=tag)\$|'(?:[^']|'')*')
  | (?P<placeholder>%s|%\(\w+\)s)
  | (?P<quoted>"(?:[^"]|"")+"|`(?:[^`]|``)+`|\[[^\]\n\d'"][^\]\n]*\])
  | (?P<word>[^\W\d][\w$]*)
  | (?P<number>\d[\w.]*)
  | (?P<mark>.)
    """,
    re.VERBOSE | re.DOTALL,
)

_TOKEN_BACKSLASH = re.compile(
    _TOKEN.pattern.replace("|'(?:[^']|'')*'", "|'(?:[^'\\\\]|''|\\\\.)*'"),
    re.VERBOSE | re.DOTALL,
)


class Token(NamedTuple):
    kind: str
    text: str
    folded: str


def fold(name: str) -> str:
    """A table's name as this package compares it: without quotes, in one case.

    MySQL and SQLite compare table names regardless of case, Oracle folds them up, PostgreSQL
    folds unquoted ones down. One case for all can only join two names, never part them, so at
    worst a write invalidates one table too many.
    """
    return re.sub(r'["`\[\]]', "", name).casefold()


def table_name(db_table: str) -> str:
    """The folded name of a model's ``db_table``, without the schema that some put into it.

    ``'schema"."table'`` is the usual way to name a table of another schema.
    """
    return fold(re.split(r"""["`\]]\.["`\[]""", db_table)[-1])


def normalise(sql: str) -> str:
    """``sql`` with runs of placeholders shortened, so that IN lists of any length are alike."""
    return sql.replace("%s, ", "").replace("%s,", "")


def tokens(sql: str, *, backslash_escapes: bool = False) -> Iterator[Token]:
    """The tokens of ``sql`` without spaces and comments.

    ``backslash_escapes``: whether a backslash escapes in a plain string (MySQL).
    """
    pattern = _TOKEN_BACKSLASH if backslash_escapes else _TOKEN
    for match in pattern.finditer(sql):
        kind = match.lastgroup or "mark"
        if kind == "tag":
            kind = "string"
        if kind == "space":
            continue
        text = match.group()
        yield Token(kind, text, fold(text) if kind in ("word", "quoted") else text)


def words(sql: str) -> frozenset[str]:
    """Every run of letters in the text, folded: names, keywords and words inside strings."""
    return frozenset(re.findall(r"[^\W\d][\w$]*", sql.casefold()))


# --- reads -------------------------------------------------------------------------------


class Read(NamedTuple):
    """What the text of a SELECT says about what it reads."""

    words: frozenset[str]
    """All words, see :func:`words`."""
    references: frozenset[str]
    """Names in FROM and JOIN, folded and without a schema, less common table expressions."""
    functions: frozenset[str]
    """Names in front of an opening parenthesis, and keywords that are functions."""
    literals: frozenset[str]
    """Short string literals, folded: 'now' is a function in disguise."""
    unclear: bool
    """Whether something was found that the rules for FROM do not cover."""


_OPENS_FROM = frozenset({"from", "join", "straight_join", "table"})
# ON and USING end a table but not the list: a comma or a JOIN may follow.
_ENDS_FROM = frozenset(
    "where group having window order limit offset fetch union intersect except minus returning "
    "select values connect start".split()
)
# Words that stand in front of a parenthesis without being called.
_NOT_CALLED = frozenset(
    """
    all and any array as asc between by case check collate conflict cross cube default desc
    distinct else end except exists fetch filter from full group grouping having in inner
    intersect into is join key lateral left like limit materialized minus natural not nothing
    nulls of offset on only or order outer over partition range recursive returning right rollup
    row rows select set sets similar some table then to union unique using values when where
    window with within without
    bigint binary bit blob bool boolean bpchar bytea char character clob date datetime2 decimal
    double enum float int int4 int8 integer nchar number numeric nvarchar precision real signed
    smallint text time timestamp timestamptz tinyint unsigned varbinary varchar varchar2
    varying zone ilike regexp rlike glob match escape interval xor div
    """.split()
) - {"date", "time", "timestamp", "char", "left", "right", "glob", "match", "regexp"}
# Keywords that are good names for a table, too.
_TABLE_NAMES = frozenset(
    {"date", "time", "text", "key", "number", "zone", "filter", "row", "mode"}
)
_KEYWORD_FUNCTIONS = frozenset(
    """
    current_date current_time current_timestamp current_user current_role current_catalog
    current_schema localtime localtimestamp session_user system_user sysdate systimestamp
    utc_date utc_time utc_timestamp rownum user
    """.split()
)


class _Scope:
    """One pair of parentheses: is it a SELECT, and where in its FROM clause are we?"""

    __slots__ = ("expects_table", "in_from", "is_select")

    def __init__(self, is_select: bool, expects_table: bool = False) -> None:
        self.is_select = is_select
        self.in_from = expects_table
        self.expects_table = expects_table


_END = Token("end", "", "")
# Parentheses that begin with one of these hold a query of their own.
_QUERIES = frozenset({"select", "with", "values", "table"})


class _Reader:
    """Walks over the tokens of a SELECT and collects what :class:`Read` tells."""

    def __init__(self, stream: list[Token]) -> None:
        self.stream = [*stream, _END, _END]
        self.at = 0
        self.scopes = [_Scope(is_select=True)]
        self.references: set[str] = set()
        self.functions: set[str] = set()
        self.literals: set[str] = set()
        self.unclear = False

    def walk(self) -> None:
        while self.stream[self.at] is not _END:
            token = self.stream[self.at]
            self.at += 1
            if token.kind in ("word", "quoted"):
                self._name(token, self.scopes[-1])
            elif token.text == "(":
                self._open(self.scopes[-1])
            elif token.text == ")":
                self._close()
            elif token.kind == "string" and not self.scopes[-1].expects_table:
                # Long ones are text, not the name of a moment.
                if len(token.text) < 20:
                    self.literals.add(token.text.strip("eE'$").strip().casefold())
            elif token.text == "," and self.scopes[-1].in_from:
                self.scopes[-1].expects_table = True
            elif self.scopes[-1].expects_table:
                # A number, a placeholder or a mark where a table's name was due.
                self.unclear = True
                self.scopes[-1].expects_table = False
        self.unclear |= len(self.scopes) != 1

    @property
    def _next(self) -> Token:
        return self.stream[self.at]

    def _open(self, scope: _Scope) -> None:
        starts_query = self._next.kind == "word" and self._next.folded in _QUERIES
        # FROM (a JOIN b): a parenthesis that groups tables.
        groups_tables = scope.expects_table and not starts_query
        scope.expects_table = False
        self.scopes.append(_Scope(starts_query or groups_tables, expects_table=groups_tables))

    def _close(self) -> None:
        if len(self.scopes) > 1:
            self.scopes.pop()
        else:
            self.unclear = True

    def _name(self, token: Token, scope: _Scope) -> None:
        keyword = token.folded if token.kind == "word" else ""
        if scope.expects_table:
            self._source(token, keyword, scope)
        elif keyword in _OPENS_FROM and scope.is_select:
            if keyword != "from" or not self._is_distinct_from():
                scope.in_from = scope.expects_table = keyword != "table" or self._names_table()
        elif keyword in _ENDS_FROM:
            scope.in_from = False
        elif self._next.text == "(" and keyword not in _NOT_CALLED:
            self.functions.add(token.folded)
        elif keyword in _KEYWORD_FUNCTIONS and self.stream[self.at - 2].text != ".":
            self.functions.add(keyword)

    def _source(self, token: Token, keyword: str, scope: _Scope) -> None:
        """What stands where FROM, JOIN or a comma asks for a table."""
        if keyword in ("only", "lateral"):
            return
        scope.expects_table = False
        if keyword in _NOT_CALLED - _TABLE_NAMES:
            self.unclear = True
            return
        name = token.folded
        # a.b.c: the last name is the table's.
        while self._next.text == "." and self.stream[self.at + 1].kind in ("word", "quoted"):
            name = self.stream[self.at + 1].folded
            self.at += 2
        (self.functions if self._next.text == "(" else self.references).add(name)

    def _names_table(self) -> bool:
        """TABLE t is short for SELECT * FROM t."""
        return self._next.kind in ("word", "quoted")

    def _is_distinct_from(self) -> bool:
        """Whether the FROM just read belongs to IS [NOT] DISTINCT FROM."""
        before = [token.folded for token in self.stream[max(0, self.at - 4) : self.at - 1]]
        return bool(before) and before[-1] == "distinct" and "is" in before


def analyse_read(sql: str, *, backslash_escapes: bool = False) -> Read:
    """Find tables and functions in the text of a SELECT."""
    reader = _Reader(list(tokens(sql, backslash_escapes=backslash_escapes)))
    reader.walk()
    given = _common_table_expressions(reader.stream)
    return Read(
        words(sql),
        frozenset(reader.references - given),
        frozenset(reader.functions - given),
        frozenset(reader.literals),
        reader.unclear,
    )


def _common_table_expressions(stream: list[Token]) -> frozenset[str]:
    """The names that WITH gives: ``name [(columns)] AS [[NOT] MATERIALIZED] (``."""
    names: set[str] = set()
    if not any(token.kind == "word" and token.folded == "with" for token in stream):
        return frozenset()
    for index, token in enumerate(stream):
        if token.kind != "word" or token.folded != "as":
            continue
        after = index + 1
        while stream[after].folded in ("not", "materialized"):
            after += 1
        if stream[after].text != "(":
            continue
        if stream[after + 1].folded not in (
            "select",
            "with",
            "values",
            "insert",
            "update",
            "delete",
            "merge",
            "table",
            "(",
        ):
            continue
        before = index - 1
        if before >= 0 and stream[before].text == ")":
            depth = 0
            while before >= 0:
                depth += (stream[before].text == ")") - (stream[before].text == "(")
                before -= 1
                if depth == 0:
                    break
        if before < 0 or stream[before].kind not in ("word", "quoted"):
            continue
        lead = stream[before - 1] if before >= 1 else None
        if lead is not None and (lead.text == "," or lead.folded in ("with", "recursive")):
            names.add(stream[before].folded)
    return frozenset(names)


# --- statements --------------------------------------------------------------------------


class Kind(enum.Flag):
    """What executing a statement does that the cache must know of."""

    READ = 0
    WRITE = enum.auto()
    """Changes rows of the named tables."""
    UNNAMED_WRITE = enum.auto()
    """May change any table: a procedure, a DO block, COMMIT PREPARED."""
    IMPLICIT_COMMIT = enum.auto()
    """DDL and the like, which MySQL and Oracle commit at once, with all before it."""
    BEGIN = enum.auto()
    COMMIT = enum.auto()
    ROLLBACK = enum.auto()
    PARTIAL_ROLLBACK = enum.auto()
    """ROLLBACK TO SAVEPOINT: undoes settings, too."""
    LOCK = enum.auto()
    """Takes locks that last until the transaction ends."""
    SEARCH_PATH = enum.auto()
    """Changes the schema that unqualified names mean; with LOCK, until the transaction ends."""
    ISOLATION = enum.auto()
    """Changes the isolation level."""
    SESSION = enum.auto()
    """Changes what the connection sees in a way that is not followed."""


class Statement(NamedTuple):
    """What a statement does, and to which tables."""

    kind: Kind
    targets: frozenset[str] = frozenset()
    """Tables that it surely names as its targets, folded and without a schema."""
    mentions: frozenset[str] = frozenset()
    """All words, where the targets cannot be told from the tables that are only read."""
    detail: str = ""
    """The text of the statement, for :attr:`Kind.SEARCH_PATH`."""
    deletes: bool = True
    """Whether rows may vanish, so that the database's own cascades follow."""


_QUALIFIED = rf"(?:{NAME}\s*\.\s*)*(?P<target>{NAME})"
_ONE_TARGET = re.compile(
    rf"""\s*(?:
      (?P<verb>INSERT(?:\s+OR\s+\w+)?(?:\s+IGNORE)?|REPLACE)\s+INTO\s+{_QUALIFIED}\s*
        (?:\((?:\s*{NAME}\s*,?)*\)\s*)?(?:OVERRIDING\s+\w+\s+VALUE\s+)?(?:VALUES\b|DEFAULT\s+VALUES\b)
    | UPDATE\s+{_QUALIFIED.replace("target", "target2")}\s+SET\b
    | DELETE\s+FROM\s+{_QUALIFIED.replace("target", "target3")}\s*(?:WHERE\b|\Z)
    )""",
    re.VERBOSE | re.IGNORECASE,
)
_FIRST_WORD = re.compile(r"(?:\s|\(|--[^\n]*(?:\n|\Z)|/\*(?!!).*?\*/)*([^\W\d]\w*)?", re.DOTALL)

_READS = frozenset({"select", "with", "values", "table", "explain", "show", "describe", "desc"})
_HARMLESS = frozenset(
    """
    pragma analyze vacuum checkpoint savepoint release declare fetch close move listen notify
    unlisten deallocate discard comment grant revoke help kill reindex cluster
    """.split()
)
_WRITES = frozenset("insert update delete merge replace into truncate copy load upsert".split())
_SCHEMA = frozenset("create alter drop truncate rename".split())
_UNNAMED = frozenset("call do exec execute begin_procedure import".split())
_TARGET_FOLLOWS = frozenset("into update from table copy truncate view join only exists".split())
_LOCKS = re.compile(
    r"\bfor\s+(?:no\s+key\s+)?(?:update|share|key\s+share)\b|\block\s+in\s+share\s+mode\b"
    r"|\bpg_(?:try_)?advisory_\w*lock\w*\s*\(|\bget_lock\s*\(",
    re.IGNORECASE,
)
_SETTING = re.compile(
    r"\s*(?:SET|RESET)\s+(?:(?:SESSION|LOCAL|GLOBAL|PERSIST)\s+|@@(?:\w+\.)?)?(?P<name>[\w.@]+)",
    re.IGNORECASE,
)
# Settings that change neither the rows that a query returns nor their order or type.
_HARMLESS_SETTINGS = frozenset(
    """
    application_name client_min_messages constraints deadlock_timeout foreign_key_checks
    idle_in_transaction_session_timeout idle_session_timeout innodb_lock_wait_timeout
    lock_timeout log_statement maintenance_work_mem max_execution_time
    max_parallel_workers_per_gather max_statement_time optimizer_switch statement_timeout
    synchronous_commit temp_buffers unique_checks wait_timeout work_mem sql_auto_is_null
    """.split()
)


def classify(sql: str, *, backslash_escapes: bool = False) -> list[Statement]:
    """What executing ``sql``, which may be several statements, does."""
    if ";" not in sql.rstrip().rstrip(";"):
        return [_classify_one(sql.rstrip().rstrip(";"), backslash_escapes)]
    parts: list[str] = [""]
    depth = 0
    pattern = _TOKEN_BACKSLASH if backslash_escapes else _TOKEN
    for match in pattern.finditer(sql):
        text = match.group()
        if match.lastgroup == "word":
            # A trigger's body keeps its semicolons between BEGIN and END.
            depth += (text.casefold() in ("begin", "case") and bool(parts[-1].strip())) - (
                text.casefold() == "end" and depth > 0
            )
        if text == ";" and depth == 0:
            parts.append("")
        else:
            parts[-1] += text
    return [_classify_one(part, backslash_escapes) for part in parts if part.strip()]


def _classify_one(sql: str, backslash_escapes: bool) -> Statement:
    match = _ONE_TARGET.match(sql)
    if match is not None:
        name = match["target"] or match["target2"] or match["target3"]
        verb = (match["verb"] or "").casefold()
        # REPLACE removes the row in the way first.
        deletes = bool(match["target3"]) or "replace" in verb
        return Statement(Kind.WRITE, frozenset({fold(name)}), deletes=deletes)
    first = _FIRST_WORD.match(sql)
    verb = (first[1] or "").casefold() if first else ""
    if verb in _READS:
        return _classify_read(sql, verb, backslash_escapes)
    if verb in _HARMLESS:
        return Statement(Kind.READ)
    if verb in ("set", "reset"):
        return _classify_setting(sql)
    if verb in ("use", "attach", "detach"):
        return Statement(Kind.SESSION)
    if verb == "begin" or (verb == "start" and "transaction" in words(sql)):
        return Statement(Kind.BEGIN)
    if verb in ("commit", "end"):
        # COMMIT PREPARED publishes another session's transaction.
        prepared = "prepared" in words(sql)
        return Statement(Kind.UNNAMED_WRITE if prepared else Kind.COMMIT)
    if verb == "rollback":
        found = words(sql)
        if "prepared" in found:
            return Statement(Kind.READ)
        return Statement(Kind.PARTIAL_ROLLBACK if "to" in found else Kind.ROLLBACK)
    if verb == "abort":
        return Statement(Kind.ROLLBACK)
    if verb in ("prepare", "xa"):
        return _classify_prepare(sql)
    if verb in ("lock", "unlock"):
        return Statement(Kind.LOCK | Kind.IMPLICIT_COMMIT)
    if verb in _UNNAMED:
        return Statement(Kind.UNNAMED_WRITE, mentions=words(sql))
    kind = Kind.WRITE
    found = words(sql)
    if verb in _SCHEMA:
        kind |= Kind.IMPLICIT_COMMIT
    if verb in ("truncate", "drop") and "cascade" in found:
        # PostgreSQL empties or drops what refers to the named tables, too.
        kind |= Kind.UNNAMED_WRITE
    return Statement(kind, _targets(sql, backslash_escapes), found)


def _classify_read(sql: str, verb: str, backslash_escapes: bool) -> Statement:
    kind = Kind.READ
    if _LOCKS.search(sql):
        kind |= Kind.LOCK
        sql = _LOCKS.sub(" ", sql)
    found = words(sql)
    if "set_config" in found:
        kind |= Kind.SESSION
    if verb in ("show", "describe", "desc") or not found & _WRITES:
        return Statement(kind, mentions=found)
    stream = list(tokens(sql, backslash_escapes=backslash_escapes))
    for index, token in enumerate(stream):
        # REPLACE(…) and INSERT(…) are functions of strings, "update" in quotes is a name.
        following = stream[index + 1].text if index + 1 < len(stream) else ""
        if token.kind == "word" and token.folded in _WRITES and following != "(":
            return Statement(kind | Kind.WRITE, _targets(sql, backslash_escapes), found)
    return Statement(kind, mentions=found)


def _classify_setting(sql: str) -> Statement:
    found = words(sql)
    if any("isolation" in word for word in found) or "characteristics" in found:
        safe = {"read", "committed"} <= found and "uncommitted" not in found
        return Statement(Kind.READ if safe else Kind.ISOLATION)
    match = _SETTING.match(sql)
    name = match["name"].casefold() if match else ""
    if name in ("search_path", "schema"):
        if "local" in found:
            return Statement(Kind.SEARCH_PATH | Kind.LOCK)
        return Statement(Kind.SEARCH_PATH, detail=" ".join(sql.split()))
    if name.rpartition(".")[2].lstrip("@") == "autocommit":
        # MySQL: 0 opens a transaction, 1 commits the one that is open.
        return Statement(Kind.COMMIT if found & {"on", "true"} or "1" in sql else Kind.BEGIN)
    if name in ("transaction", "names", *_HARMLESS_SETTINGS):
        return Statement(Kind.READ)
    return Statement(Kind.SESSION)


def _classify_prepare(sql: str) -> Statement:
    found = words(sql)
    if {"prepare", "transaction"} <= found:
        # The rows stay invisible until COMMIT PREPARED, which invalidates everything.
        return Statement(Kind.COMMIT)
    if "xa" in found:
        if "commit" in found:
            return Statement(Kind.UNNAMED_WRITE)
        return Statement(Kind.BEGIN if found & {"start", "begin"} else Kind.READ)
    return Statement(Kind.READ)


def _targets(sql: str, backslash_escapes: bool) -> frozenset[str]:
    """Names behind the words that a target follows: too many rather than too few."""
    found: set[str] = set()
    stream = list(tokens(sql, backslash_escapes=backslash_escapes))
    stream += [Token("end", "", "")] * 2
    index = 0
    while index < len(stream) - 2:
        token = stream[index]
        index += 1
        if token.kind != "word" or token.folded not in _TARGET_FOLLOWS:
            continue
        while True:
            while stream[index].folded in ("only", "if", "not", "exists", "table", "into"):
                index += 1
            if stream[index].kind not in ("word", "quoted"):
                break
            name = stream[index].folded
            index += 1
            while stream[index].text == "." and stream[index + 1].kind in ("word", "quoted"):
                name = stream[index + 1].folded
                index += 2
            found.add(name)
            if stream[index].text == "*":  # TRUNCATE t *
                index += 1
            if stream[index].text != ",":
                break
            index += 1
    return frozenset(found - {"select", "set"})
