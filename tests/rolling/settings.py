"""Settings of a process that serves one release of `tests.rolling`."""

from tests.settings import *  # noqa: F403
from tests.settings import INSTALLED_APPS, ORMCACHE

INSTALLED_APPS = [*INSTALLED_APPS, "tests.rolling"]
# A longer lease than usual: many processes share few processors here.
ORMCACHE = {**ORMCACHE, "CACHE_ALIAS": "redis", "LEASE": 1}
