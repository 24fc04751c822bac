"""The tables that a write names as its targets, and whether their rows may vanish."""

import time
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ormcache import sql
from ormcache.sql import Kind
from tests.sql_texts import NAMES, VENDORS, quickly


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


BODIES = (
    "{}",
    "BEGIN {}; RETURN NULL; END",
    "IF TG_OP = 'DELETE' THEN {}; END IF",
    "-- update it; or not\n{}",
    "EXECUTE '{}'",
    "SELECT a INTO b FROM c; {} /* ; */",
    "CREATE TRIGGER t AFTER UPDATE OF a ON b BEGIN {}; END",
)


@given(
    st.lists(NAMES.flatmap(lambda name: st.tuples(st.just(name), spelled(name, VERBS[:-1])))),
    st.sampled_from(BODIES),
)
@quickly(200)
def test_every_table_that_the_body_of_a_trigger_writes_is_found(
    statements: list[tuple[str, str]], body: str
) -> None:
    text = "\n".join(body.format(statement) for _, statement in statements)
    assert {name for name, _ in statements} <= sql.written_in(text)


@pytest.mark.parametrize(
    "body, written",
    [
        ("INSERT /* a; b */ INTO c VALUES (1)", "c"),
        ("insert ignore into `a;b` set c = 1", "a;b"),
        ("REPLACE INTO a VALUES (1)", "a"),
        ("UPDATE OR IGNORE a SET b = (SELECT c FROM d)", "a"),
        ("UPDATE a JOIN b ON a.c = b.c SET b.d = 1", "a b"),
        ("DELETE a, b FROM a JOIN b ON a.c = b.c", "a b"),
        ("COPY a FROM '/tmp/b'", "a"),
        ("INSERT INTO a ON", "a"),
        ("SELECT replace(a, 'b', 'c') FROM d", ""),
        ("UPDATE a JOIN b ON a.c = b.c JOIN d ON d.c = b.c SET d.e = 1", "a b d"),
        ("UPDATE a JOIN (b) USING (c), d SET d.e = 1", "a b d"),
        ("DELETE t FROM a JOIN b ON a.c = b.c JOIN d AS t ON d.c = b.c", "d"),
        ("DELETE FROM t USING a JOIN b ON a.c = b.c JOIN `d` t ON 1", "d"),
        ("-- update 5\" disks\nINSERT INTO a (b) VALUES ('\"')", "a"),
        ("EXECUTE 'DELETE' || ' FROM a'", "a"),
        ("IF TG_OP = 'UPDATE' AND OLD.a <> NEW.a THEN RETURN NEW", ""),
        ("IF TG_OP IN ('INSERT', 'UPDATE') THEN NEW.a := 1", ""),
        ("tsvector_update_trigger", ""),
        ("NEW.updated := now(); RETURN NEW;", ""),
    ],
)
def test_what_a_body_writes(body: str, written: str) -> None:
    assert set(written.split()) <= sql.written_in(body)
    if not written:
        assert sql.written_in(body) == frozenset()


@pytest.mark.parametrize("text", ["INSERT ", 'INSERT "', "UPDATE a", "/*", "-- DELETE", "`"])
def test_long_bodies_take_time_in_proportion_to_their_length(text: str) -> None:
    begun = time.process_time()
    sql.written_in(text * 20_000)
    assert time.process_time() - begun < 5


@pytest.mark.parametrize(
    "body", ["CALL a(1)", "b[a(1)]", "'\"'; SELECT a(1); '\"'", '-- 5"\nSELECT a(1)\n-- 5"']
)
def test_every_routine_that_a_body_calls_is_among_its_names(body: str) -> None:
    assert "a" in sql.names_in(body)
