"""One release or the other, with the same names: as if the process had been deployed anew."""

import os

from django.db import models

from tests.rolling.fields import Flag, Word

RELEASE = os.environ.get("ROLLING_RELEASE", "new")


class Versioned(models.Model):
    """Each write raises the version of its row."""

    version = models.IntegerField(default=1)

    class Meta:
        abstract = True


if RELEASE == "old":

    class Grown(Versioned):
        name = models.CharField(max_length=20)

    class Renamed(Versioned):
        title = models.CharField(max_length=20)

    class Retyped(Versioned):
        code = models.IntegerField()

    class Widened(Versioned):
        text = models.CharField(max_length=10, null=True)

    class Scaled(Versioned):
        price = models.DecimalField(max_digits=8, decimal_places=1)

    class Switched(Versioned):
        is_on = models.IntegerField()

    class Recoded(Versioned):
        """Of this only Python sees the change."""

        word = models.CharField(max_length=20)
        flag = models.IntegerField()

    class Dropped(Versioned):
        name = models.CharField(max_length=20)

    class Remade(Versioned):
        name = models.CharField(max_length=20)

    class Told(Versioned):
        name = models.CharField(max_length=20)

else:

    class Grown(Versioned):
        name = models.CharField(max_length=20)
        extra = models.IntegerField(default=7)

    class Renamed(Versioned):
        heading = models.CharField(max_length=20)

    class Retyped(Versioned):
        code = models.CharField(max_length=20)

    class Widened(Versioned):
        text = models.CharField(max_length=40, default="none")

    class Scaled(Versioned):
        price = models.DecimalField(max_digits=9, decimal_places=3)

    class Switched(Versioned):
        is_on = models.BooleanField()

    class Recoded(Versioned):
        word = Word(max_length=20)
        flag = Flag()

    class Remade(Versioned):
        name = models.IntegerField()

    class Told(Versioned):
        name = models.CharField(max_length=20)
