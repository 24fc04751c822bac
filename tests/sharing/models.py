"""Tables that another project makes and migrates."""

from django.db import models


class Item(models.Model):
    name = models.CharField(max_length=20)

    class Meta:
        app_label = "sharing"
        managed = False
        db_table = "legacy_item"


class PricedItem(models.Model):
    name = models.CharField(max_length=20)
    price = models.IntegerField()

    class Meta:
        app_label = "sharing"
        managed = False
        db_table = "legacy_item"


class Note(models.Model):
    text = models.CharField(max_length=20)

    class Meta:
        app_label = "sharing"
        managed = False
        db_table = "notes_note"


class Book(models.Model):
    """The table of the examples in `docs/reference/protocol.md`."""

    title = models.CharField(max_length=20)

    class Meta:
        app_label = "sharing"
        managed = False
        db_table = "shop_book"
