"""Remembers what was worked out, for as long as what it rests on stays the same."""

from __future__ import annotations

from typing import Generic, TypeVar

_K = TypeVar("_K")
_V = TypeVar("_V")


class Memo(Generic[_K, _V]):
    """A dict that is thrown away when its basis changes, and when it is full."""

    def __init__(self, limit: int = 4096) -> None:
        self._limit = limit
        # One attribute, so that no thread sees a dict with the basis of another.
        self._state: tuple[tuple[object, ...], dict[_K, _V]] = ((), {})

    def under(self, *basis: object) -> dict[_K, _V]:
        """What is known under ``basis``: settings, the generation of the models and the like."""
        former, known = self._state
        if former != basis or len(known) > self._limit:
            known = {}
            self._state = (basis, known)
        return known
