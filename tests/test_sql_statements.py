"""What a text does: reads, locks, writes, and several statements in one."""

import pytest

from ormcache import sql
from ormcache.sql import Kind
from tests.sql_texts import VENDORS, kinds

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
        ("", "EXEC p", UNNAMED),
        ("", "EXECUTE x", UNNAMED),
        ("", "EXPLAIN ANALYZE EXECUTE x", UNNAMED),
        ("postgresql", "EXPLAIN (ANALYZE) EXECUTE x (1)", UNNAMED),
        ("", "SELECT clone_schema('a', 'b')", UNNAMED),
        ("", "TRUNCATE a CASCADE", WRITE | IMPLICIT | UNNAMED),
        ("", "DROP TABLE a CASCADE", WRITE | IMPLICIT | UNNAMED),
        # Names that are spelt in another way.
        ("postgresql", 'UPDATE U&"caf\\00e9" SET a = 1', WRITE | UNNAMED),
        ("postgresql", 'WITH x AS (DELETE FROM u&"caf\\00e9") SELECT 1', UNNAMED),
        ("sqlite", "DELETE FROM a WHERE b = 'u&\"'", WRITE),
        # Other writes.
        ("mysql", "ANALYZE UPDATE (a JOIN b ON a.c = b.c) SET a.d = 1", WRITE | IMPLICIT),
        ("mysql", "WITH x AS (SELECT 1) UPDATE (a JOIN x) SET a.b = 1", WRITE),
        ("mysql", "SELECT a FROM b FOR UPDATE", Kind.LOCK),
        ("mysql", "SELECT TRUNCATE(a, 1), a.`update`(b) FROM c", READ),
        ("mysql", "DESCRIBE ANALYZE UPDATE (a JOIN b) SET a.c = 1", WRITE),
        ("mysql", "DESC a", READ),
        ("mysql", "EXPLAIN ANALYZE UPDATE a SET b = 1", WRITE),
        (
            "postgresql",
            "EXPLAIN ANALYZE CREATE TEMP TABLE a AS SELECT 1",
            WRITE | IMPLICIT | Kind.TEMPORARY,
        ),
        ("postgresql", "EXPLAIN (ANALYZE) REFRESH MATERIALIZED VIEW a", WRITE | IMPLICIT),
        ("postgresql", "SELECT update(a) FROM b", READ),
        ("postgresql", "SELECT b INTO pg_temp.a FROM c", WRITE | Kind.TEMPORARY),
        ("", "SELECT b INTO TEMP a FROM c", WRITE | Kind.TEMPORARY),
        ("mysql", "TRUNCATE a", WRITE | IMPLICIT),
        ("mysql", "OPTIMIZE TABLE a", WRITE | IMPLICIT),
        # COPY goes either way.
        ("", "COPY a (b) FROM STDIN", WRITE),
        ("", "COPY a (b) TO STDOUT", READ),
        ("", "COPY (SELECT a FROM b) TO STDOUT", READ),
        ("", "COPY (DELETE FROM a RETURNING b) TO STDOUT", WRITE),
        ("", "COPY a", WRITE),
    ],
)
def test_kind_of_a_statement(vendor: str, text: str, kind: Kind) -> None:
    assert kinds(text, vendor) == {kind}


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
            [WRITE | UNNAMED | IMPLICIT, Kind.COMMIT],
        ),
        (
            "mysql",
            "CREATE DEFINER=`x`@`y` PROCEDURE p() BEGIN IF 1 THEN DELETE FROM a; END IF; "
            "CASE b WHEN 1 THEN DELETE FROM c; END CASE; "
            "WHILE 1 DO DELETE FROM d; END WHILE; END; COMMIT",
            [WRITE | UNNAMED | IMPLICIT, Kind.COMMIT],
        ),
        ("", "CREATE TABLE a (begin int); COMMIT", [WRITE | IMPLICIT, Kind.COMMIT]),
    ],
)
def test_text_of_several_statements(vendor: str, text: str, expected: list[Kind]) -> None:
    assert [statement.kind for statement in sql.classify(text, vendor)] == expected


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
