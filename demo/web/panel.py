"""What the panel at the foot of a page shows: the request's queries and ormcache's answers."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from django.http import HttpRequest

from demo.recorder import Record, recording

Answer = TypeVar("Answer")

VISITS_KEPT = 1000


@dataclass
class Entry:
    """A named query or write of the request."""

    name: str
    record: Record
    milliseconds: float


class Visit(NamedTuple):
    """The queries' time on an earlier visit of a page, and how many had to be asked."""

    milliseconds: float
    misses: int


@dataclass
class Panel:
    """Filled while the view runs, drawn at the end of the page."""

    path: str
    enabled: bool
    entries: list[Entry] = field(default_factory=list)
    last_write: dict[str, Any] | None = None

    def ask(self, name: str, question: Callable[..., Answer], *arguments: Any) -> Answer:
        """Ask, and note how it was answered."""
        began = time.perf_counter()
        with recording() as record:
            try:
                return question(*arguments)
            finally:
                self.entries.append(Entry(name, record, (time.perf_counter() - began) * 1000))

    @property
    def milliseconds(self) -> float:
        """The time of all entries."""
        return sum(entry.milliseconds for entry in self.entries)

    def count(self, outcome: str) -> int:
        return sum(entry.record.count(outcome) for entry in self.entries)

    @property
    def hits(self) -> int:
        return self.count("hit")

    @property
    def misses(self) -> int:
        return self.count("miss")

    @property
    def skips(self) -> int:
        return self.count("skip")

    @property
    def other(self) -> Visit | None:
        """What the queries of this page took the last time in the other mode."""
        return _visits.get((self.path, not self.enabled))

    def remember(self) -> None:
        """Keep the time for the same page in the other mode."""
        _visits[self.path, self.enabled] = Visit(self.milliseconds, self.misses)
        if len(_visits) > VISITS_KEPT:
            _visits.popitem(last=False)


_visits: OrderedDict[tuple[str, bool], Visit] = OrderedDict()


class PanelRequest(HttpRequest):
    """What the middleware makes of a request."""

    panel: Panel
