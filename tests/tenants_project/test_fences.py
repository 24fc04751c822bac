"""The fence is looked into where the connection of a tenant looks for tables."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.db import connection
from django_tenants.utils import schema_context

from ormcache import fence
from tests.tenants_project.world import TENANTS, add, outside, within
from tests.watching import Watch

in_alpha, in_beta = within("alpha"), within("beta")


class Clock:
    """The monotonic clock of this process, as the fence sees it."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(cached: Watch, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(fence, "time", clock)
    settings.ORMCACHE = {**django_settings.ORMCACHE, "FENCE": 2}
    fence._looks.clear()
    yield clock
    fence._looks.clear()
    outside("DELETE FROM public.ormcache_fence")


def rename(tenant: str, fence_of: str) -> None:
    outside(
        f"UPDATE {tenant}.shop_author SET name = 'new'",
        f"INSERT INTO {fence_of}.ormcache_fence (table_name) VALUES ('shop_author')",
    )


def test_all_tenants_share_the_fence_of_the_public_schema(cached: Watch, clock: Clock) -> None:
    add("beta", "old")
    assert cached.warm(in_beta) == ["old"]
    rename("beta", "public")
    clock.now += 3
    in_alpha()
    assert cached.warm(in_beta) == ["new"]


def test_a_tenant_may_have_a_fence_of_its_own(cached: Watch, clock: Clock) -> None:
    for tenant in TENANTS:
        outside(f"CREATE TABLE {tenant}.ormcache_fence (LIKE ormcache_fence INCLUDING ALL)")
    try:
        add("beta", "old")
        assert cached.warm(in_beta) == ["old"]
        rename("beta", "beta")
        clock.now += 3
        with schema_context("alpha"), connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        # The path of the session is still that of the other tenant.
        assert cached.warm(in_beta) == ["new"]
    finally:
        for tenant in TENANTS:
            outside(f"DROP TABLE {tenant}.ormcache_fence")
