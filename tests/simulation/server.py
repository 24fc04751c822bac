"""Redis: the data of a server in Lua, where the real scripts run, and sockets that lead there."""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import hiredis
import redis
from lupa import lua51

from ormcache.stores import redis as redis_store

if TYPE_CHECKING:
    from tests.simulation.world import World

_COMMANDS = r"""
local server, seconds, micros

local function text(value)
  if type(value) == 'number' then
    return string.format('%.17g', value)
  end
  return value
end

local function hash(key, creates)
  local found = server.data[key]
  if type(found) == 'string' then
    error({err = 'WRONGTYPE Operation against a key holding the wrong kind of value'})
  end
  if creates then
    if not server.is_master then
      error({err = "READONLY You can't write against a read only replica."})
    end
    if not found then
      found = {}
      server.data[key] = found
    end
  end
  return found
end

local commands = {}

function commands.HGET(key, field)
  local found = hash(key)
  return found and found[field] or false
end

function commands.HMGET(key, ...)
  local found, values = hash(key), {...}
  for i = 1, #values do
    values[i] = found and found[values[i]] or false
  end
  return values
end

function commands.HSET(key, ...)
  local found, values, new = hash(key, true), {...}, 0
  for i = 1, #values, 2 do
    if not found[values[i]] then
      new = new + 1
    end
    found[values[i]] = text(values[i + 1])
  end
  return new
end

function commands.HSETNX(key, field, value)
  local found = hash(key, true)
  if found[field] then
    return 0
  end
  found[field] = text(value)
  return 1
end

function commands.HDEL(key, field)
  local found = hash(key, true)
  local was = found[field] and 1 or 0
  found[field] = nil
  return was
end

function commands.GET(key)
  local found = server.data[key]
  if type(found) == 'table' then
    error({err = 'WRONGTYPE Operation against a key holding the wrong kind of value'})
  end
  return found or false
end

function commands.TIME()
  return {text(seconds), text(micros)}
end

function commands.INFO()
  return server.info
end

redis = {}

function redis.call(name, ...)
  return commands[name](...)
end

function redis.pcall(name, ...)
  local is_good, answer = pcall(commands[name], ...)
  return answer
end

function redis.error_reply(text)
  return {err = text}
end

local function answered(is_good, answer)
  if not is_good and type(answer) ~= 'table' then
    return 'error', 'ERR ' .. tostring(answer)
  elseif type(answer) ~= 'table' then
    return 'value', answer
  elseif answer.err then
    return 'error', answer.err
  end
  return 'list', unpack(answer)
end

local functions = {}

function functions.run(on, script, s, us, count, ...)
  server, seconds, micros = on, s, us
  local all = {...}
  KEYS, ARGV = {}, {}
  for i = 1, #all do
    if i <= count then
      KEYS[i] = all[i]
    else
      ARGV[i - count] = all[i]
    end
  end
  return answered(pcall(script))
end

function functions.copy(data)
  local copied = {}
  for key, value in pairs(data) do
    if type(value) == 'table' then
      local fields = {}
      for name, field in pairs(value) do
        fields[name] = field
      end
      value = fields
    end
    copied[key] = value
  end
  return copied
end

function functions.keys(data)
  local found = {}
  for key in pairs(data) do
    found[#found + 1] = key
  end
  table.sort(found)
  return unpack(found)
end

function functions.copy_key(data, from, to)
  data[to] = data[from]
end

return functions
"""

_lua = lua51.LuaRuntime(encoding=None, unpack_returned_tuples=True)
_functions = _lua.execute(_COMMANDS.encode())
_run, _copy, _keys, copy_key = (
    _functions[name] for name in (b"run", b"copy", b"keys", b"copy_key")
)
_scripts: dict[bytes, Any] = {}
"""Compiled, by their text: the same for all servers that know it."""
_names: dict[bytes, str] = {}
"""What the client calls each script, by the server's name for it."""


def parse(stream: bytes) -> Iterator[list[bytes]]:
    """The commands in bytes of Redis' wire protocol."""
    # They are arrays of strings, as an answer may be.
    reader = hiredis.Reader()
    reader.feed(stream)
    while (command := reader.gets()) is not False:
        assert type(command) is list, command
        yield command
    assert not reader.has_data(), stream


class Server:
    """One process of Redis: what it holds, and who it says it is."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.clock = 0.0
        """By how much it is ahead of the world's, in seconds."""
        self.major = 7
        self._lua = _lua.table()
        self.scripts: dict[bytes, Any] = {}
        self.run_id = self.replid = ""
        self.is_master = True
        self.data = _lua.table()

    @property
    def data(self) -> Any:
        return self._lua[b"data"]

    @data.setter
    def data(self, data: Any) -> None:
        self._lua[b"data"] = data

    def copied(self) -> Any:
        return _copy(self.data)

    @staticmethod
    def copy_of(data: Any) -> Any:
        """A copy of other data, or none at all."""
        return _lua.table() if data is None else _copy(data)

    def names(self) -> tuple[bytes, ...]:
        found = _keys(self.data)
        if found is None:
            return ()
        return found if isinstance(found, tuple) else (found,)

    def become(self, *, run_id: str, replid: str, is_master: bool) -> None:
        self.run_id, self.replid, self.is_master = run_id, replid, is_master
        role = "master" if is_master else "slave"
        self._info = f"role:{role}\r\nmaster_replid:{replid}\r\n".encode()
        self._lua[b"info"], self._lua[b"is_master"] = self._info, is_master

    def now(self) -> float:
        return self.world.now * self.world.rate + self.clock

    def execute(self, command: list[bytes]) -> Any:
        """The answer to a command; an exception is one as well."""
        name = command[0]
        if name == b"EVALSHA":
            return self._evaluate(command)
        if name == b"SET":
            if not self.is_master:
                return redis.exceptions.ReadOnlyError("READONLY")
            self.data[command[1]] = command[2]
            return b"OK"
        if name == b"INFO":
            if command[1] == b"server":
                return f"redis_version:{self.major}.0.0\r\nrun_id:{self.run_id}\r\n".encode()
            return self._info
        if name == b"CLIENT":
            # Some proxies do not know it.
            return b"OK" if self.major >= 7 else redis.exceptions.ResponseError("unknown command")
        if name == b"TIME":
            seconds, rest = divmod(self.now(), 1)
            return [b"%d" % seconds, b"%d" % (rest * 1e6)]
        assert name == b"SCRIPT", command
        text = command[2]
        sha = hashlib.sha1(text).hexdigest().encode()
        if text not in _scripts:
            for known, script in redis_store.SCRIPTS.items():
                if text.endswith(script.encode()):
                    _names[sha] = known
            body = text.partition(b"\n")[2] if text.startswith(b"#!lua") else text
            _scripts[text] = (_lua.compile(body), text.startswith(b"#!lua"))
        self.scripts[sha] = _scripts[text]
        return sha

    def _evaluate(self, command: list[bytes]) -> Any:
        found = self.scripts.get(command[1])
        if found is None:
            return redis.exceptions.NoScriptError("NOSCRIPT")
        script, has_flags = found
        if has_flags and not self.is_master:
            return redis.exceptions.ReadOnlyError("READONLY")
        seconds, rest = divmod(self.now(), 1)
        answer = _run(
            self._lua, script, int(seconds), int(rest * 1e6), int(command[2]), *command[3:]
        )
        kind, *values = answer
        if kind == b"value":
            value = values[0] if values else None
            return int(value) if isinstance(value, float) else value
        if kind == b"error":
            return redis.exceptions.ResponseError(values[0].decode())
        return [int(value) if isinstance(value, float) else value for value in values]


_SKIP_REPLY = [b"CLIENT", b"REPLY", b"SKIP"]


class Socket(redis.connection.Connection):
    """What stands for redis-py's connection: commands on their way, and answers on theirs."""

    world: World

    def __init__(self, **options: Any) -> None:
        self.inbox: deque[list[bytes]] = deque()
        """Sent and not executed."""
        self._answers: deque[Any] = deque()
        self._error: BaseException | None = None
        self._reader: Any = None
        self.is_closed = False

    def __del__(self) -> None:
        pass

    def __repr__(self) -> str:
        return f"socket to {self.server.name}"

    # What the client calls.

    def connect(self) -> None:
        self.world.scheduler.check(self.world.scheduler.current)
        self.process = self.world.process
        self.server = self.world.primary
        self.world.sockets.append(self)

    def disconnect(self, *args: Any) -> None:
        self.is_closed = True

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        world = self.world
        world.scheduler.check(world.scheduler.current)
        if self._error is not None:
            raise self._error
        was_empty = not self.inbox
        self.inbox.extend(parse(b"".join(command)))
        if was_empty:
            world.ready.append(self)

    def read_response(self, *args: Any, **options: Any) -> Any:
        world = self.world
        while not self._answers:
            if self._error is not None:
                raise self._error
            if world.scheduler.current is None:
                self.deliver()
            else:
                self._reader = world.scheduler.current
                world.scheduler.wait()
        answer = self._answers.popleft()
        if isinstance(answer, Exception):
            raise answer
        return answer

    # What happens to it.

    def deliver(self) -> None:
        """The server executes the next command."""
        command = self.inbox.popleft()
        is_heard = command != _SKIP_REPLY
        if not is_heard:
            # It was sent together with the command that it is about.
            command = self.inbox.popleft()
        if not self.inbox:
            self.world.ready.remove(self)
        answer = self.server.execute(command)
        if self.world.trace is not None:
            self.world.tell(f"{self.server.name}: {_told(command)} -> {answer!r}")
        if is_heard:
            self._answers.append(answer)
            self._wake()
        if command[0] == b"SET":
            self.world.observe(0.3)

    def deliver_unheard(self) -> None:
        """The server executes what was sent, and the connection is lost before it answers."""
        reader, self._reader = self._reader, None
        while self.inbox:
            self.deliver()
        self._reader = reader
        self.cut()

    def time_out(self) -> None:
        """Whoever waits gives up; what is on its way may still arrive."""
        self._error = redis.exceptions.TimeoutError("Timeout reading from socket")
        self._wake()

    def cut(self, *, drops: bool = True) -> None:
        """The connection is lost; with `drops`, so is what the server has not executed."""
        self._error = redis.exceptions.ConnectionError("Connection lost")
        self._answers.clear()
        if drops and self.inbox:
            self.inbox.clear()
            self.world.ready.remove(self)
        self._wake()

    @property
    def is_awaited(self) -> bool:
        return self._reader is not None

    def _wake(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None and not reader.is_dead:
            self.world.scheduler.wake(reader)


class Pool:
    """What `RedisStore` takes for redis-py's pool."""

    connection_class = Socket
    connection_kwargs: dict[str, Any] = {}


_SHORT = re.compile(rb"ormcache:\d+:\{[^}]*\}:")


def _told(command: list[bytes]) -> str:
    """A command for those who read: without namespaces, and with scripts by their names."""
    if command[0] == b"SCRIPT":
        return "SCRIPT LOAD"
    parts = [_SHORT.sub(b"", part).decode("utf-8", "replace") for part in command]
    if command[0] == b"EVALSHA":
        count = int(command[2])
        parts = [_names.get(command[1], "?"), *parts[3 : 3 + count], "by", *parts[4 + count :]]
    return " ".join(parts)
