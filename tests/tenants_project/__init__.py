"""A project with the real django-tenants; `tests.multidb.test_tenants` runs its tests."""
