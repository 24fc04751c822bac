"""What a database knows of transactions beyond what Django asks of it.

PostgreSQL gives them ids. In MySQL and MariaDB some tables take no part in them, such as those of
MyISAM: what is written there is seen by everybody at once, and a rollback does not take it back.
Django knows the engine that new tables get by default, but each table may have its own.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ormcache.questions import ask
from ormcache.sql import fold

_QUESTION = (
    "SELECT table_name FROM information_schema.tables "
    "JOIN information_schema.engines USING (engine) "
    "WHERE table_schema = DATABASE() AND transactions <> 'YES'"
)

_found: dict[str, frozenset[str]] = {}


def tells_what_is_over(connection: Any) -> bool:
    """Whether the database can be asked on ``connection`` which transactions are over.

    Without autocommit nobody could ask for the oldest id without having one.
    """
    return connection.vendor == "postgresql" and bool(connection.settings_dict["AUTOCOMMIT"])


def without_transactions(connection: Any, namespace: str, tables: Collection[str]) -> bool:
    """Whether one of ``tables``, folded names, takes no part in transactions.

    Asks the server once per process and namespace, and again after :func:`forget`.
    """
    if connection.vendor != "mysql":
        return False
    found = _found.get(namespace)
    if found is None:
        found = frozenset(fold(name) for (name,) in ask(connection, _QUESTION))
        _found[namespace] = found
    return not found.isdisjoint(tables)


def forget(namespace: str) -> None:
    """A table was made or altered."""
    _found.pop(namespace, None)
