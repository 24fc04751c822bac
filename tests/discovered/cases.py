"""The tests of the project: whatever is cached, they see the rows that are there."""

import os

from django.db import connection
from django.test import SimpleTestCase, TestCase, TransactionTestCase

import ormcache
from tests.discovered.models import Row
from tests.watching import Watch, wait_for_quarantine

EXPECTED = os.environ["DISCOVERED_ROWS"].split()
"""What is in the table when the runner begins."""


def names():
    return sorted(Row.objects.values_list("name", flat=True))


class Checked:
    def setUp(self):
        wait_for_quarantine("default")

    def check(self, *expected):
        """Three answers, of which the last ones may come from the cache."""
        with ormcache.disabled():
            self.assertEqual(names(), sorted(expected))
        for _ in range(2):
            self.assertEqual(names(), sorted(expected))

    def check_cached(self, *expected):
        self.check(*expected)
        with Watch() as watch:
            self.assertEqual(names(), sorted(expected))
        self.assertEqual(watch.outcomes, ["hit"])


class InTransactions(Checked, TestCase):
    @classmethod
    def setUpTestData(cls):
        Row.objects.create(name="of the class")

    def test_one(self):
        self.check(*EXPECTED, "of the class")
        Row.objects.create(name="of the test")
        self.check(*EXPECTED, "of the class", "of the test")

    def test_two(self):
        self.check(*EXPECTED, "of the class")
        Row.objects.all().delete()
        self.check()


class AtFirst(Checked, SimpleTestCase):
    """Before any test has committed anything."""

    databases = ["default"]

    def test(self):
        self.check_cached(*EXPECTED)


class Restored(Checked, TransactionTestCase):
    """Rows of migrations are put back before each test."""

    serialized_rollback = True

    @classmethod
    def tearDownClass(cls):
        # What is cached at the end of the run would be met by the next one.
        for _ in range(2):
            names()
        super().tearDownClass()

    def test_one(self):
        self.check_cached(*EXPECTED)
        Row.objects.all().delete()
        self.check_cached()

    def test_two(self):
        self.check_cached(*EXPECTED)
        Row.objects.create(name="of the test")
        self.check_cached(*EXPECTED, "of the test")


class Emptied(Checked, TransactionTestCase):
    """Afterwards all tables are empty."""

    available_apps = ["tests.discovered"]

    def test_one(self):
        self.check_cached(*names())
        with connection.cursor() as cursor:
            cursor.execute("DELETE FROM discovered_row")
        self.check_cached()

    def test_two(self):
        self.check_cached(*names())
        Row.objects.create(name="of the test")
        self.assertIn("of the test", names())
