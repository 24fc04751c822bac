"""Which tables may be cached and for how long, by ``ORMCACHE["MODELS"]``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from django.apps import apps

from ormcache import relations
from ormcache import tables as table_names
from ormcache.conf import Inherited, ModelSettings, Settings


class Policy(NamedTuple):
    """What holds for one set of tables."""

    enabled: bool
    timeouts: tuple[float | None, ...]
    """Timeouts of the models, less those that have none of their own."""

    def timeout(self, default: float | None) -> float | None:
        """The shortest of the models' timeouts, in seconds; None for no expiry."""
        if not self.timeouts:
            return default
        finite = [timeout for timeout in self.timeouts if timeout is not None]
        return min(finite) if finite else None


_FREE = Policy(True, ())


class _Policies:
    def __init__(self) -> None:
        self._basis: tuple[object, ...] = ()
        self._models: dict[str, ModelSettings] = {}
        self._memo: dict[tuple[str, ...], Policy] = {}

    def of(self, tables: tuple[str, ...], settings: Settings) -> Policy:
        """The policy for a query that reads ``tables``."""
        if not settings.MODELS:
            return _FREE
        basis = (settings, table_names.known.generation)
        if basis != self._basis:
            self._models, self._memo = _by_table(settings.MODELS), {}
            self._basis = basis
        policy = self._memo.get(tables)
        if policy is None:
            found = [self._models[name] for name in tables if name in self._models]
            timeouts = [s.TIMEOUT for s in found if not isinstance(s.TIMEOUT, Inherited)]
            policy = Policy(all(s.ENABLED is not False for s in found), tuple(timeouts))
            self._memo[tables] = policy
        return policy


def _by_table(models: Mapping[str, ModelSettings]) -> dict[str, ModelSettings]:
    """Settings by table; what is said of a model comes before what is said of its app."""
    found: dict[str, ModelSettings] = {}
    for label in sorted(models, key=lambda label: not label.endswith(".*")):
        app_label, _, name = label.rpartition(".")
        for model in apps.get_models(include_auto_created=True, include_swapped=True):
            options = model._meta
            if options.app_label == app_label and name in ("*", options.object_name):
                table = relations.table(model)
                general = found.get(table, ModelSettings())
                specific = models[label]
                found[table] = ModelSettings(
                    ENABLED=general.ENABLED if specific.ENABLED is None else specific.ENABLED,
                    TIMEOUT=general.TIMEOUT
                    if isinstance(specific.TIMEOUT, Inherited)
                    else specific.TIMEOUT,
                )
    return found


policies = _Policies()
