"""What is read off a text of SQL: tables, functions, and what a statement does."""

import time
from collections.abc import Iterable
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ormcache import sql
from ormcache.sql import Kind

VENDORS = ("sqlite", "postgresql", "mysql", "microsoft", "oracle", "")

every_vendor = pytest.mark.parametrize("vendor", VENDORS)


def quickly(max_examples: int = 200) -> Any:
    return hypothesis.settings(max_examples=max_examples, deadline=None)


# --- names ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("db_table", "name"),
    [
        ("tests_book", "tests_book"),
        ("LegacyTable", "legacytable"),
        ('"Quoted"', "quoted"),
        ('schema"."table', "table"),
        ('"schema"."table"', "table"),
        ("schema`.`table", "table"),
        ("schema].[table", "table"),
        ("with.dot", "with.dot"),
        ("with space", "with space"),
        ("ÄPFEL", "äpfel"),
        ("STRASSE", "strasse"),
        ("straße", "strasse"),
    ],
)
def test_table_of_a_model_is_compared_without_quotes_case_and_schema(
    db_table: str, name: str
) -> None:
    assert sql.table_name(db_table) == name


@given(st.text())
@quickly()
def test_folding_twice_changes_nothing(name: str) -> None:
    assert sql.fold(sql.fold(name)) == sql.fold(name)


@given(st.integers(1, 50), st.integers(1, 50))
@quickly(20)
def test_lists_of_any_length_have_one_normal_form(one: int, other: int) -> None:
    text = "SELECT a FROM b WHERE c IN (%s) AND d = %%s"
    assert sql.normalise(text % ", ".join(["%s"] * one)) == sql.normalise(
        text % ", ".join(["%s"] * other)
    )


def test_normal_form_tells_texts_of_different_words_apart() -> None:
    texts = ["SELECT %s, a FROM b", "SELECT %s, now() FROM b", "SELECT a FROM b WHERE c IN (%s)"]
    assert len({sql.normalise(text) for text in texts}) == 3


# --- tokens --------------------------------------------------------------------------------


def spell(text: str, vendor: str) -> list[str]:
    return [f"{token.kind} {token.text}" for token in sql.tokens(text, vendor)]


@pytest.mark.parametrize(
    ("vendor", "text", "expected"),
    [
        ("postgresql", "a -- b\nc", ["word a", "word c"]),
        ("postgresql", "a -- b\rc", ["word a", "word c"]),
        ("sqlite", "a -- b\rc", ["word a"]),
        ("mysql", "a -- b\nc", ["word a", "word c"]),
        ("mysql", "5--1", ["number 5", "mark -", "mark -", "number 1"]),
        ("mysql", "a # it's\nb", ["word a", "word b"]),
        ("postgresql", "a # b", ["word a", "mark #", "word b"]),
        ("sqlite", "a /* b /* c */ d", ["word a", "word d"]),
        ("postgresql", "a /* b /* ' */ */ d", ["word a", "word d"]),
        ("mysql", "/*+ hint */ a", ["word a"]),
        ("sqlite", "'a''b' c", ["string 'a''b'", "word c"]),
        ("sqlite", r"'a\' b", [r"string 'a\'", "word b"]),
        ("postgresql", r"'a\' b", [r"string 'a\'", "word b"]),
        ("postgresql", r"E'a\' b' c", [r"string E'a\' b'", "word c"]),
        ("mysql", r"'a\' b' c", [r"string 'a\' b'", "word c"]),
        ("mysql", r'"a\" b" c', [r'quoted "a\" b"', "word c"]),
        ("mysql", "'a\\\\' b", ["string 'a\\\\'", "word b"]),
        ("postgresql", "$$a'b$$ c", ["string $$a'b$$", "word c"]),
        ("postgresql", "$x$a$$b$x$ c", ["string $x$a$$b$x$", "word c"]),
        ("postgresql", "$1 a", ["mark $", "number 1", "word a"]),
        ("mysql", "a$$b", ["word a$$b"]),
        ("sqlite", "[a b] c", ["quoted [a b]", "word c"]),
        ("microsoft", "[a]]b] c", ["quoted [a]]b]", "word c"]),
        ("postgresql", "a[b]", ["word a", "mark [", "word b", "mark ]"]),
        ("mysql", "`a``b` c", ["quoted `a``b`", "word c"]),
        ("postgresql", '"a""b" c', ['quoted "a""b"', "word c"]),
        ("postgresql", '"" c', ['quoted ""', "word c"]),
        ("mysql", "@a @@b.c", ["variable @a", "variable @@b.c"]),
        ("sqlite", "%s %(a)s", ["placeholder %s", "placeholder %(a)s"]),
        ("sqlite", "1.5e3 0x1F", ["number 1.5", "word e3", "number 0", "word x1F"]),
        ("sqlite", "äöü", ["word äöü"]),
    ],
)
def test_tokens_of_a_dialect(vendor: str, text: str, expected: list[str]) -> None:
    assert spell(text, vendor) == expected


@pytest.mark.parametrize(
    ("vendor", "text"),
    [
        *((vendor, text) for vendor in VENDORS for text in ("'a b", '"a b', "/* a b", "'a''b")),
        ("postgresql", "$x$ a b"),
        ("postgresql", "E'a\\' b"),
        ("postgresql", "/* a /* b */ c"),
        ("sqlite", "[a b"),
        ("sqlite", "`a b"),
        ("mysql", "'a\\' b"),
    ],
)
def test_what_is_never_closed_is_one_open_token(vendor: str, text: str) -> None:
    assert [token.kind for token in sql.tokens(text, vendor)][-1:] == ["open"]


@every_vendor
@pytest.mark.parametrize("text", ["/*! a */", "/*M! a */", "/*!50001 a */"])
def test_comments_that_mysql_executes_are_comments_only_elsewhere(vendor: str, text: str) -> None:
    assert ("word a" in spell(text, vendor)) == (vendor == "mysql")


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


@given(any_sql, st.sampled_from(VENDORS))
@quickly(300)
def test_tokens_lose_nothing_but_spaces_and_comments(text: str, vendor: str) -> None:
    at = 0
    for token in sql.tokens(text, vendor):
        between = text[at : token.at].lstrip()
        assert not between or between.startswith(("--", "#", "/*"))
        assert text.startswith(token.text, token.at)
        at = token.at + len(token.text)
    assert not text[at:].strip() or text[at:].lstrip().startswith(("--", "#", "/*"))


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


# --- reads ---------------------------------------------------------------------------------


def references(text: str, vendor: str = "postgresql") -> set[str]:
    read = sql.analyse_read(text, vendor)
    assert not read.unclear
    return set(read.references)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT 1", ""),
        ("SELECT * FROM a", "a"),
        ("select * from A.B.c AS x", "c"),
        ('SELECT * FROM "s"."T-x" y', "t-x"),
        ("SELECT * FROM a, b AS c, only d", "a b d"),
        ("SELECT * FROM a JOIN b ON a.x = b.x, c", "a b c"),
        ("SELECT * FROM a JOIN b USING (x, y), c", "a b c"),
        (
            "SELECT * FROM a LEFT JOIN b ON f(a.x, b.y) NATURAL JOIN c CROSS JOIN d",
            "a b c d",
        ),
        ("SELECT * FROM (a CROSS JOIN b) JOIN (c, d) ON TRUE", "a b c d"),
        ("SELECT * FROM (SELECT * FROM a) x, LATERAL (SELECT x.y FROM b) z", "a b"),
        ("SELECT * FROM a WHERE b IN (SELECT c FROM d WHERE EXISTS (SELECT 1 FROM e))", "a d e"),
        ("SELECT (SELECT MAX(x) FROM b) FROM a", "a b"),
        ("SELECT COALESCE((SELECT x FROM b), 0) + 1 FROM a", "a b"),
        ("SELECT CASE WHEN EXISTS(SELECT 1 FROM b) THEN 1 END FROM a ORDER BY 1, 2", "a b"),
        ("SELECT a FROM x UNION SELECT b FROM y EXCEPT (SELECT c FROM z)", "x y z"),
        ("SELECT a FROM x WHERE b IN ((SELECT 1) UNION SELECT c FROM y)", "x y"),
        ("(SELECT a FROM x) UNION ALL (SELECT b FROM y ORDER BY c, d) LIMIT 1", "x y"),
        ("TABLE a UNION TABLE b", "a b"),
        ("VALUES (1, 2), (3, 4)", ""),
        ("SELECT * FROM (VALUES (1, 2), (3, 4)) AS v(x, y), a", "a"),
        ("SELECT EXTRACT(year FROM b), TRIM(BOTH ' ' FROM c), SUBSTRING(d FROM 1) FROM a", "a"),
        ("SELECT a IS DISTINCT FROM b, c IS NOT DISTINCT FROM d FROM x", "x"),
        ('SELECT "is" "distinct" FROM x', "x"),
        ("SELECT DISTINCT a FROM x", "x"),
        ("SELECT FROM x", "x"),
        ("SELECT a FROM x GROUP BY b, c HAVING d > 1 WINDOW w AS (ORDER BY e), v AS ()", "x"),
        ("SELECT 'FROM b', \"from c\" /* FROM d */ FROM a -- FROM e", "a"),
        ("SELECT $$ FROM b $$ FROM a", "a"),
        ("SELECT ARRAY[(SELECT x FROM b)] FROM a", "a b"),
        ("WITH x AS (SELECT * FROM a) SELECT * FROM x, b", "a b"),
        ("WITH x AS (SELECT * FROM a), y (p, q) AS (SELECT * FROM x) SELECT * FROM y, x", "a"),
        ("WITH x AS NOT MATERIALIZED (SELECT 1) SELECT * FROM x", ""),
        ("WITH RECURSIVE x AS (SELECT 1 UNION SELECT * FROM x JOIN a) SELECT * FROM x", "a"),
        # A name that WITH gives means a table before it is given, inside or elsewhere.
        ("WITH x AS (SELECT * FROM x) SELECT * FROM x", "x"),
        ("WITH x AS (SELECT * FROM y), y AS (SELECT 1) SELECT * FROM x, y", "y"),
        ("SELECT * FROM x WHERE a IN (WITH x AS (SELECT 1) SELECT * FROM x)", "x"),
        ("WITH x AS (SELECT 1) SELECT * FROM s.x", "x"),
        ("WITH x AS (SELECT 1) SELECT * FROM a WHERE b IN (SELECT c FROM x)", "a"),
        ("SELECT * FROM generate_series(1, 3) AS g(n), unnest(a) u, b", "b"),
        ("SELECT * FROM f(1), a", "a"),
        ("SELECT 1.FROM a", "a"),
    ],
)
def test_tables_of_a_select(text: str, expected: str) -> None:
    assert references(text) == set(expected.split())


@pytest.mark.parametrize(
    ("vendor", "text", "expected"),
    [
        ("mysql", "SELECT a FROM `x`.`y z`, b", {"y z", "b"}),
        ("mysql", "SELECT 5--1 FROM a", {"a"}),
        ("mysql", "SELECT '\\' FROM b' FROM a", {"a"}),
        ("mysql", "SELECT a FROM x # , c\n, b", {"x", "b"}),
        ("mysql", "SELECT STRAIGHT_JOIN a FROM b", {"a", "b"}),
        ("mysql", "SELECT * FROM a STRAIGHT_JOIN b ON 1", {"a", "b"}),
        ("mysql", "SELECT /*! SQL_NO_CACHE */ a FROM b", {"b"}),
        ("mysql", "SELECT a FROM b /*! , c */", {"b", "c"}),
        ("sqlite", "SELECT a FROM [x y], `z` INDEXED BY i", {"x y", "z"}),
        ("sqlite", "SELECT a FROM main.b NOT INDEXED", {"b"}),
        ("microsoft", "SELECT a FROM [dbo].[b]", {"b"}),
    ],
)
def test_tables_of_a_select_in_a_dialect(vendor: str, text: str, expected: set[str]) -> None:
    assert references(text, vendor) == expected


@pytest.mark.parametrize(
    ("vendor", "text"),
    [
        ("sqlite", "SELECT a FROM 'b'"),
        ("sqlite", "SELECT a FROM %s"),
        ("sqlite", "SELECT a FROM b, 3"),
        ("sqlite", "SELECT a FROM b)"),
        ("sqlite", "SELECT (a FROM b"),
        ("sqlite", "SELECT a FROM b WHERE c = 'd"),
        ("postgresql", "SELECT a FROM b /* c /* d */"),
        ("postgresql", "SELECT a FROM ROWS FROM (f(1), g(2))" + ")"),
        ("mysql", "SELECT a FROM { OJ b LEFT OUTER JOIN c ON 1 }"),
        ("mysql", "SELECT a FROM 2b"),
        ("oracle", "SELECT a FROM TABLE(f(1))"),
        ("postgresql", "SELECT a FROM [b]"),
        ("postgresql", 'SELECT a FROM U&"caf\\00e9"'),
        ("postgresql", 'SELECT a FROM b WHERE c = u&"caf\\00e9"()'),
    ],
)
def test_what_is_not_covered_by_the_rules_is_unclear(vendor: str, text: str) -> None:
    assert sql.analyse_read(text, vendor).unclear


NAMES = st.from_regex(r"v[a-z0-9_]{2,6}", fullmatch=True)


@st.composite
def selects(draw: st.DrawFn, depth: int = 2) -> tuple[str, frozenset[str]]:
    """A SELECT and the tables behind its FROM and JOIN."""
    names: set[str] = set()

    def table() -> str:
        if depth and draw(st.booleans()):
            text, inner = draw(selects(depth=depth - 1))
            names.update(inner)
            return f"({text}) AS s"
        name = draw(NAMES)
        names.add(name)
        quoted = draw(st.sampled_from([name, f'"{name}"', f"public.{name}", name.upper()]))
        return quoted + draw(st.sampled_from(["", " AS x", " y"]))

    text = "SELECT " + draw(st.sampled_from(["*", "a, b", "COUNT(*)", "EXTRACT(year FROM c)"]))
    text += " FROM " + table()
    for _ in range(draw(st.integers(0, 3))):
        joint = draw(st.sampled_from([", {}", " JOIN {} ON (1 = 1)", " CROSS JOIN {}"]))
        text += joint.format(table())
    if depth and draw(st.booleans()):
        inner_text, inner = draw(selects(depth=depth - 1))
        names |= inner
        condition = draw(
            st.sampled_from(
                [
                    "EXISTS ({})",
                    "a IN ({})",
                    "COALESCE(({}), 0) > 1",
                    "a IN ((SELECT 1) UNION {})",
                    "a IS DISTINCT FROM ({})",
                    "CASE WHEN EXISTS({}) THEN 'FROM it''s' END = 1",
                ]
            )
        )
        text += " WHERE " + condition.format(inner_text)
    return text + draw(st.sampled_from(["", " ORDER BY a, b", " GROUP BY a, b"])), frozenset(names)


@given(selects(), st.sampled_from(["sqlite", "postgresql", "mysql"]))
@quickly(100)
def test_every_table_behind_from_and_join_is_found(
    generated: tuple[str, frozenset[str]], vendor: str
) -> None:
    text, names = generated
    read = sql.analyse_read(text, vendor)
    assert read.references == names
    assert not read.unclear


@pytest.mark.parametrize(
    ("vendor", "text", "expected"),
    [
        ("sqlite", "SELECT upper(a), COUNT (*) FROM b", "upper count"),
        ("sqlite", 'SELECT "My_Function"(1)', "my_function"),
        ("sqlite", "SELECT a IN (1), b AND (c), NOT (d), EXISTS (SELECT 1)", ""),
        ("sqlite", "SELECT SUM(a) FILTER (WHERE b), RANK() OVER (ORDER BY c)", "sum rank"),
        ("postgresql", "SELECT filter(a), over(b), materialized(c)", "filter over materialized"),
        ("sqlite", "SELECT CURRENT_TIMESTAMP, a.current_date", "current_timestamp"),
        ("postgresql", "SELECT s.f(a), pg_catalog.lower(b)", "s.f lower"),
        ("postgresql", "SELECT ARRAY[now(), f(1)]", "now f"),
        ("postgresql", "SELECT a[f(1)]", "f"),
        ("postgresql", "SELECT CAST(a AS NUMERIC(5, 2)), b::varchar(5), c::geometry(P)", "cast"),
        ("postgresql", "SELECT number(3), text(4), zone(5)", "number text zone"),
        ("postgresql", "SELECT a AT TIME ZONE (b)", ""),
        ("postgresql", "SELECT * FROM f(1) AS t(a, b)", "f"),
        ("postgresql", "WITH now(a) AS (SELECT 1) SELECT now() FROM now", "now"),
        ("postgresql", "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY a)", "percentile_cont"),
        ("postgresql", "SELECT a FROM b GROUP BY ROLLUP (a), CUBE (b)", "cube"),
        ("postgresql", "SELECT a FROM b FOR NO KEY UPDATE", "for update"),
        ("postgresql", "SELECT a FROM b FOR KEY SHARE", "for update"),
        ("mysql", "SELECT a FROM b LOCK IN SHARE MODE", "for update"),
        ("mysql", "SELECT @a, @@b.c := 1", "@a @@b.c"),
        ("mysql", "SELECT CAST(a AS datetime(6)), VALUES(b), a XOR (b)", "cast xor"),
        ("mysql", "SELECT DEFAULT(a)", "default"),
        ("mysql", "SELECT NEXT VALUE FOR s", "nextval"),
        ("oracle", "SELECT s.NEXTVAL FROM a", "nextval"),
        ("sqlite", "SELECT 'now()' /* f(1) */ -- g(1)", ""),
    ],
)
def test_functions_of_a_select(vendor: str, text: str, expected: str) -> None:
    functions = set(sql.analyse_read(text, vendor).functions)
    assert functions == ({expected} if expected == "for update" else set(expected.split()))


def test_literals_are_the_strings_of_the_text() -> None:
    read = sql.analyse_read("SELECT 'NOW', E'today', $$x$$, \"y\", '' FROM a", "postgresql")
    assert read.literals == {"'now'", "e'today'", "$$x$$", "''"}


# --- statements ----------------------------------------------------------------------------


def kinds(text: str, vendor: str) -> list[Kind]:
    return [statement.kind for statement in sql.classify(text, vendor)]


def written(text: str, vendor: str) -> set[str]:
    """What surely changes: the targets, if anything is written."""
    found: set[str] = set()
    for statement in sql.classify(text, vendor):
        assert statement.kind & Kind.WRITE
        found |= statement.targets
    return found


@pytest.mark.parametrize(
    ("vendor", "text", "targets"),
    [
        ("", "INSERT INTO a (b) VALUES (1)", "a"),
        ("", 'insert into "s"."A" ("b", "c") values (%s, %s)', "a"),
        ("", "INSERT INTO a DEFAULT VALUES", "a"),
        ("", "INSERT INTO a SELECT * FROM b", "a b"),
        ("", "INSERT INTO a (b, c) SELECT b, c FROM d", "a d"),
        ("", "INSERT INTO a (b, c) (SELECT b, c FROM d)", "a d"),
        ("", "UPDATE a SET b = 1 WHERE c = 2", "a"),
        ("", "UPDATE ONLY a SET b = 1", "a"),
        ("", "UPDATE a AS x SET b = 1 FROM c", "a c"),
        ("", "DELETE FROM a", "a"),
        ("", "DELETE FROM a WHERE b", "a"),
        ("", "DELETE FROM ONLY a USING b", "a"),
        ("", "/* x */ -- y\n UPDATE a SET b = 1", "a"),
        ("", "UPDATE\n\ta\nSET b = ';'", "a"),
        ("", "MERGE INTO a USING b ON c WHEN MATCHED THEN UPDATE SET d = 1", "a"),
        ("", "TRUNCATE a", "a"),
        ("", "TRUNCATE TABLE ONLY a *, s.b RESTART IDENTITY", "a b"),
        ("", "COPY a (b) FROM STDIN", "a stdin"),
        ("", "WITH x AS (SELECT 1) INSERT INTO a SELECT * FROM x", "a x"),
        ("", "WITH x AS (DELETE FROM a RETURNING *) SELECT * FROM x", "a x"),
        ("", "SELECT b INTO a FROM c", "a c"),
        ("", "SELECT b INTO TEMP a FROM c", "temp a c"),
        ("", "SELECT b INTO LOCAL TEMPORARY TABLE a FROM c", "local temporary a c"),
        ("", "SELECT b INTO UNLOGGED s.a FROM c", "unlogged a c"),
        ("", "INSERT INTO temp SELECT b FROM c", "temp c"),
        ("", "INSERT INTO a (b, c) SELECT * FROM UNNEST((%s)::int[], (%s)::text[])", "a"),
        ("", "INSERT INTO a (b) SELECT * FROM unnest", "a unnest"),
        ("", "EXPLAIN ANALYZE UPDATE a SET b = 1", "a"),
        ("", "DROP TABLE IF EXISTS a, b", "a b"),
        ("", "ALTER TABLE a RENAME TO b", "a"),
        ("", "CREATE TABLE a AS SELECT * FROM b", "a b"),
        ("", "CREATE OR REPLACE VIEW a AS SELECT * FROM b", "a b"),
        ("", "REFRESH MATERIALIZED VIEW a", "a"),
        ("postgresql", "INSERT INTO a (b) VALUES (1) ON CONFLICT (b) DO UPDATE SET b = 2", "a"),
        ("postgresql", "INSERT INTO a (b) OVERRIDING SYSTEM VALUE VALUES (1) RETURNING b", "a"),
        ("postgresql", 'UPDATE "a" SET b = $$;$$', "a"),
        ("mysql", "REPLACE INTO a VALUES (1)", "a"),
        ("mysql", "REPLACE a SET b = 1", ""),
        ("mysql", "INSERT IGNORE INTO `a` (`b`) VALUES (1) ON DUPLICATE KEY UPDATE b = 2", "a"),
        ("mysql", "UPDATE a, b SET a.c = b.c", "a b"),
        ("mysql", "UPDATE a JOIN b ON 1 SET a.c = 1", "a b"),
        ("mysql", "DELETE a, b FROM a JOIN b", "a b"),
        ("mysql", "DELETE FROM a, b USING a JOIN b", "a b"),
        ("mysql", "LOAD DATA INFILE 'x' INTO TABLE a", "a"),
        ("mysql", "SET STATEMENT max_statement_time=1 FOR UPDATE a SET b = 1", "a"),
        ("mysql", "ANALYZE FORMAT=JSON UPDATE a SET b = 1", "a"),
        ("mysql", "/*!50001 UPDATE a SET b = 1 */", "a"),
        ("mysql", "RENAME TABLE a TO b", "a"),
        ("sqlite", "INSERT OR IGNORE INTO [a] VALUES (1)", "a"),
        ("sqlite", "REPLACE INTO main.a VALUES (1)", "a"),
    ],
)
def test_targets_of_a_write(vendor: str, text: str, targets: str) -> None:
    assert written(text, vendor) == set(targets.split())


@pytest.mark.parametrize(
    "text",
    [
        "UPDATE LOW_PRIORITY a SET b = 1",
        "REPLACE a SET b = 1",
        "DELETE a.* FROM a",
        "INSERT a VALUES (1)",
        "INSERT INTO 'a' VALUES (1)",
        "UPDATE OR ROLLBACK a SET b = 1",
        "HANDLER a OPEN",
        "OPTIMIZE TABLE a",
        "FROBNICATE a",
    ],
)
def test_all_words_of_a_write_are_mentioned(text: str) -> None:
    """Where the target is not behind one of the usual words, what is known is looked for."""
    for vendor in VENDORS:
        (statement,) = sql.classify(text, vendor)
        assert statement.kind & Kind.WRITE
        assert "a" in statement.mentions


@pytest.mark.parametrize(
    ("text", "deletes"),
    [
        ("INSERT INTO a VALUES (1)", False),
        ("UPDATE a SET b = 1", False),
        ("DELETE FROM a", True),
        ("REPLACE INTO a VALUES (1)", True),
        ("INSERT OR REPLACE INTO a VALUES (1)", True),
        ("WITH x AS (SELECT 1) UPDATE a SET b = 1", True),
    ],
)
def test_rows_may_vanish_unless_it_is_clear_that_they_do_not(text: str, deletes: bool) -> None:
    (statement,) = sql.classify(text, "sqlite")
    assert statement.deletes is deletes


READ, WRITE, UNNAMED = Kind.READ, Kind.WRITE, Kind.UNNAMED_WRITE
IMPLICIT = Kind.IMPLICIT_COMMIT


@pytest.mark.parametrize(
    ("vendor", "text", "kind"),
    [
        ("", "SELECT 1", READ),
        ("", "(SELECT 1) UNION (SELECT 2)", READ),
        ("", "SELECT replace(a, b), insert(c) FROM d", READ),
        ("", "SELECT a.update, \"delete\", 'insert into' FROM b", READ),
        ("", "VALUES (1)", READ),
        ("", "TABLE a", READ),
        ("", "WITH x AS (SELECT 1) SELECT * FROM x", READ),
        ("", "EXPLAIN SELECT 1", READ),
        ("", "SHOW CREATE TABLE a", READ),
        ("", "DECLARE c CURSOR FOR SELECT 1", READ),
        ("", "FETCH 3 FROM c", READ),
        ("", "VACUUM", READ),
        ("", "PREPARE x AS DELETE FROM transaction", READ),
        ("mysql", "ANALYZE TABLE a", IMPLICIT),
        ("", "GRANT ALL ON a TO b", IMPLICIT),
        # Locks.
        ("", "SELECT a FROM b FOR UPDATE", Kind.LOCK),
        ("", "SELECT a FROM b FOR /* no */ UPDATE OF b SKIP LOCKED", Kind.LOCK),
        ("", "SELECT a FROM b FOR NO KEY UPDATE", Kind.LOCK),
        ("", "SELECT a FROM b FOR KEY SHARE", Kind.LOCK),
        ("mysql", "SELECT a FROM b LOCK IN SHARE MODE", Kind.LOCK),
        ("", "SELECT pg_advisory_xact_lock (1)", Kind.LOCK),
        ("", "SELECT pg_try_advisory_lock_shared(1)", Kind.LOCK),
        ("mysql", "SELECT GET_LOCK('a', 1)", Kind.LOCK),
        ("", "SELECT 'FOR UPDATE' FROM a -- for update", READ),
        ("", "SELECT a FROM b FOR UPDATE; DELETE FROM c", Kind.LOCK | WRITE),
        ("", "LOCK TABLE a IN EXCLUSIVE MODE", Kind.LOCK | IMPLICIT),
        ("mysql", "UNLOCK TABLES", Kind.LOCK | IMPLICIT),
        # What may write anything.
        ("", "CALL p(1)", UNNAMED),
        ("", "DO $$ BEGIN DELETE FROM a; END $$", UNNAMED),
        ("", "EXECUTE x", UNNAMED),
        ("", "EXPLAIN ANALYZE EXECUTE x", UNNAMED),
        ("postgresql", "EXPLAIN (ANALYZE) EXECUTE x (1)", UNNAMED),
        # Names that are spelt in another way.
        ("postgresql", 'UPDATE U&"caf\\00e9" SET a = 1', WRITE | UNNAMED),
        ("postgresql", 'WITH x AS (DELETE FROM u&"caf\\00e9") SELECT 1', UNNAMED),
        ("sqlite", "DELETE FROM a WHERE b = 'u&\"'", WRITE),
        ("", "EXEC p", UNNAMED),
        ("", "COMMIT PREPARED 'a'", UNNAMED),
        ("mysql", "XA COMMIT 'a'", UNNAMED | Kind.COMMIT),
        ("mysql", "BEGIN NOT ATOMIC DELETE FROM a", UNNAMED | IMPLICIT),
        ("oracle", "BEGIN p(1)", UNNAMED | IMPLICIT),
        ("", "TRUNCATE a CASCADE", WRITE | IMPLICIT | UNNAMED),
        ("", "DROP TABLE a CASCADE", WRITE | IMPLICIT | UNNAMED),
        ("", "SELECT clone_schema('a', 'b')", UNNAMED),
        ("", "ALTER SCHEMA a RENAME TO b", WRITE | IMPLICIT | UNNAMED),
        ("", "ALTER TABLE a SET SCHEMA b", WRITE | IMPLICIT | UNNAMED),
        ("", "DROP SCHEMA a", WRITE | IMPLICIT | UNNAMED),
        ("", "DROP OWNED BY a", WRITE | IMPLICIT | UNNAMED),
        ("", "CREATE VIEW a AS SELECT 1", WRITE | IMPLICIT | UNNAMED),
        ("", "DROP MATERIALIZED VIEW a", WRITE | IMPLICIT | UNNAMED),
        ("", "REFRESH MATERIALIZED VIEW a", WRITE | IMPLICIT),
        ("", "CREATE POLICY a ON b USING (true)", WRITE | IMPLICIT | UNNAMED),
        ("", "ALTER TABLE a ENABLE ROW LEVEL SECURITY", WRITE | IMPLICIT | UNNAMED),
        ("", "CREATE TABLE a PARTITION OF b DEFAULT", WRITE | IMPLICIT | UNNAMED),
        ("", "ALTER TABLE a NO INHERIT b", WRITE | IMPLICIT | UNNAMED),
        ("", "CREATE FOREIGN TABLE a (key int) SERVER b", WRITE | IMPLICIT | UNNAMED),
        ("", "ALTER TABLE a RENAME TO b", WRITE | IMPLICIT | UNNAMED),
        ("mysql", "RENAME TABLE a TO b", WRITE | IMPLICIT | UNNAMED),
        ("mysql", "ALTER TABLE a ENGINE = CONNECT", WRITE | IMPLICIT | UNNAMED),
        ("sqlite", "CREATE VIRTUAL TABLE a USING fts5 (b)", WRITE | IMPLICIT | UNNAMED),
        ("", "CREATE OR REPLACE FUNCTION a() RETURNS int", WRITE | IMPLICIT | UNNAMED),
        ("", "ALTER TABLE a ADD FOREIGN KEY (b) REFERENCES c", WRITE | IMPLICIT),
        ("", "CREATE TEMP TABLE a (b int)", WRITE | IMPLICIT | Kind.TEMPORARY),
        ("", "CREATE LOCAL TEMPORARY TABLE a (b int)", WRITE | IMPLICIT | Kind.TEMPORARY),
        ("", "SELECT b INTO TEMP a FROM c", WRITE | Kind.TEMPORARY),
        # DDL.
        ("", "CREATE INDEX a ON b (c)", WRITE | IMPLICIT),
        ("", "ALTER TABLE a ADD b int", WRITE | IMPLICIT),
        ("mysql", "TRUNCATE a", WRITE | IMPLICIT),
        ("mysql", "OPTIMIZE TABLE a", WRITE | IMPLICIT),
        ("", "CREATE TABLE type (function int)", WRITE | IMPLICIT),
        ("", "CREATE UNIQUE INDEX policy ON a (type)", WRITE | IMPLICIT),
        ("", "CREATE TRIGGER a BEFORE INSERT ON b EXECUTE FUNCTION c()", WRITE | IMPLICIT),
        ("", "CREATE EXTENSION IF NOT EXISTS a", WRITE | IMPLICIT),
        ("", "CREATE TYPE a AS ENUM ('b')", WRITE | IMPLICIT),
        ("", "DROP DATABASE a", WRITE | IMPLICIT),
        ("", "CREATE OR REPLACE FUNCTION a() RETURNS int", WRITE | IMPLICIT | UNNAMED),
        ("mysql", "CREATE DEFINER=`a`@`b` FUNCTION c()", WRITE | IMPLICIT | UNNAMED),
        ("", "DROP FUNCTION a", WRITE | IMPLICIT | UNNAMED),
        ("", "CREATE AGGREGATE a (int) (sfunc = b)", WRITE | IMPLICIT | UNNAMED),
        ("", "CREATE OPERATOR === (function = a)", WRITE | IMPLICIT | UNNAMED),
        ("", "CREATE CAST (a AS b) WITHOUT FUNCTION", WRITE | IMPLICIT | UNNAMED),
        ("", "CREATE POLICY a ON b USING (true)", WRITE | IMPLICIT | UNNAMED),
        ("", "CREATE RULE a AS ON SELECT TO b DO INSTEAD c", WRITE | IMPLICIT | UNNAMED),
        ("", "ALTER TYPE a RENAME VALUE 'b' TO 'c'", WRITE | IMPLICIT | UNNAMED),
        ("", "ALTER EXTENSION a UPDATE", WRITE | IMPLICIT | UNNAMED),
        ("", "ALTER SCHEMA a RENAME TO b", WRITE | IMPLICIT | UNNAMED),
        ("", "REVOKE SELECT ON a FROM b", WRITE | IMPLICIT | UNNAMED),
        # Transactions.
        ("postgresql", "BEGIN", Kind.BEGIN),
        ("sqlite", "begin immediate", Kind.BEGIN),
        ("mysql", "START TRANSACTION", Kind.BEGIN | IMPLICIT),
        ("postgresql", "BEGIN ISOLATION LEVEL READ COMMITTED, READ ONLY", Kind.BEGIN),
        ("postgresql", "BEGIN ISOLATION LEVEL SERIALIZABLE", Kind.BEGIN | Kind.SNAPSHOT),
        (
            "mysql",
            "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY",
            Kind.BEGIN | Kind.ISOLATION | IMPLICIT,
        ),
        ("mysql", "START SLAVE", WRITE | IMPLICIT),
        ("", "COMMIT", Kind.COMMIT),
        ("", "END", Kind.COMMIT),
        ("", "COMMIT AND CHAIN", Kind.COMMIT | Kind.BEGIN),
        ("", "COMMIT AND NO CHAIN", Kind.COMMIT),
        ("", "ROLLBACK", Kind.ROLLBACK),
        ("", "ABORT", Kind.ROLLBACK),
        ("", "ROLLBACK AND CHAIN", Kind.ROLLBACK | Kind.BEGIN),
        ("", "ROLLBACK TO SAVEPOINT a", Kind.PARTIAL_ROLLBACK),
        ("", 'ROLLBACK WORK TO "prepared"', Kind.PARTIAL_ROLLBACK),
        ("", "ROLLBACK PREPARED 'a'", READ),
        ("", "PREPARE TRANSACTION 'a'", Kind.COMMIT),
        ("", "SAVEPOINT a", READ),
        ("", "RELEASE SAVEPOINT a", READ),
        ("sqlite", "SAVEPOINT a", Kind.BEGIN),
        ("sqlite", "RELEASE a", Kind.RELEASE),
        ("mysql", "XA START 'commit'", Kind.BEGIN),
        ("mysql", "XA END 'a'", READ),
        ("mysql", "XA ROLLBACK 'a'", Kind.ROLLBACK),
        # Sessions.
        ("", "USE other", Kind.SESSION),
        ("sqlite", "ATTACH 'x' AS y", Kind.SESSION),
        ("postgresql", "DISCARD ALL", Kind.SESSION),
        ("postgresql", "SELECT set_config('a', 'b', false)", Kind.SESSION),
        ("postgresql", "SELECT set_config('a', %s, True)", Kind.LOCAL),
        ("postgresql", "SELECT set_config('a', coalesce('b', 'c'), true) FROM d", Kind.LOCAL),
        ("postgresql", "SELECT set_config('a', 'b', %s)", Kind.SESSION),
        ("postgresql", "SELECT set_config('a', 'b', not true)", Kind.SESSION),
        ("postgresql", "SELECT set_config('a', 'b', true", Kind.SESSION),
        (
            "postgresql",
            "SELECT set_config('a', 'b', true), set_config('a', 'b', false)",
            Kind.LOCAL | Kind.SESSION,
        ),
        ("postgresql", "INSERT INTO a VALUES (set_config('a', 'b', false))", WRITE | Kind.SESSION),
        ("postgresql", "INSERT INTO a SELECT SET_CONFIG('a', 'b', false)", WRITE | Kind.SESSION),
        ("postgresql", "UPDATE a SET b = \"set_config\"('a', 'b', %s)", WRITE | Kind.SESSION),
        (
            "postgresql",
            "UPDATE pg_settings SET setting = 'a' WHERE name = %s",
            WRITE | Kind.SESSION,
        ),
        (
            "postgresql",
            "EXPLAIN ANALYZE UPDATE pg_settings SET setting = 'a'",
            WRITE | Kind.SESSION,
        ),
        (
            "postgresql",
            "CREATE TABLE a AS SELECT set_config('a', 'b', false)",
            WRITE | IMPLICIT | Kind.SESSION,
        ),
        ("postgresql", "PREPARE a AS SELECT set_config('a', 'b', false)", Kind.SESSION),
        ("postgresql", "CALL a(set_config('a', 'b', false))", UNNAMED | Kind.SESSION),
        (
            "postgresql",
            "CREATE FUNCTION a() RETURNS text AS $$ SELECT set_config('a', 'b', false) $$",
            WRITE | IMPLICIT | UNNAMED,
        ),
        ("mysql", "UPDATE a SET b = 'set_config'", WRITE),
        (
            "postgresql",
            "DO $$ BEGIN PERFORM set_config('a', 'b', false); END $$",
            UNNAMED | Kind.SESSION,
        ),
        ("postgresql", "DO $$ BEGIN SET ROLE a; END $$", UNNAMED | Kind.SESSION),
        ("postgresql", "DO $$ BEGIN EXECUTE 'RESET ALL'; END $$", UNNAMED | Kind.SESSION),
        ("postgresql", "DO $$ BEGIN CREATE TEMP TABLE a (b int); END $$", UNNAMED | Kind.SESSION),
        ("postgresql", "DO $$ BEGIN UPDATE ONLY a.b SET c = 1; END $$", UNNAMED),
        (
            "postgresql",
            "DO $$ BEGIN UPDATE a SET b = 1; SET ROLE c; END $$",
            UNNAMED | Kind.SESSION,
        ),
        (
            "postgresql",
            "DO $$ BEGIN FOR a IN SELECT 1 FROM b FOR UPDATE LOOP SET ROLE c; END LOOP; END $$",
            UNNAMED | Kind.SESSION,
        ),
        ("sqlite", "PRAGMA foreign_keys = ON", READ),
        ("sqlite", "PRAGMA main.table_info('a')", READ),
        ("sqlite", "PRAGMA case_sensitive_like", READ),
        ("sqlite", "PRAGMA case_sensitive_like = ON", Kind.SESSION),
        ("sqlite", "PRAGMA read_uncommitted(1)", Kind.SESSION),
        ("postgresql", "SET statement_timeout = 3", READ),
        ("postgresql", "SET LOCAL lock_timeout TO '1s'", READ),
        ("postgresql", "RESET statement_timeout", READ),
        ("postgresql", "RESET ALL", Kind.SESSION),
        ("postgresql", "SET TIME ZONE 'UTC'", Kind.SESSION),
        ("postgresql", "SET timezone = 'UTC'", Kind.SESSION),
        ("postgresql", "SET ROLE a", Kind.SESSION),
        ("postgresql", "SET LOCAL ROLE a", Kind.LOCAL),
        ("postgresql", "SET LOCAL app.tenant = 3", Kind.LOCAL),
        ("postgresql", "SET LOCAL transaction_isolation = 'serializable'", Kind.LOCAL),
        ("mysql", "SET LOCAL sql_mode = ''", Kind.SESSION),
        ("postgresql", "SET SESSION AUTHORIZATION a", Kind.SESSION),
        ("postgresql", "SET app.tenant = 3", Kind.SESSION),
        ("postgresql", "SET work_mem.x = 3", Kind.SESSION),
        ("postgresql", "SET CONSTRAINTS ALL DEFERRED", READ),
        ("postgresql", "SET TRANSACTION READ ONLY", READ),
        ("postgresql", "SET TRANSACTION ISOLATION LEVEL READ COMMITTED", READ),
        ("postgresql", "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", Kind.SNAPSHOT),
        ("postgresql", "SET TRANSACTION SNAPSHOT '1-1'", Kind.SNAPSHOT),
        (
            "postgresql",
            "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
            Kind.ISOLATION,
        ),
        ("postgresql", "SET default_transaction_isolation = 'serializable'", Kind.ISOLATION),
        ("postgresql", "SET search_path TO a, b", Kind.SEARCH_PATH),
        ("postgresql", 'SET SESSION "search_path" = a', Kind.SEARCH_PATH),
        ("postgresql", "SET LOCAL search_path = a", Kind.SEARCH_PATH | Kind.LOCAL),
        ("postgresql", "SET search_path TO local", Kind.SEARCH_PATH),
        ("postgresql", "RESET search_path", Kind.SEARCH_PATH),
        ("mysql", "SET foreign_key_checks = 0", READ),
        ("mysql", "SET foreign_key_checks = 0, sql_mode = ''", Kind.SESSION),
        ("mysql", "SET SESSION wait_timeout = 1, @@session.unique_checks = 0", READ),
        ("mysql", "SET @a := 1", READ),
        ("mysql", "SET @@sql_mode = ''", Kind.SESSION),
        ("mysql", "SET NAMES latin1", Kind.SESSION),
        ("mysql", "SET autocommit = 0", Kind.BEGIN),
        ("mysql", "SET @@session.autocommit = OFF", Kind.BEGIN),
        ("mysql", "SET unique_checks = 0, autocommit = 1", Kind.COMMIT),
        ("mysql", "SET transaction_isolation = 'READ-COMMITTED'", READ),
        ("mysql", "SET SESSION TRANSACTION ISOLATION LEVEL READ UNCOMMITTED", Kind.SESSION),
        ("mysql", "SET tx_isolation = 'REPEATABLE-READ'", Kind.ISOLATION),
    ],
)
def test_kind_of_a_statement(vendor: str, text: str, kind: Kind) -> None:
    for ending in ("", ";", " ;; \n", " -- end"):
        found = kinds(text + ending, vendor)
        together = Kind.READ
        for one in found:
            together |= one
        assert together == kind


def test_search_path_is_told_in_one_form() -> None:
    (statement,) = sql.classify("SET  search_path\n TO a", "postgresql")
    assert statement.detail == "SET search_path TO a"


@pytest.mark.parametrize(
    ("vendor", "text", "expected"),
    [
        ("", "", []),
        ("", " ; -- nothing\n;", []),
        ("", "SELECT ';'; DELETE FROM a", [READ, WRITE]),
        ("", "BEGIN; UPDATE a SET b = 1; COMMIT", [Kind.BEGIN, WRITE, Kind.COMMIT]),
        ("", "SELECT begin FROM a; COMMIT", [READ, Kind.COMMIT]),
        ("", "SELECT CASE WHEN a THEN b END FROM c; COMMIT", [READ, Kind.COMMIT]),
        ("postgresql", "DO $$ ; $$; COMMIT", [UNNAMED, Kind.COMMIT]),
        ("postgresql", "/* /* ; ' */ ; */ SELECT 1; COMMIT", [READ, Kind.COMMIT]),
        ("mysql", r"SELECT '\'; DELETE FROM a'; COMMIT", [READ | WRITE, Kind.COMMIT]),
        ("postgresql", r"SELECT '\'; DELETE FROM a", [READ, WRITE]),
        ("", "INSERT INTO a VALUES (1); DELETE FROM b", [WRITE, WRITE]),
        (
            "sqlite",
            "CREATE TRIGGER t AFTER INSERT ON a BEGIN "
            "UPDATE b SET c = CASE WHEN 1 THEN 2 END; DELETE FROM d; END; COMMIT",
            [WRITE | IMPLICIT, Kind.COMMIT],
        ),
        (
            "mysql",
            "CREATE DEFINER=`x`@`y` PROCEDURE p() BEGIN IF 1 THEN DELETE FROM a; END IF; "
            "CASE b WHEN 1 THEN DELETE FROM c; END CASE; "
            "WHILE 1 DO DELETE FROM d; END WHILE; END; COMMIT",
            [WRITE | IMPLICIT, Kind.COMMIT],
        ),
        ("", "CREATE TABLE a (begin int); COMMIT", [WRITE | IMPLICIT, Kind.COMMIT]),
    ],
)
def test_text_of_several_statements(vendor: str, text: str, expected: list[Kind]) -> None:
    assert kinds(text, vendor) == expected


def test_body_of_a_trigger_is_mentioned() -> None:
    (statement,) = sql.classify(
        "CREATE TRIGGER t AFTER INSERT ON a BEGIN UPDATE b SET c = 1; DELETE FROM d; END",
        "sqlite",
    )
    assert {"a", "b", "d"} <= statement.mentions


@pytest.mark.parametrize("text", ["SELECT 'a; DELETE FROM b", "SELECT 1 /* DELETE FROM b"])
def test_where_a_string_ends_is_in_doubt_a_write_is_assumed(text: str) -> None:
    for vendor in VENDORS:
        (statement,) = sql.classify(text, vendor)
        assert statement.kind & Kind.WRITE
        assert "b" in statement.mentions


@pytest.mark.parametrize("columns", [1, 10, 1000])
def test_insert_of_a_query_is_understood_whatever_its_columns(columns: int) -> None:
    """Their names could once be taken apart in exponentially many ways."""
    names = ", ".join(f"a_column_with_a_long_name_{number}" for number in range(columns))
    text = f"INSERT INTO archive ({names}) SELECT {names} FROM shelf"
    began = time.process_time()
    (statement,) = sql.classify(text, "sqlite")
    assert time.process_time() - began < 1
    assert statement.targets == {"archive", "shelf"}


VERBS = (
    "INSERT INTO {} VALUES (1)",
    "INSERT INTO {} (a, b) SELECT a, b FROM x",
    "UPDATE {} SET a = 1",
    "UPDATE {} AS y SET a = 1",
    "DELETE FROM {}",
    "DELETE FROM {} WHERE a IN (SELECT b FROM x)",
    "TRUNCATE TABLE {}",
    "WITH y AS (SELECT 1) DELETE FROM {}",
    "MERGE INTO {} USING x ON 1 WHEN MATCHED THEN DELETE",
    "DROP TABLE IF EXISTS {}",
)
SPELLINGS = ("{}", '"{}"', "public.{}", 'public . "{}"')


def spelled(name: str, verbs: Iterable[str]) -> st.SearchStrategy[str]:
    return st.builds(
        lambda verb, spelling, space: space + verb.format(spelling.format(name)),
        st.sampled_from(list(verbs)),
        st.sampled_from(SPELLINGS),
        st.sampled_from(["", " ", "/* ; */", "-- '\n", "\n\t"]),
    )


@given(
    st.lists(NAMES.flatmap(lambda name: st.tuples(st.just(name), spelled(name, VERBS)))),
    st.sampled_from(["sqlite", "postgresql", "mysql"]),
)
@quickly(100)
def test_every_target_of_several_statements_is_found(
    statements: list[tuple[str, str]], vendor: str
) -> None:
    text = ";".join(statement for _, statement in statements)
    found = sql.classify(text, vendor)
    assert len(found) == len(statements)
    for statement, (name, _) in zip(found, statements, strict=True):
        assert statement.kind & Kind.WRITE
        assert name in statement.targets
