"""Runs one suite on one stack: without ormcache, verifying and serving."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import django

from tests import servers
from tests.suites import sources
from tests.suites.comparison import Outcomes

RUNS = ("without", "verifying", "serving")
INSIDE = Path(__file__).with_name("inside")

# Of Django's suite: what asks most of the ORM and of connections, and is done in minutes.
# Of its migrations what reads and writes through the ORM: the rest makes 50 hits in two minutes.
FAST = (
    *("aggregation", "async", "backends", "expressions", "m2m_regress", "many_to_many"),
    *("model_inheritance", "multiple_database", "prefetch_related", "queries"),
    *("select_for_update", "transactions"),
    *("migrations.test_executor", "migrations.test_commands"),
)


class Suite(NamedTuple):
    """A project's tests."""

    name: str
    source: sources.Source
    command: tuple[str, ...]
    """What to run: "@" is the folder of the source."""
    extensions: tuple[str, ...] = ()
    """Of PostgreSQL, which its tests expect."""
    aliases: tuple[str, ...] = ("default",)


_PROGRAM = str(INSIDE / "ormcache_suites.py")
DJANGO = Suite(
    "django",
    sources.Source("Django", django.__version__),
    (_PROGRAM, "django", "@/tests"),
    aliases=("default", "other"),
)
PROJECTS = (
    Suite(
        "treebeard",
        sources.TREEBEARD,
        # With its own configuration, though it lies in this checkout.
        (
            *("-m", "pytest", "-q", "-c", "@/pyproject.toml", "--ds=tests.settings"),
            # Not the plugin for those who use ormcache, which switches it off.
            *("-p", "no:ormcache", "-p", "ormcache_suites_pytest"),
        ),
        extensions=("ltree",),
    ),
    Suite(
        "simple_history",
        sources.SIMPLE_HISTORY,
        (_PROGRAM, "simple_history", "@"),
        aliases=("default", "other"),
    ),
)


class Stack(NamedTuple):
    """A database and a cache."""

    name: str
    kinds: tuple[type[servers.Server], ...] = ()


STACKS = {
    stack.name: stack
    for stack in (
        Stack("sqlite"),
        Stack("postgresql", (servers.PostgreSQLServer, servers.RedisServer)),
    )
}


@contextlib.contextmanager
def started(stack: Stack) -> Iterator[dict[str, int]]:
    """The ports of the stack's servers, by name, while they run."""
    with contextlib.ExitStack() as running:
        yield {kind.name: running.enter_context(kind()).port for kind in stack.kinds}


def settings(
    suite: Suite, stack: Stack, name: str, ports: dict[str, int], number: int
) -> dict[str, Any]:
    """The settings of one run, of which each has databases and a cache of its own."""
    if stack.name == "sqlite":
        databases: dict[str, Any] = {
            alias: {"ENGINE": "django.db.backends.sqlite3"} for alias in suite.aliases
        }
        cache = {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}
    else:
        databases = {
            alias: {
                "ENGINE": "django.db.backends.postgresql",
                "HOST": servers.HOST,
                "PORT": ports["PostgreSQL"],
                "USER": servers.PostgreSQLServer.user,
                "NAME": f"{suite.name}_{alias}_{number}",
                "OPTIONS": {},
            }
            for alias in suite.aliases
        }
        cache = {
            "BACKEND": "django.core.cache.backends.redis.RedisCache",
            "LOCATION": f"redis://{servers.HOST}:{ports['Redis']}/{number}",
        }
    return {
        "DATABASES": databases,
        "CACHES": {"default": cache},
        "TEST_RUNNER": "ormcache_suites.Runner",
        "PASSWORD_HASHERS": ["django.contrib.auth.hashers.MD5PasswordHasher"],
        # The quarantine of what is new in Redis ends soon enough for hits.
        "ORMCACHE": {
            "LEASE": 0.2,
            "MODE": "shadow" if name == "verifying" else "serve",
            # They are told of apart from how tests end.
            "ON_MISMATCH": "log",
        },
    }


def run(
    suite: Suite,
    stack: Stack,
    runs: Sequence[str] = RUNS,
    labels: Sequence[str] = (),
    *,
    in_transactions: bool = False,
    together: int = 2,
    logs: Path | None = None,
) -> dict[str, Outcomes]:
    """How the tests end in each of the runs.

    Args:
        suite: whose tests.
        stack: on what.
        runs: of `RUNS`.
        labels: of tests, as the suite's own program takes them; none for all.
        in_transactions: leave tests in the transaction that Django's TestCase opens.
        together: how many runs there may be at once.
        logs: a folder for what the runs print, and for the outcomes.

    Raises RuntimeError if a run does not come to its end.
    """
    source = sources.unpacked(suite.source)
    found: dict[str, Outcomes] = {}
    problems: list[BaseException] = []
    turns = threading.Semaphore(together)
    with tempfile.TemporaryDirectory() as temporary, started(stack) as ports:
        directory = Path(logs or temporary).resolve()
        directory.mkdir(parents=True, exist_ok=True)
        if stack.kinds:
            _add_extensions(suite, ports["PostgreSQL"])

        def one(number: int, name: str) -> None:
            with turns:
                order = {
                    "run": name,
                    "outcomes": str(directory / f"{suite.name}-{stack.name}-{name}.jsonl"),
                    "settings": settings(suite, stack, name, ports, number),
                    "in_transactions": in_transactions,
                }
                try:
                    found[name] = _process(suite, source, labels, order)
                except BaseException as error:
                    problems.append(error)

        threads = [threading.Thread(target=one, args=pair) for pair in enumerate(runs, start=1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if problems:
        raise problems[0]
    return found


def _add_extensions(suite: Suite, port: int) -> None:
    if not suite.extensions:
        return
    psycopg = __import__("psycopg")
    address = f"host={servers.HOST} port={port} user={servers.PostgreSQLServer.user}"
    with psycopg.connect(f"{address} dbname=template1", autocommit=True) as connection:
        for name in suite.extensions:
            connection.execute(f"CREATE EXTENSION IF NOT EXISTS {name}")


def _process(suite: Suite, source: Path, labels: Sequence[str], order: dict[str, Any]) -> Outcomes:
    outcomes = Path(order["outcomes"])
    outcomes.unlink(missing_ok=True)
    log = outcomes.with_suffix(".log")
    command = [part.replace("@", str(source)) for part in suite.command]
    begin = time.monotonic()
    with log.open("w") as output:
        subprocess.run(
            [sys.executable, *command, *labels],
            cwd=source,
            env=os.environ
            | {
                "ORMCACHE_SUITE": json.dumps(order),
                # Not the source, which may hold another Django: who needs it puts it first.
                "PYTHONPATH": os.pathsep.join([str(INSIDE), str(sources.CHECKOUT)]),
                "PYTHONHASHSEED": "0",
                "PYTEST_ADDOPTS": "",
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    found = Outcomes.read(outcomes)
    if not found.is_complete:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
        raise RuntimeError(f"{suite.name}, {order['run']}: the run did not end.\n{tail}")
    found.seconds = time.monotonic() - begin
    return found
