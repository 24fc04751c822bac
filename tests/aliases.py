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
