"""gevent: the threads of a process are greenlets. `tests.greenlets` has the programs."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.marks import on_pairs, scenario
from tests.servers import RedisServer
from tests.watching import Watch

# The last lines of the run name it.
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gevent") is None, reason="needs gevent: pip install gevent"
)

ROOT = Path(__file__).parent.parent
OTHERS = range(2, 6)
"""The rows besides the first two."""

on_postgresql = on_pairs(("postgresql", "redis"), transaction=True)


@pytest.fixture(autouse=True)
def _empty(cached: Watch) -> None:
    """Nothing is in the cache, and no lease goes on."""


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """For a program that stops the server for a moment: others would feel it, too."""
    with RedisServer() as server:
        yield server


def run(program: str, *options: str, redis: RedisServer | None = None) -> dict[str, Any]:
    """What a program in `tests.greenlets` prints; no warning may be raised in it."""
    # What measures coverage would be confused by greenlets.
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("COVERAGE_", "COV_CORE_"))
    }
    if redis is not None:
        env[redis.variable()] = str(redis.port)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.greenlets", program, *options],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # Where nobody would catch it: in __del__(), or in a greenlet that nobody waits for.
    assert "Traceback" not in done.stderr, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
@scenario(40)
@on_postgresql
def test_greenlets_never_read_less_than_what_was_committed_before() -> None:
    found = run("readers_and_writers")
    assert found["stale"] == []
    assert found["hits"] > 50
    assert found["written"] > 10
    assert found["became"]["broken off"] > 10


@pytest.mark.slow
@scenario(40)
@on_postgresql
def test_greenlets_that_share_a_pool_never_read_less_than_what_was_committed_before() -> None:
    found = run("readers_and_writers", "pooled")
    assert found["stale"] == []
    assert found["hits"] > 50
    assert found["written"] > 10
    assert set(found["became"]) == {"done"}


@on_postgresql
def test_what_is_disabled_in_one_greenlet_is_not_in_others() -> None:
    assert run("switched_off") == {
        "inside": [1, "disabled"],
        "inside still": [1, "disabled"],
        # As a thread: what began it is not known.
        "begun inside": [1, "hit"],
        "outside": [1, "hit"],
        "in another": [1, "hit"],
        "after": [1, "hit"],
    }


@on_postgresql
def test_a_transaction_of_one_greenlet_is_not_that_of_others() -> None:
    assert run("transactions") == {
        "writer": [100, "table written in this transaction"],
        "other": [1, "hit"],
        "another row": [2, "hit"],
        "is in a block": False,
        "sessions differ": True,
        "writer after": [100, "miss"],
        "other after": [100, "hit"],
    }


@on_postgresql
def test_a_greenlet_that_is_broken_off_leaves_no_answer_to_others(own_redis: RedisServer) -> None:
    found = run("broken_off", redis=own_redis)
    assert found["reader"]
    assert found["writer"]
    assert found["others"] == [[row, "hit"] for row in OTHERS]
    assert found["after"] == found["in the end"] == [1, *OTHERS]
    assert found["what was written"]
    assert found["wrong"] == []
    assert found["broken off"] > 10, found


@pytest.mark.parametrize("way", ["autocommit", "in a block"])
@on_postgresql
def test_a_write_that_is_broken_off_while_it_waits_for_a_lock_never_takes_effect(way: str) -> None:
    """By then its lease would be over, and others would have cached what it replaces."""
    assert run("given_up", way) == {
        "broken off": True,
        "while it is locked": [1, 1, 1],
        "in the end": 1,
        "in the database": 1,
    }


@on_postgresql
def test_the_threads_of_ormcache_are_greenlets_and_renew_intents() -> None:
    assert run("threads") == {
        "outcomes": ["a write is being committed"],
        "first": 1,
        "after": 100,
        "greenlets": ["ormcache-flusher", "ormcache-leases"],
    }


@on_postgresql
def test_greenlets_that_miss_the_same_at_once_ask_the_database_once() -> None:
    assert run("together") == {"fetched": 1, "became": [[100, "hit", 29], [100, "miss", 1]]}


@on_postgresql
def test_a_greenlet_that_goes_on_after_a_fork_keeps_no_socket_of_the_parent(
    own_redis: RedisServer,
) -> None:
    """gevent copies the greenlets with the process, so both read from the same socket."""
    found = run("forked", redis=own_redis)
    assert found["waited"] == [1, "hit"]
    assert found["waited too"][0] == 1
    assert not found["is shared"]
    for process in ("child", "parent"):
        assert [answer for answer, *_ in found[process]] == [1, *OTHERS]
