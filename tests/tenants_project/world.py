"""What the tests of the tenants project do to it, and what they ask."""

from collections.abc import Callable
from typing import Any

import psycopg
from django.db import connection
from django_tenants.utils import schema_context

from tests import servers
from tests.tenants_project.customers.models import Client
from tests.tenants_project.shop.models import Author

TENANTS = ("alpha", "beta")

_SHARED = ("customers_country", "notes_note")
_OWN = ("notes_note", "shop_book_tags", "shop_book", "shop_author", "shop_tag")


def dsn(database: str) -> str:
    """What psycopg needs to know to be another program."""
    facts = connection.settings_dict
    return f"host={servers.HOST} port={facts['PORT']} user={facts['USER']} dbname={database}"


def outside(*statements: str) -> list[Any]:
    """Run SQL where ormcache hears of nothing; the rows of the last statement."""
    with psycopg.connect(dsn(connection.settings_dict["NAME"]), autocommit=True) as program:
        for statement in statements:
            cursor = program.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def empty() -> None:
    tables = [f"public.{table}" for table in _SHARED]
    tables += [f"{tenant}.{table}" for tenant in TENANTS for table in _OWN]
    outside(f"TRUNCATE {', '.join(tables)} CASCADE")


def registers() -> list[str]:
    """Those of all tables, see :mod:`ormcache.routers.tenancy`."""
    schemas = ["", "*.", *(f"{tenant}." for tenant in TENANTS)]
    return [*_SHARED, *(f"{schema}{table}" for schema in schemas for table in _OWN)]


def create(schema: str) -> Client:
    tenant = Client(schema_name=schema, name=schema)
    tenant.save(verbosity=0)
    return tenant


def drop(tenant: Client) -> None:
    connection.set_schema_to_public()
    tenant.delete(force_drop=True)


def names() -> list[str]:
    """The names of the authors in the schema in which the connection is."""
    return list(Author.objects.order_by("pk").values_list("name", flat=True))


def within(schema: str, question: Callable[[], Any] = names) -> Callable[[], Any]:
    """The same question in a schema."""

    def ask() -> Any:
        with schema_context(schema):
            return question()

    return ask


def add(schema: str, name: str) -> Author:
    with schema_context(schema):
        return Author.objects.create(name=name)
