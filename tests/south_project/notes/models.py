"""An app without migrations: `syncdb` makes its table and loads its fixture."""

from django.db import models


class Note(models.Model):
    text = models.CharField(max_length=20)
