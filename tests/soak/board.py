"""What the processes of a soak know of each other: numbers in shared memory, without locks.

Whoever may be killed at any moment must hold no lock. So each worker writes into slots of its own.
"""

from __future__ import annotations

from collections.abc import MutableSequence
from typing import Any

from tests.hammering import ROWS

COUNTS = (
    *("reads", "hits", "asked", "writes", "refused", "errors", "stale", "unexpected"),
    *("verified", "unverified", "mismatches"),
)
"""`asked`: reads of which it is known whether they were hits. `errors`: of the databases.

The last three: hits that were compared with the database, or could not be, or were wrong.
"""


class Board:
    """Arrays that child processes share with their parent."""

    def __init__(self, context: Any, workers: int, aliases: list[str]) -> None:
        self.workers, self.aliases = workers, aliases
        self.is_over = context.RawValue("b", 0)
        self._floors = context.RawArray("q", len(aliases) * workers * ROWS)
        self._counts = context.RawArray("q", workers * len(COUNTS))

    def floors(self, worker: int, alias: str) -> Floors:
        return Floors(self._floors, self.aliases.index(alias) * self.workers, self.workers, worker)

    def add(self, worker: int, name: str, number: int = 1) -> None:
        """Only `worker` itself may call this."""
        self._counts[worker * len(COUNTS) + COUNTS.index(name)] += number

    def total(self, name: str) -> int:
        return sum(self._counts[COUNTS.index(name) :: len(COUNTS)])


class Floors(MutableSequence[int]):
    """The floors of the rows in one database: the greatest that any worker has written."""

    def __init__(self, numbers: Any, first: int, workers: int, worker: int) -> None:
        self._numbers = numbers
        self._starts = [(first + other) * ROWS for other in range(workers)]
        self._own = (first + worker) * ROWS

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, row: Any) -> Any:
        if not 0 <= row < ROWS:
            raise IndexError(row)
        return max(self._numbers[start + row] for start in self._starts)

    def __setitem__(self, row: Any, value: Any) -> None:
        self._numbers[self._own + row] = value

    def __delitem__(self, row: Any) -> None:
        raise TypeError("rows stay")

    def insert(self, index: int, value: int) -> None:
        raise TypeError("no row can be added")
