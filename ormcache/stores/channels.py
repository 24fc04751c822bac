"""Sockets to a Redis or Valkey server, with answers that nobody waits for.

The settings are those of the Django cache, but the sockets are ormcache's own: redis-py's pool,
retries and serialisers cost more than the round trip itself, and an answer that nobody waits
for has to stay with its socket.
"""

from __future__ import annotations

import collections
import contextlib
import importlib
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from ormcache.conf import current
from ormcache.exceptions import CacheError, CacheTimeout
from ormcache.interruptions import foreign, let_through, raise_if_any
from ormcache.stores import flushing

FLAGS = b"#!lua flags=allow-oom\n"
"""The first line of a script on servers that know it."""

_PENDING_LIMIT = 64
_UNSENT_LIMIT = 16 * 1024
"""Bytes up to which a command that nobody waits for may stay behind."""
_SKIP_REPLY = b"*3\r\n$6\r\nCLIENT\r\n$5\r\nREPLY\r\n$4\r\nSKIP\r\n"
"""Makes the server say nothing to this command and the next one."""
_T = TypeVar("_T")


def pack(*parts: bytes) -> bytes:
    """A command in Redis' wire protocol."""
    return b"*%d\r\n%s" % (len(parts), b"".join(map(bulk, parts)))


def bulk(part: bytes) -> bytes:
    """One part of a command."""
    return b"$%d\r\n%s\r\n" % (len(part), part)


class Place(NamedTuple):
    """Where a socket leads, for other programs that shall go there."""

    host: str | None
    port: int | None
    unix_socket: str | None
    database: int
    has_tls: bool
    username: str | None
    has_password: bool

    def __str__(self) -> str:
        facts = [
            self.unix_socket or f"{self.host}:{self.port}",
            f"database {self.database}",
            "TLS" if self.has_tls else "no TLS",
            "a password" if self.has_password else "no password",
        ]
        if self.username:
            facts.append(f"user {self.username}")
        return ", ".join(facts)


class Channel:
    """One socket, the incarnation of the server behind it, and answers not yet read.

    What nobody waits for may also stay unsent until the next command: a system call, and waking
    the server, cost more than all the rest of storing an answer.
    """

    def __init__(self, connection: Any, scripts: Mapping[str, str]) -> None:
        self._connection = connection
        self._pending = 0
        self._unsent = b""
        connection.connect()
        info = {**self.info(b"server"), **self.info(b"replication")}
        if info.get(b"role") != b"master":
            raise CacheError("the server is a replica, which cannot vouch for anything")
        self.replid: bytes = info[b"master_replid"]
        # In a form that any language can make: other programs write to these keys, too.
        self.incarnation = (info[b"run_id"][:16] + self.replid[:16]).decode()
        self._silencer = _SKIP_REPLY if self._may_skip_replies() else b""
        """What stands before a command whose answer nobody waits for."""
        self.sha: dict[str, bytes] = {
            name: bulk(self.call(pack(b"SCRIPT", b"LOAD", _flags(info) + text.encode())))
            for name, text in scripts.items()
        }
        """By which name the server keeps each script, as a part of a command."""

    def _may_skip_replies(self) -> bool:
        """Whether the server leaves out answers if it is asked to; proxies may not."""
        try:
            return bool(self.call(pack(b"CLIENT", b"REPLY", b"ON")) == b"OK")
        except _failures(self._connection):
            raise
        except Exception as error:
            self.raise_foreign(error)
            return False

    def info(self, section: bytes) -> dict[bytes, bytes]:
        """What the server says of itself in one section of INFO."""
        found = {}
        for line in self.call(pack(b"INFO", section)).splitlines():
            name, _, value = line.partition(b":")
            found[name] = value
        return found

    def call(self, command: bytes) -> Any:
        """Send a command and wait for its answer."""
        self.post(command)
        return self.receive()

    def send(self, command: bytes) -> None:
        """Send a command whose answer nobody waits for."""
        if self._silencer:
            self.post(self._silencer + command)
            return
        if self._pending >= _PENDING_LIMIT:
            self.flush()
            self._drain()
        self.post(command)
        self._pending += 1

    def send_later(self, command: bytes) -> bool:
        """Send such a command together with the next one; whether it waits for that.

        :meth:`flush` has to follow some time if it does.
        """
        if len(command) > _UNSENT_LIMIT or self._unsent or self._pending >= _PENDING_LIMIT:
            self.send(command)
            return False
        self._unsent = self._silencer + command
        if not self._silencer:
            self._pending += 1
        return True

    def flush(self) -> None:
        """Send what :meth:`send_later` left behind."""
        if self._unsent:
            self.post(b"")

    def post(self, command: bytes) -> None:
        """Send a command whose answer :meth:`receive` will fetch."""
        if self._unsent:
            command, self._unsent = self._unsent + command, b""
        self._connection.send_packed_command((command,), check_health=False)

    def receive(self) -> Any:
        """The answer to the command that was posted last."""
        if self._pending:
            self._drain()
        return self._connection.read_response(disable_decoding=True)

    def _drain(self) -> None:
        """Read past the answers that nobody waited for; they came before the one that is due."""
        while self._pending:
            self._pending -= 1
            try:
                self._connection.read_response(disable_decoding=True)
            except _failures(self._connection):
                raise
            except Exception as error:
                self.raise_foreign(error)
                # A fill or a finish that the server refused: a miss, or a lease that runs out.
                continue

    def place(self) -> Place:
        """Where this socket leads."""
        connection = self._connection
        library = _library(type(connection))
        path = getattr(connection, "path", None)
        return Place(
            # Redis Sentinel tells the address of the primary only when it is asked.
            host=None if path else connection.host,
            port=None if path else int(connection.port),
            unix_socket=path or None,
            database=int(connection.db),
            has_tls=isinstance(connection, library.connection.SSLConnection),
            username=getattr(connection, "username", None) or None,
            has_password=bool(
                getattr(connection, "password", None)
                or getattr(connection, "credential_provider", None)
            ),
        )

    def raise_foreign(self, error: BaseException) -> None:
        """Raise what ended a call if it is nothing of the socket's, such as a time limit."""
        try:
            raise_if_any(foreign(error, _library(type(self._connection)).__name__))
        finally:
            # What is raised refers to this frame.
            del error

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._connection.disconnect()


def _flags(info: Mapping[bytes, bytes]) -> bytes:
    """:data:`FLAGS` for Redis 7 and later, and for all of Valkey.

    It makes a server refuse the script, before it runs, that must not write: a replica, and a
    primary that has lost the replicas which min-replicas-to-write asks for.
    """
    if b"valkey_version" in info or int(info[b"redis_version"].split(b".")[0]) >= 7:
        return FLAGS
    return b""


def _library(connection_class: type[Any]) -> Any:
    """redis-py or valkey-py, whichever the connection's class comes from."""
    for kind in connection_class.__mro__:
        root = kind.__module__.partition(".")[0]
        if root in ("redis", "valkey"):
            return importlib.import_module(root)
    raise CacheError(f"{connection_class!r} is a connection of neither redis-py nor valkey-py")


def _failures(connection: Any) -> tuple[type[BaseException], ...]:
    """Errors after which a socket is of no more use."""
    exceptions = _library(type(connection)).exceptions
    return (exceptions.ConnectionError, exceptions.TimeoutError, OSError)


def _is_timeout(error: BaseException) -> bool:
    # The drivers' own class and Python's are alike in name only.
    return type(error).__name__ == "TimeoutError"


def _cache_error(error: BaseException) -> CacheError:
    kind = CacheTimeout if _is_timeout(error) else CacheError
    return kind(f"{type(error).__name__}: {error}")


class Channels:
    """As many channels as are in use at once, kept for the next who needs one."""

    def __init__(self, pool: Any, scripts: Mapping[str, str]) -> None:
        self._pool = pool
        self._scripts = scripts
        self._idle: collections.deque[Channel] = collections.deque()
        # For the same thread not exclusive: the handler of a signal may read, too.
        self._flushing = threading.RLock()
        self._is_flushing = False
        os.register_at_fork(after_in_child=self._after_fork)

    def _after_fork(self) -> None:
        # The sockets are the parent's: not even closed politely. What is in use goes back to where
        # it came from, and so out of use: greenlets of gevent go on in the child.
        self._idle = collections.deque()
        self._flushing = threading.RLock()
        self._is_flushing = False

    def _connect(self) -> Channel:
        library = _library(self._pool.connection_class)
        options = dict(self._pool.connection_kwargs)
        limit = current().SOCKET_TIMEOUT
        for name in ("socket_timeout", "socket_connect_timeout"):
            theirs = options.get(name)
            options[name] = limit if theirs is None else min(limit, theirs)
        # A dead server must cost one attempt; whether to try again is the breaker's business.
        options["retry"] = library.retry.Retry(library.backoff.NoBackoff(), 0)
        options.pop("health_check_interval", None)
        return Channel(self._pool.connection_class(**options), self._scripts)

    def flush_soon(self) -> None:
        """Some idle channel has a command that it did not send yet: see that it does."""
        flushing.flusher.notice(self)

    def flush(self) -> None:
        """Let the idle channels send what they have; those in use do so by themselves."""
        idle = self._idle
        with self._flushing:
            self._is_flushing = True
            try:
                for _ in range(len(idle)):
                    # Once round: in the end the order is what it was.
                    channel = idle.popleft()
                    try:
                        channel.flush()
                    except Exception:
                        # What was to be stored is lost, which is a miss and no error.
                        channel.close()
                    else:
                        idle.append(channel)
            except IndexError:
                return
            finally:
                self._is_flushing = False

    def _take(self) -> Channel | None:
        """An idle channel, if there is one.

        While idle channels are flushed, whoever comes waits: what is asked on this one must not
        overtake an answer that was to be sent on that one.
        """
        idle = self._idle
        try:
            channel = idle.pop()
        except IndexError:
            with self._flushing, contextlib.suppress(IndexError):
                return idle.pop()
            return None
        # Looked at after the channel was taken: if another one was missing then, this shows it.
        if self._is_flushing:
            with self._flushing:
                return channel
        return channel

    def run(self, work: Callable[..., _T], *args: Any) -> _T:
        """``work(channel, *args)`` on an idle channel, or on a new one if that had gone bad.

        ``work`` may be called twice. Raises CacheError if the second call fails, too, and what
        came from outside as it is.
        """
        idle, channel = self._idle, self._take()
        if channel is None:
            return self._run_on_new(work, *args)
        try:
            result = work(channel, *args)
        except BaseException as error:
            # An interrupted exchange leaves an answer on the socket: never use it again.
            channel.close()
            channel.raise_foreign(error)
            if _is_timeout(error):
                raise _cache_error(error) from error
        else:
            idle.append(channel)
            return result
        # Other idle sockets are likely as dead as this one.
        self.close()
        return self._run_on_new(work, *args)

    def _run_on_new(self, work: Callable[..., _T], *args: Any) -> _T:
        idle = self._idle
        channel = None
        try:
            channel = self._connect()
            result = work(channel, *args)
        except BaseException as error:
            if channel is None:
                # A provider of credentials may raise anything.
                let_through(error)
            else:
                channel.close()
                channel.raise_foreign(error)
            raise _cache_error(error) from error
        idle.append(channel)
        return result

    def start(
        self, command_for: Callable[..., bytes], read: Callable[[Any], _T], *args: Any
    ) -> Callable[[], _T]:
        """Send ``command_for(channel, *args)`` now; the function returned waits for its answer.

        That gives what ``read`` makes of the answer. If ``read`` raises, the channel is not used
        again: it may hold the answers to other questions.

        Both raise CacheError. The function must be called, or the channel is lost.
        """
        idle, channel = self._idle, self._take()
        if channel is None:
            raise CacheError("there is no idle channel")
        try:
            channel.post(command_for(channel, *args))
        except BaseException as error:
            channel.close()
            channel.raise_foreign(error)
            raise _cache_error(error) from error

        def wait() -> _T:
            try:
                answer = read(channel.receive())
            except BaseException as error:
                channel.close()
                channel.raise_foreign(error)
                raise _cache_error(error) from error
            idle.append(channel)
            return answer

        return wait

    def close(self) -> None:
        """Close the idle channels."""
        while True:
            try:
                self._idle.pop().close()
            except IndexError:
                return
