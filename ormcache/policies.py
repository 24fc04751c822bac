"""Which tables may be cached and for how long, by ``ORMCACHE["MODELS"]``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from django.apps import apps

from ormcache import relations
from ormcache import tables as table_names
from ormcache.conf import Inherited, ModelSettings, Settings

ALL = "*"
"""The key in ``MODELS`` for all tables, those of no model included. It vouches for none."""


class Policy(NamedTuple):
    """What holds for one set of tables."""

    enabled: bool
    timeouts: tuple[float | None, ...] = ()
    """Timeouts of the tables that have one of their own."""
    inherits: bool = True
    """Whether the others are subject to the timeout of the database."""

    def timeout(self, default: float | None) -> float | None:
        """The shortest timeout of the tables, in seconds; None for no expiry."""
        timeouts = (*self.timeouts, default) if self.inherits else self.timeouts
        finite = [timeout for timeout in timeouts if timeout is not None]
        return min(finite) if finite else None


_FREE = Policy(True)


class _Known(NamedTuple):
    """What follows from one value of the settings and one set of models."""

    basis: tuple[object, ...]
    tables: dict[str, ModelSettings]
    others: ModelSettings
    """What holds for all other tables, those of no model included."""
    policies: dict[tuple[str, ...], Policy]


class _Policies:
    def __init__(self) -> None:
        self._known = _Known((), {}, ModelSettings(), {})

    def of(self, tables: tuple[str, ...], settings: Settings) -> Policy:
        """The policy for a query that reads ``tables``."""
        if not settings.MODELS:
            return _FREE
        known = self._known
        basis = (settings, table_names.known.generation)
        if basis != known.basis:
            # One assignment, so that another thread sees the old or the new.
            others = settings.MODELS.get(ALL, ModelSettings())
            self._known = known = _Known(basis, _by_table(settings.MODELS), others, {})
        policy = known.policies.get(tables)
        if policy is None:
            found = [known.tables.get(name, known.others) for name in tables]
            policy = known.policies[tables] = _combine(found)
        return policy


def _combine(found: Sequence[ModelSettings]) -> Policy:
    timeouts = [s.TIMEOUT for s in found if not isinstance(s.TIMEOUT, Inherited)]
    return Policy(
        enabled=all(s.ENABLED is not False for s in found),
        timeouts=tuple(timeouts),
        inherits=len(timeouts) < len(found),
    )


def _by_table(models: Mapping[str, ModelSettings]) -> dict[str, ModelSettings]:
    """Settings of the tables that have some, by ``"app.Model"``, ``"app.*"`` or :data:`ALL`.

    What is said of a model comes before what is said of its app, and that before what is said of
    all.
    """
    of_apps: dict[str, ModelSettings] = {}
    of_models: dict[str, ModelSettings] = {}
    for model in apps.get_models(include_auto_created=True, include_swapped=True):
        options = model._meta
        for name, found in (("*", of_apps), (options.object_name, of_models)):
            settings = models.get(f"{options.app_label}.{name}")
            if settings is not None:
                table = relations.table(model)
                found[table] = _stricter(found.get(table), settings)
    for table, settings in of_models.items():
        of_apps[table] = _specific(of_apps.get(table, ModelSettings()), settings)
    of_all = models.get(ALL, ModelSettings())
    return {table: _specific(of_all, settings) for table, settings in of_apps.items()}


def _stricter(one: ModelSettings | None, other: ModelSettings) -> ModelSettings:
    """What holds for a table of two models, such as a proxy and the model behind it."""
    if one is None:
        return other
    flags = {one.ENABLED, other.ENABLED} - {None}
    timeouts = [s.TIMEOUT for s in (one, other) if not isinstance(s.TIMEOUT, Inherited)]
    finite = [timeout for timeout in timeouts if timeout is not None]
    shortest = min(finite) if finite else None
    return ModelSettings(
        ENABLED=all(flags) if flags else None,
        TIMEOUT=shortest if timeouts else Inherited.INHERITED,
    )


def _specific(general: ModelSettings, specific: ModelSettings) -> ModelSettings:
    inherits = isinstance(specific.TIMEOUT, Inherited)
    return ModelSettings(
        ENABLED=general.ENABLED if specific.ENABLED is None else specific.ENABLED,
        TIMEOUT=general.TIMEOUT if inherits else specific.TIMEOUT,
    )


policies = _Policies()
