"""What BEGIN, COMMIT and their like do."""

import pytest

from ormcache.sql import Kind
from tests.sql_texts import kinds

READ, WRITE, UNNAMED = Kind.READ, Kind.WRITE, Kind.UNNAMED_WRITE
IMPLICIT = Kind.IMPLICIT_COMMIT
OPAQUE = UNNAMED | IMPLICIT | Kind.SESSION | Kind.IN_DOUBT


@pytest.mark.parametrize(
    ("vendor", "text", "kind"),
    [
        ("", "COMMIT PREPARED 'a'", UNNAMED),
        ("mysql", "XA COMMIT 'a'", UNNAMED | Kind.COMMIT),
        ("mysql", "BEGIN NOT ATOMIC DELETE FROM a", OPAQUE),
        ("mysql", "BEGIN NOT ATOMIC START TRANSACTION; END", OPAQUE),
        ("mysql", "IF 1 THEN START TRANSACTION; COMMIT; END IF", OPAQUE),
        ("mysql", "a: LOOP COMMIT; END LOOP", OPAQUE),
        ("mysql", "EXECUTE a", OPAQUE),
        ("mysql", "COMMIT; EXECUTE IMMEDIATE 'START TRANSACTION'", OPAQUE),
        ("mysql", "SET STATEMENT max_statement_time = 1 FOR EXECUTE IMMEDIATE 'COMMIT'", OPAQUE),
        ("mysql", "/*!50003 START TRANSACTION */", OPAQUE),
        ("mysql", "BEGIN WORK", Kind.BEGIN | IMPLICIT),
        ("oracle", "BEGIN p(1)", UNNAMED | IMPLICIT),
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
        ("", "PREPARE x AS DELETE FROM transaction", READ),
        ("", "SAVEPOINT a", READ),
        ("", "RELEASE SAVEPOINT a", READ),
        ("sqlite", "SAVEPOINT a", Kind.BEGIN),
        ("sqlite", "RELEASE a", Kind.RELEASE),
        ("mysql", "XA START 'commit'", Kind.BEGIN),
        ("mysql", "XA END 'a'", READ),
        ("mysql", "XA ROLLBACK 'a'", Kind.ROLLBACK),
    ],
)
def test_kind_of_transaction_control(vendor: str, text: str, kind: Kind) -> None:
    assert kinds(text, vendor) == {kind}
