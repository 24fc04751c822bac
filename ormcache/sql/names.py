"""Names in SQL: what one looks like in a text, and the form in which two are compared."""

from __future__ import annotations

import re

NAME = r'(?:"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]\n]+\]|[^\W\d][\w$]*)'
"""A pattern for one name, with or without quotes."""


def fold(name: str) -> str:
    """A table's name as this package compares it: without quotes, in one case.

    MySQL and SQLite compare table names regardless of case, Oracle folds them up, PostgreSQL
    folds unquoted ones down. One case for all can only join two names, never part them, so at
    worst a write invalidates one table too many.
    """
    return re.sub(r'["`\[\]]', "", name).casefold()


def table_name(db_table: str) -> str:
    """The folded name of a model's ``db_table``, without the schema that some put into it.

    ``'schema"."table'`` is the usual way to name a table of another schema.
    """
    return fold(re.split(r"""["`\]]\.["`\[]""", db_table)[-1])
