"""The demo's Django project: settings without a module, and a database that is ready."""

from __future__ import annotations

import hashlib
from pathlib import Path

from demo import servers
from demo.errors import DemoError

HERE = Path(__file__).parent
DATA = HERE / ".data"


def default_database(name: str) -> servers.Server:
    """An SQLite file in the demo's folder.

    ``run`` and ``serve`` have a file each: the default cache is private to a process, so that two
    processes on one file would not hear of each other's writes.
    """
    try:
        DATA.mkdir(exist_ok=True)
    except OSError as error:
        raise DemoError(
            f"Cannot write to {DATA}: {error.strerror}; name another file by "
            "--database sqlite:///path."
        ) from error
    return servers.sqlite_file(DATA / f"{name}.sqlite3")


def key_prefix(database: servers.Server) -> str:
    """Keys of their own for each database, so that one cache can serve the demo on several."""
    where = repr([database.settings.get(part) for part in ("ENGINE", "HOST", "PORT", "NAME")])
    return f"ormcache-demo-{hashlib.sha256(where.encode()).hexdigest()[:12]}"


def set_up(database: servers.Server, cache: servers.Server) -> None:
    """Configure Django and check that both servers answer."""
    import django
    from django.conf import settings

    settings.configure(
        DEBUG=False,
        # A new one per process: what it signs (a form's token, a note) is short-lived.
        SECRET_KEY=_secret_key(),
        ALLOWED_HOSTS=["127.0.0.1", "localhost", "[::1]"],
        INSTALLED_APPS=["ormcache", "demo"],
        DATABASES={"default": database.settings},
        CACHES={"default": cache.settings},
        ORMCACHE={"CACHE_ALIAS": "default"},
        ROOT_URLCONF="demo.web.urls",
        MIDDLEWARE=[
            "django.middleware.security.SecurityMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
            "django.middleware.clickjacking.XFrameOptionsMiddleware",
            "demo.web.middleware.PanelMiddleware",
        ],
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "APP_DIRS": True,
                "OPTIONS": {"context_processors": ["demo.web.middleware.panel"]},
            }
        ],
        USE_TZ=True,
        USE_THOUSAND_SEPARATOR=True,
    )
    django.setup()
    servers.check_database(database.label)
    servers.check_cache(cache.label)


def prepare_tables() -> None:
    """Migrate, unless that would touch tables which the demo has not created."""
    from django.core.management import call_command
    from django.db import Error, connection
    from django.db.migrations.recorder import MigrationRecorder

    try:
        ours = {
            name
            for app, name in MigrationRecorder(connection).applied_migrations()
            if app == "ormcache_demo"
        }
        taken = {
            table for table in connection.introspection.table_names() if table in _demo_tables()
        }
        if taken and not ours:
            raise DemoError(
                "The database has tables of the demo's names that the demo did not create, or not "
                f"to the end: {', '.join(sorted(taken))}; it leaves them alone and needs another "
                "database."
            )
        call_command("migrate", "ormcache_demo", verbosity=0, interactive=False)
    except Error as error:
        raise DemoError(
            f"Cannot create the demo's tables: {servers.first_line(error)}."
        ) from error


def load(*, quick: bool) -> bool:
    """Load GeoNames' data if it is not there; return whether it was not."""
    from django.db import Error

    from demo import geonames

    try:
        return geonames.load(quick=quick)
    except Error as error:
        raise DemoError(f"Cannot load the data: {servers.first_line(error)}.") from error


def _demo_tables() -> set[str]:
    from demo.comparison import demo_models

    return {model._meta.db_table for model in demo_models()}


def _secret_key() -> str:
    from django.core.management.utils import get_random_secret_key

    return get_random_secret_key()
