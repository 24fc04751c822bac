"""Django settings of the soak: those of the tests, with all databases cached in one Redis."""

from tests.settings import *  # noqa: F403
from tests.settings import CACHES

ORMCACHE = {
    "CACHE_ALIAS": "redis",
    # Long enough for a process that is stopped for a moment, or that a busy machine forgets.
    "LEASE": 2,
    "SOCKET_TIMEOUT": 0.5,
}
CACHES["redis"]["LOCATION"] = CACHES["redis"]["LOCATION"].rpartition("/")[0] + "/0"
