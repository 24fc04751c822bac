"""The examples of `docs/reference/protocol.md`, taken out of the page and run."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connections
from django.test import modify_settings

from ormcache.reasons import Reason
from tests import backdoor
from tests.interleaving import route_of
from tests.marks import needs, on_databases, scenario
from tests.sharing.models import Book
from tests.watching import Watch, wait_for_quarantine

pytestmark = [needs("redis")]

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference" / "protocol.md"
LEASE = 1.5
BUSY = str(Reason.BUSY)
SECONDS = 60

on_postgresql = on_databases("postgresql", transaction=True)
on_mariadb = on_databases("mariadb", transaction=True)


def blocks() -> dict[str, str]:
    """The examples by the names that their first lines give them; JSON has none."""
    found = {}
    for language, text in re.findall(
        r"^```(\w+)\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S
    ):
        name = re.search(r"^(?:#|--) (\w+\.\w+)", text, re.M)
        found[name[1] if name else language] = text
    return found


def test_every_example_is_run() -> None:
    """Whoever adds one has to add a test of it, below."""
    assert set(blocks()) == {
        "json",
        "bump.sh",
        "held.sh",
        "change.sql",
        "psql.sh",
        "mariadb.sh",
        "registers.py",
        "change.py",
    }


# --- fixtures --------------------------------------------------------------------------------


@pytest.fixture
def cache(settings: Any) -> Iterator[str]:
    settings.ORMCACHE = {**settings.ORMCACHE, "LEASE": LEASE, "DEPENDS_ON": {"shop_book": []}}
    with modify_settings(INSTALLED_APPS={"append": "tests.sharing"}):
        yield "redis"


@pytest.fixture
def titles(using: str, cached: Watch) -> Iterator[Callable[[], Any]]:
    """A question about the table of the examples, with its one row."""

    def titles() -> list[str]:
        return list(Book.objects.using(using).values_list("title", flat=True))

    create = "CREATE TABLE shop_book (id integer PRIMARY KEY, title varchar(20) UNIQUE)"
    backdoor.execute(using, create, "INSERT INTO shop_book VALUES (1, 'old')")
    wait_for_quarantine(using)
    yield titles
    backdoor.execute(using, "DROP TABLE shop_book")


def output_of(*arguments: str) -> str:
    output = io.StringIO()
    call_command("ormcache", "protocol", *arguments, stdout=output)
    return output.getvalue()


@pytest.fixture
def run(
    using: str, titles: Any, tmp_path: Path, settings: Any
) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Starts a command beside all the examples, in the environment that the page asks for."""
    for name, text in blocks().items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    for script in ("hold", "release"):
        text = output_of("--database", using, "--script", script)
        (tmp_path / f"{script}.lua").write_text(text)
    (tmp_path / "ormcache.json").write_text(output_of("--database", using))
    facts = connections[using].settings_dict
    (tmp_path / ".my.cnf").write_text(
        f"[client]\nhost={facts['HOST']}\nport={facts['PORT']}\nuser={facts['USER']}\n"
        f"[mysql]\ndatabase={facts['NAME']}\n"
    )
    environment = {
        **os.environ,
        "REDIS_URL": settings.CACHES["redis"]["LOCATION"],
        "NAMESPACE": route_of(using).namespace,
        "LEASE_MS": str(int(LEASE * 1000)),
        "PGHOST": facts["HOST"],
        "PGPORT": str(facts["PORT"]),
        "PGUSER": facts["USER"],
        "PGDATABASE": facts["NAME"],
        "HOME": str(tmp_path),
    }
    running = []

    def run(*command: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # To be killed with its children.
            start_new_session=True,
        )
        running.append(process)
        return process

    yield run
    for process in running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def end(process: "subprocess.Popen[str]", status: int = 0) -> None:
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == status, output


# --- what is printed -------------------------------------------------------------------------


@on_postgresql
def test_the_command_prints_what_the_page_shows(cached: Watch, using: str) -> None:
    shown, printed = json.loads(blocks()["json"]), json.loads(output_of("--database", using))
    assert list(printed) == list(shown)
    for name, script in shown["scripts"].items():
        assert printed["scripts"][name].startswith(script.rstrip("…"))


# --- the examples ----------------------------------------------------------------------------


@scenario(39)
@on_postgresql
@pytest.mark.parametrize("table", ["shop_book", "*"])
def test_bump(run: Any, cached: Watch, titles: Callable[[], Any], using: str, table: str) -> None:
    deadline = time.monotonic() + SECONDS
    # Another test may have asked for a longer lease in this namespace.
    while cached.call(titles)[1] in (["quarantine"], ["a commit is overdue"]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    cached.hit(titles)
    backdoor.execute(using, "UPDATE shop_book SET title = 'new'")
    assert cached.hit(titles) == ["old"]
    end(run("./bump.sh", "some_other_table"))
    assert cached.hit(titles) == ["old"]
    end(run("./bump.sh", table))
    assert cached.warm(titles) == ["new"]


@scenario(39)
@on_postgresql
def test_psql_between_hold_and_release(run: Any, cached: Watch, titles: Callable[[], Any]) -> None:
    assert cached.warm(titles) == ["old"]
    end(run("bash", "psql.sh"))
    assert cached.warm(titles) == ["new"]


@on_mariadb
def test_mariadb_between_hold_and_release(
    run: Any, cached: Watch, titles: Callable[[], Any]
) -> None:
    assert cached.warm(titles) == ["old"]
    end(run("bash", "mariadb.sh"))
    assert cached.warm(titles) == ["new"]


@on_postgresql
def test_python(run: Any, cached: Watch, titles: Callable[[], Any]) -> None:
    assert cached.warm(titles) == ["old"]
    end(run(sys.executable, "change.py"))
    assert cached.warm(titles) == ["new"]


@on_postgresql
def test_bump_in_python(run: Any, cached: Watch, titles: Callable[[], Any], using: str) -> None:
    cached.warm(titles)
    backdoor.execute(using, "UPDATE shop_book SET title = 'new'")
    head = blocks()["change.py"].partition("with psycopg")[0]
    end(run(sys.executable, "-c", head + "registers.bump('shop_book')"))
    assert cached.warm(titles) == ["new"]


# --- what the page says of hold and release --------------------------------------------------


HOLDS = {
    "shell": ["./held.sh", "shop_book", "bash", "-c", "{wait}; psql --quiet --file change.sql"],
    "Python": [
        sys.executable,
        "-c",
        "import subprocess\n{head}\nwith registers.held('shop_book'):\n"
        "    subprocess.run(['bash', '-c', '{wait}; psql --quiet --file change.sql'], check=True)",
    ],
}
WAIT = "touch reached; until [ -e go ]; do sleep 0.02; done"


@on_postgresql
@pytest.mark.parametrize("language", HOLDS)
def test_while_it_is_held_nothing_is_cached_however_long_it_takes(
    run: Any, cached: Watch, titles: Callable[[], Any], tmp_path: Path, language: str
) -> None:
    cached.warm(titles)
    head = blocks()["change.py"].partition("with psycopg")[0]
    command = [part.replace("{head}", head).replace("{wait}", WAIT) for part in HOLDS[language]]
    process = run(*command)
    wait_for(tmp_path / "reached")
    ends = time.monotonic() + 1.5 * LEASE
    while time.monotonic() < ends:
        assert cached.call(titles) == (["old"], [BUSY])
        time.sleep(0.05)
    (tmp_path / "go").touch()
    end(process)
    assert cached.warm(titles) == ["new"]


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@on_postgresql
def test_a_statement_that_fails_is_released_and_a_lost_connection_is_not(
    run: Any, cached: Watch, titles: Callable[[], Any], using: str, tmp_path: Path
) -> None:
    cached.warm(titles)
    script = tmp_path / "change.sql"
    script.write_text("UPDATE shop_book SET title = 'lost'; SELECT 1 / 0;")
    backdoor.execute(using, "UPDATE shop_book SET title = 'old'")
    end(run("bash", "psql.sh"), status=3)
    cached.miss(titles)
    script.write_text("SELECT pg_terminate_backend(pg_backend_pid());")
    end(run("bash", "psql.sh"), status=2)
    assert cached.call(titles)[1] == [BUSY]


@on_postgresql
def test_without_redis_the_command_is_not_run(
    run: Any, cached: Watch, titles: Callable[[], Any], using: str, tmp_path: Path
) -> None:
    (tmp_path / "hold.lua").write_text("return redis.error_reply('ORMCACHE another incarnation')")
    process = run("bash", "psql.sh")
    process.communicate(timeout=SECONDS)
    assert process.returncode != 0
    assert titles() == ["old"]
