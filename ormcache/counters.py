"""How often each table was read from the cache, per database alias."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterable, Sequence

# For the same thread not exclusive: the handler of a signal may read, too, and lose a count.
_lock = threading.RLock()


def _renew_lock() -> None:
    # Another thread may have held it when this process was forked.
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock)
_reads: Counter[tuple[str, tuple[str, ...], str]] = Counter()
_events: Counter[tuple[str, str, str]] = Counter()


def count_read(alias: str, tables: tuple[str, ...], outcome: str) -> None:
    """Count a read. ``outcome``: ``hit``, ``miss``, ``corrupt`` or the reason of a skip."""
    with _lock:
        _reads[alias, tables, outcome] += 1


def count_event(alias: str, tables: Sequence[str], event: str) -> None:
    """Count an event per table; see :func:`snapshot` for their names."""
    with _lock:
        for table in tables:
            _events[alias, table, event] += 1


def snapshot(aliases: Iterable[str] | None = None) -> dict[str, dict[str, dict[str, int]]]:
    """The counters of this process since its start: alias, table, event, number.

    Args:
        aliases: the database aliases that are wanted; all without it.

    Events are ``hit``, ``miss``, ``corrupt`` (an entry that did not decode, also counted as a
    miss), ``not stored: <reason>`` (a miss that will be a miss again), ``skip: <reason>``,
    ``shadow hit`` (a hit that the database answers, as ``MODE`` is ``"shadow"``), ``verified``,
    ``mismatch`` and ``unverified: <reason>`` (hits that were compared: the same, not the same,
    and proof of nothing), ``invalidated``, ``fenced`` (a write that the fence was told of instead
    of the cache) and ``unannounced`` (one that neither was told of). A read of several tables
    counts for each; one that was skipped before its tables were known counts under ``""``.
    """
    wanted = None if aliases is None else set(aliases)
    with _lock:
        reads, events = list(_reads.items()), list(_events.items())
    found: dict[str, dict[str, Counter[str]]] = {}
    for (alias, tables, outcome), number in reads:
        for table in tables or ("",):
            found.setdefault(alias, {}).setdefault(table, Counter())[outcome] += number
    for (alias, table, event), number in events:
        found.setdefault(alias, {}).setdefault(table, Counter())[event] += number
    return {
        alias: {table: dict(counts) for table, counts in sorted(tables.items())}
        for alias, tables in sorted(found.items())
        if wanted is None or alias in wanted
    }


def reset() -> None:
    """Start counting at 0 again."""
    with _lock:
        _reads.clear()
        _events.clear()
