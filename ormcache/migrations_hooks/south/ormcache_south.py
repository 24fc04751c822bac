# -*- coding: utf-8 -*-
"""Tells ormcache what an old project does to the database that both use.

For Django 1.6 and South 1.0 on Python 2.7. One file, without dependencies::

    INSTALLED_APPS += ("ormcache_south",)
    ORMCACHE_SOUTH = {
        "default": {
            "REDIS": "redis://:password@127.0.0.1:6379/1",
            "NAMESPACE": "bookshop-7c2e287a62a77bc4",  # see `manage.py ormcache status` there
        },
    }

While South migrates a database, nothing of it is answered from the cache; afterwards, nothing is
that was stored before. With ``"WRITES": True`` the project's own commits are announced, too.

This speaks version 1 of the protocol in ``docs/reference/protocol.md`` and nothing else. The same
source runs on Python 3, where its parts are tested.
"""

from __future__ import absolute_import, division, print_function

import atexit
import binascii
import functools
import os
import re
import socket
import ssl
import sys
import threading
import time

import django
from django.core import mail
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError
from django.db import connections
from django.db import utils as db

try:
    from urllib.parse import parse_qsl, unquote, urlsplit
except ImportError:
    from urllib import unquote

    from urlparse import parse_qsl, urlsplit

__all__ = ["connect", "invalidate", "release"]

PROTOCOL = 1
EVERYTHING = "*"

_clock = getattr(time, "monotonic", time.time)
_text_types = (bytes, type(b"".decode()))


class CacheError(Exception):
    """Redis did not do what it was asked to."""


class CacheTimeout(CacheError):
    """Redis did not answer in time."""


class CacheUnreachable(db.OperationalError):
    """A write was refused because Redis could not be told of it."""


# --- the scripts ---------------------------------------------------------------------------
#
# Copies of ormcache/stores/lua. `python -m tests.embed_lua` makes them, a test compares them.

_INCARNATION = r"""
-- A server that was restarted, demoted or promoted is another one: ARGV[1] is the replication id
-- that the caller believes in.

local info = redis.call('INFO', 'replication')
if not string.find(info, 'role:master', 1, true)
    or not string.find(info, 'master_replid:' .. ARGV[1], 1, true) then
  return redis.error_reply('ORMCACHE another incarnation of this server')
end
"""

_REGISTERS = r"""
-- Registers: one hash per table, and one ("*") for the whole namespace.
--
--   n   nonce of the current interval without commits; absent in a register that is new here
--   x   counter for programs that know nothing but HINCRBY: part of the nonce
--   d   intents, "id=deadline,id=deadline" in ms of this server's clock; absent when clean. An id
--       that begins with "@" is that of a transaction of which the database can tell whether it is
--       over: it outlasts its deadline, until finish.lua or settle.lua. "!123" at its end is the
--       horizon that settle.lua has given it. "Q" and "@Q" stand for intents that were lost.
--   b   ("*" only) when this namespace was born, ms
--   l   ("*" only) the longest lease that was ever asked for, ms
--   t:… ("*" only) the registers that have ever been made here
--
-- "*" knows which registers exist, so one that is missing and known has been lost (evicted or
-- deleted), and intents may have been lost with it: quarantine. One that is missing and unknown
-- was never there, and is clean unless the namespace itself is younger than a lease; for what "*"
-- waits beyond that, all reads wait. A "*" that was lost has forgotten the longest lease, too: all
-- programs should have the same.
--
-- ARGV[2] is a fresh nonce, ARGV[3] the caller's lease in ms, with "@" in front if the database
-- can tell whether a transaction is over: then it decides on what was lost, too.

local nonce = ARGV[2]
local lease = tonumber(string.match(ARGV[3], '%d+'))
local lost = string.sub(ARGV[3], 1, 1) == '@' and '@Q' or 'Q'
local now = nil

local function clock()
  if not now then
    local time = redis.call('TIME')
    now = time[1] * 1000 + math.floor(time[2] / 1000)
  end
  return now
end

-- Nil for what is no number of milliseconds, too.
local function number(text)
  text = string.match(text or '', '^%d+$')
  return text and #text < 14 and tonumber(text) or nil
end

local function live(intents)
  local kept = {}
  for id, deadline in string.gmatch(intents, '([^=,]+)=(%d+)') do
    if tonumber(deadline) > clock() or string.sub(id, 1, 1) == '@' then
      kept[#kept + 1] = id .. '=' .. deadline
    end
  end
  return kept
end

-- Whether this is the intent of the caller, perhaps with a horizon by now.
local function mine(id)
  return id == ARGV[4] or (ARGV[4] ~= '' and string.match(id, '^(@.*)!%d+$') == ARGV[4])
end

local function birth(namespace)
  -- With "*" gone, so may be registers that held intents.
  redis.call('HSET', namespace, 'n', nonce, 'b', clock(), 'l', lease,
    'd', lost .. '=' .. clock() + lease)
end

-- Brings a register up to the present: {nonce, counter, intents or false}.
local function touch(key, namespace)
  local register = redis.pcall('HMGET', key, 'n', 'x', 'd')
  if register.err then
    -- Somebody has put something else there. What it held is lost, as if it were evicted.
    redis.call('DEL', key)
    register = {}
  end
  if not register[1] then
    if key == namespace then
      birth(namespace)
    else
      local new = redis.call('HSETNX', namespace, 't:' .. string.match(key, ':r:(.*)$'), 1) == 1
      local facts = redis.call('HMGET', namespace, 'b', 'l')
      local longest = math.max(number(facts[2]) or 0, lease)
      local id, ends = lost, clock() + longest
      if new then
        id, ends = 'Q', (number(facts[1]) or clock()) + longest
      end
      redis.call('HSET', key, 'n', nonce)
      if ends > clock() then
        redis.call('HSET', key, 'd', id .. '=' .. ends)
      end
    end
    register = redis.call('HMGET', key, 'n', 'x', 'd')
  elseif register[3] then
    local kept = live(register[3])
    if #kept == 0 then
      redis.call('HDEL', key, 'd')
      redis.call('HSET', key, 'n', nonce)
      register = {nonce, register[2], false}
    else
      register[3] = table.concat(kept, ',')
      redis.call('HSET', key, 'd', register[3])
    end
  end
  return register
end
"""

_HOLD = r"""
-- Announce a commit. KEYS: "*", register of each table (or "*" again). ARGV[4]: the intent.
-- Arming again with the same intent renews its lease.

touch(KEYS[1], KEYS[1])
if lease > (number(redis.call('HGET', KEYS[1], 'l')) or 0) then
  redis.call('HSET', KEYS[1], 'l', lease)
end
for i = 2, #KEYS do
  local register = touch(KEYS[i], KEYS[1])
  -- "*" may have been lost and born again while this register stayed: whatever holds an intent
  -- must be known, so that its loss is noticed.
  redis.call('HSETNX', KEYS[1], 't:' .. string.match(KEYS[i], ':r:(.*)$'), 1)
  local intents = {}
  for id, deadline in string.gmatch(register[3] or '', '([^=,]+)=(%d+)') do
    if not mine(id) then
      intents[#intents + 1] = id .. '=' .. deadline
    end
  end
  intents[#intents + 1] = ARGV[4] .. '=' .. (clock() + lease)
  redis.call('HSET', KEYS[i], 'n', nonce, 'd', table.concat(intents, ','))
end
return 1
"""

_RELEASE = r"""
-- A commit is over. KEYS and ARGV as for arm.lua; an empty intent only makes a fresh nonce.

touch(KEYS[1], KEYS[1])
for i = 2, #KEYS do
  local register = touch(KEYS[i], KEYS[1])
  local intents = {}
  for id, deadline in string.gmatch(register[3] or '', '([^=,]+)=(%d+)') do
    if not mine(id) then
      intents[#intents + 1] = id .. '=' .. deadline
    end
  end
  redis.call('HSET', KEYS[i], 'n', nonce)
  if #intents > 0 then
    redis.call('HSET', KEYS[i], 'd', table.concat(intents, ','))
  else
    redis.call('HDEL', KEYS[i], 'd')
  end
end
return 1
"""

HOLD = (_INCARNATION + _REGISTERS + _HOLD)[1:]
RELEASE = (_INCARNATION + _REGISTERS + _RELEASE)[1:]

_FLAGS = b"#!lua flags=allow-oom\n"
"""What Redis 7 and Valkey want to read first, to run a script although memory is full."""


# --- settings ------------------------------------------------------------------------------


class Address(object):
    """Where a Redis URL leads."""

    def __init__(self, url):
        """Raises ValueError for what is no URL of a Redis server."""
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        if parts.scheme not in ("redis", "rediss", "unix"):
            raise ValueError("it begins with none of redis://, rediss:// and unix://")
        self.tls = parts.scheme == "rediss"
        self.path = unquote(parts.path) if parts.scheme == "unix" else None
        self.host = parts.hostname or "localhost"
        self.port = parts.port or 6379
        self.user = unquote(parts.username or "")
        self.password = unquote(parts.password or "")
        number = query.pop("db", None)
        if number is None and self.path is None:
            number = parts.path.strip("/")
        if not (number or "0").isdigit():
            raise ValueError("the number of the database is %r" % number)
        self.database = int(number or 0)
        self.verified = True
        self.ca_certs = self.certfile = self.keyfile = None
        if self.tls:
            required = query.pop("ssl_cert_reqs", "required")
            if required not in ("required", "none"):
                raise ValueError("ssl_cert_reqs is neither required nor none")
            self.verified = required == "required"
            self.ca_certs = query.pop("ssl_ca_certs", None)
            self.certfile = query.pop("ssl_certfile", None)
            self.keyfile = query.pop("ssl_keyfile", None)
        if query:
            raise ValueError("%s is not known here" % ", ".join(sorted(query)))

    def __str__(self):
        """For people: never the password."""
        return self.path or "%s:%d" % (self.host, self.port)


def _is_seconds(value):
    return isinstance(value, (int, float)) and value is not True and 0 < value < 1e9


def _is_namespace(value):
    return isinstance(value, _text_types) and re.match(r"[A-Za-z0-9._-]+\Z", _str(value))


def _is_tables(value):
    return isinstance(value, dict) and all(
        isinstance(name, _text_types)
        and isinstance(others, (list, tuple, set, frozenset))
        and all(isinstance(other, _text_types) for other in others)
        for name, others in value.items()
    )


_OPTIONS = {
    "REDIS": ("a URL such as redis://127.0.0.1:6379/1", lambda v: isinstance(v, _text_types)),
    "NAMESPACE": ("what `manage.py ormcache status` of the other project prints", _is_namespace),
    "LEASE": ("a number of seconds above 0", _is_seconds),
    "SOCKET_TIMEOUT": ("a number of seconds above 0", _is_seconds),
    "ON_CACHE_FAILURE": ("'raise' or 'open'", lambda v: v in ("raise", "open")),
    "WRITES": ("True or False", lambda v: v is True or v is False),
    "ALSO_WRITES": ('a dict such as {"table": ["table of its trigger"]}', _is_tables),
}
_REQUIRED = ("REDIS", "NAMESPACE")


class Options(object):
    """``ORMCACHE_SOUTH[alias]``."""

    LEASE = 10
    SOCKET_TIMEOUT = 1
    ON_CACHE_FAILURE = "raise"
    WRITES = False
    ALSO_WRITES = {}

    def __init__(self, where, given):
        """Raises ImproperlyConfigured."""
        if not isinstance(given, dict):
            raise ImproperlyConfigured("%s is %r, not a dict." % (where, given))
        for name in sorted(given):
            if name not in _OPTIONS:
                known = ", ".join(sorted(_OPTIONS))
                raise ImproperlyConfigured(
                    "%s has an unknown option %r. Known options: %s." % (where, _str(name), known)
                )
        for name in sorted(_OPTIONS):
            expected, accepts = _OPTIONS[name]
            if name not in given:
                if name in _REQUIRED:
                    raise ImproperlyConfigured("%s has no %r: %s." % (where, name, expected))
                continue
            if not accepts(given[name]):
                # The URL has a password.
                value = "wrong" if name == "REDIS" else repr(given[name])
                raise ImproperlyConfigured(
                    "%s[%r] is %s. It must be %s." % (where, name, value, expected)
                )
            setattr(self, name, given[name])
        try:
            self.address = Address(_str(self.REDIS))
        except ValueError as error:
            raise ImproperlyConfigured("%s['REDIS'] is wrong: %s." % (where, error))
        self.also_writes = {
            _str(name).lower(): {_str(other).lower() for other in others}
            for name, others in self.ALSO_WRITES.items()
        }


def parse(setting, databases):
    """The options by alias of ``ORMCACHE_SOUTH``; None for an alias that is left out on purpose.

    Raises ImproperlyConfigured.
    """
    if not isinstance(setting, dict) or not setting:
        raise ImproperlyConfigured(
            "ORMCACHE_SOUTH must be a dict by database alias, such as "
            '{"default": {"REDIS": "redis://127.0.0.1:6379/1", "NAMESPACE": "..."}}; '
            "it is %r." % (setting,)
        )
    for alias in setting:
        if alias not in databases:
            raise ImproperlyConfigured(
                "ORMCACHE_SOUTH has %r, which is not in DATABASES. Known aliases: %s."
                % (_str(alias), ", ".join(sorted(databases)))
            )
    return {
        alias: None if given is None else Options("ORMCACHE_SOUTH[%r]" % _str(alias), given)
        for alias, given in setting.items()
    }


# --- Redis ---------------------------------------------------------------------------------


def _bytes(value):
    return value if isinstance(value, bytes) else value.encode("utf-8")


def _str(value):
    """``value`` as what string literals are here: bytes on Python 2, text on Python 3."""
    if isinstance(value, str):
        return value
    return value.decode("utf-8") if isinstance(value, bytes) else value.encode("utf-8")


def _name():
    """A name that nobody has ever used: a nonce, or that of an intent."""
    return binascii.hexlify(os.urandom(16))


class Server(object):
    """One socket to Redis, and the incarnation of the server behind it."""

    def __init__(self, address, timeout):
        """Raises CacheError."""
        self._socket = self._file = None
        try:
            self._socket = _connected(address, timeout)
            self._file = self._socket.makefile("rb")
        except (EnvironmentError, ValueError) as error:
            self.close()
            raise _cache_error(error)
        try:
            self._greet(address)
        except BaseException:
            self.close()
            raise

    def _greet(self, address):
        if address.user:
            self.call(b"AUTH", _bytes(address.user), _bytes(address.password))
        elif address.password:
            self.call(b"AUTH", _bytes(address.password))
        if address.database:
            self.call(b"SELECT", b"%d" % address.database)
        facts = {}
        for section in (b"server", b"replication"):
            answer = self.call(b"INFO", section)
            if not isinstance(answer, bytes):
                raise CacheError("INFO is answered with %r" % (answer,))
            for line in answer.splitlines():
                name, _, value = line.partition(b":")
                facts[name] = value
        if facts.get(b"role") != b"master":
            raise CacheError("the server is a replica, which cannot vouch for anything")
        try:
            self.replid = facts[b"master_replid"]
            self.incarnation = facts[b"run_id"][:16] + self.replid[:16]
            version = int(facts[b"redis_version"].split(b".")[0])
        except (KeyError, ValueError) as error:
            raise CacheError("the server does not tell what it is: %r" % error)
        self.flags = _FLAGS if version >= 7 or b"valkey_version" in facts else b""

    def call(self, *parts):
        """Send a command, and return the answer. Raises CacheError; then the socket is spoilt."""
        sent = [b"*%d\r\n" % len(parts)]
        sent += [b"$%d\r\n%s\r\n" % (len(part), part) for part in parts]
        try:
            self._socket.sendall(b"".join(sent))
            return self._answer()
        except (EnvironmentError, ValueError) as error:
            raise _cache_error(error)

    def _answer(self):
        line = self._file.readline()
        if not line.endswith(b"\r\n"):
            raise CacheError("the server closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"+":
            return rest
        if kind == b"-":
            raise CacheError(rest.decode("utf-8", "replace"))
        if kind == b":":
            return int(rest)
        if kind == b"$":
            size = int(rest)
            if size < 0:
                return None
            data = self._file.read(size + 2)
            if len(data) != size + 2:
                raise CacheError("the server closed the connection")
            return data[:-2]
        if kind == b"*":
            return [self._answer() for _ in range(int(rest))]
        raise CacheError("this is no Redis server: it says %r" % line[:40])

    def close(self):
        for thing in (self._file, self._socket):
            try:
                if thing is not None:
                    thing.close()
            except EnvironmentError:
                pass


def _connected(address, timeout):
    if address.path is not None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    else:
        connection = socket.create_connection((address.host, address.port), timeout)
    try:
        if address.path is not None:
            connection.settimeout(timeout)
            connection.connect(address.path)
            return connection
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return _with_tls(connection, address) if address.tls else connection
    except BaseException:
        connection.close()
        raise


def _with_tls(connection, address):
    context = ssl.create_default_context(cafile=address.ca_certs)
    if not address.verified:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if address.certfile is not None:
        context.load_cert_chain(address.certfile, address.keyfile)
    return context.wrap_socket(connection, server_hostname=address.host)


def _cache_error(error):
    # ssl has a class of its own for a timeout on Python 2, with nothing but the text to tell.
    is_timeout = isinstance(error, socket.timeout) or "timed out" in str(error)
    kind = CacheTimeout if is_timeout else CacheError
    return kind("%s: %s" % (type(error).__name__, error))


class Link(object):
    """From one database to its namespace in Redis. Safe to use from several threads."""

    def __init__(self, options, has_ids=False):
        """``has_ids``: the database can tell whether a transaction is over."""
        self.options = options
        self.lease = options.LEASE
        self._has_ids = has_ids
        self._idle = []
        self._owed = set()
        self._lock = threading.Lock()
        self._paying = threading.Lock()
        self._tried_at = None
        self._is_looked_at = False

    # What the protocol has.

    def hold(self, intent, tables):
        """Announce a commit to ``tables``, or renew that; returns when it was announced."""
        if not self._is_looked_at:
            self._run(self._look)
            self._is_looked_at = True
        for _ in range(3):
            begun = _clock()
            self._run(self._tell, HOLD, intent, tables)
            # Paused meanwhile, this process may have outlived its own intent.
            if _is_within(self.lease / 3, begun):
                return begun
        raise CacheError("it takes longer to answer than a third of a lease")

    def release(self, intent, tables):
        """The commit is over, one way or the other."""
        self._run(self._tell, RELEASE, intent, tables)

    def bump(self, tables):
        """Make answers that read ``tables`` invalid now."""
        self._run(self._tell, RELEASE, b"", tables)

    def _run(self, work, *args):
        """``work(server, *args)`` with an idle socket, or a new one if that had gone bad.

        Raises CacheError.
        """
        try:
            server = self._idle.pop()
        except IndexError:
            server = None
        if server is not None:
            try:
                self._run_on(server, work, args)
                return
            except CacheTimeout:
                raise
            except CacheError:
                # Other idle sockets are likely as dead as this one.
                self.close()
        server = Server(self.options.address, self.options.SOCKET_TIMEOUT)
        self._run_on(server, work, args)

    def _run_on(self, server, work, args):
        try:
            work(server, *args)
        except BaseException:
            # An interrupted exchange leaves an answer on the socket: never use it again.
            server.close()
            raise
        self._idle.append(server)

    def _keys(self, server, tables):
        namespace = _bytes(self.options.NAMESPACE)
        prefix = b"ormcache:%d:{%s}:%s:r:" % (PROTOCOL, namespace, server.incarnation)
        return [prefix + _bytes(name) for name in tables]

    def _tell(self, server, script, intent, tables):
        keys = self._keys(server, [EVERYTHING] + sorted(tables))
        lease = b"%s%d" % (b"@" if self._has_ids else b"", max(1, self.lease * 1000))
        arguments = [server.replid, _name(), lease, intent]
        text = server.flags + _bytes(script)
        server.call(b"EVAL", text, b"%d" % len(keys), *(keys + arguments))

    def _look(self, server):
        """Nothing else would show that the namespace is misspelt."""
        address = self.options.address
        if not server.call(b"EXISTS", *self._keys(server, [EVERYTHING])):
            _say_once(
                "Since Redis at %s was started, nobody has cached anything in its database %d "
                "under the namespace %r. Is that what `manage.py ormcache status` of the other "
                "project prints?" % (address, address.database, _str(self.options.NAMESPACE))
            )

    def close(self):
        """Close the idle sockets."""
        while True:
            try:
                self._idle.pop().close()
            except IndexError:
                return

    # Before a write.

    def announce(self, tables):
        """A :class:`Hold` of ``tables``; or a :class:`Debt`, if Redis does not answer and
        ``ON_CACHE_FAILURE`` is ``"open"``. Raises CacheUnreachable if it is ``"raise"``.
        """
        tables = {EVERYTHING} if EVERYTHING in tables else set(tables)
        is_open = self.options.ON_CACHE_FAILURE == "open"
        if is_open and self._tried_at is not None and _is_within(self.lease, self._tried_at):
            return Debt(self, tables)
        hold = Hold(self, tables)
        try:
            hold.arm()
        except CacheError as error:
            if is_open:
                if self._tried_at is None:
                    _say("%s does not answer (%s). %s" % (self.options.address, error, _OPEN))
                self._tried_at = _clock()
                return Debt(self, tables)
            raise CacheUnreachable(
                "The write to %s was refused because Redis at %s could not be told of it: %s. "
                '"ON_CACHE_FAILURE": "open" in ORMCACHE_SOUTH would let it through.'
                % (", ".join(sorted(tables)), self.options.address, error)
            )
        self._tried_at = None
        if self.owes:
            self.pay()
        return hold

    # Tables of which Redis was not told.

    @property
    def owes(self):
        return bool(self._owed)

    def owe(self, tables):
        with self._lock:
            self._owed |= set(tables)
        here().keeper.start(self)

    def pay(self):
        """Invalidate what is owed. Returns whether nothing is any more."""
        # One at a time: what another thread is paying is not paid yet.
        with self._paying:
            with self._lock:
                due, self._owed = self._owed, set()
            if due:
                try:
                    self.bump(due)
                except CacheError:
                    with self._lock:
                        self._owed |= due
                else:
                    self._tried_at = None
            return not self.owes


_OPEN = (
    "Writes go on, and the other project may answer with what was true before them until this "
    "process has reached Redis or the answers expire."
)


def _is_within(seconds, begun):
    # Python 2 has no clock that only goes forward.
    return 0 <= _clock() - begun < seconds


# --- holds ---------------------------------------------------------------------------------


class Hold(object):
    """One intent, from its announcement to its end; the keeper renews it."""

    def __init__(self, link, tables):
        self.link = link
        self.tables = tables
        self._intent = _name()
        self._armed_at = None
        self._is_live = True
        # Whoever ends it waits for a renewal that is under way, which would else come after.
        self._lock = threading.Lock()

    def arm(self):
        """Announce it. Raises CacheError."""
        with self._lock:
            self._armed_at = self.link.hold(self._intent, self.tables)
        here().keeper.add(self)

    def keep_trying(self):
        """Let the keeper announce it as soon as Redis answers."""
        here().keeper.add(self)

    def renew(self):
        """Announce it again if the last time was more than a third of a lease ago."""
        with self._lock:
            at = self._armed_at
            if self._is_live and (at is None or not _is_within(self.link.lease / 3, at)):
                self._armed_at = self.link.hold(self._intent, self.tables)

    def is_in_force(self):
        """Whether the lease of the last announcement has not ended."""
        return self._armed_at is not None and _is_within(self.link.lease, self._armed_at)

    def release(self):
        """It is over: nothing of it can take effect any more. Returns whether Redis knows."""
        self.leave()
        try:
            self.link.release(self._intent, self.tables)
        except CacheError:
            # The lease ends it, with the same effect.
            if not self.is_in_force():
                self.link.owe(self.tables)
            return False
        return True

    def leave(self):
        """Nobody knows whether it is over: leave it to its lease."""
        here().keeper.remove(self)
        with self._lock:
            self._is_live = False


class Debt(object):
    """Stands for a :class:`Hold` where Redis did not answer."""

    def __init__(self, link, tables):
        self._link = link
        self._tables = tables

    def release(self):
        self._link.owe(self._tables)

    leave = release


class Keeper(object):
    """The intents of this process, and the thread that renews them and pays what is owed."""

    def __init__(self):
        self._holds = set()
        self._links = set()
        self._thread = None
        self._lock = threading.Lock()
        self._is_stopped = False

    def add(self, hold):
        with self._lock:
            self._holds.add(hold)
        self.start(hold.link)

    def remove(self, hold):
        with self._lock:
            self._holds.discard(hold)

    def start(self, link):
        with self._lock:
            self._links.add(link)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="ormcache-south")
                self._thread.daemon = True
                self._thread.start()

    def stop(self):
        self._is_stopped = True

    def _run(self):
        # Python 2 takes the globals away while a daemon thread may still wake up.
        sleep = time.sleep
        while True:
            sleep(min(link.lease for link in self._copy(self._links)) / 6)
            if self._is_stopped:
                return
            try:
                self.renew()
            except Exception as error:
                # Holds to come need this thread all the same.
                _say_once("Holds could not be renewed: %r" % error)

    def _copy(self, things):
        with self._lock:
            return list(things)

    def renew(self):
        for hold in self._copy(self._holds):
            try:
                hold.renew()
            except CacheError:
                # The next round tries again.
                continue
        for link in self._copy(self._links):
            if link.owes:
                link.pay()


class Process(object):
    """What this process knows; a fork begins anew, with sockets and threads of its own."""

    def __init__(self, options):
        self.pid = os.getpid()
        self.links = {
            alias: Link(its, connections[alias].vendor == "postgresql")
            for alias, its in options.items()
            if its is not None
        }
        self.keeper = Keeper()
        self.migrations = {}


_options = None
_names = {}
_process = None
_said = set()


def here():
    """The state of this process."""
    global _process
    process = _process
    if process is None or process.pid != os.getpid():
        process = _process = Process(_options or {})
    return process


def _say(text):
    sys.stderr.write("ormcache_south: %s\n" % text)
    sys.stderr.flush()


def _say_once(text):
    if text not in _said:
        _said.add(text)
        _say(text)


def _link_of(connection):
    """The link of a connection, or None if nothing is to be told of it."""
    alias = connection.alias
    link = here().links.get(alias)
    if link is None:
        if _options is not None and alias not in _options:
            _say_once(
                "The database %r is not in ORMCACHE_SOUTH: nobody is told of what happens to it. "
                "None instead of a dict says that this is meant." % _str(alias)
            )
        return None
    name = connection.settings_dict["NAME"]
    # Not mail.outbox, which a server has, too, whose mails stay in memory.
    if name != _names[alias] or hasattr(mail, "_original_email_backend"):
        _say_once(
            "This is a test run, or the database %r is not the one that the settings named: "
            "nobody is told of what happens to %r." % (_str(alias), name)
        )
        return None
    return link


# --- migrations ----------------------------------------------------------------------------


class Migration(object):
    """Everything in a namespace is held while apps of its database are migrated."""

    def __init__(self, link, connection):
        self.hold = Hold(link, {EVERYTHING})
        self.apps = set()
        self._connection = connection
        self._is_doubtful = False

    def begin(self):
        # A session that was lost is closed, and the next one knows nothing of it.
        close = self._connection.close

        def look_and_close():
            self.look()
            close()

        self._connection.close = look_and_close

    def look(self):
        """Note whether a commit may be on its way; undoes what is not committed.

        A migration that failed may have lost its connection in the middle of a COMMIT. If the
        session still answers, the server is done with all that came before.
        """
        connection = self._connection
        # SQLite's library runs in this process: nothing is on its way.
        if connection.connection is None or connection.vendor == "sqlite":
            return
        try:
            connection.connection.rollback()
            is_usable = connection.is_usable()
        except Exception:
            is_usable = False
        if not is_usable:
            self._is_doubtful = True

    def end(self):
        """Returns whether Redis knows, or will by itself."""
        self._connection.__dict__.pop("close", None)
        if self._is_doubtful:
            self.hold.leave()
            return True
        return self.hold.release() or not self.hold.link.owes


_SYNCDB = object()
"""Stands for an app in Migration.apps; syncdb has no signal for its end."""


def _begin(alias, app):
    connection = connections[alias]
    link = _link_of(connection)
    if link is None:
        return
    migrations = here().migrations
    migration = migrations.get(alias) or Migration(link, connection)
    try:
        migration.hold.arm()
    except CacheError as error:
        if link.options.ON_CACHE_FAILURE == "raise":
            raise CommandError(
                "Nothing was migrated, because Redis at %s could not be told: %s. "
                '"ON_CACHE_FAILURE": "open" in ORMCACHE_SOUTH would let it through.'
                % (link.options.address, error)
            )
        _say("%s does not answer (%s). %s" % (link.options.address, error, _OPEN))
        migration.hold.keep_trying()
    migration.apps.add(app)
    if alias not in migrations:
        migrations[alias] = migration
        migration.begin()


def _pre_migrate(app, db, **kwargs):
    """Receiver of South's signal; ``interactive`` holds the verbosity there."""
    _begin(db, app)


def _ran_migration(app, db, **kwargs):
    """Once per migration, after its own transaction; not for --fake and --db-dry-run."""
    migration = here().migrations.get(db)
    if migration is None:
        return
    link = migration.hold.link
    try:
        # Had the lease ended, answers may have been stored in between: this ends them, too.
        migration.hold.arm()
    except CacheError as error:
        link.owe({EVERYTHING})
        if link.options.ON_CACHE_FAILURE == "raise":
            raise CommandError(
                "The migration is done and recorded, but Redis at %s could not be told: %s. "
                "No further one is run. Once Redis answers, run `migrate` again, or "
                "`manage.py ormcache flush` in the other project." % (link.options.address, error)
            )


def _post_migrate(app, db, **kwargs):
    """Receiver of South's signal: also sent if there was nothing to do; not after a failure."""
    migration = here().migrations.get(db)
    if migration is None:
        return
    migration.apps.discard(app)
    if not migration.apps:
        release(db)


def _pre_syncdb(db, **kwargs):
    _begin(db, _SYNCDB)


def _post_syncdb(db, **kwargs):
    """``flush`` sends this one only; South does for tables that a migration has made."""
    if db not in here().migrations:
        _begin(db, _SYNCDB)


def release(alias):
    """End what a migration or syncdb holds of the database ``alias``, if it holds anything.

    Only for processes that go on after ``syncdb``, ``flush`` or a migration that failed; for all
    others this is done when they end.
    """
    migration = here().migrations.pop(alias, None)
    if migration is None:
        return
    link = migration.hold.link
    if not migration.end() and not link.pay():
        text = (
            "Redis at %s could not be told of the end. Once it answers, run `manage.py ormcache "
            "flush` in the other project." % link.options.address
        )
        if link.options.ON_CACHE_FAILURE == "raise":
            raise CommandError(text)
        _say(text)


@atexit.register
def _at_exit():
    """After a migration that failed, ``syncdb`` and ``flush``."""
    process = _process
    if process is None or process.pid != os.getpid():
        return
    process.keeper.stop()
    for alias in list(process.migrations):
        migration = process.migrations.pop(alias)
        migration.look()
        migration.end()
    for link in process.links.values():
        if not link.pay():
            _say(
                "Redis at %s was not told of all writes. Once it answers, run `manage.py "
                "ormcache flush` in the other project." % link.options.address
            )


# --- what a statement writes ---------------------------------------------------------------

_PART = r'(?:"[^"]+"|`[^`]+`|\[[^\]]+\]|[A-Za-z_][\w$]*)'
_TABLE = r"(?:%s\s*\.\s*)?(?P<table>%s)" % (_PART, _PART)
_WRITE = re.compile(
    r"\s*(?:"
    r"(?:INSERT\s+(?:OR\s+\w+\s+|IGNORE\s+)?INTO|REPLACE\s+INTO)\s+%s"
    r"\s*(?:\(|VALUES\b|SELECT\b|DEFAULT\b|SET\b)"
    r"|UPDATE\s+%s\s+SET\b"
    r"|DELETE\s+FROM\s+%s\s*(?:\Z|WHERE\b)"
    r")" % tuple(_TABLE.replace("table", "table%d" % number) for number in (1, 2, 3)),
    re.IGNORECASE,
)
_INTO = re.compile(r"\binto\b", re.IGNORECASE)
_VERB = re.compile(r"[\s(]*([A-Za-z]+)")
_MAY_WRITE = re.compile(
    r"\b(?:analy[sz]e|autocommit|delete|insert|into|merge|replace|update)\b", re.IGNORECASE
)
_CONTROLS = frozenset(
    "begin close declare desc describe explain fetch listen lock move notify pragma reset "
    "rollback savepoint set show start unlisten unlock use values with".split()
)

READ = "read"
WRITE = "write"
CONTROL = "control"
RELEASE_SAVEPOINT = "release"
_WRITE_ANYTHING = (WRITE, frozenset((EVERYTHING,)))


def effect_of(statement):
    """What a statement does, and the names of the tables it writes.

    A WRITE of which the tables cannot be told writes :data:`EVERYTHING`. CONTROL writes nothing,
    but may commit what was written before, and so may RELEASE_SAVEPOINT.
    """
    if not isinstance(statement, _text_types):
        return _WRITE_ANYTHING
    text = _str(statement)
    match = _VERB.match(text)
    verb = match.group(1).lower() if match else ""
    if ";" in text.rstrip("; \t\r\n"):
        return _WRITE_ANYTHING
    if verb == "select" and not _INTO.search(text):
        return READ, frozenset()
    match = _WRITE.match(text)
    if match is not None:
        return WRITE, frozenset((_folded(match.group(match.lastgroup)),))
    if verb == "release":
        return RELEASE_SAVEPOINT, frozenset()
    if verb in _CONTROLS and not _MAY_WRITE.search(text):
        return CONTROL, frozenset()
    return _WRITE_ANYTHING


def _folded(name):
    """As ``ormcache.sql.table_name`` has it, for names in ASCII."""
    name = name.strip('"`[]').lower()
    return name if re.match(r"[ -~]+\Z", name) else EVERYTHING


def _with_triggers(tables, also):
    found, new = set(), set(tables)
    while new:
        found |= new
        new = {other for name in new for other in also.get(name, ())} - found
    return found


# --- the project's own writes --------------------------------------------------------------

_DIRTY = "_ormcache_south"


def _dirty(connection):
    """Tables written in the transaction that is open on ``connection``."""
    return connection.__dict__.setdefault(_DIRTY, set())


def _writing_link(connection):
    options = _options.get(connection.alias)
    if options is not None and not options.WRITES:
        return None
    return _link_of(connection)


def _bracketed(connection, link, tables, operation):
    """Run ``operation``, which lets others see changes of ``tables``, between hold and release."""
    return _until_over(link.announce(tables), connection, operation)


def _until_over(hold, connection, operation):
    try:
        result = operation()
    except BaseException as error:
        if _outcome_is_known(connection, error):
            hold.release()
        else:
            hold.leave()
        raise
    hold.release()
    return result


def _outcome_is_known(connection, error):
    """Whether a failed statement surely has no effect that is still to come.

    A lost connection says nothing about the COMMIT that was sent on it.
    """
    if not isinstance(error, db.Error):
        return False
    if connection.vendor == "sqlite":
        return "disk I/O error" not in str(error)
    if isinstance(error, (db.IntegrityError, db.DataError, db.NotSupportedError)):
        return True
    if isinstance(error, db.InterfaceError):
        return False
    if connection.vendor == "mysql":
        # Lock wait timeout and deadlock; client errors start at 2000.
        code = error.args[0] if error.args else None
        if isinstance(error, db.ProgrammingError):
            return not isinstance(code, int) or code < 2000
        return code in (1205, 1213)
    if isinstance(error, db.ProgrammingError):
        return True
    state = getattr(getattr(error, "__cause__", None), "pgcode", None)
    return bool(state) and state[:2] not in ("08", "53", "57", "58", "XX") and state != "40003"


def _apply(connection, link, effect, operation):
    """Run a statement, and do what its effect asks of the transaction."""
    kind, tables = effect
    if kind == READ:
        return operation()
    dirty = _dirty(connection)
    is_inside = connection.in_atomic_block or not connection.autocommit
    if kind == RELEASE_SAVEPOINT and not is_inside:
        # What SQLite began with a SAVEPOINT is committed by this.
        kind, tables = _WRITE_ANYTHING
    if kind != WRITE:
        # sqlite3 commits before all that it does not know, unless atomic() has sent BEGIN.
        is_safe = connection.vendor == "postgresql" or (
            connection.vendor == "sqlite" and connection.in_atomic_block
        )
        if is_safe or not dirty:
            return operation()
        return _bracketed(connection, link, dirty, operation)
    tables = _with_triggers(tables, link.options.also_writes)
    if is_inside:
        # Before the statement runs: it may fail half-way.
        dirty |= tables
        # Others see at once what DDL does on MySQL and SQLite and all that MyISAM does, and what
        # is not understood here may be COMMIT.
        if connection.vendor in ("postgresql", "sqlite") and EVERYTHING not in tables:
            return operation()
    return _bracketed(connection, link, dirty | tables, operation)


def _execute(original, cursor, sql, *args, **kwargs):
    """``CursorWrapper.execute`` and ``executemany``."""
    link = _writing_link(cursor.db)
    if link is None:
        return original(cursor, sql, *args, **kwargs)
    return _apply(cursor.db, link, effect_of(sql), lambda: original(cursor, sql, *args, **kwargs))


def _write_anything(connection, operation):
    link = _writing_link(connection)
    if link is None:
        return operation()
    return _apply(connection, link, _WRITE_ANYTHING, operation)


def _callproc(original, cursor, *args, **kwargs):
    """``CursorWrapper.callproc``: a procedure may write anything."""
    return _write_anything(cursor.db, lambda: original(cursor, *args, **kwargs))


_DRIVER_WRITES = frozenset(("copy_from", "copy_expert", "executescript"))


def _driver_attribute(original, cursor, name):
    """``CursorWrapper.__getattr__``, which gives what only the driver's cursor has."""
    attribute = original(cursor, name)
    if name not in _DRIVER_WRITES:
        return attribute
    return lambda *args, **kwargs: _write_anything(cursor.db, lambda: attribute(*args, **kwargs))


def _commit(original, connection):
    """``BaseDatabaseWrapper.commit``."""
    _publish(connection, lambda: original(connection))


def _publish(connection, operation):
    """Run ``operation``, which commits what the connection has written."""
    dirty = _dirty(connection)
    # Django refuses to commit in an atomic block.
    link = _writing_link(connection) if dirty and not connection.in_atomic_block else None
    if link is None:
        operation()
        return
    try:
        hold = link.announce(dirty)
    except db.DatabaseError:
        # atomic() rolls back for these.
        raise
    except BaseException:
        # For any other error atomic() goes on to set_autocommit(True), and MySQL and SQLite
        # would commit there what was never announced.
        connection.rollback()
        raise
    _until_over(hold, connection, operation)
    dirty.clear()


def _set_autocommit(original, connection, autocommit):
    """``BaseDatabaseWrapper.set_autocommit``: True commits what is open on MySQL and SQLite."""
    if autocommit:
        _publish(connection, lambda: original(connection, autocommit))
    else:
        original(connection, autocommit)


def _ending(original, connection):
    """``rollback`` and ``close``: what was not committed never will be."""
    original(connection)
    _dirty(connection).clear()


def _connecting(original, connection):
    """``connect``: a new session, which at once sets its autocommit."""
    _dirty(connection).clear()
    original(connection)


def _patch(owner, name, replacement):
    original = owner.__dict__[name]

    @functools.wraps(original)
    def patched(self, *args, **kwargs):
        return replacement(original, self, *args, **kwargs)

    setattr(owner, name, patched)


def _watch_writes():
    from django.db.backends import BaseDatabaseWrapper, util

    for name, replacement in (
        ("execute", _execute),
        ("executemany", _execute),
        ("callproc", _callproc),
        ("__getattr__", _driver_attribute),
    ):
        _patch(util.CursorWrapper, name, replacement)
    for name, replacement in (
        ("commit", _commit),
        ("set_autocommit", _set_autocommit),
        ("rollback", _ending),
        ("close", _ending),
        ("connect", _connecting),
    ):
        _patch(BaseDatabaseWrapper, name, replacement)


# --- public --------------------------------------------------------------------------------


def connect():
    """Begin to tell ormcache, as ``settings.ORMCACHE_SOUTH`` says. Twice is once.

    Being in ``INSTALLED_APPS`` is enough for ``manage.py``. Raises ImproperlyConfigured.
    """
    global _options
    if _options is not None:
        return
    if django.VERSION[:2] != (1, 6):
        raise ImproperlyConfigured(
            "ormcache_south is for Django 1.6; this is %s. Newer ones use ormcache itself, from "
            "Django 5.2 on." % django.get_version()
        )
    from django.conf import settings
    from django.db.models import signals

    options = parse(getattr(settings, "ORMCACHE_SOUTH", None), settings.DATABASES)
    for alias in options:
        # Kept, because a test run puts other names into the settings themselves.
        _names[alias] = settings.DATABASES[alias]["NAME"]
    if any(its is not None and its.WRITES for its in options.values()):
        _watch_writes()
    _options = options
    signals.pre_syncdb.connect(_pre_syncdb, dispatch_uid="ormcache_south")
    signals.post_syncdb.connect(_post_syncdb, dispatch_uid="ormcache_south")
    try:
        from south import signals as south
    except ImportError:
        return
    south.pre_migrate.connect(_pre_migrate, dispatch_uid="ormcache_south")
    south.ran_migration.connect(_ran_migration, dispatch_uid="ormcache_south")
    south.post_migrate.connect(_post_migrate, dispatch_uid="ormcache_south")


def invalidate(alias, *tables):
    """Make answers that read ``tables`` of a database invalid; all of them if none is named.

    For writes that neither migrations nor ``WRITES`` announce; call it after the commit. Raises
    CacheUnreachable if Redis does not answer and ``ON_CACHE_FAILURE`` is ``"raise"``.
    """
    link = _link_of(connections[alias])
    if link is not None:
        link.announce({_folded(name) for name in tables} or {EVERYTHING}).release()


def _is_installed():
    from django.conf import settings

    try:
        return __name__ in settings.INSTALLED_APPS
    except (ImproperlyConfigured, ImportError):
        return False


if _is_installed():
    connect()
