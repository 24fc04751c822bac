"""What SET, PRAGMA and their like change."""

import pytest

from ormcache import sql
from ormcache.sql import Kind
from tests.sql_texts import kinds

READ, WRITE, UNNAMED = Kind.READ, Kind.WRITE, Kind.UNNAMED_WRITE
IMPLICIT = Kind.IMPLICIT_COMMIT


@pytest.mark.parametrize(
    ("vendor", "text", "kind"),
    [
        ("", "USE other", Kind.SESSION),
        ("sqlite", "ATTACH 'x' AS y", Kind.SESSION),
        ("postgresql", "DISCARD ALL", Kind.SESSION),
        ("postgresql", "SELECT set_config('a', 'b', false)", Kind.SESSION),
        ("postgresql", "SELECT set_limit(0.9)", Kind.SESSION),
        ("postgresql", 'SELECT a.b, public."set_limit" (0.9) FROM a', Kind.SESSION),
        ("postgresql", "INSERT INTO a VALUES (set_limit(0.9))", WRITE | Kind.SESSION),
        ("postgresql", "INSERT INTO a VALUES (SET_LIMIT /* */ (0.9))", WRITE | Kind.SESSION),
        ("postgresql", "INSERT INTO a (offset_limit, set_limit) VALUES (1, 2)", WRITE),
        ("postgresql", "UPDATE a SET asset_limit = (1), set_limit = 2", WRITE),
        ("postgresql", "DO $$ BEGIN PERFORM set_limit(0.9); END $$", UNNAMED | Kind.SESSION),
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
def test_kind_of_what_alters_a_session(vendor: str, text: str, kind: Kind) -> None:
    assert kinds(text, vendor) == {kind}


def test_search_path_is_told_in_one_form() -> None:
    (statement,) = sql.classify("SET  search_path\n TO a", "postgresql")
    assert statement.detail == "SET search_path TO a"
