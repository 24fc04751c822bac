"""A short soak, as `python -m tests.soak` runs a long one."""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.hammering import ROWS
from tests.marks import needs, scenario
from tests.servers import MissingProgram, PgBouncerServer, is_installed
from tests.soak.__main__ import Goal, report
from tests.soak.board import Board

ROOT = Path(__file__).parent.parent


def soak(*arguments: str) -> tuple[int, str]:
    """The exit code and what was printed."""
    # It has servers, and names of databases, of its own.
    others = ("ORMCACHE_TEST_", "PYTEST_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.soak", "--pause", "0.5", *arguments],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def pgbouncer() -> None:
    """Skip the test where it is not installed."""
    if not is_installed(PgBouncerServer):
        raise MissingProgram(PgBouncerServer, "pgbouncer")


def number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    assert match is not None, text
    return int(match[1].replace(",", ""))


@pytest.mark.slow
@needs("postgresql", "mariadb", "redis")
@scenario(40)
def test_while_everything_breaks_no_process_reads_less_than_what_was_committed() -> None:
    code, text = soak("--processes", "3", "--seconds", "15", "--reads", "500")
    assert code == 0, text
    assert number(r"s: ([\d,]+) reads", text) >= 500
    assert number(r"stale: (\d+)\nwrites", text) == 0
    assert "Redis failed over to a replica" in text


@pytest.mark.slow
@needs("postgresql", "mariadb", "redis")
def test_a_soak_goes_on_until_as_many_reads_were_made_as_were_asked_for() -> None:
    code, text = soak("--processes", "3", "--seconds", "0", "--reads", "2000", "--pause", "100")
    assert code == 0, text
    assert number(r"\n\d+ s: ([\d,]+) reads", text) >= 2000


@pytest.mark.parametrize(
    ("seconds", "reads", "is_reached"),
    [(9, 200, False), (10, 99, False), (10, 100, True), (11, 100, True)],
)
def test_a_soak_takes_its_seconds_and_its_reads(
    seconds: float, reads: int, is_reached: bool
) -> None:
    assert Goal(10, 100).is_reached(seconds, reads) == is_reached


def test_a_soak_in_which_nobody_reads_any_more_ends() -> None:
    goal = Goal(10, 100)
    assert not goal.is_reached(30, 50)
    assert not goal.is_reached(90, 50)
    assert goal.is_reached(91, 50)


def test_a_soak_with_fewer_reads_than_were_asked_for_has_failed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    board = Board(Context, 1, ["one"])
    for name in ("reads", "asked", "hits"):
        board.add(0, name, 99)
    vandal: Any = SimpleNamespace(done={})
    for reads, code in ((99, 0), (100, 1)):
        options = argparse.Namespace(reads=reads, pooled=False)
        assert report(options, board, vandal, 1, {}) == code
    assert "it ended too early: 1 reads are missing" in capsys.readouterr().out


@pytest.mark.slow
@needs("postgresql", "mariadb", "redis")
def test_a_soak_that_announces_nothing_finds_what_is_stale() -> None:
    code, text = soak("--processes", "3", "--seconds", "8", "--sabotage")
    assert code == 1, text
    assert number(r"stale: (\d+)\nwrites", text) > 0


@pytest.mark.slow
@needs("postgresql", "redis")
@pytest.mark.usefixtures("pgbouncer")
@scenario(40)
def test_while_pools_and_poolers_break_every_hit_is_what_the_database_says() -> None:
    code, text = soak("--pooled", "--seconds", "12")
    assert code == 0, text
    assert number(r"([\d,]+) reads", text) > 200
    assert number(r"([\d,]+) hits verified, mismatches: 0, stale: 0\nwrites", text) > 50
    assert number(r"(\d+) x PgBouncer killed and started again", text) > 0
    assert number(r"(\d+) x sessions ended", text) > 0


@pytest.mark.slow
@needs("postgresql", "redis")
@pytest.mark.usefixtures("pgbouncer")
def test_a_soak_of_pools_that_announces_nothing_finds_mismatches() -> None:
    code, text = soak("--pooled", "--seconds", "8", "--sabotage")
    assert code == 1, text
    assert number(r"mismatches: (\d+), stale: \d+\nwrites", text) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes", "2"], "3 or more"),
        (["--pooled", "--threads", "3"], "two for each process"),
    ],
    ids=["processes", "threads"],
)
def test_too_few_workers_are_refused(arguments: list[str], message: str) -> None:
    code, text = soak(*arguments)
    assert code == 2
    assert message in text


class Context:
    """Arrays that nobody shares."""

    @staticmethod
    def RawValue(kind: str, value: int) -> int:
        return value

    @staticmethod
    def RawArray(kind: str, size: int) -> list[int]:
        return [0] * size


def test_a_floor_is_the_greatest_that_any_worker_has_written_there() -> None:
    board = Board(Context, 2, ["one", "other"])
    mine, theirs = board.floors(0, "one"), board.floors(1, "one")
    mine[0], theirs[0], theirs[1] = 3, 2, 5
    assert list(mine) == list(theirs) == [3, 5, *[0] * (ROWS - 2)]
    assert list(board.floors(1, "other")) == [0] * ROWS


def test_counts_of_all_workers_are_added() -> None:
    board = Board(Context, 2, ["one"])
    board.add(0, "reads", 2)
    board.add(1, "reads")
    assert (board.total("reads"), board.total("hits")) == (3, 0)
