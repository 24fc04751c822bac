"""Django settings of the soak of pools: a database behind PgBouncer, one behind psycopg's pool."""

import os

from tests.settings import *  # noqa: F403
from tests.settings import CACHES, DATABASES, test_database

DATABASES["bounced"] = {
    **DATABASES["postgresql"],
    **test_database("ormcache_bounced"),
    "PORT": os.environ["ORMCACHE_SOAK_BOUNCER"],
    "DISABLE_SERVER_SIDE_CURSORS": True,
}
DATABASES["pooled"] = {
    **DATABASES["postgresql"],
    **test_database("ormcache_pooled"),
    "OPTIONS": {"pool": {"min_size": 2, "max_size": 6, "timeout": 5, "max_lifetime": 5}},
}
ORMCACHE = {
    "CACHE_ALIAS": "redis",
    # Long enough for a process that is stopped for a moment, or that a busy machine forgets.
    "LEASE": 2,
    "SOCKET_TIMEOUT": 0.5,
    # Every hit is compared with what the database says.
    "VERIFY": 1,
}
CACHES["redis"]["LOCATION"] = CACHES["redis"]["LOCATION"].rpartition("/")[0] + "/0"

# Sessions are ended all the time; psycopg's pool tells of each.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "loggers": {"psycopg.pool": {"level": "CRITICAL"}},
}
