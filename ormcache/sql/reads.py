"""What a SELECT reads: the tables in its FROM clauses, and the functions that it calls."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from ormcache.sql.lexer import END, Token, escapes_names, last_part, tokens, words
from ormcache.sql.names import fold


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
    system_columns: frozenset[str] = frozenset()
    """Columns that the database has put there itself, which change without a write."""


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


# Parentheses that begin with one of these hold a query of their own.
_QUERIES = frozenset({"select", "with", "values", "table"})


class _Reader:
    """Walks over the tokens of a SELECT and collects what :class:`Read` tells."""

    def __init__(self, stream: list[Token]) -> None:
        self.stream = [*stream, END, END, END]
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
        while self.stream[self.at] is not END:
            token = self.stream[self.at]
            self.at += 1
            scope = self.scopes[-1]
            if token.is_name:
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
        return token.keyword or token.text

    def _open(self, scope: _Scope) -> None:
        starts_query = self._next.keyword in _QUERIES
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
        keyword = token.keyword
        body = self.expressions.get(self.at - 1)
        if body is not None:
            self._define(token.folded, body, scope)
        elif scope.expects_table:
            self._source(keyword, scope)
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
            if self._is_called(keyword, before):
                self.functions.add(self._with_schema(token.folded))
        elif keyword in _KEYWORD_FUNCTIONS and before != ".":
            self.functions.add(keyword)
        elif keyword in ("nextval", "currval") or (keyword == "value" and before == "next"):
            # sequence.NEXTVAL, NEXT VALUE FOR sequence
            self.functions.add("nextval")
        elif (keyword == "for" and self._next.folded in ("update", "share", "no", "key")) or (
            keyword == "lock" and self._next.folded == "in"
        ):
            self.functions.add("for update")

    def _is_called(self, keyword: str, before: str) -> bool:
        """Whether what stands in front of a parenthesis is the name of a function."""
        # Behind AS and :: stand types and aliases.
        is_type = before == "as" or (before == ":" and self._before(2) == ":")
        return (
            not is_type and keyword not in _RESERVED and before != _NOT_CALLED_AFTER.get(keyword)
        )

    def _with_schema(self, name: str) -> str:
        """``name`` with its schema: there it may be anything."""
        if self._before() != ".":
            return name
        schema = fold(self._before(2))
        return name if schema in _OWN_SCHEMAS else f"{schema}.{name}"

    def _source(self, keyword: str, scope: _Scope) -> None:
        """What stands where FROM, JOIN or a comma asks for a table."""
        if keyword in ("only", "lateral"):
            return
        scope.expects_table = False
        if keyword in _RESERVED:
            self.unclear = True
            # SELECT FROM t has no columns.
            scope.expects_table = keyword in _OPENS_FROM
            return
        behind_first = self.at
        name, self.at = last_part(self.stream, self.at - 1)
        is_local = self.at == behind_first
        if self._next.text == "(":
            self.functions.add(self._with_schema(name))
        elif not (is_local and self.visible[name] > 0):
            self.references.add(name)
            if not is_local:
                self.qualified.add(name)

    def _opens_from(self, keyword: str) -> bool:
        if keyword == "table":
            # TABLE t is short for SELECT * FROM t.
            return self._next.is_name
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
        reader.unclear or escapes_names(sql, vendor),
        frozenset(reader.qualified),
        _system_columns(reader.stream, vendor),
    )


# By vendor. VACUUM moves rows, and a lock shows as xmax.
_SYSTEM_COLUMNS = {
    "postgresql": frozenset("ctid xmin xmax cmin cmax".split()),
    "sqlite": frozenset("rowid oid _rowid_".split()),
}


def _system_columns(stream: list[Token], vendor: str) -> frozenset[str]:
    """The system columns that a text names.

    What Django names is quoted. An annotation may be called "xmin", and a column of SQLite "oid".
    No column of PostgreSQL's tables may be called so, but that of a subquery.
    """
    suspects = _SYSTEM_COLUMNS.get(vendor, frozenset())
    named = {token.folded for token in stream if token.is_name} & suspects
    if not named:
        return frozenset()
    triples = zip([END, *stream], stream, [*stream[1:], END], strict=False)
    aliases: set[str] = set()
    found: set[str] = set()
    perhaps: set[str] = set()
    for before, token, after in triples:
        if token.folded not in named or not token.is_name or after.text in ("(", "."):
            continue
        if before.keyword == "as":
            aliases.add(token.folded)
        elif token.kind == "word" or (vendor == "postgresql" and before.text == "."):
            found.add(token.folded)
        elif vendor == "postgresql":
            perhaps.add(token.folded)
    return frozenset(found | perhaps - aliases)


_BODIES = frozenset("select with values insert update delete merge table (".split())


def _common_table_expressions(stream: list[Token]) -> dict[int, int]:
    """Where WITH gives names: ``name [(columns)] AS [[NOT] MATERIALIZED] (``.

    The index of each name, and that of the parenthesis that opens its query.
    """
    found: dict[int, int] = {}
    if not any(token.keyword == "with" for token in stream):
        return found
    opening = _opening_parentheses(stream)
    for index, token in enumerate(stream):
        if token.keyword != "as":
            continue
        body = index + 1
        while stream[body].folded in ("not", "materialized"):
            body += 1
        if stream[body].text != "(" or stream[body + 1].folded not in _BODIES:
            continue
        name = opening.get(index - 1, index) - 1
        if name < 1 or not stream[name].is_name:
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
