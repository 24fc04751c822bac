"""Audits the cache: asks the database what entries hold, from any process, at any time.

Only entries with a :mod:`note <ormcache.notes>` can be asked again. An entry is compared as a hit
is, with clean and unchanged registers and by a connection whose answers mean the same.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from django.db import connections

from ormcache import codec, notes, plans, reads, snapshots, verification
from ormcache.conf import current
from ormcache.connection_state import state_of
from ormcache.exceptions import Corrupt, Mismatch
from ormcache.notes import Note
from ormcache.reasons import Reason
from ormcache.routers.namespaces import Route
from ormcache.stores import Store

_T = TypeVar("_T")

SAME = "same"
DIFFERENT = "different"
GONE = "gone"
"""Invalidated or expired, so that nobody is given it any more."""
FOREIGN = "of another alias or session"
"""Made under another time zone, schema or version of the software: this one cannot tell."""
UNREADABLE = "note unreadable"


class Audit:
    """An audit of the entries of one database.

    Raises CacheError if the cache does not answer, also in what it does later, and what
    connecting to the database raises.
    """

    def __init__(self, alias: str, limit: int) -> None:
        """Choose what to look at.

        Args:
            alias: the database.
            limit: how many entries at most, chosen at random if there are more.
        """
        self.alias = alias
        connection: Any = connections[alias]
        # What connecting does to the session is part of what entries are compared by.
        connection.ensure_connection()
        self.route = state_of(connection).route(connection, current())
        store = self.route.store
        found = None if store is None else store.noted(self.route.namespace)
        self.can_list = found is not None
        """Whether the cache can tell which entries it has."""
        self.noted, self.entries = _sample(found or (), limit)
        """How many have a note, and the names of those that are looked at."""
        self.results: Counter[str] = Counter()
        self.differences: list[tuple[tuple[str, ...], str, str]] = []
        """Tables, SQL and name of entries that were wrong."""

    def run(self) -> Iterator[str]:
        """Compare one entry after the other, and tell what each came to."""
        for entry in self.entries:
            result = self._look(entry)
            self.results[result] += 1
            yield result

    def _look(self, entry: str) -> str:
        store, route = self.route.store, self.route
        assert store is not None
        try:
            note = _note(store, route, entry)
        except Corrupt:
            return UNREADABLE
        if note is None:
            return GONE
        connection: Any = connections[self.alias]
        state = state_of(connection)
        path = state.path(connection)
        if note.context != reads.context_of(route, path):
            return FOREIGN
        reason = snapshots.why_not_read(connection, state)
        if reason is not None:
            return str(reason)
        plan = plans.Plan(
            note.sql,
            note.params,
            note.tables,
            frozenset(note.elsewhere),
            note.key,
            note.registers,
            note.entry,
        )
        lookup = store.read(route.namespace, entry, note.registers)
        if lookup.entry is None or lookup.vector is None:
            return GONE
        try:
            cached = codec.decode(codec.unseal(lookup.entry))
        except Corrupt:
            return GONE
        read = reads.Read(
            *(connection, state, route, current(), path, plan, lookup.vector, note.is_single),
            model=None,
            width=note.width,
            order=lambda: note.order,
        )
        try:
            is_same = _check(read, cached)
        except verification.Unverified as doubt:
            verification.count(read, f"unverified: {doubt}")
            if str(doubt) == verification.FAILED:
                # Raises if it was not about this query.
                connection.ensure_connection()
            return str(doubt)
        except Mismatch:
            # It is told of at the end.
            is_same = False
        if is_same:
            return SAME
        self.differences.append((note.tables, note.sql, entry))
        return DIFFERENT


def _check(read: reads.Read, cached: codec.Result) -> bool:
    """Whether the database says the same. Raises Unverified and Mismatch."""
    try:
        return verification.check(read, cached) is None
    except verification.Unverified as doubt:
        if str(doubt) != Reason.CATALOG_UNKNOWN:
            raise
    # It was read just now, by a process that has not asked for these tables before.
    return verification.check(read, cached) is None


def _note(store: Store, route: Route, entry: str) -> Note | None:
    data = store.note_of(route.namespace, entry)
    if data is None:
        return None
    note = notes.load(data)
    if note.entry != entry:
        raise Corrupt("the note of another entry")
    return note


def _sample(found: Iterable[_T], limit: int) -> tuple[int, list[_T]]:
    """How many there are, and ``limit`` of them at most, each with the same chance."""
    chance = random.Random()
    chosen: list[_T] = []
    count = 0
    for count, item in enumerate(found, 1):
        if len(chosen) < limit:
            chosen.append(item)
        elif (place := chance.randrange(count)) < limit:
            chosen[place] = item
    chance.shuffle(chosen)
    return count, chosen
