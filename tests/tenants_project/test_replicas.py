"""A replica is read by a tenant if its connection is set to that tenant, too."""

from typing import Any

from django.db import connection, connections
from django_tenants.utils import get_public_schema_name

from ormcache.routers import ReplicaRouter
from tests.aliases import alias_of
from tests.tenants_project.shop.models import Author
from tests.tenants_project.world import TENANTS, add
from tests.watching import Watch


def test_a_replica_that_is_set_to_another_tenant_is_not_read(cached: Watch, settings: Any) -> None:
    for tenant in TENANTS:
        add(tenant, tenant)

    def read() -> tuple[str, str | None]:
        author = Author.objects.get()
        return author.name, author._state.db

    with alias_of("default", "replica"):
        replica: Any = connections["replica"]
        settings.ORMCACHE = {
            **settings.ORMCACHE,
            "DATABASES": {"replica": {"PRIMARY": "default"}},
        }
        settings.DATABASE_ROUTERS = [ReplicaRouter(), *settings.DATABASE_ROUTERS]
        assert replica.schema_name == get_public_schema_name()
        for tenant in (*TENANTS, *TENANTS):
            connection.set_schema(tenant)
            assert [read() for _ in range(2)] == [(tenant, "default")] * 2
            replica.set_schema(tenant)
            assert [read() for _ in range(2)] == [(tenant, "replica")] * 2
        if replica.pool is not None:
            replica.close_pool()
