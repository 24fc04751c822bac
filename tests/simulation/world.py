"""Processes, servers and a clock; what happens to them, and in which order."""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import random
import sys
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

from django.db import transaction
from django.db.backends.base import base
from django.db.backends.base.base import BaseDatabaseWrapper
from django.dispatch import Signal
from django.test import override_settings

from ormcache import (
    brackets,
    bursts,
    catalog,
    connection_state,
    debts,
    fence,
    flights,
    leases,
    overdue,
    reads,
    stores,
    templates,
    unseen,
)
from ormcache.conf import current
from ormcache.routers import namespaces
from ormcache.stores import Breaker, breaker, channels, flushing
from ormcache.stores.base import new_nonce
from ormcache.stores.redis import RedisStore
from tests.simulation import actors
from tests.simulation.database import BEGINNING, QUESTIONS, TABLES, Commit, Connection, Database
from tests.simulation.scheduler import Event, Scheduler
from tests.simulation.server import Pool, Server, Socket, copy_key

PROCESSES = 2
CONNECTIONS = 3
"""Of each process: as many actors as it can have, and one for the last questions."""
_MAJORS = (6, 7)
"""Versions of Redis: the newer refuses scripts on replicas by itself."""


class Outcome(NamedTuple):
    """What became of one schedule."""

    violations: list[str]
    steps: int
    reads: int
    hits: int


class _Warm(NamedTuple):
    """What most schedules begin with."""

    data: tuple[Any, ...]
    """What the primary may hold: a namespace that is trusted, and older or younger, or none."""
    channel: channels.Channel
    scripts: dict[bytes, Any]


class _Flusher:
    """Stands for `flushing.flusher`, which has a thread."""

    def __init__(self) -> None:
        self.due: set[Any] = set()

    def notice(self, owner: Any) -> None:
        self.due.add(owner)


class Process:
    """What one process of a project has for itself: modules' state, sockets, connections."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.name = f"P{number}"
        self.store = RedisStore(Pool())
        self.stores = {("simulated", "strict"): self.store}
        self.breaker = Breaker()
        self.breakers = {"simulated": self.breaker}
        self.debts = debts.Debts()
        self.bursts = bursts.Bursts()
        self.keeper = leases.Keeper()
        # Its thread is `World._renew`.
        self.keeper._start = lambda: None  # type: ignore[method-assign]
        self.connections = [Connection() for _ in range(CONNECTIONS)]
        self._states: list[Any] = [None] * CONNECTIONS
        for connection in self.connections:
            connection.world = world
        self.reset()

    def reset(self) -> None:
        """A new process; the old one was killed, or is of another schedule."""
        self.flusher = _Flusher()
        self.breaker._until, self.breaker._pause, self.breaker._trying = None, 0.5, False
        self.debts._written, self.debts._last = set(), {}
        self.debts._forget_threads()
        self.bursts._reset()
        self.keeper._reset()
        self.store._channels._idle.clear()
        self.flights: dict[Any, Any] = {}
        self.catalog: dict[str, Any] = {}
        self.catalog_breakers: dict[str, Any] = {}
        self.overdue_tried: dict[str, float] = {}
        self.overdue_breakers: dict[str, Any] = {}
        self.unseen: dict[int, Any] = {}
        self.looks: dict[Any, Any] = {}
        self.fence_breakers: dict[str, Any] = {}
        self.floor = list(BEGINNING)
        """For each table, its last commit that the cache was not told of."""
        self.is_renewing = False
        self.renewed_at = 0.0
        for number, connection in enumerate(self.connections):
            self._reset_connection(number, connection)

    def _reset_connection(self, number: int, connection: Connection) -> None:
        facts = connection.__dict__
        state = facts.pop("_ormcache", None)
        if state is not None and state._route is not None:
            self._states[number] = (state._route, state._basis)
        if connection.connection is not None:
            # The server has noticed, and rolled back.
            connection.connection.close()
        connection.connection = None
        connection.in_atomic_block = connection.needs_rollback = False
        connection.closed_in_transaction = False
        connection.is_repeatable = False
        connection.atomic_blocks, connection.savepoint_ids = [], []
        connection.run_on_commit, connection.run_commit_hooks_on_set_autocommit_on = [], False
        if self._states[number] is not None:
            # Where the cache is has not changed; to find it out takes longer than a read.
            state = connection_state.state_of(connection)
            state._route, state._basis = self._states[number]

    def enter(self) -> None:
        """Make the modules' state that of this process."""
        debts.ledger = self.debts
        brackets.bursts = reads.bursts = self.bursts
        brackets.keeper = self.keeper
        flights._under_way = self.flights
        stores._stores = self.stores  # type: ignore[assignment]
        stores._breakers = self.breakers
        catalog._known = self.catalog
        catalog._breakers = self.catalog_breakers
        overdue._tried = self.overdue_tried
        overdue._breakers = self.overdue_breakers
        unseen.held = self.unseen
        fence._looks = self.looks
        fence._breakers = self.fence_breakers
        flushing.flusher = self.flusher  # type: ignore[assignment]


class Profile(NamedTuple):
    """Which accidents may happen in a schedule, and how likely one is at each step."""

    name: str
    accidents: tuple[str, ...]
    rate: float
    limit: int
    renewing: float = 0.7
    """How likely each process is to renew its leases when time passes, and is not stopped."""


_NETWORK = ("lose_request", "lose_reply", "time_out", "time_out_late")
_LOSSES = ("evict", "evict", "evict", "flush_all", "copy_entry")
_SERVERS = ("restart", "restart_from_dump", "dump", "promote", "replicate", "forget_scripts")
_PROFILES = (
    Profile("calm", (), 0.0, 0),
    Profile("slow", ("pass_time",), 0.2, 12),
    Profile("very slow", ("pass_time",), 0.4, 12),
    Profile("stopped", ("pass_time",), 0.5, 20),
    # Twice, for few of these schedules come to the point.
    *[Profile("stopped and lost", ("evict", *("pass_time",) * 3), 0.5, 20, renewing=0.1)] * 2,
    Profile("losses", (*_LOSSES, "pass_time"), 0.12, 3),
    Profile("evictions", ("evict",), 0.1, 3),
    Profile("network", (*_NETWORK, "pass_time"), 0.15, 3),
    Profile("crashes", ("kill", "evict", "pass_time"), 0.08, 3),
    Profile("servers", (*_SERVERS, "pass_time"), 0.15, 4),
    Profile(
        "everything",
        (*_NETWORK, *_LOSSES, *_SERVERS, "kill", "set_clock_back", "pass_time", "pass_time"),
        0.2,
        6,
    ),
)

_CUT_OFF = Profile("cut off", (*_NETWORK, "pass_time", "pass_time"), 0.3, 9)
"""Whoever is cut off writes all the same, and the others look in time or not."""
_FENCE_PROFILES = (*_PROFILES, *[_CUT_OFF] * 5)
_STEPS = (0.05, 0.2, 0.35, 0.5, 1.1)
"""How much time passes at once, in leases."""
_SMALL_STEPS = (0.02, 0.05, 0.08, 0.11)
_STALLS = (0.0, 0.0, 0.06, 0.15)
"""How likely it is at each step that an actor is held up: long enough for others to do much."""


@contextlib.contextmanager
def _untraced() -> Iterator[None]:
    """What measures coverage would be confused by greenlets, and is slow."""
    tracer = sys.gettrace()
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(tracer)


class World:
    """All there is. One object runs any number of schedules, one after the other."""

    LEASE = 10.0
    ASSUMED = 0.6
    """A COMMIT takes effect within so many leases of the last look at the clock."""
    HEARD = 1.05
    """Seconds after which a commit that went by the fence is heard of: `FENCE` by a slow clock."""

    def __init__(self, policy: str = "raise") -> None:
        self.policy = policy
        """`ORMCACHE["ON_CACHE_FAILURE"]`."""
        self.trace: list[str] | None = None
        self.scheduler = Scheduler()
        self.rate = 1.0
        self.now = 0.0
        self.process: Process = None  # type: ignore[assignment]
        self._clocks: dict[Process, float] = {}
        self._warm: dict[int, _Warm] = {}

    # --- telling -------------------------------------------------------------------------

    def tell(self, text: str) -> None:
        if self.trace is not None:
            self.trace.append(f"{self.now:7.3f}  {text}")

    def say(self, text: str) -> None:
        """What the actor does whose step it is."""
        if self.trace is not None:
            actor = self.scheduler.current
            self.tell(f"{actor.name if actor else 'somebody'}: {text}")

    def violate(self, text: str) -> None:
        self.violations.append(text)
        self.say(f"wrong: {text}")

    def observe(self, chance: float) -> None:
        """Perhaps see what the cache would answer now."""
        if self.observer is not None and self.random() < chance:
            self.observer.look(self.questions)

    # --- the policies "open" and "fence" -----------------------------------------------------

    def is_announced(self) -> bool:
        """Whether the cache was told of the commit that the actor is about to send."""
        if self.scheduler.current not in self._unannounced:
            return True
        self._unannounced.discard(self.scheduler.current)
        return False

    def committed(self, commit: Commit) -> None:
        """Note who must not miss a commit that has just taken effect."""
        latest = self.database.states[-1]
        for table in commit.tables:
            if commit.is_announced:
                self.floor[table] = latest[table]
                continue
            if self.policy == "fence":
                self.fenced.append((self.now, table, latest[table]))
            if not commit.is_orphan:
                commit.process.floor[table] = latest[table]
            elif self.policy == "open":
                # Its process does not know of it, and nobody else does.
                self._is_debt_lost = True

    def least(self, process: Process) -> tuple[int, ...]:
        """For each table, the commit that no answer to this process may be older than."""
        heard = list(BEGINNING)
        for at, table, version in self.fenced:
            if at < self.now - self.HEARD:
                heard[table] = max(heard[table], version)
        return tuple(map(max, self.floor, process.floor, heard))

    # --- setting up ----------------------------------------------------------------------

    @contextlib.contextmanager
    def installed(self) -> Iterator[World]:
        """Put clocks and module state of this world in place of the real ones."""
        # The threads of the test run's own client go on meanwhile.
        clock = SimpleNamespace(monotonic=self.monotonic, sleep=time.sleep)
        get_connection = transaction.get_connection

        def connection_of(using: Any = None) -> Any:
            return using if isinstance(using, BaseDatabaseWrapper) else get_connection(using)

        with contextlib.ExitStack() as stack:
            stack.enter_context(_untraced())
            for module in (brackets, bursts, debts, fence, leases, breaker, overdue):
                stack.enter_context(mock.patch.object(module, "time", clock))
            stack.enter_context(mock.patch.object(transaction, "get_connection", connection_of))
            # Nothing of this is left when the tests end.
            stack.enter_context(mock.patch.object(bursts, "_call_at_exit", lambda function: None))
            # Actors stand for threads.
            event, me = functools.partial(Event, self.scheduler), lambda: self.scheduler.current
            stack.enter_context(mock.patch.object(flights, "Event", event))
            stack.enter_context(mock.patch.object(flights, "get_ident", me))
            not_armed = brackets.Bracket._not_armed

            def noted(bracket: Any, *args: Any) -> None:
                self._unannounced.add(self.scheduler.current)
                not_armed(bracket, *args)

            stack.enter_context(mock.patch.object(brackets.Bracket, "_not_armed", noted))
            # Receivers ask questions of a connection that leads nowhere.
            stack.enter_context(mock.patch.object(base, "connection_created", Signal()))
            for owner, names in (
                (brackets, ("bursts", "keeper")),
                (reads, ("bursts",)),
                (debts, ("ledger",)),
                (flights, ("_under_way",)),
                (stores, ("_stores", "_breakers")),
                (catalog, ("_known", "_breakers")),
                (overdue, ("_tried", "_breakers")),
                (unseen, ("held",)),
                (fence, ("_looks", "_breakers")),
                (flushing, ("flusher",)),
            ):
                for name in names:
                    stack.enter_context(mock.patch.object(owner, name, getattr(owner, name)))
            for name in ("_prefix", "_counter"):
                stack.enter_context(mock.patch.object(new_nonce, name, getattr(new_nonce, name)))
            stack.enter_context(
                override_settings(
                    ORMCACHE={
                        "LEASE": self.LEASE,
                        "CACHE_ALIAS": "simulated",
                        "CONSISTENCY": "strict",
                        "ON_CACHE_FAILURE": self.policy,
                    }
                )
            )
            # Its tests are tests, but what they are about is not.
            stack.enter_context(mock.patch.object(namespaces, "is_under_test", lambda: False))
            Socket.world = self
            self.processes = [Process(self, number) for number in range(PROCESSES)]
            self.servers = [Server(self, "A"), Server(self, "B")]
            self._prepare()
            yield self

    def _prepare(self) -> None:
        """Make namespaces that are trusted, and sockets that are open, as most schedules need."""
        self.observer = None
        for major in _MAJORS:
            self._begin(random.Random(0), major, None)
            new_nonce._prefix = "w"
            session = actors.Session(self, self.processes[0], 0)
            # Everything that is worked out once per process is, before the first schedule: a seed
            # must not depend on those before it.
            self.database.states = [(0,) * len(TABLES)]
            session.write_all()
            assert self.database.states[-1] == BEGINNING
            self.now += 2 * self.LEASE
            session.read_all()
            self.now += 2 * self.LEASE
            session.read_all()
            (channel,) = self.processes[0].store._channels._idle
            trusted = self.primary.copied()
            # As after an eviction some time ago: "*" does not know the registers that it has not
            # seen since.
            (everything,) = (key for key in self.primary.names() if key.endswith(b":r:*"))
            del self.primary.data[everything]
            session.read_all()
            self.now += 2 * self.LEASE
            session.read_all()
            reborn = self.primary.copied()
            data = (trusted, trusted, reborn, reborn, None)
            self._warm[major] = _Warm(data, channel, dict(self.primary.scripts))
        self.observer = actors.Observer(self)

    def _begin(self, rng: random.Random, major: int, data: Any) -> None:
        self.rng = rng
        self.random = rng.random
        self.violations: list[str] = []
        self.steps = self.reads = self.hits = 0
        self.now, self.rate = 1_000.0, 1.0
        self.faults = 0
        self.stalls = self.lingers = 0.0
        self.profile, self._accidents_left = _PROFILES[0], 0
        self.is_patient = False
        self.floor = list(BEGINNING)
        """For each table, the last commit that was announced."""
        self._unannounced: set[Any] = set()
        self._is_debt_lost = False
        self.fenced: list[tuple[float, int, int]] = []
        """When a commit went by the fence, its table, and how many that has seen with it."""
        # Most schedules are about one table, so that actors meet.
        is_narrow = rng.random() < 0.6
        self.questions = QUESTIONS[:2] if is_narrow else QUESTIONS
        self.tables = 1 if is_narrow else len(TABLES)
        if self.observer is not None:
            self.observer.store._channels._idle.clear()
        self.ready: list[Socket] = []
        self.sockets: list[Socket] = []
        self.scheduler.clear()
        self._names = itertools.count(1)
        self.database = Database(self)
        new_nonce._prefix, new_nonce._counter = "n", itertools.count()
        for server in self.servers:
            server.clock, server.major = 1.7e9, major
            # A server of another version has another run id: it was started anew.
            run_id = f"{server.name}{major}".ljust(40, "0")
            server.become(run_id=run_id, replid="0" * 40, is_master=server.name == "A")
            server.scripts.clear()
        self.primary, self.replica = self.servers
        self.primary.data = self.primary.copy_of(data)
        self.replica.data = self.primary.copy_of(data)
        self.dump = data
        for process in self.processes:
            process.reset()
            self._clocks[process] = 0.0
        self._enter(self.processes[0])

    def _connect(self) -> None:
        """Give each process two sockets: most schedules are about something else than these."""
        known = self._warm[self.primary.major]
        self.primary.scripts.update(known.scripts)
        for process in self.processes:
            self.process = process
            process.store._channels._idle.extend([self._channel(), self._channel()])
        self.observer.store._channels._idle.append(self._channel())

    def _channel(self) -> channels.Channel:
        channel = copy.copy(self._warm[self.primary.major].channel)
        channel._pending, channel._unsent = 0, b""
        channel._connection = Socket()
        channel._connection.connect()
        return channel

    def _enter(self, process: Process) -> None:
        if process is not self.process:
            self.process = process
        process.enter()

    def monotonic(self) -> float:
        """The clock of the process that runs now."""
        return self.now * (2 - self.rate) + self._clocks[self.process]

    # --- running -------------------------------------------------------------------------

    def run(self, seed: int) -> Outcome:
        """One schedule, from its beginning to the last questions."""
        rng = random.Random(seed)
        major = _MAJORS[int(rng.random() * len(_MAJORS))]
        data = self._warm[major].data
        self._begin(rng, major, data[int(rng.random() * len(data))])
        profiles = _FENCE_PROFILES if self.policy == "fence" else _PROFILES
        self.profile = profiles[int(rng.random() * len(profiles))]
        # Long after what the servers hold was made.
        self.now = 10_000.0
        self.rate = 1 + (rng.random() - 0.5) / 25
        for server in self.servers:
            server.clock += rng.random() * 200
        for process in self.processes:
            self._clocks[process] = rng.random() * 1000
        # Commits of transactions may take as long as they like: the database tells when they are
        # over, also if their intents were lost.
        self.is_patient = rng.random() < 0.7
        self.tell(f"seed {seed}, {self.profile.name}")
        if rng.random() < 0.8:
            self._connect()
        for template in templates.templates(current()).values():
            template.missed = rng.random() < 0.3
        self.lingers = 0.4 if rng.random() < 0.6 else 0.0
        self.stalls = _STALLS[int(rng.random() * len(_STALLS))]
        actors.enter(self)
        self._accidents_left = self.profile.limit
        self._run_all()
        if not self.violations:
            try:
                self._end()
            except Exception as error:
                self.violations.append(f"{type(error).__name__}: {error}")
        return Outcome(self.violations, self.steps, self.reads, self.hits)

    def _run_all(self) -> None:
        scheduler, random = self.scheduler, self.random
        runnable, ready = scheduler.runnable, self.ready
        rate, commits = self.profile.rate, self.database.commits
        try:
            while not self.violations:
                self.steps += 1
                if self._accidents_left and random() < rate * (1 + 2 * bool(commits)):
                    self._accident()
                elif random() < 0.04:
                    self._background()
                elif scheduler.stalled and random() < 0.03:
                    scheduler.unstall()
                choices = len(runnable) + len(ready)
                if not choices:
                    if not self._go_on():
                        break
                    continue
                chosen = int(random() * choices)
                if chosen < len(runnable):
                    actor = runnable[chosen]
                    if self.stalls and random() < self.stalls:
                        scheduler.stall(actor)
                        continue
                    self._enter(actor.process)
                    scheduler.step(actor)
                else:
                    ready[chosen - len(runnable)].deliver()
        finally:
            for actor in scheduler.everybody():
                self._enter(actor.process)
                scheduler.kill(actor)

    def _go_on(self) -> bool:
        """Nobody can take a step: what else is under way? Returns whether anything is."""
        if self.scheduler.stalled:
            self.scheduler.unstall()
            return True
        if self.database.commits:
            self._resolve(self.database.commits[0])
            return True
        if self.scheduler.waiting:
            self.violate(f"{self.scheduler.waiting[0].name} waits for what never comes")
            return False
        for process in self.processes:
            if process.flusher.due and self.random() < 0.8:
                self._flush(process)
                return True
        return False

    def _background(self) -> None:
        """What happens beside the actors, and is no accident."""
        chosen = int(self.random() * 3)
        if chosen == 0:
            orphans = [commit for commit in self.database.commits if commit.is_orphan]
            if orphans:
                self._resolve(orphans[0])
            return
        process = self.processes[int(self.random() * PROCESSES)]
        if chosen == 1:
            self._flush(process)
        else:
            self._renew(process)

    def _resolve(self, orphan: Any) -> None:
        (self.database.apply if self.random() < 0.7 else self.database.abort)(orphan)

    def _flush(self, process: Process, *, at_once: bool = False) -> None:
        """Send what was left behind; the flusher's thread, 20 ms or any time later."""
        self._enter(process)
        while process.flusher.due:
            waiting = process.flusher.due.pop()
            if waiting is process.bursts and not at_once:
                # The others only send, in one step.
                self.scheduler.spawn(f"{process.name}.flusher", process, waiting.flush)
            else:
                waiting.flush()

    def _renew(self, process: Process) -> None:
        """One round of the thread that renews leases."""
        if process.is_renewing or not process.keeper._held:
            return
        process.is_renewing = True

        def work() -> None:
            begin, faults = self.now, self.faults
            self.say("looks for leases to renew")
            process.keeper.renew()
            process.is_renewing = False
            if self.faults == faults:
                for commit in self.database.commits:
                    if commit.process is process and not commit.is_orphan:
                        commit.deadline = max(commit.deadline, begin + self.ASSUMED * self.LEASE)

        self.scheduler.spawn(f"{process.name}.keeper", process, work)

    def _end(self) -> None:
        """Whatever was left of the schedule is over: is there anything old in the cache?"""
        self._enter(self.processes[0])
        self.tell("the end")
        self.observer.look(QUESTIONS)
        if self.policy != "raise" and not self._is_debt_lost:
            self._settle()
        if self.random() < 0.05:
            self._recover()

    def _settle(self) -> None:
        """When all processes have reached the cache, nothing is old any more."""
        self.now += 2 * self.LEASE
        for process in self.processes:
            self._enter(process)
            actors.Session(self, process, CONNECTIONS - 1).read_all()
            self._flush(process, at_once=True)
        while self.ready:
            self.ready[0].deliver()
        self.floor[:] = self.database.states[-1]
        self.observer.look(QUESTIONS)

    def _recover(self) -> None:
        """A lease later, with nothing wrong any more, everything is cached again."""
        self._send_what_waits()
        for _ in range(3):
            self.now += 2 * self.LEASE
            hits = self.hits
            for process in self.processes:
                self._enter(process)
                session = actors.Session(self, process, CONNECTIONS - 1)
                session.read_all()
            # Long before the next round.
            self._send_what_waits()
        if self.hits - hits < PROCESSES * actors.QUESTION_COUNT:
            self.violations.append("the cache does not recover")

    def _send_what_waits(self) -> None:
        for process in self.processes:
            self._flush(process, at_once=True)
        while self.ready:
            self.ready[0].deliver()

    # --- accidents -----------------------------------------------------------------------

    def _accident(self) -> None:
        names = self.profile.accidents
        name = names[int(self.random() * len(names))]
        if getattr(self, f"_{name}")() is not False:
            self._accidents_left -= 1

    def _awaited(self) -> Socket | None:
        sockets = [socket for socket in self.sockets if socket.is_awaited]
        return sockets[int(self.random() * len(sockets))] if sockets else None

    def _on_socket(self, what: str, happens: Callable[[Socket], None]) -> bool:
        socket = self._awaited()
        if socket is None:
            return False
        self.faults += 1
        self.tell(f"{socket}: {what}")
        happens(socket)
        return True

    def _lose_request(self) -> bool:
        return self._on_socket("the request is lost", lambda socket: socket.cut())

    def _lose_reply(self) -> bool:
        socket = self._awaited()
        if socket is None or not socket.inbox:
            return False
        self.faults += 1
        self.tell(f"{socket}: the reply is lost")
        socket.deliver_unheard()
        return True

    def _time_out(self) -> bool:
        return self._on_socket("no reply in time", lambda socket: socket.time_out())

    def _time_out_late(self) -> bool:
        return self._on_socket("cut, but not yet noticed", lambda s: s.cut(drops=False))

    def _evict(self) -> bool:
        keys = self.primary.names()
        if self.random() < 0.8:
            keys = tuple(key for key in keys if b":r:" in key)
            if self.database.commits and self.random() < 0.6:
                # What a commit that is under way depends on.
                tables = self.database.commits[0].tables
                changed = tuple(TABLES[table].encode() for table in tables)
                keys = tuple(key for key in keys if key.endswith(changed))
        if not keys:
            return False
        key = keys[int(self.random() * len(keys))]
        self.tell(f"{self.primary.name}: {key.decode()[-48:]} is evicted")
        del self.primary.data[key]
        return True

    def _flush_all(self) -> bool:
        self.tell(f"{self.primary.name}: FLUSHALL")
        self.primary.data = self.primary.copy_of(None)
        return True

    def _copy_entry(self) -> bool:
        entries = [key for key in self.primary.names() if b":e:" in key]
        if len(entries) < 2:
            return False
        one = entries[int(self.random() * len(entries))]
        other = entries[int(self.random() * len(entries))]
        self.tell(f"{self.primary.name}: COPY {one.decode()[-48:]} to {other.decode()[-48:]}")
        copy_key(self.primary.data, one, other)
        return True

    def _cut_all(self, server: Server) -> None:
        self.faults += 1
        for socket in self.sockets:
            if socket.server is server:
                socket.cut()

    def _restart(self) -> None:
        self._restarted_with(self.primary.copy_of(None), "empty")

    def _restart_from_dump(self) -> None:
        self._restarted_with(self.primary.copy_of(self.dump), "from its dump")

    def _restarted_with(self, data: Any, what: str) -> None:
        server = self.primary
        self.tell(f"{server.name} is restarted, {what}")
        self._cut_all(server)
        server.data = data
        server.scripts.clear()
        # A server that loads a dump may go on with the replication id that the dump holds.
        replid = server.replid if self.random() < 0.5 else self._new_id()
        server.become(run_id=self._new_id(), replid=replid, is_master=True)

    def _new_id(self) -> str:
        # A server of another version would be another one, too.
        return f"{self.primary.major}{next(self._names):015x}".ljust(40, "f")

    def _dump(self) -> None:
        self.tell(f"{self.primary.name} writes a dump")
        self.dump = self.primary.copied()

    def _replicate(self) -> None:
        self.tell(f"{self.replica.name} catches up with {self.primary.name}")
        self.replica.data = self.primary.copied()

    def _promote(self) -> None:
        """The replica takes over, with what it has; the old primary keeps its sockets."""
        old, new = self.primary, self.replica
        self.tell(f"{new.name} is promoted, {old.name} is demoted")
        self.faults += 1
        new.become(run_id=new.run_id, replid=self._new_id(), is_master=True)
        old.become(run_id=old.run_id, replid=new.replid, is_master=False)
        self.primary, self.replica = new, old

    def _forget_scripts(self) -> None:
        self.tell(f"{self.primary.name}: SCRIPT FLUSH")
        self.primary.scripts.clear()

    def _set_clock_back(self) -> None:
        self.tell(f"{self.primary.name}: the clock is set back")
        self.primary.clock -= self.random() * self.LEASE

    def _pass_time(self) -> bool:
        steps = _SMALL_STEPS if self.profile is _CUT_OFF else _STEPS
        step = steps[int(self.random() * len(steps))] * self.LEASE
        for commit in self.database.commits:
            step = min(step, commit.deadline - self.now)
        if step <= 0:
            return False
        self.now += step
        self.tell("time has passed")
        for process in self.processes:
            if self.random() < self.profile.renewing:
                self._renew(process)
        return True

    def _kill(self) -> bool:
        actors_left = self.scheduler.everybody()
        if not actors_left:
            return False
        process = actors_left[int(self.random() * len(actors_left))].process
        self.tell(f"{process.name} is killed")
        self._enter(process)
        for actor in actors_left:
            if actor.process is process:
                self.scheduler.kill(actor)
        for socket in self.sockets:
            if socket.process is process:
                # What was sent has left the process; the kernel delivers it, or not.
                socket.cut(drops=self.random() < 0.5)
        self._is_debt_lost |= bool(process.debts)
        process.reset()
        return True

    def pause_where_it_matters(self) -> None:
        """In a COMMIT and before an answer is stored, some schedules are held up more often."""
        if self.lingers and self.random() < self.lingers:
            self.scheduler.linger()
        else:
            self.scheduler.pause()

    def fate_of_commit(self) -> str:
        """What becomes of a COMMIT that was sent."""
        chance = self.random()
        if not self.profile.accidents or chance > 0.2:
            return "applied"
        if chance < 0.1:
            return "lost"
        return "fails" if chance < 0.15 else "applied and lost"
