"""An app with migrations; `tests.test_migrations_hooks` installs it for itself."""

from collections.abc import Callable
from typing import Any

steps: dict[str, Callable[[str], None]] = {}
"""What a test wants to be done in the course of the second migration, with the alias."""


class Plugged:
    """What a test wants the last migration to be."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.operations: tuple[Any, ...] = ()
        self.is_atomic = True

    def __call__(self, *operations: Any, atomic: bool = True) -> None:
        self.operations, self.is_atomic = operations, atomic


plugged = Plugged()


class Failure(Exception):
    """What a step raises that is to fail."""
