"""What an operation sends over the wire: SQL statements, and Redis as Redis saw it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from django.db import connection
from django.test.utils import CaptureQueriesContext

_TRANSACTION_CONTROL = ("BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE")


@dataclass(frozen=True)
class Sql:
    """Statements sent to the database, per operation."""

    statements: float
    # Those that ask or change data; a transaction around hits still costs its
    # BEGIN and COMMIT, and is a hit all the same.
    queries: float


@dataclass(frozen=True)
class RedisTraffic:
    """Traffic at the Redis server, per operation."""

    round_trips: float
    commands: float
    bytes_in: float
    bytes_out: float
    by_command: dict[str, float] = field(default_factory=dict)


def count_sql(work: Callable[[], object], operations: int = 1) -> Sql:
    """Run the work once and count the statements Django's cursors were given."""
    # The log is a ring: once full, the context would find nothing behind its mark.
    connection.queries_log.clear()
    with CaptureQueriesContext(connection) as captured:
        work()
    texts = [query["sql"] for query in captured.captured_queries]
    connection.queries_log.clear()
    queries = [sql for sql in texts if not sql.startswith(_TRANSACTION_CONTROL)]
    return Sql(len(texts) / operations, len(queries) / operations)


class RedisMeter:
    """Reads the server's own counters before and after some work.

    The counters are the whole server's: nobody else may be using it meanwhile.
    Commands that a Lua script runs count as commands, as Redis counts them. A round
    trip is one read event of the server, so a pipeline is one round trip.
    """

    def __init__(self, url: str) -> None:
        # Imported here: the LocMem stack needs no Redis client.
        import redis

        self._client = redis.Redis.from_url(url)

    def empty(self) -> None:
        """Drop all keys of the database in the URL."""
        self._client.flushdb()

    def measure(self, work: Callable[[], object], operations: int) -> RedisTraffic:
        self._counters()  # opens the connection
        zero = self._counters()
        before = self._counters()
        work()
        after = self._counters()
        # Reading the counters is traffic as well: what it cost between `zero` and
        # `before`, when nothing else ran, is taken off.
        delta = {
            name: (after[name] - before[name]) - (before[name] - zero[name]) for name in after
        }
        calls = {
            name.removeprefix("cmdstat_"): count / operations
            for name, count in delta.items()
            if name.startswith("cmdstat_") and count
        }
        return RedisTraffic(
            round_trips=delta["total_reads_processed"] / operations,
            commands=sum(calls.values()),
            bytes_in=delta["total_net_input_bytes"] / operations,
            bytes_out=delta["total_net_output_bytes"] / operations,
            by_command=calls,
        )

    def _counters(self) -> Counter[str]:
        counters: Counter[str] = Counter()
        for name, facts in self._client.info("commandstats").items():
            counters[name] = facts["calls"]
        counters.update(
            {
                name: value
                for name, value in self._client.info("stats").items()
                if name.startswith("total_") and isinstance(value, int)
            }
        )
        return counters
