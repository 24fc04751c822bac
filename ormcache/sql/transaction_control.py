"""What BEGIN, COMMIT, ROLLBACK, savepoints and two-phase commits do to the transaction."""

from __future__ import annotations

from ormcache.sql.kinds import Kind
from ormcache.sql.lexer import Token

# What may follow BEGIN if it begins a transaction and not a block of statements.
_BEGIN_WORDS = frozenset(
    """
    transaction work tran deferred immediate exclusive concurrent isolation level read only write
    not deferrable serializable repeatable committed uncommitted with consistent snapshot ,
    """.split()
)
_SNAPSHOT_WORDS = frozenset({"serializable", "repeatable", "uncommitted", "snapshot"})
_XA = {
    "start": Kind.BEGIN,
    "begin": Kind.BEGIN,
    "commit": Kind.UNNAMED_WRITE | Kind.COMMIT,
    "rollback": Kind.ROLLBACK,
}


def transaction_control(verb: str, stream: list[Token], vendor: str) -> Kind | None:
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
        return _XA.get(second, Kind.READ)
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
