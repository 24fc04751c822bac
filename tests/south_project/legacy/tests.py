"""For `manage.py test` in the old project."""

from django.test import TransactionTestCase

from legacy.models import Item


class ItemTest(TransactionTestCase):
    def test_writes(self):
        Item.objects.create(name="of a test")
        self.assertEqual(Item.objects.filter(name="of a test").count(), 1)
