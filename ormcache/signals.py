"""Signals for those who watch the cache.

``query_read``
    sent after each ORM read. ``sender`` is the model, ``using`` the database alias,
    ``outcome`` one of ``"hit"``, ``"miss"`` (asked from the database, stored if possible),
    ``"skip"`` (not cached) and, where ``MODE`` is ``"shadow"``, ``"shadow hit"`` (asked from the
    database though the cache had an answer), ``reason`` a :class:`~ormcache.reasons.Reason` or
    None (of a miss: why it was not stored), ``tables`` the tables that the query reads and ``sql``
    its text with placeholders. A query that was skipped before it was compiled has no tables,
    ``()``, and no text, None.

``tables_invalidated``
    sent after a write took effect (after COMMIT and before ``on_commit`` hooks), after
    ``invalidate()`` and after a flush. ``sender`` is None, ``using`` the database alias and
    ``tables`` the tables, or ``("*",)`` for all of the database.

``mismatch_found``
    sent when a hit was run on the database, too, and the two answers differ though nothing was
    written meanwhile. ``sender`` is the model, or None, ``using`` the database alias, ``tables``
    the tables, ``sql`` and ``params`` the query, ``key`` the name of the entry, ``cached`` and
    ``truth`` the two answers, as lists of rows as the driver gives them, and ``shadow`` whether
    the wrong answer was kept from the user. The entry has been dropped by then.

Receivers run inside the read or the commit. Their exceptions are logged, not raised.
"""

from __future__ import annotations

from django.dispatch import Signal

query_read = Signal()
tables_invalidated = Signal()
mismatch_found = Signal()
