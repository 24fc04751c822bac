"""What a SQL text says about itself: the tables it names, the functions it calls, what it does.

Pure functions of text: nothing here knows Django, a connection or the settings. The text is
split into tokens, never parsed: where tokens are not enough to be sure, the answer errs on
the side of naming too much (a write) or of being unclear (a read).

    names                   how names are spelt, and the form in which they are compared
    lexer                   from a text to its tokens, its words and its normal form
    reads                   tables and functions of a SELECT: `analyse_read()`
    kinds                   the vocabulary in which is said what a statement does
    statements              what a text of any statements does: `classify()`, which asks
        targets                 which tables a write or the body of a trigger names,
        definitions             what DDL is about,
        transaction_control     what BEGIN, COMMIT and their like do,
        session_settings        what SET, PRAGMA and their like change
"""

from __future__ import annotations

from ormcache.sql.kinds import Kind, Statement
from ormcache.sql.lexer import normalise, tokens, words
from ormcache.sql.names import NAME, fold, table_name
from ormcache.sql.reads import analyse_read
from ormcache.sql.session_settings import names_temporary_schema
from ormcache.sql.statements import classify
from ormcache.sql.targets import names_in, written_in

__all__ = [
    "NAME",
    "Kind",
    "Statement",
    "analyse_read",
    "classify",
    "fold",
    "names_in",
    "names_temporary_schema",
    "normalise",
    "table_name",
    "tokens",
    "words",
    "written_in",
]
