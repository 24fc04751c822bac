"""A table of the public schema and of each tenant as well."""

from django.db import models


class Note(models.Model):
    text = models.CharField(max_length=100)
