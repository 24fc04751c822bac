"""What is done to the processes, sessions and servers of a soak."""

from __future__ import annotations

import contextlib
import heapq
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from tests.servers import HOST, RedisServer

LONGEST_STOP = 0.5
"""Seconds for which a writer is stopped: a part of a lease, as the guarantees assume."""
LONGEST_STOP_OF_READERS = 5.0
"""Two leases and more: who only reads may sleep as long as he likes."""


class Redis:
    """The cache, at one port for ever, whichever server is behind it."""

    def __init__(self) -> None:
        self.server = RedisServer(persistence="rdb")
        self.server.start()
        self.port = self.server.port

    @contextlib.contextmanager
    def client(self) -> Iterator[Any]:
        import redis

        with redis.Redis(host=HOST, port=self.port) as client:
            yield client

    def fail_over(self) -> None:
        """A replica takes over from a master that was killed, and its port with it."""
        import redis

        replica = RedisServer(replica_of=self.server, persistence="rdb")
        replica.start()
        replica.wait_for_primary()
        self.server.kill()
        self.server.close()
        with redis.Redis(host=HOST, port=replica.port) as client:
            client.replicaof("NO", "ONE")
            client.config_set("port", self.port)
        replica.port = self.port
        replica.options["port"] = str(self.port)
        del replica.options["replicaof"]
        self.server = replica

    def close(self) -> None:
        self.server.close()


Deeds = dict[str, tuple[int, Callable[[], None]]]
"""By their names: how often, compared with others, and what."""


class Vandal:
    """One deed after the other, of each kind at least one; then by their weights."""

    def __init__(self, seed: int, redis: Redis, aliases: list[str], workers: Any) -> None:
        """`workers` has `pids()`, `writers()`, and starts again whoever has died."""
        self.done: Counter[str] = Counter()
        self._chance = random.Random(seed)
        self._redis, self._aliases, self._workers = redis, aliases, workers
        self._stopped: list[tuple[float, int]] = []
        self._deeds = self.deeds()
        self._first = list(self._deeds)
        self._chance.shuffle(self._first)

    def deeds(self) -> Deeds:
        return {
            "worker killed (SIGKILL)": (30, self._kill_worker),
            "worker stopped (SIGSTOP) for a moment": (20, self._stop_worker),
            "reader stopped (SIGSTOP) for longer than a lease": (4, self._stop_reader),
            "session ended": (25, self._end_session),
            "sockets to Redis killed": (6, self._kill_sockets),
            "scripts flushed": (3, self._flush_scripts),
            "registers deleted": (3, self._delete_registers),
            "entries deleted": (3, self._delete_entries),
            "Redis saved": (3, self._save),
            "Redis out of memory (allkeys-random)": (2, self._press),
            "Redis flushed": (1, self._flush),
            "Redis restarted empty": (1, self._restart_empty),
            "Redis restarted from a dump": (1, self._restart_from_dump),
            "Redis failed over to a replica": (1, self._redis.fail_over),
        }

    def act(self) -> None:
        """Do something."""
        if self._first:
            name = self._first.pop()
        else:
            weights = [weight for weight, _ in self._deeds.values()]
            (name,) = self._chance.choices(list(self._deeds), weights)
        self._deeds[name][1]()
        self.done[name] += 1

    def wake(self, *, everybody: bool = False) -> None:
        """Let those go on who have been stopped for long enough."""
        while self._stopped and (everybody or self._stopped[0][0] <= time.monotonic()):
            _, pid = heapq.heappop(self._stopped)
            _send(pid, signal.SIGCONT)

    # --- processes -------------------------------------------------------------------------

    def _kill_worker(self) -> None:
        _send(self._chance.choice(self._workers.pids()), signal.SIGKILL)

    def _stop_worker(self) -> None:
        self._stop(self._workers.pids(), self._chance.uniform(0.01, LONGEST_STOP))

    def _stop_reader(self) -> None:
        readers = sorted(set(self._workers.pids()) - set(self._workers.writers()))
        self._stop(readers, self._chance.uniform(2, LONGEST_STOP_OF_READERS))

    def _stop(self, pids: list[int], seconds: float) -> None:
        pid = self._chance.choice(pids)
        _send(pid, signal.SIGSTOP)
        heapq.heappush(self._stopped, (time.monotonic() + seconds, pid))

    # --- sessions --------------------------------------------------------------------------

    def _end_session(self) -> None:
        from django.db import connections

        alias = self._chance.choice(self._aliases)
        connection = connections[alias]
        connection.ensure_connection()
        # The driver's own cursor: ormcache has no part in this.
        cursor = connection.connection.cursor()
        if connection.vendor == "postgresql":
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid() "
                "ORDER BY random() LIMIT 1) AS one"
            )
            return
        cursor.execute(
            "SELECT id FROM information_schema.processlist "
            "WHERE db = DATABASE() AND id <> CONNECTION_ID() ORDER BY RAND() LIMIT 1"
        )
        for (number,) in cursor.fetchall():
            # It may be gone already.
            with contextlib.suppress(Exception):
                cursor.execute(f"KILL {number}")

    # --- the cache -------------------------------------------------------------------------

    def _kill_sockets(self) -> None:
        with self._redis.client() as client:
            client.client_kill_filter(_type="normal", skipme=True)

    def _flush_scripts(self) -> None:
        with self._redis.client() as client:
            client.script_flush()

    def _delete_registers(self) -> None:
        with self._redis.client() as client:
            registers = sorted(client.keys("ormcache:*:r:*"))
            if registers:
                client.delete(*self._chance.choices(registers, k=2))

    def _delete_entries(self) -> None:
        with self._redis.client() as client:
            for key in client.keys("ormcache:*:e:*"):
                client.delete(key)

    def _save(self) -> None:
        with self._redis.client() as client:
            client.save()

    def _press(self) -> None:
        """Fill the memory until registers are evicted, with whatever else there is."""
        with self._redis.client() as client:
            client.config_set("maxmemory-policy", "allkeys-random")
            client.config_set("maxmemory", client.info("memory")["used_memory"] + (1 << 20))
            before = client.info("stats")["evicted_keys"]
            for number in range(2000):
                client.set(f"other:{number}", bytes(30_000))
                if client.info("stats")["evicted_keys"] > before + 60:
                    break
            client.config_set("maxmemory", 0)
            for key in client.keys("other:*"):
                client.delete(key)

    def _flush(self) -> None:
        with self._redis.client() as client:
            client.flushall()

    def _restart_empty(self) -> None:
        self._redis.server.kill()
        (self._redis.server.files / "dump.rdb").unlink(missing_ok=True)
        self._redis.server.start()

    def _restart_from_dump(self) -> None:
        """What was saved a moment ago comes back, registers and entries alike."""
        self._save()
        time.sleep(self._chance.uniform(0, 1))
        self._redis.server.kill()
        self._redis.server.start()


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
