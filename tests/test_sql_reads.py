"""What is read off a SELECT: tables, functions and literals."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ormcache import sql
from tests.sql_texts import NAMES, quickly


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


@pytest.mark.parametrize(
    ("vendor", "text", "columns"),
    [
        ("postgresql", "SELECT ctid::text FROM a", {"ctid"}),
        ("postgresql", "SELECT b FROM a WHERE XMIN::text = '1'", {"xmin"}),
        (
            "postgresql",
            'SELECT "a"."xmax", "cmin" FROM "a" ORDER BY a.cmax',
            {"xmax", "cmin", "cmax"},
        ),
        ("postgresql", 'SELECT MIN("b") AS "xmin" FROM "a" ORDER BY "xmin"', set()),
        ("postgresql", 'SELECT xmin(b) FROM "ctid"."a" WHERE b = \'ctid\'', set()),
        ("sqlite", "SELECT rowid, a.oid FROM a", {"rowid", "oid"}),
        ("sqlite", 'SELECT "a"."oid", "rowid" FROM a', set()),
        ("mysql", "SELECT ctid, rowid FROM a", set()),
    ],
)
def test_system_columns(vendor: str, text: str, columns: set[str]) -> None:
    assert sql.analyse_read(text, vendor).system_columns == columns
