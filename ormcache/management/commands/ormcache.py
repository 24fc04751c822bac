"""``manage.py ormcache flush``, ``explain``, ``status``, ``audit`` and ``protocol``."""

from __future__ import annotations

import json
from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError
from collections import Counter, defaultdict
from types import SimpleNamespace
from typing import Any

from django import db
from django.apps import apps
from django.conf import settings as django_settings
from django.core.exceptions import MultipleObjectsReturned, ObjectDoesNotExist
from django.core.management.base import BaseCommand, CommandError
from django.db import DEFAULT_DB_ALIAS, connections, models
from django.db.models import functions
from django.utils import timezone
from django.utils.connection import ConnectionDoesNotExist

import ormcache
from ormcache import debts, fence
from ormcache.auditing import DIFFERENT, FOREIGN, SAME, UNREADABLE, Audit
from ormcache.conf import Settings, current
from ormcache.connection_state import state_of
from ormcache.exceptions import CacheError, CacheUnreachable, OrmcacheError
from ormcache.invalidation import is_known_table, model_of
from ormcache.routers.namespaces import Route
from ormcache.signals import tables_invalidated
from ormcache.stores import LocMemStore

_BAR = 40
"""Characters."""
_NAMES: dict[str, Any] = {
    "models": models,
    "functions": functions,
    "timezone": timezone,
    "settings": django_settings,
    **{
        thing.__name__: thing
        for thing in (
            *(models.Q, models.F, models.Value, models.Exists, models.OuterRef, models.Subquery),
            *(models.Count, models.Sum, models.Avg, models.Min, models.Max),
        )
    },
}
"""What an expression may name besides the models."""
_INSTEAD = 'write the queryset: "Book.objects.filter(pk=1)".'


def _names() -> dict[str, Any]:
    """What an expression may name: models, the labels of apps, which have theirs, and more."""
    by_app: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    by_name: dict[str, Any] = {}
    for model in apps.get_models():
        by_app[model._meta.app_label][model.__name__] = model
        # Of two models with one name it is the first app's, as in the shell.
        by_name.setdefault(model.__name__, model)
    labels = {label: SimpleNamespace(**found) for label, found in by_app.items()}
    return labels | by_name | _NAMES


def _advice(error: Exception) -> str:
    """What to do about an expression that fails; "" if the error says it."""
    if isinstance(error, (ObjectDoesNotExist, MultipleObjectsReturned)):
        return f" Leave out .get(), .first() or .count(), and {_INSTEAD}"
    if isinstance(error, NameError):
        return '. Write a model as "Book", or with the label of its app as "shop.Book".'
    return ""


class Command(BaseCommand):
    help = "Looks into the cache of ORM queries, explains it and flushes it."

    def add_arguments(self, parser: ArgumentParser) -> None:
        commands = parser.add_subparsers(dest="command", required=True)
        flush = commands.add_parser("flush", help="make all cached answers of a database invalid")
        flush.add_argument("--database", help="an alias; all databases without it")
        flush.add_argument(
            "tables",
            nargs="*",
            metavar="model-or-table",
            help='"app.Model" or the name of a table; everything without any',
        )
        explain = commands.add_parser(
            "explain", help="tell whether a query is cached, and if not, why"
        )
        explain.add_argument(
            "query",
            help="Python, as in the shell, with all models and what queries are written with: "
            '"Book.objects.filter(pk=1)"',
        )
        explain.add_argument("--database", help="the alias to ask; the router's choice without")
        status = commands.add_parser("status", help="show caches, namespaces and counters")
        status.add_argument("--database", help="an alias; all databases without it")
        audit = commands.add_parser("audit", help="compare entries of the cache with the database")
        audit.add_argument("--database", help="an alias; all databases without it")
        audit.add_argument(
            "--limit",
            type=_positive,
            default=1000,
            metavar="NUMBER",
            help="how many entries of a database at most, chosen at random; 1000 without it",
        )
        protocol = commands.add_parser(
            "protocol", help="print what another program needs to invalidate, as JSON"
        )
        protocol.add_argument(
            "--database",
            default=DEFAULT_DB_ALIAS,
            help='an alias; "default" without it',
        )
        protocol.add_argument(
            "--script",
            choices=["hold", "release"],
            help="print nothing but the text of this Lua script",
        )
        for subparser in (flush, explain, status, audit, protocol):
            _add_options_of_django(subparser)

    def handle(self, *args: Any, **options: Any) -> None:
        alias = options.get("database")
        if alias is not None and alias not in connections:
            raise CommandError(
                f"There is no database {alias!r}. Known aliases: {', '.join(connections)}."
            )
        try:
            getattr(self, options["command"])(**options)
        except OrmcacheError as error:
            raise CommandError(str(error)) from error

    def flush(self, database: str | None, tables: list[str], **options: Any) -> None:
        if not all(name.strip() for name in tables):
            raise CommandError("A name is empty. Leave all names out to make everything invalid.")
        aliases = [database] if database else list(connections)
        errors = []
        for alias in aliases:
            try:
                self._flush(alias, tables)
            except (CacheUnreachable, LookupError) as error:
                errors.append(f"Nothing was invalidated of the database {alias!r}: {error}")
        if errors:
            raise CommandError("\n".join(errors))
        self._warn_of_unknown(tables)
        routes = [_route(alias, current()) for alias in aliases]
        cached = [route for route in routes if route.store is not None]
        if cached:
            what = ", ".join(tables) if tables else "everything"
            is_all = not database and len(cached) == len(routes)
            whose = "all databases" if is_all else ", ".join(route.alias for route in cached)
            self.stdout.write(self.style.SUCCESS(f"Invalidated {what} of {whose}."))
        for route in routes:
            if route.store is None:
                self.stdout.write(
                    f"Nothing is cached of {route.alias}: the cache {route.cache_alias!r} stores "
                    "nothing of it."
                )
        self._warn_of_local_memory(cached)

    def _warn_of_unknown(self, names: list[str]) -> None:
        """Warn, and no more: a table that ormcache has not met may have the name all the same."""
        unknown = [name for name in names if not (model_of(name) or is_known_table(name))]
        if unknown:
            self.stderr.write(
                self.style.WARNING(
                    f"No table is known as {' or '.join(map(repr, unknown))}. If a model is "
                    'meant, write "app.Model", with the label of an installed app.'
                )
            )

    def _warn_of_local_memory(self, routes: list[Route]) -> None:
        local = {route.cache_alias for route in routes if isinstance(route.store, LocMemStore)}
        for cache_alias in sorted(local):
            self.stderr.write(
                self.style.WARNING(
                    f"The cache {cache_alias!r} is in the memory of each process, and only that "
                    "of this command was emptied. Restart the servers that are running, or use "
                    "a cache that they share."
                )
            )

    def _flush(self, alias: str, tables: list[str]) -> None:
        """Fail if the cache was not told, even where ``ON_CACHE_FAILURE`` lets writes through."""
        told: list[object] = []

        def note(**kwargs: object) -> None:
            told.append(kwargs)

        why = ""
        tables_invalidated.connect(note)
        try:
            if tables:
                ormcache.invalidate(*tables, using=alias)
            else:
                ormcache.flush(using=alias)
        except CacheUnreachable as error:
            # Its own text is about a write, and what it advises would not help here.
            why = f": {error.__cause__}"
        finally:
            tables_invalidated.disconnect(note)
        route = _route(alias, current())
        # The process that owes something would pay it later; this one ends.
        if route.store is not None and (not told or debts.owed(route)):
            why = _why_unreachable(route) or why
            raise CacheUnreachable(f"the cache {route.cache_alias!r} does not answer{why}")

    def explain(self, query: str, database: str | None, **options: Any) -> None:
        try:
            queryset = eval(query, _names())
        except Exception as error:
            raise CommandError(
                f"{query!r} fails: {type(error).__name__}: {error}{_advice(error)}"
            ) from error
        if database is not None and hasattr(queryset, "using"):
            queryset = queryset.using(database)
        try:
            explanation = ormcache.explain(queryset)
        except (TypeError, ConnectionDoesNotExist) as error:
            hint = f" Instead, {_INSTEAD}" if isinstance(error, TypeError) else ""
            raise CommandError(f"{query!r} cannot be explained: {error}{hint}") from error
        self.stdout.write(str(explanation))

    def status(self, database: str | None, **options: Any) -> None:
        settings = current()
        counters = ormcache.statistics()
        for alias in [database] if database else list(connections):
            route = _route(alias, settings)
            self.stdout.write(self.style.MIGRATE_HEADING(alias))
            facts: dict[str, object] = {
                "enabled": route.enabled,
                "mode": settings.MODE,
                "namespace": route.namespace,
                "cache": route.cache_alias,
                "consistency": route.store.mode if route.store else "off",
                "timeout in seconds": route.timeout,
                "lease in seconds": settings.LEASE,
                "when the cache fails": route.on_failure,
            }
            of_fence = fence.status(connections[alias], route, settings)
            if of_fence is not None:
                facts["fence"] = of_fence
            if route.store is not None:
                try:
                    route.store.read(route.namespace, "none", ())
                    facts |= route.store.status(route.namespace)
                except CacheError as error:
                    facts["cache unreachable"] = error
            for name, value in facts.items():
                self.stdout.write(f"  {name}: {value}")
            age = facts.get("age in seconds")
            if "age in seconds" in facts and (age is None or float(str(age)) < settings.LEASE):
                left = settings.LEASE if age is None else settings.LEASE - float(str(age))
                self.stdout.write(
                    f"  quarantine: nothing is cached for another {left:.1f} s, because the "
                    "namespace is new and writes may be on their way"
                )
            for table, counts in counters.get(alias, {}).items():
                row = ", ".join(f"{event} {number}" for event, number in sorted(counts.items()))
                self.stdout.write(f"  {table or '(before compiling)'}: {row}")

    def audit(self, database: str | None, limit: int, **options: Any) -> None:
        failures: list[str] = []
        for alias in [database] if database else list(connections):
            try:
                self._audit(alias, limit, failures, is_chosen=database is not None)
            except db.Error as error:
                failures.append(f"{alias}: the database does not answer: {error}")
            except CacheError as error:
                cache = _route(alias, current()).cache_alias
                failures.append(f"{alias}: the cache {cache!r} does not answer: {error}")
        if failures:
            raise CommandError("\n".join(failures))

    def _audit(self, alias: str, limit: int, failures: list[str], *, is_chosen: bool) -> None:
        """Audit one database, and add what is wrong with it to ``failures``."""
        route = _route(alias, current())
        if route.store is None:
            if is_chosen:
                failures.append(f"{alias}: nothing is cached.")
            return
        audit = Audit(alias, limit)
        if not audit.can_list:
            failures.append(f"{alias}: {_why_not_listed(route)}")
            return
        self.stdout.write(self.style.MIGRATE_HEADING(alias))
        self.stdout.write(f"  entries with a note of their query: {audit.noted}")
        if not audit.noted and not current().AUDIT:
            failures.append(
                f'{alias}: nothing to compare. Set ORMCACHE["AUDIT"] to the share of answers '
                "that are to be stored with their query, and wait for some."
            )
            return
        total = len(audit.entries)
        number = 0
        try:
            for number, _ in enumerate(audit.run(), 1):
                self._show_progress(number, total)
        finally:
            # Also if the cache or the database has gone: what was found is dropped already.
            if 0 < number < total:
                self._show_progress(total, total)
            wrong = self._report(audit)
            if wrong:
                failures.append(wrong)

    def _report(self, audit: Audit) -> str:
        """Tell what has come of an audit. Returns what is wrong, if anything is."""
        compared = {name: audit.results[name] for name in (SAME, DIFFERENT) if audit.results[name]}
        others = audit.results - Counter(compared)
        total = sum(compared.values())
        self.stdout.write(f"  compared: {total}")
        for result, count in compared.items():
            self.stdout.write(f"    {result}: {count}")
        if others:
            self.stdout.write(f"  not compared: {others.total()}")
        for result, count in others.most_common():
            self.stdout.write(f"    {result}: {count}")
        for tables, sql, entry in audit.differences:
            self.stdout.write(self.style.ERROR(f"  different: {', '.join(tables)}"))
            self.stdout.write(f"    entry: {entry}")
            self.stdout.write(f"    SQL:   {sql}")
        wrong = len(audit.differences)
        if wrong:
            return f"{audit.alias}: {wrong} of {total} entries were wrong, and are dropped."
        if not total and (others[FOREIGN] or others[UNREADABLE]):
            return (
                f"{audit.alias}: nothing could be compared. Run the command as the servers run: "
                "with their settings (SECRET_KEY, DATABASES, TIME_ZONE), Python and packages."
            )
        return ""

    def _show_progress(self, number: int, total: int) -> None:
        if not self.stdout.isatty():
            return
        done = _BAR * number // total
        bar = "#" * done + "." * (_BAR - done)
        # The line is written over by the next, and removed at last.
        text = f"\r  [{bar}] {number} of {total}" if number < total else "\r\033[K"
        self.stdout.write(text, ending="")
        self.stdout.flush()

    def protocol(self, database: str, script: str | None, **options: Any) -> None:
        route = _route(database, current())
        try:
            facts = route.store.protocol(route.namespace) if route.store else None
        except CacheError as error:
            raise CommandError(
                f"The cache {route.cache_alias!r} does not answer: {error}"
            ) from error
        if facts is None:
            raise CommandError(
                f"The database {database!r} is cached in {route.cache_alias!r}, which is not "
                "Redis or Valkey in strict consistency: no other program can invalidate there."
            )
        if script is not None:
            scripts: Any = facts["scripts"]
            self.stdout.write(scripts[script], ending="")
        else:
            self.stdout.write(json.dumps(facts, indent=2))


def _add_options_of_django(parser: ArgumentParser) -> None:
    """Take them behind the subcommand, too, where most people write them.

    They have no default here: it would replace what was given in front of the subcommand.
    """
    for name in ("--settings", "--pythonpath"):
        parser.add_argument(name, default=SUPPRESS, help=SUPPRESS)
    for name in ("--traceback", "--no-color", "--force-color", "--skip-checks"):
        parser.add_argument(name, action="store_true", default=SUPPRESS, help=SUPPRESS)
    parser.add_argument(
        "-v", "--verbosity", type=int, choices=[0, 1, 2, 3], default=SUPPRESS, help=SUPPRESS
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is no whole number above 0.")
    return int(text)


def _why_not_listed(route: Route) -> str:
    """Why a cache has nothing to audit, and what to do instead."""
    if isinstance(route.store, LocMemStore):
        return (
            f"the cache {route.cache_alias!r} is in the memory of each process, and that of this "
            'one is empty. Use ORMCACHE["VERIFY"], which compares in the processes that answer.'
        )
    return (
        f"the cache {route.cache_alias!r} cannot tell which entries it has: only Redis and Valkey "
        'in strict consistency can. Use ORMCACHE["VERIFY"], which compares a share of the hits.'
    )


def _why_unreachable(route: Route) -> str:
    """What the cache says for itself: some policies let a write through without a word."""
    try:
        if route.store is not None:
            route.store.read(route.namespace, "none", ())
    except CacheError as error:
        return f": {error}"
    # It may be back.
    return ""


def _route(alias: str, settings: Settings) -> Route:
    connection = connections[alias]
    return state_of(connection).route(connection, settings)
