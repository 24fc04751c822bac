"""Sends writes to the primary and reads to replicas, and lets a writer read what it wrote.

A replica is read if it answers, and if it shows what this context has written: its position is
compared with that of the primary after the write, see :mod:`ormcache.routers.positions`. Where
servers tell no positions, ``MAX_LAG`` seconds have to pass. In any other case the primary is read.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterable
from typing import Any

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation
from django.core.signals import request_finished, request_started
from django.db import DEFAULT_DB_ALIAS, Error, connections
from django.db.models import Model

from ormcache import access, replicas
from ormcache.conf import current
from ormcache.connection_state import state_of
from ormcache.exceptions import SettingsError
from ormcache.routers import chosen, groups, health, pins, schemas
from ormcache.routers.namespaces import Route
from ormcache.routers.pins import Pin, Scope
from ormcache.routers.positions import Position, PositionUnknown
from ormcache.snapshots import holds_reads, is_undisturbed

_PATIENCE = 0.02
"""For so many seconds, a server that was asked for its position is not asked again."""


class ReplicaRouter:
    """A database router: writes go to the primary, reads to its replicas.

    Put ``"ormcache.routers.ReplicaRouter"`` into ``DATABASE_ROUTERS``, or an instance for a
    primary other than ``"default"``. Its replicas are those that ``ORMCACHE`` or Django's
    ``TEST["MIRROR"]`` declares; without any, all goes to the primary.

    Args:
        primary: the alias that takes the writes.
        app_labels: the apps whose models live there; None for all.
    """

    def __init__(
        self, primary: str = DEFAULT_DB_ALIAS, *, app_labels: Iterable[str] | None = None
    ) -> None:
        if isinstance(app_labels, str):
            raise TypeError(f"app_labels is {app_labels!r}; it must be a list of app labels.")
        self.primary = primary
        self.app_labels = None if app_labels is None else frozenset(app_labels)
        # Not all processes begin with the same replica.
        self._turns = itertools.count(random.randrange(1000))
        self._has_hooks = False
        request_started.connect(pins.begin_request, dispatch_uid="ormcache.routers.pins")
        request_finished.connect(pins.end_request, dispatch_uid="ormcache.routers.pins")

    def db_for_read(self, model: type[Model], **hints: Any) -> str | None:
        """A replica that answers and shows what this context has written; else the primary.

        None, which lets the next router decide, if the model or the instance lives elsewhere.
        """
        settings = current()
        others = groups.replicas_of(self.primary, settings)
        if (hints or self.app_labels is not None) and not self._is_ours(model, hints, others):
            return None
        if not others:
            return self.primary
        connection: Any = connections[self.primary]
        if holds_reads(connection, state_of(connection)):
            return self.primary
        scope = pins.current()
        if scope is None:
            pin, first = None, others[next(self._turns) % len(others)]
        else:
            pin, first = scope.pins.get(self.primary), self._first(others, scope)
        is_switched = "schema_name" in connection.__dict__ or chosen.is_configured(settings)
        if pin is None and not is_switched and first in health.well and not access.is_guarded():
            # As it is nearly always.
            return first
        return self._reader(others, first, pin, scope)

    def db_for_write(self, model: type[Model], **hints: Any) -> str | None:
        """The primary; None if the model or the instance lives elsewhere."""
        others = groups.replicas_of(self.primary, current())
        return self.primary if self._is_ours(model, hints, others) else None

    def allow_relation(self, obj1: Model, obj2: Model, **hints: Any) -> bool | None:
        """Objects that were read from a primary and its replicas are of one database."""
        group = (self.primary, *self._replicas())
        return True if obj1._state.db in group and obj2._state.db in group else None

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
        """A replica has its tables from the primary."""
        if db in self._replicas():
            return False
        if self.app_labels is not None and app_label in self.app_labels:
            return db == self.primary
        return None

    def _replicas(self) -> tuple[str, ...]:
        try:
            return groups.replicas_of(self.primary, current())
        except SettingsError:
            # Django's checks ask this before those of ormcache can tell what is wrong.
            return ()

    def _is_ours(self, model: type[Model], hints: dict[str, Any], others: tuple[str, ...]) -> bool:
        if self.app_labels is not None and model._meta.app_label not in self.app_labels:
            return False
        instance = hints.get("instance")
        if instance is None:
            return True
        # What was read from a database outside the group goes on living there.
        home = instance._state.db
        return home is None or home == self.primary or home in others

    def _first(self, others: tuple[str, ...], scope: Scope) -> str:
        alias = scope.chosen.get(self.primary)
        if alias is None or alias not in others:
            alias = others[next(self._turns) % len(others)]
            self._choose(alias, scope)
        return alias

    def _choose(self, alias: str, scope: Scope | None) -> None:
        """In a request, read from this replica from now on.

        So it does not go back in time from one replica to another that is less far, and needs
        one connection.
        """
        if scope is not None and scope.is_request:
            scope.chosen[self.primary] = alias

    def _reader(
        self, others: tuple[str, ...], first: str, pin: Pin | None, scope: Scope | None
    ) -> str:
        """The first that may be read, beginning with ``first``; else the primary."""
        if not self._has_hooks:
            self._check_hooks()
        number = others.index(first)
        for alias in others[number:] + others[:number]:
            if (
                _is_set_to_the_same_tenant(alias, self.primary)
                and _answers(alias)
                and (pin is None or _shows(alias, pin))
            ):
                self._choose(alias, scope)
                return alias
        return self.primary

    def _check_hooks(self) -> None:
        if not apps.is_installed("ormcache"):
            raise ImproperlyConfigured(
                'ReplicaRouter sees no writes: add "ormcache" to INSTALLED_APPS.'
            )
        self._has_hooks = True


def _is_set_to_the_same_tenant(alias: str, primary: str) -> bool:
    """Raises SettingsError if ``NAMESPACE`` does not do what it must."""
    replica, connection = connections[alias], connections[primary]
    if schemas.named(replica) != schemas.named(connection):
        return False
    settings = current()
    return not chosen.is_configured(settings) or (
        chosen.text_for(replica, settings) == chosen.text_for(connection, settings)
    )


# --- health --------------------------------------------------------------------------------


def _answers(alias: str) -> bool:
    """Whether queries may be sent to ``alias``.

    Connects only while nothing is known of the server: a hit needs no connection.
    """
    if access.is_forbidden(alias):
        return False
    if alias in health.well:
        return True
    connection: Any = connections[alias]
    if connection.in_atomic_block or _is_in_coroutine():
        return False
    return health.becomes_well(alias, lambda: _connect(connection))


def _connect(connection: Any) -> None:
    """Raises ``django.db.Error``."""
    if connection.connection is not None and not connection.is_usable():
        connection.close()
    connection.ensure_connection()


def _is_in_coroutine() -> bool:
    try:
        access.not_in_a_coroutine()
    except SynchronousOnlyOperation:
        return True
    return False


# --- what was written ----------------------------------------------------------------------


def position_of(pin: Pin) -> Position | None:
    """How far a replica must be to show the write; None if the primary does not tell it now.

    Asks the primary, unless it has answered before.
    """
    now = time.monotonic()
    if pin.position is None and now - pin.asked_at >= _PATIENCE:
        pin.asked_at = now
        try:
            pin.position = replicas.written(pin.primary)
        except PositionUnknown:
            return None
    return pin.position


def _shows(alias: str, pin: Pin) -> bool:
    """Whether a query on ``alias`` sees the write. Asks the replica now and then."""
    connection: Any = connections[alias]
    state = state_of(connection)
    if not is_undisturbed(connection, state):
        return False
    replayed = state.replayed
    if pin.position is not None and replayed is not None and replayed.includes(pin.position):
        # The usual case, if the last write was not just now.
        return True
    known = _shows_by_time(state.route(connection, current()), pin)
    if known is not None:
        return known
    position = None if _is_in_coroutine() else position_of(pin)
    if position is None:
        return False
    try:
        return replicas.shows(connection, state, position, patience=_PATIENCE)
    except (PositionUnknown, Error):
        return False


def _shows_by_time(route: Route, pin: Pin) -> bool | None:
    """Whether a replica shows the write; None if that takes its position."""
    if route.lags_behind is None:
        return True
    if route.max_lag is not None:
        return time.monotonic() - pin.at >= route.max_lag
    return None


def is_over(pin: Pin) -> bool:
    """Whether all replicas are known to show the write. Asks nobody."""
    settings = current()
    for alias in groups.replicas_of(pin.primary, settings):
        connection: Any = connections[alias]
        shows = _shows_by_time(state_of(connection).route(connection, settings), pin)
        if shows is None:
            reached = replicas.reached.get(alias)
            shows = (
                reached is not None and pin.position is not None and reached.includes(pin.position)
            )
        if not shows:
            return False
    return True
