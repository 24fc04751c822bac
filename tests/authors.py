"""Authors: what tests read, rename and compare with the database itself."""

from django.db import connections, transaction

from tests.interleaving import session
from tests.models import Author
from tests.watching import wait_for_quarantine

OLD, NEW = "old", "new"


class Names:
    """The question of most tests: the names of all authors."""

    def __init__(self, using: str) -> None:
        self.using = using

    def __call__(self) -> list[str]:
        return list(Author.objects.using(self.using).order_by("pk").values_list("name", flat=True))

    def in_database(self) -> list[str]:
        """The truth, past ormcache, as another connection sees it."""
        with session(self.using) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT name FROM tests_author ORDER BY id")
            return [name for (name,) in cursor.fetchall()]


def rename(using: str, name: str = NEW) -> None:
    with transaction.atomic(using):
        update(using, name)


def update(using: str, name: str = NEW) -> None:
    Author.objects.using(using).update(name=name)


def execute(using: str, *statements: str) -> None:
    with connections[using].cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


def wait_for_lease(using: str) -> None:
    """Return when no intent holds the table of authors, which takes up to a lease."""
    wait_for_quarantine(using, "tests_author")
