"""Signals for those who watch the cache.

``query_read``
    sent after each ORM read. ``sender`` is the model, ``using`` the database alias,
    ``outcome`` one of ``"hit"``, ``"miss"`` (asked from the database, stored if possible) and
    ``"skip"`` (not cached), ``reason`` a :class:`~ormcache.reasons.Reason` or None (of a miss:
    why it was not stored), ``tables`` the tables that the query reads and ``sql`` its text with
    placeholders. A query that was skipped before it was compiled has no tables, ``()``, and no
    text, None.

``tables_invalidated``
    sent after a write took effect (after COMMIT and before ``on_commit`` hooks), after
    ``invalidate()`` and after a flush. ``sender`` is None, ``using`` the database alias and
    ``tables`` the tables, or ``("*",)`` for all of the database.

Receivers run inside the read or the commit. Their exceptions are logged, not raised.
"""

from __future__ import annotations

from django.dispatch import Signal

query_read = Signal()
tables_invalidated = Signal()
