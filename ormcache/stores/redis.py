"""Strict consistency in Redis and Valkey, by scripts on the primary.

The settings of the connection are those of the Django cache (django-redis, django-valkey or
Django's own backend), but the sockets are ormcache's own: redis-py's pool, retries and
serialisers cost more than the round trip itself, and an answer that nobody waits for has to
stay with its socket.

A server that was restarted from a dump, or promoted, may hold registers of the past. Every key
therefore carries the *incarnation* of the server, its run id and replication id as read on the
very socket, and every script checks the replication id again and refuses a replica.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import importlib
import os
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any, TypeVar

from ormcache.conf import current
from ormcache.exceptions import CacheError
from ormcache.reasons import Reason
from ormcache.stores.base import EVERYTHING, Lookup, Store, new_nonce

PROTOCOL = 1
"""Version of the key layout and the scripts; part of every key."""

_PENDING_LIMIT = 64
_MEMO_LIMIT = 4096
_T = TypeVar("_T")


class Script:
    """A Lua script and the name by which the server keeps it."""

    def __init__(self, name: str) -> None:
        folder = resources.files("ormcache.stores") / "lua"
        common = (folder / "registers.lua").read_text("utf-8")
        self.text = (common + "\n" + (folder / f"{name}.lua").read_text("utf-8")).encode()
        self.sha = hashlib.sha1(self.text, usedforsecurity=False).hexdigest().encode()


READ, ARM, FINISH = Script("read"), Script("arm"), Script("finish")


def connection_pool(cache: Any) -> Any | None:
    """The connection pool of the primary behind a Django cache, or None if it is not Redis.

    Asks for the client that writes: the other servers in LOCATION are replicas.
    """
    client = getattr(cache, "_cache", None) or getattr(cache, "client", None)
    if client is None or _shards(client):
        return None
    get_client = getattr(client, "get_client", None)
    if get_client is None:
        return None
    pool = getattr(get_client(write=True), "connection_pool", None)
    return pool if hasattr(pool, "connection_class") else None


def _shards(client: Any) -> bool:
    """Whether the client spreads keys over servers, or serves values past their end."""
    return any(kind.__name__ in ("ShardClient", "HerdClient") for kind in type(client).__mro__)


def _pack(*parts: bytes) -> bytes:
    """A command in Redis' wire protocol."""
    out = [b"*%d\r\n" % len(parts)]
    for part in parts:
        out.append(b"$%d\r\n%s\r\n" % (len(part), part))
    return b"".join(out)


def _bulk(part: bytes) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(part), part)


class _Channel:
    """One socket, the incarnation of the server behind it, and answers not yet read."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.pending = 0
        connection.connect()
        info = {}
        for section in (b"server", b"replication"):
            for line in self.call(_pack(b"INFO", section)).splitlines():
                name, _, value = line.partition(b":")
                info[name] = value
        if info.get(b"role") != b"master":
            raise CacheError("the server is a replica, which cannot vouch for anything")
        self.replid: bytes = info[b"master_replid"]
        identity = info[b"run_id"] + self.replid
        self.incarnation = hashlib.blake2b(identity, digest_size=8).hexdigest()
        for script in (READ, ARM, FINISH):
            self.call(_pack(b"SCRIPT", b"LOAD", script.text))

    def send(self, command: bytes) -> None:
        """Send a command whose answer nobody waits for."""
        if self.pending >= _PENDING_LIMIT:
            self._drain()
        self.connection.send_packed_command([command], check_health=False)
        self.pending += 1

    def call(self, command: bytes) -> Any:
        """Send a command and wait for its answer."""
        self.connection.send_packed_command([command], check_health=False)
        self._drain()
        return self.connection.read_response(disable_decoding=True)

    def _drain(self) -> None:
        """Read past the answers that nobody waited for; they are there already."""
        while self.pending:
            self.pending -= 1
            try:
                self.connection.read_response(disable_decoding=True)
            except self.connection_errors:
                raise
            except Exception:
                pass

    @property
    def connection_errors(self) -> tuple[type[BaseException], ...]:
        return _errors(self.connection)

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.connection.disconnect()


def _library(connection_class: type[Any]) -> Any:
    """redis-py or valkey-py, whichever the connection's class comes from."""
    for kind in connection_class.__mro__:
        root = kind.__module__.partition(".")[0]
        if root in ("redis", "valkey"):
            return importlib.import_module(root)
    raise CacheError(f"{connection_class!r} is a connection of neither redis-py nor valkey-py")


def _errors(connection: Any) -> tuple[type[BaseException], ...]:
    exceptions = _library(type(connection)).exceptions
    return (exceptions.ConnectionError, exceptions.TimeoutError, OSError)


class RedisStore(Store):
    """See the module."""

    mode = "strict"

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._idle: collections.deque[_Channel] = collections.deque()
        self._heads: dict[tuple[str, str, tuple[str, ...]], tuple[bytes, bytes]] = {}
        os.register_at_fork(after_in_child=self._after_fork)

    def _after_fork(self) -> None:
        # The sockets are the parent's: not even closed politely.
        self._idle = collections.deque()

    # --- sockets ---------------------------------------------------------------------------

    def _connect(self) -> _Channel:
        library = _library(self._pool.connection_class)
        options = dict(self._pool.connection_kwargs)
        limit = current().SOCKET_TIMEOUT
        for name in ("socket_timeout", "socket_connect_timeout"):
            theirs = options.get(name)
            options[name] = limit if theirs is None else min(limit, theirs)
        # A dead server must cost one attempt; whether to try again is the breaker's business.
        options["retry"] = library.retry.Retry(library.backoff.NoBackoff(), 0)
        options.pop("health_check_interval", None)
        return _Channel(self._pool.connection_class(**options))

    def _with_channel(self, work: Callable[[_Channel], _T]) -> _T:
        """Run ``work`` on an idle socket, once more on a new one if that had gone bad."""
        for attempt in (1, 2):
            channel = None
            reused = True
            try:
                with contextlib.suppress(IndexError):
                    channel = self._idle.pop() if attempt == 1 else None
                if channel is None:
                    reused = False
                    channel = self._connect()
                result = work(channel)
            except BaseException as error:
                # An interrupted exchange leaves an answer on the socket: never use it again.
                if channel is not None:
                    channel.close()
                if not isinstance(error, Exception):
                    raise
                if attempt == 1 and reused and type(error).__name__ != "TimeoutError":
                    # Other idle sockets are likely as dead as this one.
                    self.close()
                    continue
                raise CacheError(f"{type(error).__name__}: {error}") from error
            self._idle.append(channel)
            return result
        raise AssertionError("unreachable")

    def close(self) -> None:
        while self._idle:
            try:
                self._idle.pop().close()
            except IndexError:
                break

    # --- commands --------------------------------------------------------------------------

    def _prefix(self, namespace: str, channel: _Channel) -> str:
        # The braces make Redis Cluster keep all keys of a namespace in one slot.
        return f"ormcache:{PROTOCOL}:{{{namespace}}}:{channel.incarnation}:"

    def _registers(
        self, namespace: str, channel: _Channel, tables: tuple[str, ...]
    ) -> tuple[bytes, bytes]:
        """Register keys of tables, packed, with "*" first; and the prefix of all keys."""
        memo = (namespace, channel.incarnation, tables)
        found = self._heads.get(memo)
        if found is None:
            prefix = self._prefix(namespace, channel)
            keys = [f"{prefix}r:{table}".encode() for table in (EVERYTHING, *tables)]
            found = (b"".join(map(_bulk, keys)), prefix.encode())
            if len(self._heads) > _MEMO_LIMIT:
                self._heads = {}
            self._heads[memo] = found
        return found

    def read(self, namespace: str, entry: str, tables: Sequence[str]) -> Lookup:
        tables = tuple(tables)
        lease = b"%d" % (current().LEASE * 1000)
        nonce = new_nonce().encode()

        def work(channel: _Channel) -> Any:
            registers, prefix = self._registers(namespace, channel, tables)
            count = len(tables) + 2
            command = b"".join(
                (
                    b"*%d\r\n$7\r\nEVALSHA\r\n$40\r\n%s\r\n" % (count + 6, READ.sha),
                    _bulk(b"%d" % count),
                    _bulk(prefix + b"e:" + entry.encode()),
                    registers,
                    _bulk(channel.replid),
                    _bulk(nonce),
                    _bulk(lease),
                )
            )
            return channel.call(command)

        answer = self._with_channel(work)
        if type(answer) is bytes:
            vector, _, payload = answer.partition(b"|")
            return Lookup(payload, vector.decode())
        if len(answer) == 1:
            return Lookup(None, answer[0].decode().rstrip("|"))
        kind = Reason.QUARANTINE if answer[1] == b"quarantine" else Reason.BUSY
        return Lookup(None, None, kind, max(0, answer[2]) / 1000)

    def fill(
        self, namespace: str, entry: str, vector: str, payload: bytes, timeout: float | None
    ) -> None:
        value = vector.encode() + b"|" + payload
        expiry = () if timeout is None else (b"PX", b"%d" % max(1, timeout * 1000))

        def work(channel: _Channel) -> None:
            key = f"{self._prefix(namespace, channel)}e:{entry}".encode()
            channel.send(_pack(b"SET", key, value, *expiry))

        self._with_channel(work)

    def _change(
        self, script: Script, namespace: str, intent: str, tables: Sequence[str], wait: bool
    ) -> None:
        names = tuple(tables)
        nonce = new_nonce().encode()
        lease = b"%d" % (current().LEASE * 1000)

        def work(channel: _Channel) -> None:
            registers, _ = self._registers(namespace, channel, names)
            count = len(names) + 1
            command = b"".join(
                (
                    b"*%d\r\n$7\r\nEVALSHA\r\n$40\r\n%s\r\n" % (count + 7, script.sha),
                    _bulk(b"%d" % count),
                    registers,
                    _bulk(channel.replid),
                    _bulk(nonce),
                    _bulk(lease),
                    _bulk(intent.encode()),
                )
            )
            if wait:
                channel.call(command)
            else:
                channel.send(command)

        self._with_channel(work)

    def arm(self, namespace: str, intent: str, tables: Sequence[str]) -> None:
        self._change(ARM, namespace, intent, tables, wait=True)

    def finish(self, namespace: str, intent: str, tables: Sequence[str]) -> None:
        self._change(FINISH, namespace, intent, tables, wait=False)

    def bump(self, namespace: str, tables: Sequence[str]) -> None:
        self._change(FINISH, namespace, "", tables, wait=True)

    def status(self, namespace: str) -> dict[str, object]:
        def work(channel: _Channel) -> dict[str, object]:
            prefix = self._prefix(namespace, channel)
            key = f"{prefix}r:{EVERYTHING}".encode()
            fields = channel.call(_pack(b"HGETALL", key))
            facts = dict(zip(fields[::2], fields[1::2], strict=True))
            seconds, micros = channel.call(_pack(b"TIME"))
            born = facts.get(b"b")
            age = int(seconds) + int(micros) / 1e6 - int(born) / 1000 if born else None
            return {
                "key prefix": prefix,
                "incarnation": channel.incarnation,
                "age in seconds": None if age is None else round(age, 1),
                "registers": sum(1 for name in facts if name.startswith(b"t:")),
            }

        return self._with_channel(work)
