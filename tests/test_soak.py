"""A short soak, as `python -m tests.soak` runs a long one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hammering import ROWS
from tests.marks import needs, scenario
from tests.soak.board import Board

ROOT = Path(__file__).parent.parent


def soak(*arguments: str) -> tuple[int, str]:
    """The exit code and what was printed."""
    # It has servers, and names of databases, of its own.
    others = ("ORMCACHE_TEST_", "PYTEST_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.soak", "--processes", "3", "--pause", "0.5", *arguments],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    assert match is not None, text
    return int(match[1].replace(",", ""))


@pytest.mark.slow
@needs("postgresql", "mariadb", "redis")
@scenario(40)
def test_while_everything_breaks_no_process_reads_less_than_what_was_committed() -> None:
    code, text = soak("--seconds", "15")
    assert code == 0, text
    assert number(r"([\d,]+) reads", text) > 500
    assert number(r"stale: (\d+)\nwrites", text) == 0
    assert "Redis failed over to a replica" in text


@pytest.mark.slow
@needs("postgresql", "mariadb", "redis")
def test_a_soak_that_announces_nothing_finds_what_is_stale() -> None:
    code, text = soak("--seconds", "8", "--sabotage")
    assert code == 1, text
    assert number(r"stale: (\d+)\nwrites", text) > 0


def test_too_few_processes_are_refused() -> None:
    code, text = soak("--processes", "2")
    assert code == 2
    assert "3 or more" in text


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
