"""A standby takes over that has not received the last commits, at the address of the primary.

The steps of docs/howto/failover.md, and what comes of another order.
"""

import dataclasses
import importlib
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connections

import ormcache
from ormcache import fence
from tests.aliases import alias_of
from tests.marks import needs
from tests.models import Author
from tests.proxies import Proxy
from tests.servers import HOST, PostgreSQLReplica, PostgreSQLServer
from tests.watching import Watch, seconds_while, wait_for_quarantine

pytestmark = [pytest.mark.slow, needs("postgresql", "redis")]

USING = "failing_over"
LOST, SURVIVED = "lost", "survived"


def name() -> Any:
    return Author.objects.using(USING).get().name


@dataclasses.dataclass
class Cluster:
    """A primary, a standby that lacks its last commit, and the address of both."""

    primary: PostgreSQLServer
    standby: PostgreSQLReplica
    address: Proxy

    def stop_primary(self) -> None:
        self.primary.kill()

    def promote(self) -> None:
        self.standby.start()
        self.standby.promote()

    def let_traffic_in(self) -> None:
        self.address.lead_to(self.standby.port)
        # As the next request does: the session on the dead server is lost.
        connections[USING].close()
        connections[USING].connect()


@pytest.fixture
def cluster(settings: Any, transactional_db: None) -> Iterator[Cluster]:
    """With an answer in the cache, of a commit that the standby has not received."""
    with (
        PostgreSQLServer() as primary,
        PostgreSQLReplica(primary) as standby,
        Proxy(primary.port) as address,
        alias_of("postgresql", USING, HOST=HOST, PORT=str(address.port), NAME="postgres", TEST={}),
    ):
        fence._looks.clear()
        settings.ORMCACHE = {**settings.ORMCACHE, "CACHE_ALIAS": "redis"}
        make_fence: Any = importlib.import_module("ormcache.migrations.0001_fence")
        with connections[USING].schema_editor() as editor:
            editor.create_model(Author)
            make_fence.create(None, editor)
        author = Author.objects.using(USING).create(name=SURVIVED)
        standby.wait_for_primary()
        standby.kill()
        Author.objects.using(USING).filter(pk=author.pk).update(name=LOST)
        yield Cluster(primary, standby, address)
        fence._looks.clear()


@pytest.fixture
def watch(cluster: Cluster) -> Iterator[Watch]:
    ormcache.flush(using=USING)
    wait_for_quarantine(USING)
    with Watch(USING) as watch:
        assert watch.warm(name) == LOST
        yield watch


def test_without_a_flush_the_lost_commit_is_answered(cluster: Cluster, watch: Watch) -> None:
    cluster.stop_primary()
    cluster.promote()
    cluster.let_traffic_in()
    assert watch.hit(name) == LOST


def test_a_flush_between_the_end_of_the_primary_and_the_traffic_forgets_the_lost_commit(
    cluster: Cluster, watch: Watch
) -> None:
    """It needs the cache only: no database answers yet."""
    cluster.stop_primary()
    call_command("ormcache", "flush", database=USING)
    cluster.promote()
    cluster.let_traffic_in()
    assert watch.warm(name) == SURVIVED


def test_a_flush_is_in_vain_while_a_session_reads_from_the_former_primary(
    cluster: Cluster, watch: Watch
) -> None:
    ormcache.flush(using=USING)
    assert watch.warm(name) == LOST
    cluster.stop_primary()
    cluster.promote()
    cluster.let_traffic_in()
    assert watch.hit(name) == LOST
    ormcache.flush(using=USING)
    assert watch.warm(name) == SURVIVED


def test_a_row_in_the_fence_of_the_promoted_server_is_heard_of_in_time(
    cluster: Cluster, watch: Watch
) -> None:
    cluster.stop_primary()
    cluster.promote()
    cluster.standby.ask("INSERT INTO ormcache_fence (table_name) VALUES ('*')")
    cluster.let_traffic_in()
    assert seconds_while(lambda: name() == LOST) < 1.5
    assert watch.hit(name) == SURVIVED
