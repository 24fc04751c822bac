"""Caches Django ORM queries transparently and invalidates them by itself.

``INSTALLED_APPS += ["ormcache"]`` is all that is needed; these are for the rest.
"""

from ormcache.bypasses import disabled
from ormcache.counters import snapshot as statistics
from ormcache.explanation import Explanation, explain
from ormcache.invalidation import flush, invalidate
from ormcache.reasons import Reason

__all__ = [
    "Explanation",
    "Reason",
    "disabled",
    "explain",
    "flush",
    "invalidate",
    "statistics",
]

__version__ = "0.1.0"
