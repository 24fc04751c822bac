"""The vocabulary of :func:`~ormcache.sql.classify`: what executing a statement does."""

from __future__ import annotations

import enum
from typing import NamedTuple


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
    AUTOCOMMIT = enum.auto()
    """Sets MySQL's autocommit, with COMMIT: it commits only where that was off."""
    IN_DOUBT = enum.auto()
    """May begin or end a transaction, or makes later statements do so, unknown to anybody."""
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
