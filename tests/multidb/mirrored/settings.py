"""Settings of the project; `ORMCACHE_TEST_MIRRORED` names the database that it is on.

Its replica is the same server by another name, as on a developer's machine.
"""

import os

from tests.settings import *  # noqa: F403
from tests.settings import DATABASES as OTHERS
from tests.settings import WORKER_SUFFIX

if os.environ["ORMCACHE_TEST_MIRRORED"] == "postgresql":
    PRIMARY = {
        **OTHERS["postgresql"],
        "NAME": f"mirrored{WORKER_SUFFIX}",
        "TEST": {"NAME": f"ormcache_test_mirrored{WORKER_SUFFIX}"},
    }
    ELSEWHERE = {"HOST": "localhost"}
else:
    PRIMARY = {"ENGINE": "django.db.backends.sqlite3", "NAME": "mirrored"}
    ELSEWHERE = {"NAME": "copy"}
DATABASES = {
    "default": PRIMARY,
    "replica": {**PRIMARY, **ELSEWHERE, "TEST": {"MIRROR": "default"}},
}
DATABASE_ROUTERS = ["ormcache.routers.ReplicaRouter"]
INSTALLED_APPS = ["django.contrib.contenttypes", "ormcache"]
ROOT_URLCONF = "tests.multidb.mirrored.suite"
