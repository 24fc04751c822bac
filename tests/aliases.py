"""Database aliases that exist for one test."""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

from django.db import connections


@contextlib.contextmanager
def alias_of(existing: str, name: str, **changes: Any) -> Iterator[str]:
    """Inside, the alias `name` leads where `existing` does, but for what is changed.

    A test case forbids aliases that it was not told of to connect: here that is done already.
    """
    connections.settings[name] = {**copy.deepcopy(connections[existing].settings_dict), **changes}
    try:
        connections[name].connect()
        yield name
    finally:
        connections[name].close()
        del connections[name]
        del connections.settings[name]


@contextlib.contextmanager
def changed(alias: str, **changes: Any) -> Iterator[None]:
    """Inside, all threads find other settings of `alias`, and begin with other connections.

    Test cases allow it what they allow the alias. Threads that use it must have ended inside.
    """
    usual, settings = connections[alias], connections.settings[alias]
    usual.close()
    connections.settings[alias] = {**copy.deepcopy(usual.settings_dict), **changes}
    del connections[alias]
    try:
        yield
    finally:
        other = connections[alias]
        other.close()
        if getattr(other, "pool", None):
            other.close_pool()
        connections.settings[alias] = settings
        connections[alias] = usual
