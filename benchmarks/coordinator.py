"""Starts one worker per contender and lets them take turns.

The contenders patch Django for a whole process, so each has its own. Only one of them
works at any moment, the others wait on their pipes; and each case is timed in many
short batches, one contender after the other, so that whatever the machine does in the
meantime happens to all of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.cases import Case
from benchmarks.contenders import NO_CACHE, Services, why_not
from benchmarks.results import Cell, StackResult

_ROOT = Path(__file__).resolve().parent.parent


class WorkerError(Exception):
    """A worker could not do what it was asked; the message is its traceback."""


class Worker:
    """The pipe to one contender's process."""

    def __init__(self, contender: str, process: subprocess.Popen[str]) -> None:
        self.contender = contender
        self._process = process

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        return self.send({"do": do, **arguments})

    def send(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(f"the worker of {self.contender} has ended")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer


@contextmanager
def worker(contender: str, services: Services) -> Iterator[Worker]:
    """A running worker that has set up Django and its contender."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.worker", contender],
        cwd=_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        started = Worker(contender, process)
        started.send(asdict(services))
        yield started
    finally:
        # The end of its input ends a worker.
        assert process.stdin and process.stdout
        with suppress(BrokenPipeError):  # it may have ended before
            process.stdin.close()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def run_stack(
    services: Services,
    facts: dict[str, str],
    contenders: Sequence[str],
    cases: Sequence[Case],
    rounds: Callable[[Case], int],
    say: Callable[[str], None],
) -> StackResult:
    """Measure all cases of all contenders on one stack, each over so many rounds."""
    result = StackResult(services.stack, facts)
    with ExitStack() as stack:
        baseline = stack.enter_context(worker(NO_CACHE, services))
        say("filling the tables")
        baseline.ask("load")
        workers = []
        for contender in contenders:
            reason = why_not(contender, services.stack)
            if reason is None:
                say(f"warming up {contender}")
                try:
                    if contender == NO_CACHE:
                        each = baseline
                    else:
                        each = stack.enter_context(worker(contender, services))
                    _warm_up(each, cases, say)
                    workers.append(each)
                except WorkerError as error:
                    say(f"{contender} failed:\n{error}")
                    reason = "did not start"
            if reason:
                result.absent[contender] = reason
        for case in cases:
            say(case.name)
            result.cells[case.name] = _run_case(case, workers, rounds(case), say)
            baseline.ask("tidy")
    return result


def _warm_up(worker: Worker, cases: Sequence[Case], say: Callable[[str], None]) -> None:
    cold = worker.ask("warm_up", cases=[case.name for case in cases])["cold"]
    if cold and worker.contender != NO_CACHE:
        say(f"{worker.contender} does not cache: {', '.join(cold)}")


def _run_case(
    case: Case, workers: Sequence[Worker], rounds: int, say: Callable[[str], None]
) -> dict[str, Cell]:
    cells = {each.contender: Cell() for each in workers}
    for each in workers:
        with _noting_failure(cells[each.contender], each, say):
            inspection = each.ask("inspect", case=case.name)
            cells[each.contender].inspection = inspection
    for number in range(rounds):
        # Nobody always follows the same neighbour, whose traces are in the caches of
        # processor, database and Redis.
        first = number % len(workers)
        for each in (*workers[first:], *workers[:first]):
            cell = cells[each.contender]
            if cell.error:
                continue
            with _noting_failure(cell, each, say):
                timing = each.ask("time", case=case.name)
                cell.microseconds.append(timing["microseconds"])
                cell.cold_rounds += not timing["as_named"]
    return cells


@contextmanager
def _noting_failure(cell: Cell, worker: Worker, say: Callable[[str], None]) -> Iterator[None]:
    """Let a failing contender lose its cell, not everybody's run."""
    try:
        yield
    except WorkerError as error:
        cell.error = str(error)
        say(f"{worker.contender} failed:\n{error}")
