"""Django settings of the tenants project: django-tenants on PostgreSQL, ormcache on Redis."""

import os
from typing import Any

from tests import servers
from tests.settings import WORKER_NUMBER, WORKER_SUFFIX, port_of

VARIANT = os.environ.get("ORMCACHE_TEST_TENANTS", "")

DATABASES: dict[str, dict[str, Any]] = {
    "default": {
        "ENGINE": "django_tenants.postgresql_backend",
        "HOST": servers.HOST,
        "PORT": port_of(servers.PostgreSQLServer),
        "USER": servers.PostgreSQLServer.user,
        "NAME": f"ormcache_tenants{WORKER_SUFFIX}",
        "OPTIONS": {"pool": True} if VARIANT == "pool" else {},
    },
}
# The same database without django-tenants, in the schema of one tenant.
DATABASES["plain"] = {
    **DATABASES["default"],
    "ENGINE": "django.db.backends.postgresql",
    "OPTIONS": {"options": "-c search_path=alpha,public"},
}
DATABASE_ROUTERS = ["django_tenants.routers.TenantSyncRouter"]
CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        # The first of a worker's four numbers: the others are those of `tests.settings`.
        "LOCATION": f"redis://{servers.HOST}:{port_of(servers.RedisServer)}/{4 * WORKER_NUMBER}",
    },
}
ORMCACHE: dict[str, Any] = {"LEASE": 0.5, "SOCKET_TIMEOUT": 10}

SHARED_APPS = [
    "django_tenants",
    "tests.tenants_project.customers",
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "tests.tenants_project.notes",
    "ormcache",
]
TENANT_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "tests.tenants_project.notes",
    "tests.tenants_project.shop",
]
INSTALLED_APPS = [*SHARED_APPS, "tests.tenants_project.shop"]
TENANT_MODEL = "customers.Client"
TENANT_DOMAIN_MODEL = "customers.Domain"
# Then a search path is set once after each switch, and not with each cursor.
TENANT_LIMIT_SET_CALLS = VARIANT == "limit"

DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
SECRET_KEY = "not a secret"
USE_TZ = True
