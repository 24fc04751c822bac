"""The real client, step by step, over a database and a cache that are simulated: no wrong answer.

See `tests/simulation` for what is real. To see a failing seed step by step:

    python -m tests.simulation --seed 42
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from django.conf import settings

from ormcache import brackets, fence, fence_rows, leases, reads
from ormcache.stores import redis as redis_store
from tests.marks import needs
from tests.simulation.mutants import FENCE_MUTANTS, MUTANTS, OPEN_MUTANTS, found
from tests.simulation.server import Server, parse
from tests.simulation.world import World

SCHEDULES = 90_000
OTHERS = 5_000
"""Of each of the policies that let a write through: together they are 100,000."""
BLOCK = 1_000
"""Of each test: with longer ones, five processes would wait for the sixth at the end."""
PATIENCE = 30_000
"""Schedules in which the simulation has to find out that something is missing."""
LOOK_FURTHER = "not found: python -m tests.simulation --find --schedules 100000 looks further"


@pytest.fixture
def world() -> Iterator[World]:
    with World().installed() as world:
        yield world


def failures(world: World, seeds: range) -> list[tuple[int, str]]:
    return [
        (seed, outcome.violations[0]) for seed in seeds if (outcome := world.run(seed)).violations
    ]


# --- answers ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, SCHEDULES, BLOCK))
def test_no_schedule_leads_to_a_wrong_answer(world: World, first: int) -> None:
    assert failures(world, range(first, first + BLOCK)) == []


def test_no_schedule_of_a_thousand_others_does(world: World) -> None:
    assert failures(world, range(SCHEDULES, SCHEDULES + 1_000)) == []


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, OTHERS, BLOCK))
def test_with_the_policy_open_a_process_misses_no_write_of_its_own(first: int) -> None:
    """Nor any write that could be announced; when all have reached the cache, nobody does."""
    with World("open").installed() as world:
        assert failures(world, range(first, first + BLOCK)) == []


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, OTHERS, BLOCK))
def test_with_the_policy_fence_every_write_is_heard_of_in_time(first: int) -> None:
    """At once by those whom the cache tells, and by its own process; by others after `FENCE`."""
    with World("fence").installed() as world:
        assert failures(world, range(first, first + BLOCK)) == []


def has_wrong_answer(world: World, name: str) -> bool:
    """Whether the simulation finds one; where it was found before is where it looks first."""
    return any(
        "answered by" in violation
        for seed in (found().get(name, 0), *range(PATIENCE))
        for violation in world.run(seed).violations
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_without_one_device_there_are_wrong_answers(name: str) -> None:
    with MUTANTS[name](), World().installed() as world:
        assert has_wrong_answer(world, name), LOOK_FURTHER


@pytest.mark.slow
@pytest.mark.parametrize("name", OPEN_MUTANTS)
def test_without_what_the_policy_open_needs_there_are_wrong_answers(name: str) -> None:
    with OPEN_MUTANTS[name](), World("open").installed() as world:
        assert has_wrong_answer(world, name), LOOK_FURTHER


@pytest.mark.slow
@pytest.mark.parametrize("name", FENCE_MUTANTS)
def test_without_what_the_policy_fence_needs_there_are_wrong_answers(name: str) -> None:
    with FENCE_MUTANTS[name](), World("fence").installed() as world:
        assert has_wrong_answer(world, name), LOOK_FURTHER


def test_mutants_leave_nothing_behind() -> None:
    scripts, is_fresh = redis_store.SCRIPTS, brackets.Bracket._is_fresh
    renew, store = leases.Keeper.renew, reads._store
    looks, insert = fence.why_not_trust, fence_rows.insert
    for mutant in (*MUTANTS.values(), *OPEN_MUTANTS.values(), *FENCE_MUTANTS.values()):
        with mutant():
            pass
    assert redis_store.SCRIPTS is scripts
    assert brackets.Bracket._is_fresh is is_fresh
    assert leases.Keeper.renew is renew
    assert reads._store is store
    assert fence.why_not_trust is looks
    assert fence_rows.insert is insert


# --- what the schedules are like -------------------------------------------------------------


def test_a_good_part_of_the_reads_are_hits_and_of_the_writes_commits(world: World) -> None:
    """Else the simulation would prove little."""
    read = hits = commits = 0
    for seed in range(300):
        outcome = world.run(seed)
        read += outcome.reads
        hits += outcome.hits
        commits += len(world.database.states) - 1
    assert 0.2 < hits / read < 0.8
    assert commits > 300


def test_a_part_of_the_commits_goes_by_the_fence() -> None:
    schedules = 0
    with World("fence").installed() as world:
        for seed in range(300):
            world.run(seed)
            schedules += bool(world.fenced)
    assert schedules > 30


HAPPENINGS = (
    "is killed",
    "is evicted",
    "FLUSHALL",
    "COPY",
    "is restarted, empty",
    "is restarted, from its dump",
    "writes a dump",
    "is promoted",
    "catches up with",
    "SCRIPT FLUSH",
    "the request is lost",
    "the reply is lost",
    "no reply in time",
    "cut, but not yet noticed",
    "the clock is set back",
    "time has passed",
    "sends COMMIT",
    "a commit has failed",
    "server closed the connection",
    "CacheUnreachable",
    "has rolled back",
    "looks for leases to renew",
    "hit",
    "miss",
    "arm",
    "finish",
    "SET",
    "NoScriptError",
    "ReadOnlyError",
    "ORMCACHE another incarnation",
    "quarantine",
    "busy",
)


@pytest.mark.slow
def test_everything_happens_that_can(world: World) -> None:
    happened: Counter[str] = Counter()
    missing = set(HAPPENINGS)
    for seed in range(1_500):
        world.trace = []
        world.run(seed)
        text = "\n".join(world.trace)
        happened.update(what for what in missing if re.search(rf"\b{what}\b", text))
        missing -= {what for what in missing if happened[what] >= 3}
        if not missing:
            break
    assert missing == set()


# --- one command -----------------------------------------------------------------------------


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation", *arguments],
        cwd=Path(__file__).resolve().parent.parent,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_seed_is_the_same_schedule_whatever_ran_before(world: World) -> None:
    for seed in range(50):
        world.run(seed)
    for seed in range(40, 50):
        traces = []
        for _ in range(2):
            world.trace = []
            world.run(seed)
            traces.append("\n".join(world.trace))
        assert traces[0] == traces[1]


def test_a_failing_seed_fails_again_in_another_process(world: World) -> None:
    name = "no new nonce for a commit"
    with MUTANTS[name](), World().installed() as mutated:
        seed = next(seed for seed in range(PATIENCE) if mutated.run(seed).violations)
        mutated.trace = []
        violations = mutated.run(seed).violations
        expected = mutated.trace
    told = command("--seed", str(seed), "--mutant", name)
    assert told.returncode == 1, told.stderr
    assert violations[0] in told.stdout
    # Namespaces of a test run are its own, and so are the names of entries.
    assert [line[:40] for line in told.stdout.splitlines()[: len(expected)]] == [
        line[:40] for line in "\n".join(expected).splitlines()
    ]


def test_the_command_runs_many_schedules_in_several_processes() -> None:
    told = command("--schedules", "200", "--processes", "2")
    assert told.returncode == 0, told.stderr
    assert "200 schedules" in told.stdout
    assert "0 failures" in told.stdout


def test_the_command_fails_if_a_schedule_does() -> None:
    told = command("--schedules", "200", "--mutant", "arm after the commit")
    assert told.returncode == 1, told.stderr
    assert re.search(r"^seed \d+: .* answered by ", told.stdout, re.M)


# --- the simulated server --------------------------------------------------------------------


def test_commands_are_read_as_they_are_sent() -> None:
    stream = b"*2\r\n$3\r\nGET\r\n$4\r\na\r\nb\r\n*1\r\n$0\r\n\r\n"
    assert list(parse(stream)) == [[b"GET", b"a\r\nb"], [b""]]


CALLS = """
local told = {}
local function tell(...)
  for _, value in ipairs({...}) do
    if type(value) == 'table' then
      for i = 1, #value do
        told[#told + 1] = tostring(value[i])
      end
    else
      told[#told + 1] = tostring(value)
    end
  end
end
tell(redis.call('HGET', KEYS[1], 'a'), redis.call('HMGET', KEYS[1], 'a', 'b'))
tell(redis.call('HSET', KEYS[1], 'a', 1700000000123, 'b', 'x'))
tell(redis.call('HSET', KEYS[1], 'a', 2.5, 'c', ARGV[1]))
tell(redis.call('HSETNX', KEYS[1], 'a', 1), redis.call('HSETNX', KEYS[1], 'd', 1))
tell(redis.call('HMGET', KEYS[1], 'a', 'b', 'c', 'd', 'e'))
tell(redis.call('HDEL', KEYS[1], 'a'), redis.call('HDEL', KEYS[1], 'a'))
tell(redis.call('GET', KEYS[2]), type(redis.pcall('GET', KEYS[1])))
tell(type(redis.call('TIME')[1]), #redis.call('TIME'))
return told
"""


@needs("redis")
def test_scripts_are_answered_as_by_redis(world: World) -> None:
    arguments = [b"none-1", b"none-2", b"1\r\n"]
    client = redis.Redis.from_url(settings.CACHES["redis"]["LOCATION"])
    client.delete("none-1", "none-2")
    expected: Any = client.eval(CALLS, 2, *arguments)
    client.delete("none-1", "none-2")
    client.close()

    server = Server(world, "C")
    server.become(run_id="C" * 40, replid="0" * 40, is_master=True)
    sha = server.execute([b"SCRIPT", b"LOAD", CALLS.encode()])
    assert server.execute([b"EVALSHA", sha, b"2", *arguments]) == expected
