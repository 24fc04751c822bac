"""How far a primary has written and how far a replica has got, as the servers themselves tell.

PostgreSQL counts the bytes of its write-ahead log; a transaction that is visible on the primary
has its commit record below ``pg_current_wal_insert_lsn()``, and a standby has applied it when
``pg_last_wal_replay_lsn()`` has come that far. MariaDB numbers transactions in each replication
domain: ``gtid_binlog_pos`` on the primary, ``gtid_slave_pos`` on the replica.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ormcache.exceptions import OrmcacheError
from ormcache.questions import ask

_POSTGRESQL_WRITTEN = """
    SELECT pg_current_wal_insert_lsn() - '0/0',
        current_setting('wal_block_size')::int,
        pg_size_bytes(current_setting('wal_segment_size'))
"""
# A standby that was promoted goes on showing where its replay ended.
_POSTGRESQL_REPLAYED = "SELECT pg_last_wal_replay_lsn() - '0/0' WHERE pg_is_in_recovery()"
_MARIADB_WRITTEN = "SELECT @@global.gtid_binlog_pos WHERE @@global.log_bin"
_MARIADB_REPLAYED = "SELECT @@global.gtid_slave_pos"


class PositionUnknown(OrmcacheError):
    """The server does not tell how far it is. Never leaves ormcache."""


@dataclasses.dataclass(frozen=True)
class Position:
    """A point in the history of a database: one number per stream of changes.

    PostgreSQL has one stream, called "wal"; those of MariaDB are its replication domains.
    """

    streams: Mapping[str, int]

    def includes(self, other: Position) -> bool:
        """Whether all that had happened at ``other`` had also happened here."""
        return all(
            self.streams.get(stream, -1) >= number for stream, number in other.streams.items()
        )

    def __str__(self) -> str:
        return ",".join(f"{stream}:{number}" for stream, number in sorted(self.streams.items()))

    @classmethod
    def parse(cls, text: str) -> Position:
        """The inverse of ``str()``. Raises ValueError for what is no position."""
        streams: dict[str, int] = {}
        for part in filter(None, text.split(",")):
            stream, _, number = part.rpartition(":")
            streams[stream] = int(number)
        return cls(streams)


def written(connection: Any) -> Position:
    """How far the primary behind ``connection``, which is open, has written.

    All that is visible on it when this is called is included.

    Raises:
        PositionUnknown: it keeps no count, or is no primary.
        django.db.Error: it does not answer.
    """
    if connection.vendor == "postgresql":
        ((position, page, segment),) = ask(connection, _POSTGRESQL_WRITTEN)
        return Position({"wal": _end_of_last_record(int(position), page, segment)})
    if is_mariadb(connection):
        return _gtids(ask(connection, _MARIADB_WRITTEN))
    raise PositionUnknown


def replayed(connection: Any) -> Position:
    """How far the replica behind ``connection``, which is open, shows what was written.

    A query that begins after this call sees at least that.

    Raises:
        PositionUnknown: it does not tell, or is no replica.
        django.db.Error: it does not answer.
    """
    if connection.vendor == "postgresql":
        rows = ask(connection, _POSTGRESQL_REPLAYED)
        if not rows or rows[0][0] is None:
            raise PositionUnknown
        return Position({"wal": int(rows[0][0])})
    if is_mariadb(connection):
        return _gtids(ask(connection, _MARIADB_REPLAYED))
    raise PositionUnknown


def is_mariadb(connection: Any) -> bool:
    """Whether the server behind ``connection``, which is open, is MariaDB and not MySQL."""
    if connection.vendor != "mysql":
        return False
    # Not connection.mysql_is_mariadb: Django may have to ask the server for that.
    get_server_info = getattr(connection.connection, "get_server_info", None)
    return get_server_info is not None and "mariadb" in get_server_info().lower()


_PAGE_HEADER, _SEGMENT_HEADER = 24, 40


def _end_of_last_record(position: int, page: int, segment: int) -> int:
    """Where the last record ends, given where the next one will begin.

    The next record begins behind the header of its page (``XLogBytePosToRecPtr`` in PostgreSQL's
    xlog.c), replay ends before it (``XLogBytePosToEndRecPtr``). At the end of a page these differ,
    and as long as nothing more was written a standby would seem to be behind.

    Args:
        position: of the next record, in bytes.
        page: size of a page, in bytes.
        segment: size of a file, whose first page has a longer header.
    """
    if position % segment == _SEGMENT_HEADER:
        return position - _SEGMENT_HEADER
    if position % page == _PAGE_HEADER:
        return position - _PAGE_HEADER
    return position


def _gtids(rows: list[tuple[Any, ...]]) -> Position:
    """``0-1-270,1-1-9``: domain, server and number; the numbers of a domain grow."""
    if not rows:
        raise PositionUnknown
    text = rows[0][0]
    if isinstance(text, bytes):
        text = text.decode("ascii")
    streams: dict[str, int] = {}
    for gtid in filter(None, (text or "").split(",")):
        domain, _, number = gtid.strip().split("-")
        streams[domain] = max(int(number), streams.get(domain, -1))
    return Position(streams)
