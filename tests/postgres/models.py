from django.contrib.postgres.fields import (
    ArrayField,
    BigIntegerRangeField,
    DateRangeField,
    DateTimeRangeField,
    DecimalRangeField,
    HStoreField,
    IntegerRangeField,
)
from django.db import models


class PostgresFields(models.Model):
    """Every field of django.contrib.postgres, and JSON, which is jsonb here."""

    integers = ArrayField(models.IntegerField(), null=True)
    dates = ArrayField(models.DateField(), null=True)
    nested = ArrayField(ArrayField(models.CharField(max_length=20)), null=True)
    integer_range = IntegerRangeField(null=True)
    big_range = BigIntegerRangeField(null=True)
    decimal_range = DecimalRangeField(null=True)
    date_range = DateRangeField(null=True)
    datetime_range = DateTimeRangeField(null=True)
    hstore = HStoreField(null=True)
    json = models.JSONField(null=True)
