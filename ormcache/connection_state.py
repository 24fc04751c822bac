"""What ormcache knows of one connection: its session, and what its transaction has written.

State lives on the connection object, as Django's own does: it is as private to a thread as the
connection is, and a BEGIN that fails leaves nothing behind. Tables are added before the
statement runs and leave only when the transaction ends: a savepoint that is rolled back removes
nothing, which at worst invalidates a table in vain.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from ormcache import sessions
from ormcache.conf import Settings, current
from ormcache.cursors import LiveCursors
from ormcache.reasons import Reason
from ormcache.routers import chosen, schemas, tenancy
from ormcache.routers.namespaces import Route, basis, route
from ormcache.routers.positions import Position
from ormcache.sessions import Told
from ormcache.stores import generation

_ATTRIBUTE = "_ormcache"
_IN_TRANSACTION = (2, 3)
_PERHAPS_IN_TRANSACTION = (1, *_IN_TRANSACTION)


class ConnectionState:
    """What ormcache knows of one connection."""

    __slots__ = (
        "_basis",
        "_route",
        "afterwards",
        "asked_at",
        "dirty",
        "expected",
        "in_doubt",
        "is_new",
        "isolation_known",
        "live_cursors",
        "manual",
        "migrating",
        "overridden",
        "path_in_doubt",
        "path_set_here",
        "places",
        "replayed",
        "search_path",
        "session",
        "takes_snapshots",
        "unseen",
        "until_end",
    )

    def __init__(self) -> None:
        self.dirty: set[str] = set()
        """Registers of what was written in the transaction that is open."""
        self.manual = False
        """Whether a BEGIN was sent as SQL, which Django's flags do not show."""
        self.until_end: Reason | None = None
        """Why this transaction reads from the database until it ends."""
        self.expected: Any = None
        """A bracket announced ahead of its statement, see :func:`ormcache.brackets.expecting`."""
        self.afterwards: Callable[[], object] | None = None
        """What is left to be done when the connection is in autocommit again. Raises nothing."""
        self.unseen: list[Any] = []
        """Brackets of what was written in a transaction that the driver began, see
        :mod:`ormcache.unseen`."""
        self.migrating = False
        """Whether a migration is under way, through whatever number of sessions."""
        self._route: Route | None = None
        self._basis: tuple[object, ...] = ()
        self.connected()

    def connected(self) -> None:
        """A new session: whatever the old one was told is forgotten, as is its transaction."""
        self.ended()
        self.is_new = True
        """Whether a pool may know more of the session than this."""
        self.session: Reason | None = None
        """Why this session is not cached any more."""
        self.in_doubt = False
        """Whether a transaction may be open that nobody knows of, see :meth:`doubt`."""
        self.search_path = ""
        """The last SET search_path, as its text."""
        self.path_in_doubt = False
        self.path_set_here = False
        self.overridden: object = None
        """See :func:`ormcache.routers.schemas.follows_attributes`."""
        self.takes_snapshots: bool | None = None
        """Whether transactions read from a snapshot though Django's settings do not say so."""
        self.replayed: Position | None = None
        """How far the replica behind this session was when it was last asked."""
        self.asked_at = float("-inf")
        """When that was, on the monotonic clock, answered or not."""
        self.live_cursors = LiveCursors()
        """SQLite's cursors that have rows left."""

    def ended(self) -> None:
        """The transaction is over."""
        self.dirty = set()
        self.places: dict[str, Route] = {}
        """Routes by namespace: where it wrote, if ``NAMESPACE`` may have sent it to several."""
        self.manual = False
        self.until_end = None
        self.path_set_here = False
        self.isolation_known = False
        """Whether the server was asked for the isolation of this very transaction."""

    def doubt(self) -> None:
        """From now on a transaction of the session may begin or end without anybody's notice.

        What is written is announced at once, in case there is none, and with the next commit
        again. Nothing is read from the cache: it may not be what the transaction sees.
        """
        self.in_doubt, self.manual, self.session = True, False, Reason.SESSION

    def rolled_back(self, connection: Any) -> None:
        """The transaction is undone, and with it any SET inside."""
        self.undone(connection)
        self.ended()

    def undone(self, connection: Any) -> None:
        """What was set in the transaction, or a part of it, may be undone."""
        self.path_in_doubt |= self.path_set_here
        # An older django-tenants does not notice; a newer one has forgotten its list.
        self.overridden = schemas.applied(connection)

    def is_path_known(self, connection: Any) -> bool:
        """Whether the context of an entry tells in which schemas the next query looks."""
        follows = schemas.follows_attributes(connection, self.overridden)
        return not self.path_in_doubt if follows is None else follows

    def path(self, connection: Any) -> str:
        """What ``SET search_path`` adds to the context, where the path is known."""
        return "" if schemas.is_of_tenants(connection) else self.search_path

    def told(self, connection: Any) -> Told:
        """What is known of the session, whose transaction ends without a commit."""
        if schemas.is_of_tenants(connection):
            # That sets its path itself, whatever session it gets.
            return Told(self.session, takes_snapshots=self.takes_snapshots)
        return Told(
            self.session,
            self.search_path,
            self.path_in_doubt or self.path_set_here,
            self.takes_snapshots,
        )

    def recall(self, driver: Any) -> None:
        """Know what the session of ``driver`` was told when another connection had it."""
        self.is_new = False
        self.session, self.search_path, self.path_in_doubt, self.takes_snapshots = sessions.recall(
            driver
        )

    def route(self, connection: Any, settings: Settings) -> Route:
        """Where this connection's answers are kept."""
        text = chosen.text_for(connection, settings)
        now = (settings, generation(), text, *basis(connection, settings))
        if self._route is None or now != self._basis:
            self._route, self._basis = route(connection, settings, text), now
        return self._route

    def writes(self, connection: Any, names: frozenset[str], own: str) -> frozenset[str]:
        """The registers of a statement that is executed now, see :mod:`~.routers.tenancy`.

        Args:
            connection: that of this state.
            names: the tables that it writes.
            own: that of them which it names without a schema.
        """
        if not own:
            return names
        path = schemas.searched(connection, self.overridden)
        if path is None or self.session is not None:
            return names
        return tenancy.written(names, own, path)

    def will_write(self, connection: Any, names: frozenset[str], own: str) -> frozenset[str]:
        """As :meth:`writes`, of a statement that has no cursor yet."""
        if not own or not schemas.is_of_tenants(connection):
            return names
        return tenancy.written(names, own, [connection.schema_name])

    def wrote(self, connection: Any, tables: Collection[str]) -> None:
        """The transaction that is open writes ``tables``."""
        if not tables:
            return
        self.dirty.update(tables)
        settings = current()
        if chosen.is_configured(settings):
            # By the time of the commit another namespace may have been chosen.
            route = self.route(connection, settings)
            self.places[route.namespace] = route


def state_of(connection: Any) -> ConnectionState:
    """The state that ormcache keeps on ``connection``."""
    state = connection.__dict__.get(_ATTRIBUTE)
    if state is None:
        state = connection.__dict__.setdefault(_ATTRIBUTE, ConnectionState())
    return state  # type: ignore[no-any-return]


def in_transaction(connection: Any, state: ConnectionState) -> bool:
    """Whether statements on ``connection`` take effect only with a later commit.

    Opens no connection, as ``get_autocommit()`` would.
    """
    if connection.in_atomic_block or state.manual:
        return True
    if connection.connection is None:
        return not connection.settings_dict["AUTOCOMMIT"]
    # SET autocommit = 0 outlasts COMMIT.
    if connection.vendor == "mysql" and commits_by_itself(connection) is False:
        return True
    return not connection.autocommit


def commits_by_itself(connection: Any) -> bool | None:
    """Whether autocommit is on at the server, which tells MySQL's drivers with each answer.

    Django need not know: it may have been SET. None if the driver does not tell.
    """
    get_autocommit = getattr(connection.connection, "get_autocommit", None)
    return None if get_autocommit is None else bool(get_autocommit())


def is_open(connection: Any) -> bool | None:
    """Whether a transaction is open, if the driver knows that without asking the server."""
    driver = connection.connection
    if connection.vendor == "sqlite":
        return bool(driver.in_transaction)
    status = getattr(getattr(driver, "info", None), "transaction_status", None)
    # libpq: 0 is idle, 4 is a connection that was lost.
    return None if status is None or status == 4 else status != 0


def is_begun_unseen(connection: Any, *, is_own: bool = True) -> bool:
    """Whether a transaction is open, given that :func:`in_transaction` knows of none.

    Then somebody has called the driver past Django's cursor. MySQL's does not tell. Asked for each
    read and write in autocommit, and so without the objects that :func:`is_open` takes.

    ``is_own``: whether the connection is that of this thread. Another one may be in the middle of
    a statement, and whether that is in a transaction shows only when it is over: it may be.
    """
    driver = connection.connection
    if driver is None:
        return False
    if connection.vendor == "sqlite":
        try:
            return bool(driver.in_transaction)
        except Exception:
            # It was closed: the next statement will tell.
            return False
    pgconn = getattr(driver, "pgconn", None)
    if pgconn is None:
        # psycopg2
        pgconn = getattr(driver, "info", None)
    # libpq: 2 is in a transaction, 3 in one that has failed. 1 is at work, perhaps in a pipeline.
    open_ones = _IN_TRANSACTION if is_own else _PERHAPS_IN_TRANSACTION
    return getattr(pgconn, "transaction_status", None) in open_ones


def is_executing(connection: Any) -> bool:
    """Whether PostgreSQL has not answered a statement yet: 1 is PQTRANS_ACTIVE."""
    if connection.vendor != "postgresql":
        return False
    info = getattr(connection.connection, "info", None)
    return getattr(info, "transaction_status", None) == 1


def is_pipelined(connection: Any) -> bool:
    """Whether statements are sent later than they are executed: psycopg's pipeline mode."""
    pgconn = getattr(connection.connection, "pgconn", None)
    return bool(getattr(pgconn, "pipeline_status", 0))


def is_aborted(connection: Any) -> bool:
    """Whether PostgreSQL has aborted the transaction, which Django's flags may not show.

    The next statement fails, and COMMIT would roll back; a hit must not hide that. libpq knows
    without asking the server: 3 is PQTRANS_INERROR.
    """
    if connection.vendor != "postgresql":
        return False
    info = getattr(connection.connection, "info", None)
    return getattr(info, "transaction_status", None) == 3
