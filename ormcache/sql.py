"""What a SQL text says about itself: the tables it names, the functions it calls, what it does.

Pure functions of text: nothing here knows Django, a connection or the settings. The text is
split into tokens, never parsed: where tokens are not enough to be sure, the answer errs on
the side of naming too much (a write) or of :attr:`Read.unclear` (a read).
"""

from __future__ import annotations

import enum
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

NAME = r'(?:"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]\n]+\]|[^\W\d][\w$]*)'

# Each of these can be matched in one way only, so none of them can backtrack for long.
_PLAIN_STRING = r"'[^']*(?:''[^']*)*'"
_ESCAPED_STRING = r"'[^'\\]*(?:(?:''|\\.)[^'\\]*)*'"
_ESCAPED_NAME = r'"[^"\\]*(?:(?:""|\\.)[^"\\]*)*"'
_DOUBLE_QUOTED = r'"[^"]*(?:""[^"]*)*"'
_BACKTICKED = r"`[^`]*(?:``[^`]*)*`"
_BRACKETED = r"\[[^\]]*(?:\]\][^\]]*)*\]"
_DOLLAR_TAG = r"\$(?:[^\W\d]\w*)?\$"
_FLAT_COMMENT = r"/\*.*?\*/"


def _pattern(
    *,
    comment: str,
    string: str,
    quoted: str,
    opening: str = r"['\"]|/\*",
    nested: str = r"(?!)",
    variable: str = r"(?!)",
) -> re.Pattern[str]:
    return re.compile(
        rf"""
        (?P<space>\s+|{comment})
      | (?P<nested>{nested})
      | (?P<string>{string})
      | (?P<quoted>{quoted})
      | (?P<open>(?:{opening}).*)
      | (?P<placeholder>%s|%\(\w+\)s)
      | (?P<variable>{variable})
      | (?P<word>[^\W\d][\w$]*)
      | (?P<number>\d+(?:\.\d+)?)
      | (?P<mark>.)
        """,
        re.VERBOSE | re.DOTALL,
    )


_PATTERNS = {
    "sqlite": _pattern(
        comment=rf"--[^\n]*|{_FLAT_COMMENT}",
        string=_PLAIN_STRING,
        quoted=rf"{_DOUBLE_QUOTED}|{_BACKTICKED}|{_BRACKETED}",
        opening=r"['\"`\[]|/\*",
    ),
    "mysql": _pattern(
        # "--" without a space is two signs. /*! … */ and MariaDB's /*M! … */ are executed.
        comment=r"--(?=\s|\Z)[^\n]*|\#[^\n]*|/\*(?!M?!).*?\*/",
        string=_ESCAPED_STRING,
        # A string, unless ANSI_QUOTES is on.
        quoted=rf"{_ESCAPED_NAME}|{_BACKTICKED}",
        opening=r"['\"`]|/\*(?!M?!)",
        variable=r"@@?[\w.$]*",
    ),
    "microsoft": _pattern(
        comment=r"--[^\n]*",
        nested=r"/\*",
        string=_PLAIN_STRING,
        quoted=rf"{_DOUBLE_QUOTED}|{_BRACKETED}",
        opening=r"['\"\[]|/\*",
        variable=r"@@?[\w.$]*",
    ),
    "postgresql": _pattern(
        comment=r"--[^\n\r]*",
        nested=r"/\*",
        string=rf"[eE]{_ESCAPED_STRING}|{_PLAIN_STRING}"
        rf"|(?P<tag>{_DOLLAR_TAG}).*?(?P=tag)",
        quoted=_DOUBLE_QUOTED,
        opening=rf"[eE]?'|\"|/\*|{_DOLLAR_TAG}",
    ),
}
_COMMENT_END = re.compile(r"/\*|\*/")


class Token(NamedTuple):
    kind: str
    """``string``, ``quoted``, ``word``, ``number``, ``placeholder``, ``variable`` or ``mark``;
    ``open`` for a quote or a comment that does not end, with all that follows it."""
    text: str
    folded: str
    at: int = 0
    """Where in the text it begins."""


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


def tokens(sql: str, vendor: str = "postgresql") -> Iterator[Token]:
    """The tokens of ``sql`` without spaces and comments, as a database of ``vendor`` has them.

    A vendor that is not known here is read as PostgreSQL, the nearest to the standard.
    """
    pattern = _PATTERNS.get(vendor) or _PATTERNS["postgresql"]
    at = 0
    while match := pattern.match(sql, at):
        kind, start = match.lastgroup or "mark", at
        at = match.end()
        if kind == "nested":
            end = _end_of_comment(sql, at)
            if end is not None:
                at = end
                continue
            kind, at = "open", len(sql)
        if kind == "space":
            continue
        text = sql[start:at]
        yield Token(kind, text, fold(text) if kind in ("word", "quoted") else text, start)


def _end_of_comment(sql: str, at: int) -> int | None:
    """Where the comment that begins before ``at`` ends, if comments may hold comments."""
    depth = 1
    for match in _COMMENT_END.finditer(sql, at):
        depth += 1 if match[0] == "/*" else -1
        if not depth:
            return match.end()
    return None


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
    """What is called, folded: names in front of an opening parenthesis, with their schema;
    keywords that are functions; variables; ``for update``."""
    literals: frozenset[str]
    """String literals, folded: 'now' is a function in disguise."""
    unclear: bool
    """Whether something was found that the rules for FROM do not cover."""
    qualified: frozenset[str] = frozenset()
    """Those of the references that were named with a schema."""


_OPENS_FROM = frozenset({"from", "join", "straight_join", "table"})
# Reserved words after which a comma no longer asks for a table. ON and USING do not belong
# here, and neither does a word that may also be an alias: one too few only names too much.
_ENDS_FROM = frozenset(
    "where group having window order limit union intersect except select".split()
)
# Words that stand in front of a parenthesis without being called: reserved in all databases,
# or at least no possible names of functions.
_RESERVED = frozenset(
    """
    all and any array as asc between by case check collate cross desc distinct else end except
    exists fetch from full group having ilike in inner intersect into is join lateral like limit
    natural not offset on or order outer returning row select similar some table then to union
    unique using values when where window with
    bigint binary bit boolean character dec decimal float int integer interval nchar numeric
    precision real smallint varchar
    """.split()
)
# Not called behind these: sum(x) FILTER (…), AS NOT MATERIALIZED (…), GROUP BY ROLLUP (…).
_NOT_CALLED_AFTER = {
    "filter": ")",
    "over": ")",
    "materialized": "not",
    "rollup": "by",
    "cube": "by",
    "sets": "grouping",
    "zone": "time",
}
_KEYWORD_FUNCTIONS = frozenset(
    """
    current_date current_time current_timestamp current_user current_role current_catalog
    current_schema localtime localtimestamp session_user system_user sysdate systimestamp
    utc_date utc_time utc_timestamp rownum user
    """.split()
)
# Schemas in which a name means what it means without a schema.
_OWN_SCHEMAS = frozenset({"pg_catalog", "sys"})


class _Scope:
    """One pair of parentheses: is it a SELECT, and where in its FROM clause are we?"""

    __slots__ = ("defines", "expects_table", "given", "in_from", "is_recursive", "is_select")

    def __init__(self, is_select: bool, expects_table: bool = False, defines: str = "") -> None:
        self.is_select = is_select
        self.in_from = expects_table
        self.expects_table = expects_table
        self.defines = defines
        """The common table expression of which this is the query."""
        self.given: list[str] = []
        """Common table expressions that can be named from here on, until it closes."""
        self.is_recursive = False


_END = Token("end", "", "")
# Parentheses that begin with one of these hold a query of their own.
_QUERIES = frozenset({"select", "with", "values", "table"})


class _Reader:
    """Walks over the tokens of a SELECT and collects what :class:`Read` tells."""

    def __init__(self, stream: list[Token]) -> None:
        self.stream = [*stream, _END, _END, _END]
        self.at = 0
        self.scopes = [_Scope(is_select=True)]
        self.expressions = _common_table_expressions(self.stream)
        self.bodies: dict[int, str] = {}
        self.visible: Counter[str] = Counter()
        self.references: set[str] = set()
        self.qualified: set[str] = set()
        self.functions: set[str] = set()
        self.literals: set[str] = set()
        self.unclear = False

    def walk(self) -> None:
        while self.stream[self.at] is not _END:
            token = self.stream[self.at]
            self.at += 1
            scope = self.scopes[-1]
            if token.kind in ("word", "quoted"):
                self._name(token, scope)
            elif token.text == "(":
                self._open(scope)
            elif token.text == ")":
                self._close()
            elif token.kind == "variable":
                self.functions.add(token.text.casefold())
            elif token.kind == "string" and not scope.expects_table:
                self.literals.add(token.text.casefold())
            elif token.text == "," and scope.in_from:
                scope.expects_table = True
            elif scope.expects_table or token.kind == "open":
                # A number, a placeholder or a mark where a table's name was due.
                self.unclear = True
                scope.expects_table = False
        self.unclear |= len(self.scopes) != 1

    @property
    def _next(self) -> Token:
        return self.stream[self.at]

    def _before(self, steps: int = 1) -> str:
        """The token before the current one, ``""`` at the beginning; quoted ones in quotes."""
        index = self.at - 1 - steps
        if index < 0:
            return ""
        token = self.stream[index]
        return token.folded if token.kind == "word" else token.text

    def _open(self, scope: _Scope) -> None:
        starts_query = self._next.kind == "word" and self._next.folded in _QUERIES
        groups_tables = scope.expects_table and not starts_query
        scope.expects_table = False
        self.scopes.append(
            _Scope(
                starts_query or groups_tables,
                expects_table=groups_tables,
                defines=self.bodies.get(self.at - 1, ""),
            )
        )

    def _close(self) -> None:
        if len(self.scopes) == 1:
            self.unclear = True
            return
        closed = self.scopes.pop()
        self.visible.subtract(closed.given)
        if closed.defines:
            self._give(closed.defines, self.scopes[-1])

    def _name(self, token: Token, scope: _Scope) -> None:
        keyword = token.folded if token.kind == "word" else ""
        body = self.expressions.get(self.at - 1)
        if body is not None:
            self._define(token.folded, body, scope)
        elif scope.expects_table:
            self._source(token, keyword, scope)
        elif keyword in _OPENS_FROM and scope.is_select:
            if self._opens_from(keyword):
                scope.in_from = scope.expects_table = True
        elif keyword == "recursive":
            scope.is_recursive = True
        elif keyword in _ENDS_FROM:
            scope.in_from = False
            # (SELECT …) UNION SELECT …: the outer parentheses are a query as well.
            scope.is_select |= keyword == "select"
        else:
            self._maybe_called(token, keyword)

    def _define(self, name: str, body: int, scope: _Scope) -> None:
        """The name of a common table expression, whose query begins at ``body``."""
        self.bodies[body] = name
        if scope.is_recursive:
            # Only then does its own query mean itself and not a table of that name.
            self._give(name, scope)

    def _give(self, name: str, scope: _Scope) -> None:
        scope.given.append(name)
        self.visible[name] += 1

    def _maybe_called(self, token: Token, keyword: str) -> None:
        before = self._before()
        if self._next.text == "(":
            # Behind AS and :: stand types and aliases.
            is_type = before == "as" or (before == ":" and self._before(2) == ":")
            if (
                not is_type
                and keyword not in _RESERVED
                and before != _NOT_CALLED_AFTER.get(keyword)
            ):
                self.functions.add(self._qualified(token.folded))
        elif keyword in _KEYWORD_FUNCTIONS and before != ".":
            self.functions.add(keyword)
        elif keyword in ("nextval", "currval") or (keyword == "value" and before == "next"):
            # sequence.NEXTVAL, NEXT VALUE FOR sequence
            self.functions.add("nextval")
        elif (keyword == "for" and self._next.folded in ("update", "share", "no", "key")) or (
            keyword == "lock" and self._next.folded == "in"
        ):
            self.functions.add("for update")

    def _qualified(self, name: str) -> str:
        """``name`` with its schema: there it may be anything."""
        if self._before() != ".":
            return name
        schema = fold(self._before(2))
        return name if schema in _OWN_SCHEMAS else f"{schema}.{name}"

    def _source(self, token: Token, keyword: str, scope: _Scope) -> None:
        """What stands where FROM, JOIN or a comma asks for a table."""
        if keyword in ("only", "lateral"):
            return
        scope.expects_table = False
        if keyword in _RESERVED:
            self.unclear = True
            # SELECT FROM t has no columns.
            scope.expects_table = keyword in _OPENS_FROM
            return
        name, is_local = token.folded, True
        # a.b.c: the last name is the table's.
        while self._next.text == "." and self.stream[self.at + 1].kind in ("word", "quoted"):
            name, is_local = self.stream[self.at + 1].folded, False
            self.at += 2
        if self._next.text == "(":
            self.functions.add(self._qualified(name))
        elif not (is_local and self.visible[name] > 0):
            self.references.add(name)
            if not is_local:
                self.qualified.add(name)

    def _opens_from(self, keyword: str) -> bool:
        if keyword == "table":
            # TABLE t is short for SELECT * FROM t.
            return self._next.kind in ("word", "quoted")
        return keyword != "from" or not self._is_distinct_from()

    def _is_distinct_from(self) -> bool:
        """Whether the FROM just read belongs to IS [NOT] DISTINCT FROM."""
        return self._before() == "distinct" and (
            self._before(2) == "is" or (self._before(2), self._before(3)) == ("not", "is")
        )


def analyse_read(sql: str, vendor: str = "postgresql") -> Read:
    """Find tables and functions in the text of a SELECT."""
    reader = _Reader(list(tokens(sql, vendor)))
    reader.walk()
    return Read(
        words(sql),
        frozenset(reader.references),
        frozenset(reader.functions),
        frozenset(reader.literals),
        reader.unclear or _escapes_names(sql, vendor),
        frozenset(reader.qualified),
    )


_BODIES = frozenset("select with values insert update delete merge table (".split())


def _common_table_expressions(stream: list[Token]) -> dict[int, int]:
    """Where WITH gives names: ``name [(columns)] AS [[NOT] MATERIALIZED] (``.

    The index of each name, and that of the parenthesis that opens its query.
    """
    found: dict[int, int] = {}
    if not any(token.kind == "word" and token.folded == "with" for token in stream):
        return found
    opening = _opening_parentheses(stream)
    for index, token in enumerate(stream):
        if token.kind != "word" or token.folded != "as":
            continue
        body = index + 1
        while stream[body].folded in ("not", "materialized"):
            body += 1
        if stream[body].text != "(" or stream[body + 1].folded not in _BODIES:
            continue
        name = opening.get(index - 1, index) - 1
        if name < 1 or stream[name].kind not in ("word", "quoted"):
            continue
        lead = stream[name - 1]
        if lead.text == "," or lead.folded in ("with", "recursive"):
            found[name] = body
    return found


def _opening_parentheses(stream: list[Token]) -> dict[int, int]:
    """For the index of each closing parenthesis that of the one that it closes."""
    found: dict[int, int] = {}
    waiting: list[int] = []
    for index, token in enumerate(stream):
        if token.text == "(":
            waiting.append(index)
        elif token.text == ")" and waiting:
            found[index] = waiting.pop()
    return found


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
    """A transaction is open afterwards; with COMMIT or ROLLBACK, a new one."""
    COMMIT = enum.auto()
    ROLLBACK = enum.auto()
    PARTIAL_ROLLBACK = enum.auto()
    """ROLLBACK TO SAVEPOINT: undoes settings, too."""
    RELEASE = enum.auto()
    """SQLite's RELEASE: a commit, if the savepoint began the transaction."""
    LOCK = enum.auto()
    """Takes locks that last until the transaction ends."""
    SEARCH_PATH = enum.auto()
    """Changes the schema that unqualified names mean."""
    ISOLATION = enum.auto()
    """Changes the isolation level of the session's transactions."""
    SNAPSHOT = enum.auto()
    """The transaction that is open, or is begun, reads from a snapshot."""
    SESSION = enum.auto()
    """Changes what the connection sees in a way that is not followed."""
    LOCAL = enum.auto()
    """The same, and the end of the transaction undoes it."""
    TEMPORARY = enum.auto()
    """Makes a table that this session alone sees, in front of others of its name."""


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
    own: str = ""
    """The one target, if it is named without a schema and as PostgreSQL itself spells it."""


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

# ANALYZE and EXPLAIN ANALYZE execute what follows, on some databases.
_READS = frozenset("select with values table explain show describe desc declare analyze".split())
_WRITES = frozenset("insert update delete merge replace into truncate copy load upsert".split())
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
_DEFINES = frozenset("create alter drop rename reassign".split())
# Words of DDL that may change what a name means, or what a query sees of it, without naming it.
_HINTS = frozenset(
    """
    attach detach engine inherit inherits owned partition rename schema security server view
    virtual
    """.split()
)
_UNNAMED = frozenset("call do exec execute begin_procedure import".split())
# What may stand between the INTO of a SELECT and its table.
_INTO_WORDS = frozenset("global local temp temporary unlogged".split())
_TARGET_FOLLOWS = frozenset("into update from table copy truncate view join only exists".split())
# What may follow BEGIN if it begins a transaction and not a block of statements.
_BEGIN_WORDS = frozenset(
    """
    transaction work tran deferred immediate exclusive concurrent isolation level read only write
    not deferrable serializable repeatable committed uncommitted with consistent snapshot ,
    """.split()
)
_SNAPSHOT_WORDS = frozenset({"serializable", "repeatable", "uncommitted", "snapshot"})
_LOCK_FUNCTION = re.compile(r"pg_(?:try_)?advisory_(?:xact_)?lock(?:_shared)?|get_lock")
# Settings that change neither the rows that a query returns nor their order or type.
_HARMLESS_SETTINGS = frozenset(
    """
    application_name client_min_messages constraints deadlock_timeout foreign_key_checks
    idle_in_transaction_session_timeout idle_session_timeout innodb_lock_wait_timeout
    lock_timeout log_statement maintenance_work_mem max_execution_time
    max_parallel_workers_per_gather max_statement_time optimizer_switch statement_timeout
    synchronous_commit temp_buffers transaction unique_checks wait_timeout work_mem
    sql_auto_is_null
    """.split()
)
_HARMLESS_PRAGMAS = frozenset(
    """
    application_id auto_vacuum busy_timeout cache_size defer_foreign_keys foreign_key_check
    foreign_key_list foreign_keys freelist_count function_list incremental_vacuum index_info
    index_list index_xinfo integrity_check journal_mode journal_size_limit legacy_alter_table
    locking_mode mmap_size optimize page_count page_size quick_check synchronous table_info
    table_list table_xinfo temp_store threads user_version wal_autocheckpoint wal_checkpoint
    """.split()
)
_SCOPES = frozenset({"session", "local", "global", "persist", "persist_only"})
_ROUTINES = frozenset({"trigger", "procedure", "function", "event", "package"})
# What CREATE, ALTER or DROP is about: the first of these words.
_OBJECTS = frozenset(
    """
    aggregate cast collation column constraint conversion database domain event extension foreign
    function index language operator package policy procedure publication role routine rule schema
    sequence server statistics subscription synonym table tablespace transform trigger type user
    view
    """.split()
)
# By these PostgreSQL alters the session in the midst of a statement of any kind.
_SESSION_WORDS = frozenset({"set_config", "pg_settings"})
# So do statements inside of DO. Behind UPDATE t, SET is none of them.
_SESSION_STATEMENTS = frozenset("discard pg_temp reset search_path set temp temporary".split())
_UPDATE_SET = re.compile(
    rf"\bupdate\s+(?:only\s+)?(?!(?:loop|then)\b)(?:{NAME}\s*\.\s*)*{NAME}\s+set\b",
    re.IGNORECASE,
)
# A change of these changes what queries answer, and names no table whose queries they are.
_MEANINGS = frozenset("aggregate cast function operator package policy routine rule".split())
_MEANINGS_ONCE_THERE = frozenset("collation domain extension schema type".split())


def classify(sql: str, vendor: str = "postgresql") -> list[Statement]:
    """What executing ``sql``, which may be several statements, does."""
    if ";" not in sql.rstrip("; \t\r\n"):
        # Quickly, without tokens: bulk inserts may be long.
        match = _ONE_TARGET.match(sql.rstrip("; \t\r\n"))
        if match is not None:
            name = match["target1"] or match["target2"] or match["target3"]
            schema = match["schema1"] or match["schema2"] or match["schema3"]
            # REPLACE removes the row in the way first.
            deletes = bool(match["target3"]) or "replace" in (match["verb"] or "").casefold()
            own = "" if schema else _own(name)
            kind = Kind.WRITE
            if vendor == "postgresql" and _holds_session_words(sql):
                kind |= Kind.SESSION
            return [Statement(kind, frozenset({fold(name)}), deletes=deletes, own=own)]
    return [
        _classify_one(part, sql[part[0].at : part[-1].at + len(part[-1].text)], vendor)
        for part in _split(list(tokens(sql, vendor)))
    ]


def _holds_session_words(sql: str) -> bool:
    folded = sql.casefold()
    return any(word in folded for word in _SESSION_WORDS)


def _own(name: str) -> str:
    """The folded name, if PostgreSQL spells it in this way, too."""
    folded = fold(name)
    spelt = name[1:-1] if name.startswith('"') else name.lower()
    return folded if spelt == folded and folded.isascii() else ""


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
    if all(token.folded not in _ROUTINES for token in part[:12]):
        return 0
    if word == "end":
        return -1
    if before == "end":
        # END CASE has been counted; END IF ends nothing that was.
        return 0 if word == "case" else 1
    return 1 if word in ("begin", "case") else 0


def _classify_one(stream: list[Token], sql: str, vendor: str) -> Statement:
    first = next((token for token in stream if token.text != "("), _END)
    verb = first.folded if first.kind == "word" else ""
    if verb in _SIMPLE:
        return Statement(_SIMPLE[verb])
    if verb in _READS:
        return _classify_read(stream, sql, verb, vendor)
    if verb == "copy" and _copies_out(stream):
        return _classify_read(stream[1:], sql, verb, vendor)
    if verb in ("set", "reset"):
        return _classify_setting(stream, sql, vendor)
    if verb == "pragma":
        return Statement(_pragma(stream))
    found = words(sql)
    altered = Kind.READ
    if vendor == "postgresql" and _alters_session(verb, stream, found, sql):
        altered = Kind.SESSION
    kind = _transaction_control(verb, stream, vendor)
    if kind is not None:
        # PREPARE p AS SELECT set_config(…): EXECUTE p will not tell.
        mentions = found if kind & Kind.UNNAMED_WRITE else frozenset()
        return Statement(kind | altered, mentions=mentions)
    if verb in _UNNAMED:
        return Statement(Kind.UNNAMED_WRITE | altered, mentions=found)
    kind = Kind.WRITE | altered
    if verb not in _WRITES or verb == "truncate":
        kind |= Kind.IMPLICIT_COMMIT
    if verb in ("truncate", "drop") and "cascade" in found:
        # PostgreSQL empties or drops what refers to the named tables, too.
        kind |= Kind.UNNAMED_WRITE
    if verb == "revoke" or _changes_meanings(verb, stream, found) or _escapes_names(sql, vendor):
        kind |= Kind.UNNAMED_WRITE
    if verb == "create" and _is_temporary(stream):
        kind |= Kind.TEMPORARY
    match = _INSERT_SELECT.match(sql) if verb == "insert" else None
    own = _own(match["target1"]) if match is not None and not match["schema1"] else ""
    return Statement(kind, _targets(stream), found, own=own)


def _escapes_names(sql: str, vendor: str) -> bool:
    r"""Whether a name may be written as U&"caf\00e9", in PostgreSQL or as the standard has it."""
    return vendor not in ("mysql", "sqlite", "microsoft") and 'u&"' in sql.casefold()


def _changes_meanings(verb: str, stream: list[Token], found: frozenset[str]) -> bool:
    """Whether DDL changes what queries mean that do not mention it: functions, types, views."""
    if verb not in _DEFINES:
        return False
    # FOREIGN TABLE, not FOREIGN KEY
    if not found.isdisjoint(_HINTS) or ("foreign" in found and "key" not in found):
        return True
    what = _object_of(stream)
    return what in _MEANINGS or (verb != "create" and what in _MEANINGS_ONCE_THERE)


def _object_of(stream: list[Token]) -> str:
    """What kind of thing DDL is about."""
    words_of_it = (token.folded for token in stream[1:] if token.kind == "word")
    return next((word for word in words_of_it if word in _OBJECTS), "")


def _alters_session(verb: str, stream: list[Token], found: frozenset[str], sql: str) -> bool:
    """Whether PostgreSQL may alter the session while it executes what is no SELECT and no SET."""
    if verb == "do":
        inside = words(_UPDATE_SET.sub(" ", sql))
        return not inside.isdisjoint(_SESSION_STATEMENTS | _SESSION_WORDS)
    if verb == "create" and _object_of(stream) in _ROUTINES:
        # Its body is executed later.
        return False
    return not found.isdisjoint(_SESSION_WORDS)


def _classify_read(stream: list[Token], sql: str, verb: str, vendor: str) -> Statement:
    kind = Kind.IMPLICIT_COMMIT if verb == "analyze" else Kind.READ
    found = words(sql)
    if verb in ("explain", "analyze") and any(token.folded == "execute" for token in stream[1:]):
        # PostgreSQL's EXPLAIN ANALYZE EXECUTE runs what was prepared, whatever that is.
        return Statement(Kind.UNNAMED_WRITE, mentions=found)
    if verb in ("show", "describe", "desc"):
        return Statement(kind, mentions=found)
    # Where a string ends is in doubt behind a backslash, which MySQL can be told to ignore.
    in_doubt = stream[-1].kind == "open" or (vendor == "mysql" and "\\" in sql)
    writes = in_doubt and bool(found & _WRITES)
    following = [*stream[1:], _END]
    before = _END
    for index, (token, after) in enumerate(zip(stream, following, strict=True)):
        if token.kind in ("word", "quoted") and after.text == "(":
            if _LOCK_FUNCTION.fullmatch(token.folded):
                kind |= Kind.LOCK
            elif token.folded == "set_config":
                kind |= Kind.LOCAL if _is_local(stream[index + 1 :]) else Kind.SESSION
            elif token.folded == "clone_schema":
                # A function of PostgreSQL that is passed around; django-tenants has it, too.
                return Statement(Kind.UNNAMED_WRITE, mentions=found)
        elif token.kind == "word" and before.text != ".":
            if _locks(token, following[index : index + 4]):
                kind |= Kind.LOCK
            elif token.folded in _WRITES and not (kind & Kind.LOCK and _ends_lock(token, before)):
                writes = True
        before = token
    if writes:
        # SELECT … INTO TEMP t
        kind |= Kind.TEMPORARY if _is_temporary(stream) else Kind.READ
        if vendor == "postgresql" and "pg_settings" in found:
            # EXPLAIN ANALYZE UPDATE pg_settings …
            kind |= Kind.SESSION
        kind |= Kind.UNNAMED_WRITE if _escapes_names(sql, vendor) else Kind.WRITE
        return Statement(kind, _targets(stream), found)
    return Statement(kind, mentions=found)


def _is_temporary(stream: list[Token]) -> bool:
    return any(
        token.kind == "word" and token.folded in ("temp", "temporary", "pg_temp")
        for token in stream
    )


def _is_local(arguments: list[Token]) -> bool:
    """Whether the last argument of a call, given with all that follows, is ``true``."""
    depth = 0
    for index, token in enumerate(arguments):
        depth += (token.text == "(") - (token.text == ")")
        if not depth:
            last = arguments[max(0, index - 2) : index]
            return [one.text.casefold() for one in last] == [",", "true"]
    return False


def _copies_out(stream: list[Token]) -> bool:
    """Whether a COPY goes to a file or to the client: COPY t (a, b) TO, COPY (SELECT …) TO."""
    depth = 0
    for token in stream[1:]:
        depth += (token.text == "(") - (token.text == ")")
        if not depth and token.kind == "word" and token.folded in ("from", "to"):
            return token.folded == "to"
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


def _transaction_control(verb: str, stream: list[Token], vendor: str) -> Kind | None:
    """What a statement does to the transaction; None if it is about something else."""
    rest = [token.folded if token.kind != "quoted" else token.text for token in stream[1:]]
    second = rest[0] if rest else ""
    chained = Kind.BEGIN if "chain" in rest and "no" not in rest else Kind.READ
    if verb == "begin" or (verb == "start" and second == "transaction"):
        return _begin(set(rest), vendor)
    if verb in ("commit", "end"):
        # COMMIT PREPARED publishes another session's transaction.
        return Kind.UNNAMED_WRITE if second == "prepared" else Kind.COMMIT | chained
    if verb == "rollback":
        if second == "prepared":
            return Kind.READ
        return Kind.PARTIAL_ROLLBACK if "to" in rest else Kind.ROLLBACK | chained
    if verb == "savepoint":
        # On SQLite it begins a transaction if none is open.
        return Kind.BEGIN if vendor == "sqlite" else Kind.READ
    if verb == "release":
        return Kind.RELEASE if vendor == "sqlite" else Kind.READ
    if verb == "prepare":
        # The rows stay invisible until COMMIT PREPARED, which invalidates everything.
        return Kind.COMMIT if second == "transaction" else Kind.READ
    if verb == "xa":
        return {
            "start": Kind.BEGIN,
            "begin": Kind.BEGIN,
            "commit": Kind.UNNAMED_WRITE | Kind.COMMIT,
            "rollback": Kind.ROLLBACK,
        }.get(second, Kind.READ)
    return None


def _begin(rest: set[str], vendor: str) -> Kind:
    if rest - _BEGIN_WORDS:
        # BEGIN NOT ATOMIC … and the blocks of PL/SQL hold statements of their own.
        return Kind.UNNAMED_WRITE | Kind.IMPLICIT_COMMIT
    kind = Kind.BEGIN
    if vendor == "mysql":
        kind |= Kind.IMPLICIT_COMMIT
    if not rest & _SNAPSHOT_WORDS:
        return kind
    return kind | (Kind.SNAPSHOT if vendor == "postgresql" else Kind.ISOLATION)


def _pragma(stream: list[Token]) -> Kind:
    """PRAGMA [schema.]name [= value | (value)]"""
    at = 3 if len(stream) > 3 and stream[2].text == "." else 1
    name = stream[at].folded if len(stream) > at else ""
    changes = len(stream) > at + 1 and name not in _HARMLESS_PRAGMAS
    return Kind.SESSION if changes else Kind.READ


def _classify_setting(stream: list[Token], sql: str, vendor: str) -> Statement:
    rest = stream[1:]
    # For MySQL it is another word for SESSION.
    is_local = vendor == "postgresql" and bool(rest) and rest[0].folded == "local"
    while len(rest) > 1 and rest[0].kind == "word" and rest[0].folded in _SCOPES:
        rest = rest[1:]
    name = rest[0].folded if rest else ""
    if name == "statement":
        # MariaDB: SET STATEMENT name = value FOR a statement that is executed.
        at = next((i for i, token in enumerate(rest) if token.folded == "for"), len(rest) - 1)
        return _classify_one(rest[at + 1 :] or [_END], sql, vendor)
    found = words(sql)
    if name in ("search_path", "schema"):
        if is_local:
            return Statement(Kind.SEARCH_PATH | Kind.LOCAL)
        return Statement(Kind.SEARCH_PATH, detail=" ".join(sql.split()))
    if vendor == "mysql":
        return Statement(_mysql_settings(rest, found))
    if name == "transaction" and vendor == "postgresql":
        # Outside of transactions it does nothing.
        is_lax = {"read", "committed"} <= found or "isolation" not in found
        return Statement(Kind.READ if is_lax and "snapshot" not in found else Kind.SNAPSHOT)
    if _is_about_isolation(found):
        kind = _isolation(found)
    else:
        is_dotted = len(rest) > 1 and rest[1].text == "."
        kind = Kind.READ if name in _HARMLESS_SETTINGS and not is_dotted else Kind.SESSION
    return Statement(Kind.LOCAL if is_local and kind else kind)


def _is_about_isolation(found: frozenset[str]) -> bool:
    return any("isolation" in word for word in found) or "characteristics" in found


def _isolation(found: frozenset[str]) -> Kind:
    if "uncommitted" in found:
        # Outside of transactions, too, MySQL then shows what may never be committed.
        return Kind.SESSION
    return Kind.READ if {"read", "committed"} <= found else Kind.ISOLATION


def _mysql_settings(rest: list[Token], found: frozenset[str]) -> Kind:
    """SET [scope] name = value, [scope] name = value, …"""
    kind = _isolation(found) if _is_about_isolation(found) else Kind.READ
    assigned = [
        (rest[at - 1 - (rest[at - 1].text == ":")], rest[at + 1])
        for at, token in enumerate(rest)
        if token.text == "=" and 0 < at < len(rest) - 1
    ]
    if not assigned and rest and rest[0].folded not in ("transaction", "constraints"):
        return kind | Kind.SESSION
    for variable, value in assigned:
        name = variable.folded.casefold()
        if name.startswith("@") and not name.startswith("@@"):
            # The user's own: a query that reads one is not cached.
            continue
        name = name.rpartition(".")[2].lstrip("@")
        if name == "autocommit":
            # 0 opens a transaction, anything else commits the one that is open.
            off = value.folded.strip("'\"").casefold() in ("0", "off", "false")
            kind |= Kind.BEGIN if off else Kind.COMMIT
        elif "isolation" not in name and name not in _HARMLESS_SETTINGS:
            kind |= Kind.SESSION
    return kind


def _targets(stream: list[Token]) -> frozenset[str]:
    """Names behind the words that a target follows: too many rather than too few."""
    found: set[str] = set()
    stream = [*stream, _END, _END]
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
            # That of Django's bulk_create(): a function, no table.
            if name != "unnest" or stream[index].text != "(":
                found.add(name)
            if token.folded == "into" and name in _INTO_WORDS:
                # SELECT … INTO TEMP t, unless it is a table of this name.
                continue
            if stream[index].text == "*":  # TRUNCATE t *
                index += 1
            if stream[index].text != ",":
                break
            index += 1
    return frozenset(found - {"select", "set"})
