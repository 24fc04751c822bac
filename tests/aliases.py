"""Database aliases that exist for one test."""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

from django.db import connections


@contextlib.contextmanager
def alias_of(existing: str, name: str, **changes: Any) -> Iterator[str]:
    """Inside, the alias `name` leads where `existing` does, but for what is changed."""
    connections.settings[name] = {**copy.deepcopy(connections[existing].settings_dict), **changes}
    try:
        yield name
    finally:
        connections[name].close()
        del connections[name]
        del connections.settings[name]
