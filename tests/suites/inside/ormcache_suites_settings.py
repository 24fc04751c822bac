"""The settings of Django's own suite."""

from ormcache_suites import ORDER

SECRET_KEY = "django_tests_secret_key"
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
USE_TZ = False

globals().update(ORDER["settings"])
