"""What triggers and rules write, as far as their text tells, and whether ``WRITES`` declares it.

A statement says nothing of the tables that its triggers write. To find them out would take a look
into the database before each write; so what is written by a trigger that nobody has declared is
not cached.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Set

from ormcache import relations, sql
from ormcache import tables as table_names
from ormcache.conf import Settings
from ormcache.effects import passed_on
from ormcache.fence_rows import TABLE as FENCE
from ormcache.memo import Memo
from ormcache.relations import reach
from ormcache.stores import EVERYTHING

_Sources = Mapping[str, frozenset[str]]
"""For each name that may be that of a table which triggers write: the tables whose triggers these
are."""
_memo: Memo[tuple[str, bool], str] = Memo()


@dataclasses.dataclass(frozen=True, eq=False)
class Triggers:
    """Those of one database. Names are folded, as :func:`ormcache.sql.fold` does."""

    sources: _Sources
    unannounced: _Sources
    """Without the triggers that say in the fence that they write the table."""
    relatives: Mapping[str, frozenset[str]]
    """For each table with children, and each child: all above and below it."""
    above: Mapping[str, frozenset[str]]
    """For each child: all above it. Who writes there may write the child."""

    def undeclared(
        self, tables: Iterable[str], settings: Settings, *, has_fence: bool
    ) -> list[str]:
        """Which of ``tables`` are written by triggers of which ``WRITES`` says nothing, and whose.

        Args:
            tables: the tables of a query.
            settings: those in force.
            has_fence: whether the fence is looked into.
        """
        sources = self.unannounced if has_fence else self.sources
        memo = _memo.under(settings, table_names.known.generation, self)
        found = []
        for name in sorted(sources.keys() & tables):
            whose = memo.get((name, has_fence))
            if whose is None:
                whose = " and ".join(self._undeclared_sources(name, sources, settings))
                memo[name, has_fence] = whose
            if whose:
                found.append(f"{name} by a trigger of {whose}")
        return found

    def _undeclared_sources(self, name: str, sources: _Sources, settings: Settings) -> list[str]:
        # A write to any of them is one to ``name``.
        family = {name, *self.relatives.get(name, ())}
        writes = passed_on(settings)
        # Whoever writes the table above a child may make the child's triggers fire.
        writers = {
            table: sources.get(table, frozenset()) | self.above.get(table, frozenset())
            for table in {*sources, *self.above}
        }
        # Those above ``name`` itself are of its family.
        found = reach(name, {**writers, name: sources[name]}) - family
        return [
            source
            for source in sorted(found)
            # Not even a statement that deletes nothing may leave it out.
            if family.isdisjoint(relations.written_with({source}, writes, deletes=False))
        ]


NONE = Triggers({}, {}, {}, {})


def read(
    bodies: Iterable[tuple[str, str]],
    routines: Mapping[str, str],
    relatives: Mapping[str, frozenset[str]],
    above: Mapping[str, frozenset[str]],
) -> Triggers:
    """Find out which tables triggers write.

    Args:
        bodies: tables, each with the text of one of its triggers.
        routines: names, and the texts of what triggers may call.
        relatives: see :class:`Triggers`.
        above: see :class:`Triggers`.
    """
    tables: dict[str, set[str]] = defaultdict(set)
    for table, body in bodies:
        tables[body].add(table)
    sources: dict[str, set[str]] = defaultdict(set)
    unannounced: dict[str, set[str]] = defaultdict(set)
    texts = _Texts(routines)
    for body, its_tables in tables.items():
        together = texts.run_by(body)
        targets = frozenset[str]().union(*map(texts.written_in, together))
        for target in targets:
            sources[target] |= its_tables - {target}
        for target in targets - _announced(together, targets):
            unannounced[target] |= its_tables - {target}
    return Triggers(_frozen(sources), _frozen(unannounced), relatives, above)


class _Texts:
    """The texts of triggers and routines.

    There may be thousands of routines, of which triggers call a few. Each is looked into once.
    """

    def __init__(self, routines: Mapping[str, str]) -> None:
        self._routines = routines
        self._calls: dict[str, set[str]] = {}
        self._written: dict[str, frozenset[str]] = {}

    def run_by(self, text: str) -> set[str]:
        """The text itself, and those of all that it calls."""
        found, waiting = {text}, [text]
        while waiting:
            new = self._called_by(waiting.pop()) - found
            found |= new
            waiting.extend(new)
        return found

    def _called_by(self, text: str) -> set[str]:
        found = self._calls.get(text)
        if found is None:
            names = sql.names_in(text) & self._routines.keys()
            found = self._calls[text] = {self._routines[name] for name in names}
        return found

    def written_in(self, text: str) -> frozenset[str]:
        found = self._written.get(text)
        if found is None:
            found = self._written[text] = sql.written_in(text)
        return found


def _announced(texts: Iterable[str], targets: Set[str]) -> Set[str]:
    """Those of ``targets`` of which the texts say in the fence that they write them."""
    if FENCE not in targets:
        return frozenset()
    folded = ";".join(texts).casefold()
    if f"'{EVERYTHING}'" in folded:
        return targets
    return {name for name in targets if f"'{name}'" in folded}


def _frozen(sources: Mapping[str, Set[str]]) -> _Sources:
    return {target: frozenset(found) for target, found in sources.items() if found}
