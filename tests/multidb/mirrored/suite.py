"""The tests of the project: none of them knows of the router, but for what it asserts."""

from contextvars import Context

from django.contrib.contenttypes.models import ContentType
from django.db import connection, router
from django.http import HttpRequest, HttpResponse
from django.test import SimpleTestCase, TestCase, TransactionTestCase
from django.urls import path


def reader() -> str:
    # This context has made the tables, and nothing tells whether the mirror has them.
    return Context().run(router.db_for_read, ContentType)


def names() -> list[str]:
    found = ContentType.objects.filter(app_label="test").order_by("pk")
    return list(found.values_list("model", flat=True))


def create(name: str) -> None:
    ContentType.objects.create(app_label="test", model=name)


def view(request: HttpRequest) -> HttpResponse:
    create("view")
    return HttpResponse(",".join(names()))


urlpatterns = [path("", view)]


class Ordinary(TestCase):
    """It allows queries to the default database only, as test cases do."""

    @classmethod
    def setUpTestData(cls) -> None:
        create("data")

    def test_it_reads_what_it_has_written(self) -> None:
        self.assertEqual(names(), ["data"])
        create("test")
        self.assertEqual(names(), ["data", "test"])
        self.assertEqual(reader(), "default")

    def test_requests_read_what_they_have_written(self) -> None:
        self.assertEqual(self.client.get("/").content, b"data,view")

    async def test_coroutines_do_so_too(self) -> None:
        await ContentType.objects.acreate(app_label="test", model="test")
        self.assertEqual(await ContentType.objects.filter(app_label="test").acount(), 2)


class OrdinaryWithoutData(TestCase):
    def test_the_replica_is_not_read_since_it_is_not_allowed(self) -> None:
        self.assertEqual(names(), [])
        self.assertEqual(reader(), "default")


class BothAllowed(TestCase):
    databases = {"default", "replica"}

    def test_it_reads_what_it_has_written(self) -> None:
        # Transactions of SQLite are snapshots.
        first = "default" if connection.vendor == "sqlite" else "replica"
        self.assertEqual(reader(), first)
        self.assertEqual(names(), [])
        create("test")
        self.assertEqual(names(), ["test"])
        self.assertEqual(reader(), "default")


class WithCommits(TransactionTestCase):
    databases = {"default", "replica"}

    def test_it_reads_what_it_has_written(self) -> None:
        self.assertEqual(reader(), "replica")
        self.assertEqual(names(), [])
        create("test")
        self.assertEqual(names(), ["test"])
        self.assertEqual(self.client.get("/").content, b"test,view")


class WithoutDatabase(SimpleTestCase):
    def test_it_is_told_so(self) -> None:
        with self.assertRaisesMessage(AssertionError, "Database queries to 'default'"):
            names()
