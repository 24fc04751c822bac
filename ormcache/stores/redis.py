"""Strict consistency in Redis and Valkey, by scripts on the primary.

A server that was restarted from a dump, or promoted, may hold registers of the past. Every key
therefore carries the *incarnation* of the server, its run id and replication id as read on the
very socket, and every script checks the replication id again and refuses a replica.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from typing import Any, NamedTuple

from ormcache.conf import current
from ormcache.exceptions import CacheError, CacheTimeout
from ormcache.reasons import Reason
from ormcache.stores.base import EVERYTHING, Lookup, Store, new_nonce
from ormcache.stores.channels import Channel, Channels, bulk, pack

PROTOCOL = 1
"""Version of the key layout and the scripts; part of every key."""

_EVALSHA = bulk(b"EVALSHA")
_ARGUMENTS = {"arm": 3, "finish": 3, "settle": 5}
"""How many arguments the scripts have after the replication id."""
_MEMO_LIMIT = 4096
_ASKS_FOR_IDS = "string.sub(ARGV[3], 1, 1) == '@' and '@Q' or 'Q'"
"""In registers.lua."""
# Whatever others have put into a register comes back as it was.
_VECTOR = ("utf-8", "surrogateescape")


def _script(*names: str) -> str:
    """A Lua script, made of several files."""
    folder = resources.files("ormcache.stores") / "lua"
    return "\n".join((folder / f"{name}.lua").read_text("utf-8") for name in names)


SCRIPTS = {
    "read": _script("incarnation", "read_clean", "registers", "read_touched"),
    "arm": _script("incarnation", "arm_clean", "registers", "arm"),
    "finish": _script("incarnation", "finish_clean", "registers", "finish"),
    "settle": _script("incarnation", "registers", "settle"),
}


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


class _Parts(NamedTuple):
    """The parts of commands that are the same for one set of tables."""

    read: bytes
    """EVALSHA of the read script, up to the entry's key."""
    after_entry: bytes
    """What follows the entry's key, up to the nonce."""
    changes: dict[str, bytes]
    """By script, EVALSHA of what arms, finishes or settles, up to the nonce."""
    prefix: bytes
    """What the keys of the namespace begin with."""


_KINDS = {
    b"busy": Reason.BUSY,
    b"quarantine": Reason.QUARANTINE,
    b"overdue": Reason.OVERDUE,
}


_HEAD = 40
"""Characters of a key's end that the read script puts in front of the registers."""


def _lookup(answer: Any, entry: str) -> Lookup | None:
    """What the answer of the read script says; None if it shows a register that is damaged.

    Raises CacheError for what the script does not say, and other errors for worse: the socket may
    give the answers to other questions, or lead to something else than Redis.
    """
    if type(answer) is bytes:
        head, _, payload = answer.partition(b"|")
        vector = head.decode(*_VECTOR)
        # _vector(), written out as far as hits need it.
        if not vector.startswith(entry + ";"):
            vector = _vector(head, entry)
        return Lookup(payload, vector)
    if len(answer) == 1:
        head = answer[0][:-1]
        if b"|" in head:
            # Nothing can be stored under it: nobody could tell where it ends.
            return None
        return Lookup(None, _vector(head, entry))
    nothing, kind, left = answer
    if nothing != b"" or type(left) is not int:
        raise CacheError("the cache has answered something else than was asked")
    return Lookup(None, None, _KINDS[kind], max(0, left) / 1000)


def _vector(head: bytes, entry: str) -> str:
    vector = head.decode(*_VECTOR)
    start = entry + ";"
    # A name that is shorter, as in `manage.py ormcache status`, has a part of the key before it.
    if vector.startswith(start) or vector[_HEAD - len(entry) : _HEAD + 1] == start:
        return vector
    raise CacheError("the cache has answered another question")


def _confirm(answer: Any) -> None:
    """Raise CacheError unless a script that changes registers says that it has done so."""
    if answer != 1:
        raise CacheError("the cache does not say that it has done what it was told")


def _set(key: bytes, value: bytes, timeout: float | None) -> bytes:
    """The command that stores a value for ``timeout`` seconds."""
    if timeout is None:
        return pack(b"SET", key, value)
    expiry = b"%d" % max(1, timeout * 1000)
    # pack(), written out: this is the path of a miss.
    return b"*5\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n$2\r\nPX\r\n$%d\r\n%s\r\n" % (
        *(len(key), key, len(value), value),
        *(len(expiry), expiry),
    )


@functools.cache
def _lease(seconds: float, with_ids: bool) -> bytes:
    """What the scripts take for the lease, see registers.lua."""
    return b"%s%d" % (b"@" if with_ids else b"", seconds * 1000)


class RedisStore(Store):
    """See the module."""

    mode = "strict"
    shares_intents = True

    def __init__(self, pool: Any) -> None:
        self._channels = Channels(pool, SCRIPTS)
        self._memo: dict[tuple[str, str, Sequence[str]], _Parts] = {}
        self._with_ids: set[str] = set()

    def close(self) -> None:
        self._channels.close()

    def _prefix(self, namespace: str, channel: Channel) -> str:
        # The braces make Redis Cluster keep all keys of a namespace in one slot.
        return f"ormcache:{PROTOCOL}:{{{namespace}}}:{channel.incarnation}:"

    def _parts(self, namespace: str, channel: Channel, tables: tuple[str, ...]) -> _Parts:
        memo = (namespace, channel.incarnation, tables)
        parts = self._memo.get(memo)
        if parts is None:
            prefix = self._prefix(namespace, channel).encode()
            keys = [prefix + b"r:" + name.encode() for name in (EVERYTHING, *tables)]
            registers = b"".join(map(bulk, keys))
            replid = bulk(channel.replid)
            count = len(keys)
            change = bulk(b"%d" % count) + registers + replid
            parts = _Parts(
                b"*%d\r\n%s%s%s"
                % (
                    count + 7,
                    _EVALSHA,
                    channel.sha["read"],
                    bulk(b"%d" % (count + 1)),
                ),
                registers + replid,
                {
                    script: b"*%d\r\n%s%s%s"
                    % (count + arguments + 4, _EVALSHA, channel.sha[script], change)
                    for script, arguments in _ARGUMENTS.items()
                },
                prefix,
            )
            if len(self._memo) > _MEMO_LIMIT:
                self._memo = {}
            self._memo[memo] = parts
        return parts

    def expects_ids(self, namespace: str) -> None:
        self._with_ids.add(namespace)

    def _lease(self, namespace: str) -> bytes:
        return _lease(current().LEASE, namespace in self._with_ids)

    # --- reading ---------------------------------------------------------------------------

    def read(self, namespace: str, entry: str, tables: Sequence[str]) -> Lookup:
        return self._channels.run(self._ask, namespace, entry, tuple(tables))

    def start_read(
        self, namespace: str, entry: str, tables: Sequence[str]
    ) -> Callable[[], Lookup]:
        names = tuple(tables)
        try:
            started = self._channels.start(
                self._question, lambda answer: _lookup(answer, entry), namespace, entry, names
            )
        except CacheError:
            return lambda: self.read(namespace, entry, names)

        def wait() -> Lookup:
            try:
                lookup = started()
            except CacheTimeout:
                raise
            except CacheError:
                # The socket had gone bad: once more, on a new one.
                lookup = None
            return self.read(namespace, entry, names) if lookup is None else lookup

        return wait

    def _ask(
        self, channel: Channel, namespace: str, entry: str, tables: tuple[str, ...]
    ) -> Lookup:
        # Here, where an answer that is none costs the channel.
        lookup = _lookup(channel.call(self._question(channel, namespace, entry, tables)), entry)
        if lookup is None:
            self._repair(channel, namespace, tables)
            lookup = Lookup(None, None, Reason.BUSY, current().LEASE)
        return lookup

    def _repair(self, channel: Channel, namespace: str, tables: tuple[str, ...]) -> None:
        """Give registers that hold our own "|" a new nonce, and what may be lost with it a lease.

        An intent that nobody ends leaves those alone that are there.
        """
        prefix = self._parts(namespace, channel, ()).prefix
        for table in (EVERYTHING, *tables):
            key = prefix + b"r:" + table.encode()
            nonce, counter = channel.call(pack(b"HMGET", key, b"n", b"x"))
            if b"|" in (nonce or b"") + (counter or b""):
                self._call(channel, "arm", namespace, new_nonce(), (table,))
                if counter:
                    # Not before there is a new nonce: the old one was valid without the counter.
                    channel.call(pack(b"HDEL", key, b"x"))

    def _question(
        self, channel: Channel, namespace: str, entry: str, tables: tuple[str, ...]
    ) -> bytes:
        parts = self._parts(namespace, channel, tables)
        key = parts.prefix + b"e:" + entry.encode()
        nonce = new_nonce().encode()
        lease = self._lease(namespace)
        # bulk(), written out: this is the path of a hit.
        return b"%s$%d\r\n%s\r\n%s$%d\r\n%s\r\n$%d\r\n%s\r\n" % (
            parts.read,
            len(key),
            key,
            parts.after_entry,
            len(nonce),
            nonce,
            len(lease),
            lease,
        )

    def fill(
        self, namespace: str, entry: str, vector: str, payload: bytes, timeout: float | None
    ) -> None:
        value = vector.encode(*_VECTOR) + b"|" + payload
        if self._channels.run(self._put, namespace, b"e:", entry, value, timeout):
            self._channels.flush_soon()

    def _put(
        self,
        channel: Channel,
        namespace: str,
        kind: bytes,
        entry: str,
        value: bytes,
        timeout: float | None,
    ) -> bool:
        key = self._parts(namespace, channel, ()).prefix + kind + entry.encode()
        return channel.send_later(_set(key, value, timeout))

    def note(self, namespace: str, entry: str, note: bytes, timeout: float | None) -> None:
        if note and self._channels.run(self._put, namespace, b"q:", entry, note, timeout):
            self._channels.flush_soon()

    def noted(self, namespace: str) -> Iterator[str]:
        cursor = b"0"
        while True:
            cursor, names = self._channels.run(self._scan, namespace, cursor)
            yield from names
            if cursor == b"0":
                return

    def _scan(self, channel: Channel, namespace: str, cursor: bytes) -> tuple[bytes, list[str]]:
        prefix = self._parts(namespace, channel, ()).prefix + b"q:"
        cursor, keys = channel.call(
            pack(b"SCAN", cursor, b"MATCH", prefix + b"*", b"COUNT", b"1000")
        )
        return cursor, [key.removeprefix(prefix).decode() for key in keys]

    def note_of(self, namespace: str, entry: str) -> bytes | None:
        return self._channels.run(self._get_note, namespace, entry)

    def _get_note(self, channel: Channel, namespace: str, entry: str) -> bytes | None:
        prefix = self._parts(namespace, channel, ()).prefix
        found = channel.call(pack(b"GET", prefix + b"q:" + entry.encode()))
        if found is None or type(found) is bytes:
            return found
        raise CacheError("the cache has answered something else than was asked")

    def drop(self, namespace: str, entry: str) -> None:
        self._channels.run(self._remove, namespace, entry)

    def _remove(self, channel: Channel, namespace: str, entry: str) -> None:
        prefix = self._parts(namespace, channel, ()).prefix
        name = entry.encode()
        channel.call(pack(b"DEL", prefix + b"e:" + name, prefix + b"q:" + name))

    # --- writing ---------------------------------------------------------------------------

    def arm(self, namespace: str, intent: str, tables: Sequence[str]) -> None:
        self._channels.run(self._call, "arm", namespace, intent, tuple(tables))

    def start_arm(self, namespace: str, intent: str, tables: Sequence[str]) -> Callable[[], None]:
        names = tuple(tables)
        return self._channels.start(self._command, _confirm, "arm", namespace, intent, names)

    def finish(self, namespace: str, intent: str, tables: Sequence[str]) -> None:
        self._channels.run(self._post, "finish", namespace, intent, tuple(tables))

    def bump(self, namespace: str, tables: Sequence[str]) -> None:
        self._channels.run(self._call, "finish", namespace, "", tuple(tables))

    def moment(self) -> int:
        return self._channels.run(self._moment)

    def _moment(self, channel: Channel) -> int:
        answer = channel.call(pack(b"TIME"))
        if type(answer) is not list:
            # Two bytes would be two numbers, too.
            raise CacheError("the cache has answered something else than was asked")
        seconds, micros = answer
        return int(seconds) * 1000 + int(micros) // 1000

    def settle(
        self, namespace: str, tables: Sequence[str], moment: int, horizon: int, oldest: int
    ) -> None:
        self._channels.run(self._settle, namespace, tuple(tables), moment, horizon, oldest)

    def _settle(
        self, channel: Channel, namespace: str, tables: tuple[str, ...], *facts: int
    ) -> None:
        arguments = [new_nonce().encode(), self._lease(namespace), *(b"%d" % n for n in facts)]
        _confirm(
            channel.call(
                self._parts(namespace, channel, tables).changes["settle"]
                + b"".join(map(bulk, arguments))
            )
        )

    def _call(self, channel: Channel, *change: Any) -> None:
        _confirm(channel.call(self._command(channel, *change)))

    def _post(self, channel: Channel, *change: Any) -> None:
        channel.send(self._command(channel, *change))

    def _command(
        self,
        channel: Channel,
        script: str,
        namespace: str,
        intent: str,
        tables: tuple[str, ...],
    ) -> bytes:
        nonce = new_nonce().encode()
        lease = self._lease(namespace)
        name = intent.encode()
        # bulk(), written out.
        return b"%s$%d\r\n%s\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n" % (
            self._parts(namespace, channel, tables).changes[script],
            len(nonce),
            nonce,
            len(lease),
            lease,
            len(name),
            name,
        )

    def _script_for_others(self, name: str, namespace: str) -> str:
        """A script that need not be told what kind of database it is."""
        script = SCRIPTS[name]
        return script.replace(_ASKS_FOR_IDS, "'@Q'") if namespace in self._with_ids else script

    def status(self, namespace: str) -> dict[str, object]:
        return self._channels.run(self._status, namespace)

    def _status(self, channel: Channel, namespace: str) -> dict[str, object]:
        prefix = self._prefix(namespace, channel)
        fields = channel.call(pack(b"HGETALL", f"{prefix}r:{EVERYTHING}".encode()))
        if isinstance(fields, dict):  # RESP3
            facts = fields
        else:
            facts = dict(zip(fields[::2], fields[1::2], strict=True))
        born = facts.get(b"b")
        age = (self._moment(channel) - int(born)) / 1000 if born else None
        memory = channel.info(b"memory")
        policy = memory.get(b"maxmemory_policy", b"unknown").decode()
        is_bounded = memory.get(b"maxmemory", b"0") != b"0"
        # Registers have no expiry, so only these policies remove them.
        evicts = is_bounded and policy.startswith("allkeys")
        return {
            "protocol": PROTOCOL,
            "server": channel.place(),
            "key prefix": prefix,
            "incarnation": channel.incarnation,
            "age in seconds": None if age is None else round(age, 1),
            "registers": sum(1 for name in facts if name.startswith(b"t:")),
            "registers may be evicted": (
                f"{'yes' if evicts else 'no'} (maxmemory "
                f"{memory.get(b'maxmemory', b'0').decode()}, {policy})"
            ),
        }

    def protocol(self, namespace: str) -> dict[str, object]:
        return self._channels.run(self._protocol, namespace)

    def _protocol(self, channel: Channel, namespace: str) -> dict[str, object]:
        place = channel.place()
        return {
            "version": PROTOCOL,
            "host": place.host,
            "port": place.port,
            "unix_socket": place.unix_socket,
            "db": place.database,
            "tls": place.has_tls,
            "username": place.username,
            "password": place.has_password,
            "namespace": namespace,
            "key_prefix": self._prefix(namespace, channel),
            "incarnation": channel.incarnation,
            "lease_ms": int(current().LEASE * 1000),
            "scripts": {
                "hold": self._script_for_others("arm", namespace),
                "release": self._script_for_others("finish", namespace),
            },
        }
