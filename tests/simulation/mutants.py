"""The client and its scripts with one device taken away.

With each of them the simulation must find a wrong answer, or else it would prove nothing. They are
made here, by patches and by other texts of the scripts: nothing that is shipped knows of them.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest import mock

from ormcache import (
    brackets,
    bursts,
    conf,
    debts,
    fence,
    fence_rows,
    flights,
    leases,
    overdue,
    plans,
    reads,
    snapshots,
    transactions,
)
from ormcache.stores import channels
from ormcache.stores import redis as redis_store
from tests.simulation.database import END_OF_SNAPSHOT

Mutant = Callable[[], AbstractContextManager[object]]

FOUND = Path(__file__).with_name("found.json")


def found() -> dict[str, int]:
    """By mutant, a schedule in which it gave a wrong answer: a hint where to look first.

    `python -m tests.simulation --find` writes it. What a schedule does changes with the client.
    """
    schedules: dict[str, int] = json.loads(FOUND.read_text(encoding="utf-8"))
    return schedules


def _scripts(old: str, new: str, *names: str) -> Mutant:
    """Other scripts: in those of these names, or in all, `new` stands for `old`."""

    def mutant() -> AbstractContextManager[object]:
        scripts = dict(redis_store.SCRIPTS)
        for name in names or scripts:
            assert old in scripts[name], f"{name} has no {old!r}"
            scripts[name] = scripts[name].replace(old, new)
        return mock.patch.object(redis_store, "SCRIPTS", scripts)

    return mutant


def _patch(owner: Any, name: str, replacement: Any) -> Mutant:
    return lambda: mock.patch.object(owner, name, replacement)


def _all(*mutants: Mutant) -> Mutant:
    @contextlib.contextmanager
    def all_of_them() -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for mutant in mutants:
                stack.enter_context(mutant())
            yield

    return all_of_them


# --- transactions --------------------------------------------------------------------------


def _arm_after(original: Callable[..., Any]) -> Callable[..., Any]:
    """`brackets.announce`, whose bracket arms when it ends."""

    def announce(connection: Any, state: Any, tables: Any, *args: Any) -> Any:
        route = state.route(connection, brackets.current())
        bracket = brackets._bracket(route, tables)

        class Late:
            def end(self, *, known: bool = True) -> None:
                with contextlib.suppress(brackets.CacheUnreachable):
                    bracket.arm()
                bracket.end(known=known)

        return Late()

    return announce


def _without_own_writes(original: Callable[..., Any]) -> Callable[..., Any]:
    """`plans._restrain`, which does not know what its transaction has written."""

    def restrain(plan: Any, connection: Any, state: Any, *args: Any) -> Any:
        dirty, state.dirty = state.dirty, set()
        try:
            return original(plan, connection, state, *args)
        finally:
            state.dirty = dirty

    return restrain


def _with_registers_read_late(original: Callable[..., Any]) -> Callable[..., Any]:
    """`reads._store`, which asks for the registers only now."""

    def store(read: Any, *args: Any) -> Any:
        lookup = reads.look_up(read.route, read.plan)
        return original(read._replace(vector=lookup.vector or read.vector), *args)

    return store


def _of_any_registers(original: Callable[..., Any]) -> Callable[..., Any]:
    """`flights.take_off`, which does not ask what the readers have seen."""
    return lambda name: original((*name[:2], ""))


def _without_taking(original: Callable[..., Any]) -> Callable[..., Any]:
    """`Bursts.take`, which leaves the intent for the next one, too."""

    def take(self: Any, *args: Any) -> Any:
        waiting = dict(self._waiting)
        try:
            return original(self, *args)
        finally:
            self._waiting.update(waiting)

    return take


# --- the store -----------------------------------------------------------------------------


def _with_sockets_kept(original: Callable[..., Any]) -> Callable[..., Any]:
    """`Channels.run`, which goes on with a socket whose answer did not come in time."""

    def run(self: Any, work: Any, *args: Any) -> Any:
        kept = self._idle[-1] if self._idle else None
        try:
            return original(self, work, *args)
        except channels.CacheTimeout:
            if kept is not None:
                kept._connection._error = None
                self._idle.append(kept)
            raise

    return run


@contextlib.contextmanager
def _one_incarnation() -> Iterator[None]:
    """Keys that are the same whichever server it is."""
    original = redis_store.RedisStore._prefix

    def prefix(self: Any, namespace: str, channel: Any) -> str:
        return original(self, namespace, channel).replace(channel.incarnation, "one")

    with mock.patch.object(redis_store.RedisStore, "_prefix", prefix):
        yield


_LOST = """      if ends > clock() then
        redis.call('HSET', key, 'd', id .. '=' .. ends)
      end"""
_BIRTH = """,
    'd', lost .. '=' .. clock() + lease)"""
_OTHERS = "if not mine(id) then"
_NOTE = "redis.call('HSETNX', KEYS[1], 't:' .. string.match(KEYS[i], ':r:(.*)$'), 1)"
_COMPARE = "string.sub(entry, 1, #head) == head then\n    return entry"

MUTANTS: dict[str, Mutant] = {
    "no quarantine of a lost register": _scripts(_LOST, ""),
    "no quarantine of a lost namespace": _all(
        _scripts(_BIRTH, ")"), _scripts("'b', clock(), 'l', lease", "'b', 0, 'l', lease")
    ),
    "arm does not note the register": _scripts(_NOTE, "", "arm"),
    "no lease": _all(
        _scripts("(clock() + lease)", "clock()", "arm"),
        _scripts("time[2] / 1000) + ms", "time[2] / 1000)", "arm"),
    ),
    "a lease is not renewed": _patch(leases.Keeper, "renew", lambda self: None),
    "nobody looks how old an announcement is": _patch(
        brackets.Bracket, "_is_fresh", lambda self: True
    ),
    "finish takes all intents away": _scripts(_OTHERS, "if false then", "finish"),
    "arm takes other intents away": _scripts(_OTHERS, "if false then", "arm"),
    "keys without the incarnation": lambda: _one_incarnation(),
    "scripts do not ask which server this is": _scripts(redis_store._script("incarnation"), ""),
    "a snapshot is stored": _patch(snapshots, "_isolation", lambda connection, state: None),
    "registers are read after the query": _patch(
        reads, "_store", _with_registers_read_late(reads._store)
    ),
    "no new nonce for a commit": _all(
        _scripts("'n', nonce, 'd', table", "'d', table", "arm"),
        _scripts("'n', ARGV[2], 'd', ARGV[4]", "'d', ARGV[4]", "arm"),
        _scripts("redis.call('HSET', KEYS[i], 'n', nonce)", "", "finish"),
        _scripts("redis.call('HSET', KEYS[i], 'n', ARGV[2])", "", "finish"),
    ),
    "readers wait for others who saw other registers": _patch(
        flights, "take_off", _of_any_registers(flights.take_off)
    ),
    "an entry is served under any vector": _scripts(
        _COMPARE, "true then\n    return head .. string.match(entry, '|(.*)$')", "read"
    ),
    "an entry is served under any name": _scripts(
        _COMPARE,
        "string.sub(entry, 41, #head) == string.sub(head, 41) then\n"
        "    return head .. string.sub(entry, #head + 1)",
        "read",
    ),
    "the quick way to arm takes other intents away": _scripts(" and not register[2]", "", "arm"),
    "the quick way to arm does not ask what is known": _scripts(
        "plain and facts[i + 2] and", "plain and", "arm"
    ),
    "the quick way to finish takes other intents away": _scripts(
        "string.match(register[2] or '', '^([^=,]+)=%d+$') == ARGV[4]", "true", "finish"
    ),
    "two commits at once share an intent": _patch(
        bursts.Bursts, "take", _without_taking(bursts.Bursts.take)
    ),
    "arm after the commit": _patch(brackets, "announce", _arm_after(brackets.announce)),
    "transactions announce nothing": _patch(
        transactions, "_announce_commit", lambda connection, state: None
    ),
    "finish though the outcome is unknown": _patch(
        brackets, "outcome_is_known", lambda connection, error: True
    ),
    "commit though the announcement failed": _patch(
        brackets.Bracket, "_not_armed", lambda self, *args: None
    ),
    "what the transaction has written is read from the cache": _patch(
        plans, "_restrain", _without_own_writes(plans._restrain)
    ),
    "an overdue transaction is taken to be over": _scripts(
        " or string.sub(id, 1, 1) == '@' then\n      kept", " then\n      kept"
    ),
    "what was lost is trusted after a lease": _scripts("and '@Q' or 'Q'", "and 'Q' or 'Q'"),
    "whoever asks takes all transactions for over": _scripts(
        "tonumber(ARGV[6]) >= tonumber(horizon)", "true", "settle"
    ),
    "the horizon is the end of a snapshot": _patch(overdue, "_HORIZON", END_OF_SNAPSHOT),
    "a socket is used again after a timeout": _patch(
        channels.Channels, "run", _with_sockets_kept(channels.Channels.run)
    ),
}

OPEN_MUTANTS: dict[str, Mutant] = {
    "unannounced writes are forgotten": _all(
        _patch(debts, "owed", lambda route: frozenset()),
        _patch(debts, "pay", lambda route: True),
    ),
    "a debt is paid without telling the cache": _patch(
        redis_store.RedisStore, "bump", lambda self, namespace, tables: None
    ),
}
"""Those of the policy "open"."""

FENCE_MUTANTS: dict[str, Mutant] = {
    "nobody looks into the fence": _patch(fence, "why_not_trust", lambda *args, **kwargs: None),
    "a look is believed for a minute": _patch(conf, "DEFAULT_FENCE", 60.0),
    "rows are removed without telling the cache": _patch(
        fence, "_tell", lambda *args, **kwargs: True
    ),
    "no row is written": _patch(fence_rows, "insert", lambda connection, tables: None),
    "the process that wrote waits for the next look": OPEN_MUTANTS[
        "unannounced writes are forgotten"
    ],
}
"""Those of the policy "fence"."""
