"""What DDL changes: the tables that it names, or what queries mean that do not mention it."""

import pytest

from ormcache.sql import Kind
from tests.sql_texts import kinds

DDL = Kind.WRITE | Kind.IMPLICIT_COMMIT
ANY = DDL | Kind.UNNAMED_WRITE


@pytest.mark.parametrize(
    ("vendor", "text", "kind"),
    [
        ("", "ALTER SCHEMA a RENAME TO b", ANY),
        ("", "ALTER TABLE a SET SCHEMA b", ANY),
        ("", "DROP SCHEMA a", ANY),
        ("", "DROP OWNED BY a", ANY),
        ("", "CREATE VIEW a AS SELECT 1", ANY),
        ("", "DROP MATERIALIZED VIEW a", ANY),
        ("", "REFRESH MATERIALIZED VIEW a", DDL),
        ("", "CREATE POLICY a ON b USING (true)", ANY),
        ("", "ALTER TABLE a ENABLE ROW LEVEL SECURITY", ANY),
        ("", "CREATE TABLE a PARTITION OF b DEFAULT", ANY),
        ("", "ALTER TABLE a NO INHERIT b", ANY),
        ("", "CREATE FOREIGN TABLE a (key int) SERVER b", ANY),
        ("", "ALTER TABLE a RENAME TO b", ANY),
        ("mysql", "RENAME TABLE a TO b", ANY),
        ("mysql", "ALTER TABLE a ENGINE = CONNECT", ANY),
        ("sqlite", "CREATE VIRTUAL TABLE a USING fts5 (b)", ANY),
        ("", "CREATE OR REPLACE FUNCTION a() RETURNS int", ANY),
        ("", "ALTER TABLE a ADD FOREIGN KEY (b) REFERENCES c", DDL),
        ("", "CREATE TEMP TABLE a (b int)", DDL | Kind.TEMPORARY),
        ("", "CREATE LOCAL TEMPORARY TABLE a (b int)", DDL | Kind.TEMPORARY),
        ("postgresql", 'CREATE TABLE "pg_temp"."a" (b int)', DDL | Kind.TEMPORARY),
        ("postgresql", "CREATE TABLE pg_temp_3.a (b int)", DDL | Kind.TEMPORARY),
        ("sqlite", 'CREATE TABLE "temp"."a" (b)', DDL | Kind.TEMPORARY),
        ("sqlite", "CREATE TABLE [Temp] . a (b)", DDL | Kind.TEMPORARY),
        ("sqlite", "CREATE TABLE 'temp'.a (b)", DDL | Kind.TEMPORARY | Kind.SESSION),
        ("sqlite", "CREATE TEMP TABLE a AS SELECT 'b'", DDL | Kind.TEMPORARY),
        (
            "postgresql",
            "CREATE TABLE U&\"pg!005ftemp\" UESCAPE '!'.a (b int)",
            ANY | Kind.TEMPORARY | Kind.SESSION,
        ),
        ("", 'CREATE TABLE "a" ("temp" int)', DDL),
        ("", "CREATE TEXT SEARCH CONFIGURATION a (COPY = b)", ANY),
        ("", "ALTER TEXT SEARCH DICTIONARY a (stopwords = b)", ANY),
        ("", "DROP TEXT SEARCH PARSER a", ANY),
        ("", "CREATE TABLE a (search text)", DDL),
        ("", "CREATE INDEX a ON b (c)", DDL),
        ("", "ALTER TABLE a ADD b int", DDL),
        ("", "CREATE TABLE type (function int)", DDL),
        ("", "CREATE UNIQUE INDEX policy ON a (type)", DDL),
        ("", "CREATE TRIGGER a BEFORE INSERT ON b EXECUTE FUNCTION c()", ANY),
        ("", "CREATE CONSTRAINT TRIGGER a AFTER INSERT ON b EXECUTE FUNCTION c()", ANY),
        ("", "ALTER TABLE a ENABLE TRIGGER b", ANY),
        ("", "DROP TRIGGER a ON b", ANY),
        ("mysql", "CREATE OR REPLACE PROCEDURE a() INSERT INTO b VALUES (1)", ANY),
        ("", "CREATE EXTENSION IF NOT EXISTS a", DDL),
        ("", "CREATE TYPE a AS ENUM ('b')", DDL),
        ("", "DROP DATABASE a", DDL),
        ("mysql", "CREATE DEFINER=`a`@`b` FUNCTION c()", ANY),
        ("", "DROP FUNCTION a", ANY),
        ("", "CREATE AGGREGATE a (int) (sfunc = b)", ANY),
        ("", "CREATE OPERATOR === (function = a)", ANY),
        ("", "CREATE CAST (a AS b) WITHOUT FUNCTION", ANY),
        ("", "CREATE RULE a AS ON SELECT TO b DO INSTEAD c", ANY),
        ("", "ALTER TYPE a RENAME VALUE 'b' TO 'c'", ANY),
        ("", "ALTER EXTENSION a UPDATE", ANY),
        ("", "REVOKE SELECT ON a FROM b", ANY),
    ],
)
def test_kind_of_ddl(vendor: str, text: str, kind: Kind) -> None:
    assert kinds(text, vendor) == {kind}
