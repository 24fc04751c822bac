"""Settings of a process that serves `tests.multidb.site` with a pair of servers.

The environment has the databases, and whether the middleware is installed.
"""

import json
import os

from tests.settings import *  # noqa: F403

DATABASES = json.loads(os.environ["ORMCACHE_TEST_SITE_DATABASES"])
DATABASE_ROUTERS = ["ormcache.routers.ReplicaRouter"]
MIDDLEWARE = json.loads(os.environ["ORMCACHE_TEST_SITE_MIDDLEWARE"])
ROOT_URLCONF = "tests.multidb.site"
ALLOWED_HOSTS = ["*"]
