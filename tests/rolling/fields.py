"""Fields of the new release, whose columns are those of the old one."""

from django.db import models

_WORDS = {"1": "one", "2": "two", "3": "three"}


class Word(models.CharField):
    """In Python it is other words than in the database, whoever asks or is answered."""

    def get_prep_value(self, value):
        return {word: digit for digit, word in _WORDS.items()}.get(value, value)

    def from_db_value(self, value, expression, connection):
        return _WORDS.get(value, value)


class Flag(models.IntegerField):
    """A truth value that is kept as a number."""

    def get_prep_value(self, value):
        return None if value is None else int(value)

    def from_db_value(self, value, expression, connection):
        return None if value is None else bool(value)
