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

_POSTGRESQL_WRITTEN = "SELECT pg_current_wal_insert_lsn() - '0/0'"
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
        return _wal(ask(connection, _POSTGRESQL_WRITTEN))
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
        return _wal(ask(connection, _POSTGRESQL_REPLAYED))
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


def _wal(rows: list[tuple[Any, ...]]) -> Position:
    if not rows or rows[0][0] is None:
        raise PositionUnknown
    return Position({"wal": int(rows[0][0])})


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
