"""What differs from test to test comes from the environment, as JSON."""

import json
import os

_given = json.loads(os.environ["SOUTH_PROJECT"])

DATABASES = _given["DATABASES"]
ORMCACHE_SOUTH = _given["ORMCACHE_SOUTH"]
INSTALLED_APPS = ("south", "legacy", "notes", "ormcache_south")
MIDDLEWARE_CLASSES = ()
SECRET_KEY = "not a secret"
USE_TZ = True
SOUTH_TESTS_MIGRATE = False
