"""The app of the test models, which creates the view that one of them reads."""

from typing import Any

from django.apps import AppConfig
from django.db import connections
from django.db.models.signals import post_migrate


class TestsConfig(AppConfig):
    name = "tests"

    def ready(self) -> None:
        post_migrate.connect(create_view, sender=self)


def create_view(using: str, **kwargs: Any) -> None:
    from tests.models import Author, AuthorBooks, Book

    connection = connections[using]
    view = AuthorBooks._meta.db_table
    with connection.cursor() as cursor:
        if view in connection.introspection.table_names(cursor, include_views=True):
            return
        cursor.execute(
            f"CREATE VIEW {view} AS "
            "SELECT author.id AS author_id, author.name AS name, COUNT(book.id) AS books "
            f"FROM {Author._meta.db_table} author "
            f"LEFT JOIN {Book._meta.db_table} book ON book.author_id = author.id "
            "GROUP BY author.id, author.name"
        )
