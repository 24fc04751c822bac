"""A database whose tables are numbers: how many commits each of them has seen.

What stands for PostgreSQL is the driver: Django's backend, its cursors and its transactions are
the real ones.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
from django.db.backends.postgresql.base import DatabaseWrapper
from django.db.models.sql import Query, UpdateQuery
from psycopg import IsolationLevel

from ormcache import access, fence, fence_rows, overdue
from tests.models import Continent, Country

if TYPE_CHECKING:
    from tests.simulation.world import World

TABLES = ("tests_continent", "tests_country")
State = tuple[int, ...]
"""For each of the tables, how many commits have changed it."""
BEGINNING = (1,) * len(TABLES)
"""That of each schedule."""


_VERSION = re.compile(r": (\d+) and (\d+) of its own")


class Question(NamedTuple):
    """A query of which each table's number is a part of the answer."""

    name: str
    query: Query
    columns: tuple[tuple[int, int], ...]
    """The table, by its place in `TABLES`, and the row."""

    def answer(self, state: State, pending: dict[int, int]) -> tuple[str, ...]:
        return tuple(
            f"{TABLES[table]} {row}: {state[table]} and {pending.get(table, 0)} of its own"
            for table, row in self.columns
        )

    def is_answered(self, rows: list[Any], least: Sequence[int], state: State) -> bool:
        """Whether each part of an answer is a table's number from `least` on, up to `state`."""
        if len(rows) != 1 or len(rows[0]) != len(self.columns):
            return False
        for (table, row), text in zip(self.columns, rows[0], strict=True):
            match = _VERSION.search(text)
            if match is None or not text.startswith(f"{TABLES[table]} {row}:"):
                return False
            if not least[table] <= int(match[1]) <= state[table] or match[2] != "0":
                return False
        return True


def _question(name: str, queryset: Any, *columns: tuple[int, int]) -> Question:
    return Question(name, queryset.query, columns)


QUESTIONS = (
    _question("continent 1", Continent.objects.filter(pk=1).values_list("name"), (0, 1)),
    _question("continent 2", Continent.objects.filter(pk=2).values_list("name"), (0, 2)),
    _question("country 1", Country.objects.filter(pk=1).values_list("name"), (1, 1)),
    _question(
        "country 2 and continent 2",
        Country.objects.filter(pk=2).values_list("name", "continent__name"),
        (1, 2),
        (0, 2),
    ),
)

END_OF_SNAPSHOT = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text"
SOMETHING = "SELECT 1"
"""It is about no table, but a snapshot begins with it."""


def _update(model: Any) -> UpdateQuery:
    query = model.objects.filter(pk=1).query.chain(UpdateQuery)
    query.add_update_values({"name": "new"})
    return query


UPDATES = (_update(Continent), _update(Country))
WRITES = tuple(f'UPDATE "{table}" SET "name" = %s WHERE "id" = 1' for table in TABLES)


Row = tuple[int, str, float]
"""Of the fence: id, name of a table and time."""


class Commit:
    """One that was sent and whose end is not known; it lasts no longer than is assumed."""

    __slots__ = ("deadline", "is_announced", "is_orphan", "number", "process", "rows", "tables")

    def __init__(
        self, process: Any, tables: tuple[int, ...], deadline: float, is_announced: bool
    ) -> None:
        self.process = process
        self.is_announced = is_announced
        self.tables = tables
        self.deadline = deadline
        self.rows: list[Row] = []
        """Of the fence."""
        self.number: int | None = None
        """The id of the transaction, once it has one."""
        self.is_orphan = False
        """Whether nobody waits for it any more."""


class Database:
    """All states that were ever committed, in their order, and the commits on their way."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.states: list[State] = [BEGINNING]
        self.commits: list[Commit] = []
        self.fence: list[Row] = []
        """The rows of `ormcache_fence` that are committed."""
        self.next_row = 1
        self._last = self._last_over = 700
        self._running: set[int] = set()

    # --- ids of transactions ---------------------------------------------------------------

    def give_id(self) -> int:
        """To a transaction that is running from now on."""
        self._last += 1
        self._running.add(self._last)
        return self._last

    def is_over(self, number: int | None) -> None:
        if number is not None and number in self._running:
            self._running.discard(number)
            self._last_over = max(self._last_over, number)

    def tell_id(self, sql: str) -> int:
        """What is asked about overdue commits."""
        if sql == _NEW_ID:
            number = self.give_id()
            self.is_over(number)
            return number
        end = self._last_over + 1
        return end if sql == END_OF_SNAPSHOT else min((*self._running, end))

    # --- commits ---------------------------------------------------------------------------

    def begin(self, tables: tuple[int, ...], number: int | None, rows: list[Row]) -> Commit:
        """``number``: its id; without one, it is a statement in autocommit."""
        world = self.world
        deadline = world.now + world.ASSUMED * world.LEASE
        if number is not None and world.is_patient:
            deadline = float("inf")
        is_announced = not rows if world.policy == "fence" else world.is_announced()
        commit = Commit(world.process, tables, deadline, is_announced)
        commit.number = number
        commit.rows = rows
        self.commits.append(commit)
        return commit

    def apply(self, commit: Commit) -> None:
        last = self.states[-1]
        self.states.append(tuple(n + (i in commit.tables) for i, n in enumerate(last)))
        self.fence += commit.rows
        self.commits.remove(commit)
        self.is_over(commit.number)
        self.world.committed(commit)
        if self.world.trace is not None:
            self.world.tell(f"database: {self.states[-1]} is committed")
        self.world.observe(0.5)

    def abort(self, commit: Commit) -> None:
        self.commits.remove(commit)
        self.is_over(commit.number)
        if self.world.trace is not None:
            self.world.tell("database: a commit has failed")


class _Info:
    __slots__ = ("transaction_status",)

    def __init__(self) -> None:
        self.transaction_status = 0


class Driver:
    """A connection of psycopg."""

    isolation_level = None

    def __init__(self, world: World, is_repeatable: bool) -> None:
        self.world = world
        self.closed = False
        self.autocommit = True
        self.is_repeatable = is_repeatable
        self.info = _Info()
        self.number: int | None = None
        """The id of the transaction, if it has written."""
        self.pending: dict[int, int] = {}
        """By table: how many writes are not committed."""
        self.rows: list[Row] = []
        """Of the fence, that are not committed."""
        self.is_block = False
        """Whether a transaction was begun by hand."""
        self.snapshot: State | None = None
        self.selects = 0

    def cursor(self) -> Cursor:
        return Cursor(self)

    def _ended(self) -> None:
        self.world.database.is_over(self.number)
        self.number = None
        self.pending, self.snapshot, self.info.transaction_status = {}, None, 0
        self.rows, self.is_block = [], False

    def commit(self) -> None:
        pending = tuple(self.pending)
        if pending:
            self.publish(pending)
        self._ended()

    def rollback(self) -> None:
        self.world.scheduler.pause()
        if self.closed:
            raise psycopg.OperationalError("the connection is closed")
        self._ended()

    def close(self) -> None:
        self.closed = True
        self._ended()

    def publish(self, tables: tuple[int, ...]) -> None:
        """Commit; the client waits before it is sent, until it is applied, and for the answer."""
        world = self.world
        commit = world.database.begin(tables, self.number, [*self.rows])
        # From now on it is the commit's.
        self.number = None
        is_sent = False
        try:
            world.pause_where_it_matters()
            is_sent = True
            if commit.number is None:
                commit.number = world.database.give_id()
            if world.trace is not None:
                world.say("sends COMMIT")
            world.pause_where_it_matters()
            fate = world.fate_of_commit()
            if fate == "lost":
                self.close()
                raise psycopg.OperationalError("server closed the connection unexpectedly")
            if fate == "fails":
                world.database.abort(commit)
                self._ended()
                raise psycopg.errors.UniqueViolation("duplicate key")
            world.database.apply(commit)
            if fate == "applied and lost":
                self.close()
                raise psycopg.OperationalError("server closed the connection unexpectedly")
            world.scheduler.pause()
        finally:
            if commit in world.database.commits:
                commit.is_orphan = True
                if not is_sent:
                    world.database.abort(commit)

    def state(self) -> State:
        """What a statement of this transaction sees of the others' commits."""
        latest = self.world.database.states[-1]
        if not self.is_repeatable or self.autocommit:
            return latest
        if self.snapshot is None:
            self.snapshot = latest
        return self.snapshot


_EXISTS = fence_rows._EXISTS["postgresql"]
_ANNOUNCE = f"INSERT INTO {fence_rows.TABLE} "
_REMOVE = f"SET LOCAL lock_timeout = 50; DELETE FROM {fence_rows.TABLE} WHERE id IN "
_BLOCKS = ("BEGIN", "COMMIT", "ROLLBACK")
_NEW_ID = overdue._HORIZON
_IDS = frozenset({_NEW_ID, overdue._OLDEST, END_OF_SNAPSHOT})
_SAVEPOINTS = ("SAVEPOINT", "RELEASE", "ROLLBACK TO")
_known: dict[str, Any] = {}


def _meaning(sql: str) -> Any:
    found = _known.get(sql)
    if found is None:
        if sql.startswith("UPDATE"):
            found = TABLES.index(sql.split('"')[1])
        elif sql == SOMETHING or "pg_catalog" in sql or sql.startswith(_SAVEPOINTS):
            found = []
        elif sql.startswith("SHOW"):
            found = [("read committed",)]
        else:
            assert sql.startswith("SELECT"), sql
            shown = [TABLES.index(part.split(".")[0].strip('"')) for part in _columns(sql)]
            found = {
                question.columns[0][1]: question
                for question in QUESTIONS
                if [table for table, _ in question.columns] == shown
            }
        _known[sql] = found
    return found


def _columns(sql: str) -> list[str]:
    return sql.removeprefix("SELECT ").partition(" FROM ")[0].split(", ")


class Cursor:
    """A cursor of psycopg."""

    description = None
    rowcount = 1
    arraysize = 100

    def __init__(self, driver: Driver) -> None:
        self.connection = driver
        self._rows: list[tuple[Any, ...]] = []

    def execute(self, sql: str, params: Any = None) -> None:
        driver = self.connection
        world = driver.world
        if sql in _IDS:
            world.scheduler.pause()
            self._rows = [(str(world.database.tell_id(sql)),)]
            world.scheduler.pause()
            return
        if driver.closed:
            raise psycopg.OperationalError("the connection is closed")
        if sql in _BLOCKS:
            self._block(sql)
            return
        is_inside = driver.is_block or not driver.autocommit
        if is_inside:
            driver.info.transaction_status = 2
        if fence_rows.TABLE in sql:
            self._fence(sql, params)
            return
        meaning = _meaning(sql)
        if isinstance(meaning, list):
            driver.state()
            self._rows = list(meaning)
        elif isinstance(meaning, dict):
            question = meaning[params[0]]
            world.scheduler.pause()
            driver.selects += 1
            self._rows = [question.answer(driver.state(), driver.pending)]
            if world.trace is not None:
                world.say(f"asks the database: {self._rows[0]}")
            world.pause_where_it_matters()
        elif not is_inside:
            driver.publish((meaning,))
        else:
            world.scheduler.pause()
            driver.state()
            driver.number = driver.number or world.database.give_id()
            driver.pending[meaning] = driver.pending.get(meaning, 0) + 1

    def _block(self, sql: str) -> None:
        """What begins or ends a transaction by hand."""
        driver = self.connection
        driver.world.scheduler.pause()
        if sql == "BEGIN":
            driver.is_block, driver.info.transaction_status = True, 2
        elif sql == "COMMIT":
            driver.commit()
        else:
            driver.rollback()

    def _fence(self, sql: str, params: Any) -> None:
        """What is asked of the table of the fence, and told to it."""
        driver = self.connection
        world, database = driver.world, driver.world.database
        world.scheduler.pause()
        if sql == _EXISTS:
            self._rows = [(1, True)]
        elif sql == fence._ROWS:
            self._rows = [*database.fence, *driver.rows]
            if world.trace is not None:
                world.say(f"looks into the fence: {[row[1] for row in self._rows]}")
        elif sql.startswith(_ANNOUNCE):
            driver.number = driver.number or database.give_id()
            for name in params:
                # Ids are given out here, so they are committed in any order.
                driver.rows.append((database.next_row, name, world.now))
                database.next_row += 1
        else:
            ids = {int(number) for number in sql.removeprefix(_REMOVE).strip("()").split(", ")}
            database.fence = [row for row in database.fence if row[0] not in ids]
        world.scheduler.pause()

    def fetchmany(self, size: int | None = None) -> list[tuple[Any, ...]]:
        rows, self._rows = self._rows, []
        return rows

    fetchall = fetchmany

    def close(self) -> None:
        self._rows = []


class Connection(DatabaseWrapper):
    """Django's own, on that driver."""

    world: World
    is_repeatable = False

    # Whatever a test runner has replaced it by: no database is touched here.
    ensure_connection = access._pristine or DatabaseWrapper.ensure_connection

    def __init__(self) -> None:
        options = dict.fromkeys(
            ("USER", "PASSWORD", "HOST", "PORT", "TIME_ZONE", "CONN_MAX_AGE"), None
        )
        super().__init__(
            {
                **options,
                "ENGINE": "django.db.backends.postgresql",
                "NAME": "simulated",
                "OPTIONS": {},
                "AUTOCOMMIT": True,
                "CONN_MAX_AGE": None,
                "CONN_HEALTH_CHECKS": False,
                "DISABLE_SERVER_SIDE_CURSORS": False,
            },
            "simulated",
        )

    def get_new_connection(self, conn_params: Any) -> Driver:
        level = "REPEATABLE_READ" if self.is_repeatable else "READ_COMMITTED"
        self.isolation_level = IsolationLevel[level]
        return Driver(self.world, self.is_repeatable)

    def get_connection_params(self) -> dict[str, Any]:
        return {}

    def init_connection_state(self) -> None:
        pass

    def create_cursor(self, name: Any = None) -> Cursor:
        return self.connection.cursor()
