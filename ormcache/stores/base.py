"""What a store does: registers of tables and entries of queries, in one of Django's caches.

A *register* belongs to a table and is *clean*, with a nonce that names one uninterrupted
interval without commits, or holds the *intents* of commits on their way. An *entry* holds an
answer and the vector of nonces under which its query ran; it is valid while all registers are
clean and show that vector. A nonce is never used twice.
"""

from __future__ import annotations

import abc
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from ormcache.exceptions import CacheError
from ormcache.reasons import Reason

EVERYTHING = "*"
"""The name of the register that stands for all tables of a namespace."""


class Lookup(NamedTuple):
    """The answer to a read."""

    entry: bytes | None
    """The encoded result, if a valid one is stored; b"" for one that cannot be read."""
    vector: str | None = None
    """What to store an answer under; None if the registers are not clean.

    The name of the entry and a text for each register, :data:`EVERYTHING` first and then the
    tables as they were given, with semicolons between. The text changes whenever the register
    does, and never comes back.
    """
    reason: Reason | None = None
    """Why they are not clean: BUSY, QUARANTINE or OVERDUE."""
    remaining: float = 0.0
    """Seconds until they are clean at the latest."""


class Store(abc.ABC):
    """Entries and registers in one cache. Safe to use from several threads.

    All methods raise :class:`~ormcache.exceptions.CacheError` if the cache does not do what
    it is asked to. ``namespace`` is the name of a namespace, ``tables`` folded table names
    without repetition, ``intent`` a name of the caller's choice for one commit.
    """

    mode: str
    """``"strict"``: no answer is ever older than the database's. ``"standard"``: it may be,
    for moments, while two commits to one table overlap; see the page on guarantees."""

    shares_intents = False
    """Whether commits that follow each other may share an intent, see :mod:`ormcache.bursts`."""

    is_remote = True
    """Whether it may be out of reach of this process, or of another."""

    def database(self) -> str | None:
        """The database alias in which the cache itself lives, if it lives in one."""
        return None

    @abc.abstractmethod
    def read(self, namespace: str, entry: str, tables: Sequence[str]) -> Lookup:
        """Look an entry up; in one round trip where the cache can."""

    def start_read(
        self, namespace: str, entry: str, tables: Sequence[str]
    ) -> Callable[[], Lookup]:
        """Begin what :meth:`read` does; the function returned waits for the answer.

        Call it in any case. It raises CacheError, this method does not.
        """
        return lambda: self.read(namespace, entry, tables)

    @abc.abstractmethod
    def fill(
        self, namespace: str, entry: str, vector: str, payload: bytes, timeout: float | None
    ) -> None:
        """Store ``payload`` under the vector of an earlier :meth:`read`; may not be awaited."""

    def note(  # noqa: B027 - most stores cannot give it back
        self, namespace: str, entry: str, note: bytes, timeout: float | None
    ) -> None:
        """Keep a note of the query beside its entry; nothing is kept if it is empty."""

    def noted(self, namespace: str) -> Iterator[str] | None:
        """The names of the entries that have a note, in no order; None if none can be listed."""
        return None

    def note_of(self, namespace: str, entry: str) -> bytes | None:
        """The note of an entry, if there is one."""
        return None

    @abc.abstractmethod
    def drop(self, namespace: str, entry: str) -> None:
        """Remove an entry and its note; it is no error if there is none."""

    @abc.abstractmethod
    def arm(self, namespace: str, intent: str, tables: Sequence[str]) -> None:
        """Announce a commit, before it is sent. Once more with the same intent renews it."""

    def start_arm(self, namespace: str, intent: str, tables: Sequence[str]) -> Callable[[], None]:
        """Begin what :meth:`arm` does; the function returned waits for its end.

        Call it in any case. It raises CacheError as this method does.
        """
        self.arm(namespace, intent, tables)
        return lambda: None

    @abc.abstractmethod
    def finish(self, namespace: str, intent: str, tables: Sequence[str]) -> None:
        """The commit is over, one way or the other; may not be awaited."""

    @abc.abstractmethod
    def bump(self, namespace: str, tables: Sequence[str]) -> None:
        """Make entries of ``tables`` invalid now."""

    def expects_ids(self, namespace: str) -> None:  # noqa: B027 - most stores lose no intent
        """The database of the namespace tells whether transactions are over.

        From now on, what this store has lost is trusted again only when :meth:`settle` says that
        the transactions of that time are.
        """

    def moment(self) -> int:
        """The time of the cache's own clock, for :meth:`settle`."""
        raise CacheError("here leases end all intents")

    def settle(
        self, namespace: str, tables: Sequence[str], moment: int, horizon: int, oldest: int
    ) -> None:
        """Remove overdue intents whose transactions are over, as the database says.

        Args:
            namespace: that of ``tables``.
            tables: of which a :meth:`read` has said that some intent is overdue.
            moment: when :meth:`moment` was asked; what was not overdue by then stays.
            horizon: a transaction id that was given out after that.
            oldest: the lowest id of a transaction that was still running after that.
        """
        raise CacheError("here leases end all intents")

    @abc.abstractmethod
    def status(self, namespace: str) -> dict[str, object]:
        """Facts for ``manage.py ormcache status``."""

    def protocol(self, namespace: str) -> dict[str, object] | None:
        """What a program without ormcache needs to invalidate here, as values for JSON.

        None if the cache has no scripts and no counters, so that no other program can.
        """
        return None

    def close(self) -> None:  # noqa: B027 - most stores hold nothing open
        """Drop what is held open; the store may be used again."""


def new_transaction() -> str:
    """The intent of a transaction of which the database can tell whether it is over."""
    return f"@{new_nonce()}"


class Nonces:
    """Names that no process gives twice: 96 random bits of the process and a counter."""

    def __init__(self) -> None:
        self._renew()
        os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._prefix = os.urandom(12).hex()
        self._counter = itertools.count()

    def __call__(self) -> str:
        return f"{self._prefix}.{next(self._counter):x}"

    def has_given(self, name: str) -> bool:
        """Whether ``name``, or an intent that was made of it, is of this process."""
        return name.removeprefix("@").startswith(self._prefix)


new_nonce = Nonces()


class _Inside(threading.local):
    depth = 0


_inside = _Inside()


class store_access:
    """Marks what runs inside as the store's own, for caches that live in a database."""

    def __enter__(self) -> None:
        _inside.depth += 1

    def __exit__(self, *exc_info: object) -> None:
        _inside.depth -= 1


def is_store_access() -> bool:
    """Whether this thread is inside a store: then its statements are not ours to watch."""
    return _inside.depth > 0
