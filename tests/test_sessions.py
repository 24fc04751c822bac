"""Facts about what a connection was told, or suffered, outside Django's view."""

from typing import Any

import pytest
from django.db import DatabaseError, connections, models, transaction
from django.db.backends.signals import connection_created
from django.db.models import F

from tests.factories import AuthorFactory
from tests.factories import using as factories_using
from tests.marks import on_databases, on_pairs
from tests.models import Author
from tests.watching import Watch


@on_pairs(("postgresql", "redis"), transaction=True)
def test_search_path_set_on_connecting_is_known_before_the_first_read(
    cached: Watch, using: str, cache: str, settings: Any
) -> None:
    """Two tenants, whose receiver of connection_created chooses the schema."""
    # There is no fence in it.
    settings.ORMCACHE = {**settings.ORMCACHE, "ON_CACHE_FAILURE": "raise"}
    connection = connections[using]
    tenant = "ormcache_a"

    def choose(connection: Any, **kwargs: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"SET search_path TO {tenant}")

    def ask() -> str:
        return Author.objects.using(using).get(pk=1).name

    with connection.cursor() as cursor:
        for schema in ("ormcache_a", "ormcache_b"):
            cursor.execute(f"CREATE SCHEMA {schema}")
            cursor.execute(f"CREATE TABLE {schema}.tests_author (LIKE public.tests_author)")
            cursor.execute(f"INSERT INTO {schema}.tests_author VALUES (1, '{schema}', NULL)")
    connection_created.connect(choose)
    try:
        connection.close()
        assert ask() == ask() == "ormcache_a"
        connection.close()
        tenant = "ormcache_b"
        assert ask() == ask() == "ormcache_b"
        connection.close()
        tenant = "ormcache_a"
        assert cached.hit(ask) == "ormcache_a"
    finally:
        connection_created.disconnect(choose)
        connection.close()
        with connection.cursor() as cursor:
            cursor.execute("DROP SCHEMA ormcache_a, ormcache_b CASCADE")


@on_pairs(("postgresql", "redis"), transaction=True)
@pytest.mark.parametrize("failure", ["raw", "ORM"])
def test_aborted_transaction_is_not_hidden_by_a_hit(
    cached: Watch, using: str, cache: str, failure: str
) -> None:
    with factories_using(using):
        author = AuthorFactory()

    def ask() -> Author:
        return Author.objects.using(using).get(pk=author.pk)

    cached.warm(ask)
    with pytest.raises(DatabaseError), transaction.atomic(using=using):
        with pytest.raises(DatabaseError):
            if failure == "raw":
                with connections[using].cursor() as cursor:
                    cursor.execute("SELECT 1 / 0")
            else:
                zero = F("id") - F("id")
                list(Author.objects.using(using).annotate(never=1 / zero))
        ask()
    assert cached.hit(ask) == author


@on_databases(transaction=True)
def test_cursor_takes_its_arguments_by_name(cached: Watch, using: str) -> None:
    with connections[using].cursor() as cursor:
        cursor.execute(sql="INSERT INTO tests_tag (name) VALUES (%s)", params=["a"])
        cursor.execute("UPDATE tests_tag SET name = %s", params=["b"])
        cursor.executemany(
            sql="INSERT INTO tests_tag (name) VALUES (%s)", param_list=[["c"], ["d"]]
        )
        cursor.execute(sql="SELECT count(*) FROM tests_tag")
        assert cursor.fetchone() == (3,)


def test_field_may_be_called_like_an_argument_of_ours() -> None:
    """Whatever get_or_create() is given reaches Django."""

    class Picture(models.Model):
        original = models.CharField(max_length=10)

        class Meta:
            app_label = "tests"
            managed = False

    # The arguments get as far as the database, which this test may not use.
    with pytest.raises(RuntimeError, match="Database access not allowed"):
        Picture.objects.get_or_create(original="a")
