"""What the threads of the processes do: read, write, and look whether the answers are true."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from django import db
from django.db import transaction
from django.db.models.sql import constants
from django.db.models.sql.constants import MULTI

from ormcache import codec, plans
from ormcache.conf import current
from ormcache.connection_state import state_of
from ormcache.exceptions import CacheError
from ormcache.stores.redis import RedisStore
from tests.simulation.database import QUESTIONS, SOMETHING, TABLES, UPDATES, WRITES, Question
from tests.simulation.scheduler import Killed
from tests.simulation.server import Pool

if TYPE_CHECKING:
    from tests.simulation.world import Process, World

ROW_COUNT = getattr(constants, "ROW_COUNT", constants.CURSOR)
"""What Django's writers are asked for; its name depends on the version."""
QUESTION_COUNT = len(QUESTIONS)


class Undone(Exception):
    """Rolls a transaction back."""


class Session:
    """One connection of a process, and what is done with it."""

    def __init__(self, world: World, process: Process, number: int) -> None:
        self.world = world
        self.process = process
        self.connection = process.connections[number]
        self._pick = world.rng.random

    # --- what is done --------------------------------------------------------------------

    def read(self, question: Question) -> None:
        """Ask, and compare the answer with the history."""
        world, connection = self.world, self.connection
        states = world.database.states
        begin = len(states) - 1
        least = world.least(self.process)
        selects = connection.connection.selects if connection.connection else 0
        compiler = question.query.get_compiler(connection=connection)
        if world.trace is not None:
            world.say(f"reads {question.name}")
        rows = [tuple(row) for chunk in compiler.execute_sql(MULTI) for row in chunk]
        driver = connection.connection
        is_hit = driver is None or driver.selects == selects
        world.reads += 1
        world.hits += is_hit
        if world.trace is not None:
            world.say(f"{'hit' if is_hit else 'miss'} {rows}")
        self.check(question, rows, begin, least)

    def check(
        self, question: Question, rows: list[Any], begin: int, least: tuple[int, ...]
    ) -> None:
        """An answer is true if the database gave it at some moment since the read began.

        With the policy "open" it may also miss commits that could not be announced, except for
        those of its own process; with "fence", those that have just been made. `least` is what it
        must not miss.
        """
        driver, states = self.connection.connection, self.world.database.states
        pending = driver.pending if driver is not None else {}
        possible = states[begin:]
        if driver is not None and driver.snapshot is not None:
            possible = [driver.snapshot]
        may_miss = self.world.policy != "raise" and not pending and possible == states[begin:]
        if may_miss and question.is_answered(rows, least, states[-1]):
            return
        if not any(rows == [question.answer(state, pending)] for state in possible):
            self.world.violate(
                f"{question.name} is answered by {rows}; possible were {possible} with {pending}"
            )

    def read_all(self) -> None:
        for question in QUESTIONS:
            self.read(question)

    def read_some(self) -> None:
        questions = self.world.questions
        self.read(questions[int(self._pick() * len(questions))])

    def write_all(self) -> None:
        for table in range(len(TABLES)):
            self.write(table)

    def write_some(self) -> None:
        self.write(int(self._pick() * self.world.tables))

    def write(self, table: int) -> None:
        self.world.say(f"writes {TABLES[table]}")
        if self._pick() < 0.5:
            with self.connection.cursor() as cursor:
                cursor.execute(WRITES[table], ["new"])
        else:
            # In autocommit this announces the write before it is compiled.
            compiler = UPDATES[table].get_compiler(connection=self.connection)
            compiler.execute_sql(ROW_COUNT)

    # --- programs ------------------------------------------------------------------------

    def reader(self) -> None:
        for _ in range(2 + int(self._pick() * 2)):
            self._tolerant(self.read_some)

    def writer(self) -> None:
        # In a burst the commits share one announcement.
        is_burst = self._pick() < 0.3
        for _ in range(3 + int(self._pick() * 2) if is_burst else 1 + int(self._pick() * 2)):
            self._tolerant(self.write_some)
            if self._pick() < (0.1 if is_burst else 0.3):
                self._tolerant(self.read_some)

    def transaction(self) -> None:
        def work() -> None:
            with transaction.atomic(using=self.connection):
                for _ in range(1 + int(self._pick() * 3)):
                    (self.write_some if self._pick() < 0.6 else self.read_some)()
                if self._pick() < 0.15:
                    raise Undone

        self._tolerant(work)
        if self._pick() < 0.3:
            self._tolerant(self.read_some)

    def snapshot(self) -> None:
        self.connection.is_repeatable = True

        def work() -> None:
            with transaction.atomic(using=self.connection):
                if self._pick() < 0.5:
                    with self.connection.cursor() as cursor:
                        cursor.execute(SOMETHING)
                for _ in range(2 + int(self._pick() * 2)):
                    self.world.scheduler.pause()
                    (self.read_some if self._pick() < 0.8 else self.write_some)()

        self._tolerant(work)

    def _tolerant(self, work: Callable[[], None]) -> None:
        """What goes wrong in the database, or is refused, ends a piece of work."""
        try:
            work()
        except Undone:
            self.world.say("has rolled back")
        except db.Error as error:
            if self.world.trace is not None:
                self.world.say(f"{type(error).__name__}: {error}")
            self.connection.close()


class Observer:
    """A reader that takes no time: what would the cache answer at this very moment?

    It asks the store only; to work out what to ask for is the same each time.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.process = world.processes[0]
        self.store = RedisStore(Pool())
        connection = self.process.connections[0]
        state, settings = state_of(connection), current()
        route = state.route(connection, settings)
        self._namespace = route.namespace
        # As those of the processes, for which their routes do so.
        self.store.expects_ids(self._namespace)
        self._plans = [
            plans.make_plan(
                question.query.get_compiler(connection=connection), MULTI, state, route, settings
            )
            for question in QUESTIONS
        ]

    def look(self, questions: tuple[Question, ...]) -> None:
        world = self.world
        actor, world.scheduler.current = world.scheduler.current, None
        try:
            for question, plan in zip(questions, self._plans, strict=False):
                try:
                    lookup = self.store.read(self._namespace, plan.entry, plan.registers)
                except CacheError as error:
                    world.tell(f"observer: {error}")
                    continue
                if lookup.entry is None:
                    continue
                rows = [tuple(row) for row in codec.decode(codec.unseal(lookup.entry)).rows]
                latest = world.database.states[-1]
                least = latest if world.policy == "raise" else tuple(world.floor)
                if not question.is_answered(rows, least, latest):
                    world.violate(f"{question.name} would be answered by {rows}")
        finally:
            world.scheduler.current = actor


_PROGRAMS = (
    Session.reader,
    Session.reader,
    Session.writer,
    Session.transaction,
    Session.transaction,
    Session.snapshot,
)


def enter(world: World) -> None:
    """Two to four actors, one of which writes for sure."""
    pick = world.rng.random
    free = [[0, 1] for _ in world.processes]
    for number in range(2 + int(pick() * 2.5)):
        place = number % 2 if pick() < 0.8 else 0
        if not free[place]:
            place = 1 - place
        process = world.processes[place]
        session = Session(world, process, free[place].pop())
        program = _PROGRAMS[2 + int(pick() * 3)] if not number else _PROGRAMS[int(pick() * 6)]
        name = f"{process.name}.{program.__name__}{number}"
        world.scheduler.spawn(name, process, _guarded(world, session, program))


def _guarded(
    world: World, session: Session, program: Callable[[Session], None]
) -> Callable[[], None]:
    def work() -> None:
        try:
            program(session)
        except Killed:
            return
        except Exception as error:
            world.violate(f"{type(error).__name__}: {error}")
            if world.trace is not None:
                raise

    return work
