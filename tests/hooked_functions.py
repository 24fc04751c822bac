"""The functions of Django that ormcache hooks, or whose ways it knows, and digests of them.

    python -m tests.hooked_functions            # what changed since somebody last looked
    python -m tests.hooked_functions --write    # somebody has looked: remember what is there now

`hooked_functions.json` has the digests, for each minor version of Django. They are taken of the
syntax tree: comments, docstrings and layout do not count, and no module is imported, so that the
driver of a database may be missing.
"""

import argparse
import ast
import functools
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import django

RECORDS = Path(__file__).with_suffix(".json")

# What is known of functions that are not hooked, by the part of ormcache that knows it. A class
# stands for its bases and for what it assigns, not for its methods.
RELIED_ON: dict[str, dict[str, str]] = {
    "reads": {
        "django.db.models.sql.compiler.SQLCompiler": (
            "as_sql setup_query pre_sql_setup get_select get_order_by results_iter has_results "
            "compile apply_converters get_converters"
        ),
        "django.db.models.sql.compiler": "cursor_iter",
        "django.db.models.sql.compiler.SQLAggregateCompiler": "as_sql",
        "django.db.models.sql.query.Query": "get_compiler get_aggregation exists has_results",
        "django.db.models.query": (
            "ModelIterable.__iter__ ValuesIterable.__iter__ ValuesListIterable.__iter__ "
            "FlatValuesListIterable.__iter__ RawModelIterable.__iter__ RawQuerySet.iterator "
            "QuerySet._iterator QuerySet._fetch_all QuerySet.explain QuerySet._raw_delete"
        ),
        "django.db.backends.base.base.BaseDatabaseWrapper": (
            "cursor _cursor ensure_connection validate_thread_sharing "
            "validate_no_broken_transaction"
        ),
        "django.utils.asyncio": "async_unsafe",
        "django.test.testcases": (
            "_DatabaseFailure SimpleTestCase._add_databases_failures "
            "SimpleTestCase.ensure_connection_patch_method"
        ),
    },
    "shapes": {
        "django.db.models.sql.compiler.SQLCompiler": (
            "__init__ _order_by_pairs find_ordering_name get_default_columns "
            "get_related_selections get_distinct get_extra_select collapse_group_by get_group_by"
        ),
        "django.db.models.sql.query": (
            "Query Query.__init__ Query.clone Query.chain Query.set_limits "
            "Query.add_ordering Query.clear_ordering Query.set_values Query.add_fields "
            "Query.set_annotation_mask Query.get_initial_alias Query.join Query.reset_refcounts "
            "Query.add_select_related Query.add_filtered_relation Query.add_annotation"
        ),
        "django.db.models.sql.where": "WhereNode WhereNode.as_sql WhereNode.split_having_qualify",
        "django.db.models.lookups": (
            "Lookup Lookup.__init__ Lookup.process_lhs Lookup.process_rhs Lookup.get_prep_lookup "
            "In.process_rhs In.get_prep_lookup BuiltinLookup.as_sql Exact.as_sql IsNull.as_sql "
            "Lookup.process_rhs Lookup.get_db_prep_lookup BuiltinLookup.get_rhs_op "
            "FieldGetDbPrepValueMixin.get_db_prep_lookup IntegerFieldOverflow.process_rhs "
            "PatternLookup.get_rhs_op PatternLookup.process_rhs"
        ),
        "django.db.models.fields.related_lookups": "RelatedLookupMixin.as_sql",
        "django.db.models.sql.datastructures": (
            "Join Join.__init__ Join.as_sql BaseTable BaseTable.__init__ BaseTable.as_sql"
        ),
        "django.db.models.expressions": (
            "Col Col.__init__ Col.as_sql OrderBy.__init__ OrderBy.as_sql Ref.as_sql Star.as_sql "
            "Value.__init__ Value.as_sql"
        ),
        "django.db.models.aggregates": "Aggregate Aggregate.__init__ Count Count.__init__",
    },
    "tables": {
        "django.db.models.sql.query.Query": "get_external_cols as_sql ref_alias unref_alias",
        "django.db.models.sql.compiler.SQLCompiler": "get_combinator_sql get_qualify_sql",
        "django.db.models.expressions": "RawSQL RawSQL.as_sql Subquery.as_sql Exists.as_sql",
        "django.db.models.sql.where": "ExtraWhere ExtraWhere.as_sql",
        "django.apps.registry.Apps": "get_models register_model",
    },
    "writes": {
        "django.db.models.sql.compiler": (
            "SQLInsertCompiler.as_sql SQLUpdateCompiler.as_sql SQLDeleteCompiler "
            "SQLDeleteCompiler.as_sql SQLDeleteCompiler._as_sql SQLDeleteCompiler.single_alias"
        ),
        "django.db.models.sql.subqueries": (
            "DeleteQuery.do_query DeleteQuery.delete_batch UpdateQuery.get_related_updates "
            "UpdateQuery.update_batch"
        ),
        "django.db.models.query.QuerySet": (
            "bulk_create bulk_update update _update delete _insert _batched_insert"
        ),
        "django.db.models.base.Model": "save save_base _save_parents _do_update _do_insert",
        "django.db.models.deletion": (
            "Collector.delete Collector.can_fast_delete DatabaseOnDelete CASCADE"
        ),
        "django.db.backends.utils": (
            "CursorWrapper CursorWrapper.__init__ CursorWrapper.__iter__ CursorWrapper.execute "
            "CursorWrapper.executemany CursorWrapper._execute_with_wrappers "
            "CursorWrapper.__exit__ CursorDebugWrapper.execute CursorDebugWrapper.executemany"
        ),
        "django.db.backends.base.base.BaseDatabaseWrapper": (
            "make_cursor make_debug_cursor chunked_cursor"
        ),
        "django.db.backends.sqlite3.base": "SQLiteCursorWrapper.execute",
        # Hooked where its driver is installed.
        "django.db.backends.postgresql.base": "CursorDebugWrapper.copy",
    },
    "transactions": {
        "django.db.transaction": (
            "Atomic.__enter__ Atomic.__exit__ get_autocommit set_autocommit commit rollback "
            "savepoint savepoint_rollback savepoint_commit set_rollback mark_for_rollback_on_error"
        ),
        "django.db.backends.base.base.BaseDatabaseWrapper": (
            "__init__ _commit _rollback _close savepoint savepoint_rollback savepoint_commit "
            "clean_savepoints _savepoint _savepoint_rollback get_autocommit set_rollback "
            "validate_no_atomic_block close_if_unusable_or_obsolete close_if_health_check_failed "
            "check_settings run_and_clear_commit_hooks on_commit copy _nodb_cursor"
        ),
        "django.db.backends.sqlite3.base.DatabaseWrapper": (
            "get_new_connection close _savepoint_allowed _set_autocommit "
            "_start_transaction_under_autocommit is_in_memory_db"
        ),
        "django.db.backends.postgresql.base.DatabaseWrapper": (
            "get_new_connection _close _set_autocommit init_connection_state "
            "ensure_timezone pool close_pool create_cursor"
        ),
        "django.db.backends.mysql.base.DatabaseWrapper": (
            "get_new_connection get_connection_params init_connection_state _set_autocommit"
        ),
        "django.db.utils": "ConnectionHandler.create_connection DatabaseErrorWrapper.__exit__",
        "django.test.testcases": (
            "TestCase._enter_atomics TestCase._rollback_atomics TestCase._fixture_setup "
            "TransactionTestCase._fixture_setup TransactionTestCase._fixture_teardown"
        ),
    },
    "migrations_hooks": {
        "django.db.migrations.executor.MigrationExecutor": (
            "_migrate_all_forwards _migrate_all_backwards apply_migration unapply_migration "
            "record_migration"
        ),
        "django.db.migrations.recorder.MigrationRecorder": "has_table ensure_schema flush",
        "django.core.management.commands.flush.Command": "handle",
        "django.core.management.sql": "sql_flush",
        "django.db.backends.base.operations.BaseDatabaseOperations": "execute_sql_flush",
    },
    "stores": {
        "django.core.cache.backends.locmem.LocMemCache": "__init__ get set _set",
        "django.core.cache.backends.redis": (
            "RedisCache.__init__ RedisCache._cache RedisCacheClient.__init__ "
            "RedisCacheClient._get_connection_pool RedisCacheClient.get_client"
        ),
        "django.core.cache.backends.memcached": "BaseMemcachedCache._cache PyMemcacheCache",
        "django.core.cache.backends.db": "DatabaseCache.get_many DatabaseCache._base_set",
        "django.core.cache.backends.filebased": "FileBasedCache.get FileBasedCache.set",
    },
    "routers": {
        "django.db.backends.base.creation.BaseDatabaseCreation": (
            "create_test_db clone_test_db get_test_db_clone_settings setup_worker_connection"
        ),
        "django.test.utils": "setup_test_environment setup_databases",
    },
}


class Function(NamedTuple):
    """A function or a class of Django, and who would be surprised if it changed."""

    path: str
    users: tuple[str, ...]


class Change(NamedTuple):
    """A function that is another one than when somebody last looked."""

    function: Function
    what: str

    def __str__(self) -> str:
        return f"{self.function.path} {self.what} (see {', '.join(self.function.users)})"


def functions() -> list[Function]:
    """All of them, sorted. Django has to be set up."""
    users: dict[str, list[str]] = {}
    for path in _hooked():
        users.setdefault(path, []).append("ormcache/patches.py")
    for part, modules in RELIED_ON.items():
        for module, names in modules.items():
            for name in names.split():
                users.setdefault(f"{module}.{name}", []).append(f"ormcache/{part}")
    return [Function(path, tuple(found)) for path, found in sorted(users.items())]


def _hooked() -> Iterator[str]:
    from ormcache import patches

    for owner, name, _ in patches.hooks():
        # A module has no __module__.
        place = f"{owner.__module__}.{owner.__qualname__}" if isinstance(owner, type) else None
        yield f"{place or owner.__name__}.{name}"


def minor() -> str:
    """The installed Django's minor version, such as "5.2"."""
    return ".".join(map(str, django.VERSION[:2]))


# --- digests -------------------------------------------------------------------------------


def digest(path: str, root: Path = Path(django.__file__).parent) -> str | None:
    """The digest of the function or class at the dotted `path`; None if there is none.

    `root` is the folder of Django.
    """
    parts = path.split(".")[1:]
    for length in range(len(parts) - 1, 0, -1):
        place = root.joinpath(*parts[:length])
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if file.is_file():
                found = _find(_tree(file), parts[length:])
                return None if found is None else digest_of(found)
    return None


def digest_of(node: ast.AST) -> str:
    """The digest of a function or a class; of a class without its methods."""
    return hashlib.sha256(_spell(node).encode()).hexdigest()[:16]


@functools.cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _find(scope: Any, names: list[str]) -> ast.AST | None:
    """The last definition of `names`, each in the one before; it may be below an `if`."""
    name, *inner = names
    found = None
    for node in _statements(scope):
        if getattr(node, "name", None) == name or _assigns(node, name):
            found = _find(node, inner) if inner else node
    return found


def _assigns(node: Any, name: str) -> bool:
    return isinstance(node, ast.Assign) and any(
        isinstance(target, ast.Name) and target.id == name for target in node.targets
    )


def _statements(scope: Any) -> Iterator[Any]:
    for node in getattr(scope, "body", ()):
        yield node
        if isinstance(node, (ast.If, ast.Try)):
            yield from _statements(node)


_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def _spell(node: Any) -> str:
    """What `ast.dump` says, but the same on every version of Python, and without docstrings.

    Fields that are not there, or empty, are left out: newer versions have more of them.
    """
    if isinstance(node, list):
        return f"[{','.join(map(_spell, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = []
    for name, value in ast.iter_fields(node):
        if name == "body" and isinstance(node, _DEFINITIONS):
            value = _body(node)
        if value is not None and value != []:
            fields.append(f"{name}={_spell(value)}")
    return f"{type(node).__name__}({','.join(fields)})"


def _body(node: Any) -> list[Any]:
    body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
    if isinstance(node, ast.ClassDef):
        body = [inner for inner in body if not isinstance(inner, _DEFINITIONS)]
    return body


# --- records -------------------------------------------------------------------------------


def records() -> dict[str, dict[str, Any]]:
    """By minor version: the "version" that was looked at, and the "digests" by path."""
    found: dict[str, dict[str, Any]] = json.loads(RECORDS.read_text())
    return found


def current() -> dict[str, str | None]:
    """The digests of the Django that is installed."""
    return {function.path: digest(function.path) for function in functions()}


def changes(then: Mapping[str, str | None], now: Mapping[str, str | None]) -> list[Change]:
    """What differs between the digests `then` and `now`."""
    found = []
    for function in functions():
        path = function.path
        if path not in then:
            found.append(Change(function, "was never looked at"))
        elif then[path] != now[path]:
            what = {(False, True): "is new", (True, False): "is gone"}.get(
                (then[path] is not None, now[path] is not None), "has changed"
            )
            found.append(Change(function, what))
    return found


def report() -> str:
    """What has changed since somebody last looked at this minor version, and what to do; or "".

    Of a minor version that nobody has looked at, it is what has changed since another one.
    """
    known = records()
    record = known.get(minor())
    if record is not None:
        found = changes(record["digests"], current())
        headline = (
            f"Django {django.__version__} is not what was looked at ({record['version']}):\n"
        )
        return headline + _listed(found) + _WHAT_TO_DO if found else ""
    headline = (
        f"Nobody has looked at Django {minor()} yet. Read its release notes and what "
        "`git diff` says between its branch and the one before, for each of the functions "
        "that `tests/hooked_functions.py` lists.\n"
    )
    record = _nearest(known)
    if record is None:
        return headline + _WHAT_TO_DO
    found = changes(record["digests"], current())
    since = f"{len(found) or 'None'} of them differ from those of Django {record['version']}"
    return f"{headline}{since}{':' if found else '.'}\n{_listed(found)}{_WHAT_TO_DO}"


def _nearest(known: Mapping[str, dict[str, Any]]) -> dict[str, Any] | None:
    """The record of the newest version before this one; of the oldest after it if none is."""

    def number(version: str) -> tuple[int, ...]:
        return tuple(map(int, version.split(".")))

    older = [version for version in known if number(version) < number(minor())]
    if older:
        return known[max(older, key=number)]
    return known[min(known, key=number)] if known else None


def _listed(found: Sequence[Change]) -> str:
    return "".join(f"  {change}\n" for change in found)


_WHAT_TO_DO = (
    "For each: compare the two versions, decide whether ormcache still sees and answers the same, "
    "and change it if not.\nThen run `tox -e django-suite`, and `python -m tests.hooked_functions "
    "--write` with this Django.\n"
)


def write() -> None:
    """Remember the digests of the installed Django as looked at."""
    known = records()
    known[minor()] = {"version": django.__version__, "digests": current()}
    RECORDS.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="remember what is there now")
    arguments = parser.parse_args()
    django.setup()
    text = report()
    print(text or f"Django {django.__version__} is as it was.")
    if arguments.write:
        write()
        return 0
    return 1 if text else 0


if __name__ == "__main__":
    import os

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    sys.exit(main())
