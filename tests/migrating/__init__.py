"""An app with migrations; `tests.test_migrations_hooks` installs it for itself."""

from collections.abc import Callable

steps: dict[str, Callable[[str], None]] = {}
"""What a test wants to be done in the course of a migration, with the database's alias."""


class Failure(Exception):
    """What the last migration raises."""
