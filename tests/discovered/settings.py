"""One database and one cache of those in `tests.settings`, named by an environment variable."""

import os

from tests import settings

# A name in the settings that no database has: what the runner makes is called otherwise.
_database = dict(settings.DATABASES[os.environ["DISCOVERED_DATABASE"]])
_database |= {"NAME": os.environ["DISCOVERED_NAME"], "TEST": {}}
if "sqlite3" in _database["ENGINE"] and "DISCOVERED_KEEPS" in os.environ:
    # Only a file can be kept.
    _database["TEST"] = {"NAME": os.environ["DISCOVERED_NAME"]}
DATABASES = {"default": _database}
CACHES = {"default": settings.CACHES["redis"]}
ORMCACHE = settings.ORMCACHE
INSTALLED_APPS = ["django.contrib.contenttypes", "ormcache", "tests.discovered"]
DEFAULT_AUTO_FIELD = settings.DEFAULT_AUTO_FIELD
SECRET_KEY = settings.SECRET_KEY
USE_TZ = True
