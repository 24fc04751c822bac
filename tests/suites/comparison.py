"""Compares how tests end with ormcache and without."""

import dataclasses
import fnmatch
import json
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

DIFFERENCES = Path(__file__).with_name("differences.toml")
_COUNTED = re.compile(r"AssertionError: (\d+) != (\d+) : \d+ queries executed, \d+ expected")


class Outcome(NamedTuple):
    """How a test ended, and what it said."""

    outcome: str
    message: str = ""
    trace: str = ""

    def __str__(self) -> str:
        first = self.message.partition("\n")[0]
        return f"{self.outcome}: {first}" if first else self.outcome


ABSENT = Outcome("absent")


@dataclasses.dataclass
class Outcomes:
    """What came of one run."""

    tests: dict[str, Outcome] = dataclasses.field(default_factory=dict)
    reads: dict[str, int] = dataclasses.field(default_factory=dict)
    """Of tables: hits, misses and why others were neither."""
    mismatches: list[str] = dataclasses.field(default_factory=list)
    """What the cache would have answered otherwise than the database."""
    is_complete: bool = False
    seconds: float = 0.0

    @classmethod
    def read(cls, file: Path) -> "Outcomes":
        """What a process has written; nothing if it has not begun."""
        found = cls()
        lines = file.read_text().splitlines() if file.exists() else []
        for line in map(json.loads, lines):
            if "test" in line:
                found._add(line["test"], Outcome(line["outcome"], line["message"], line["trace"]))
            if "mismatch" in line:
                found.mismatches.append(line["mismatch"])
            if line.get("end"):
                found.is_complete = True
                found.reads = line["reads"]
        return found

    def _add(self, test: str, outcome: Outcome) -> None:
        # Of a test that fails and then cannot be torn down, the first counts.
        if self.tests.get(test, Outcome("passed")).outcome == "passed":
            self.tests[test] = outcome

    @property
    def hits(self) -> int:
        """Reads of tables that were served from the cache, or compared with what it has."""
        return self.reads.get("hit", 0) + self.reads.get("verified", 0)

    def summary(self) -> str:
        """One line for people."""
        counts: dict[str, int] = {}
        for outcome in self.tests.values():
            counts[outcome.outcome] = counts.get(outcome.outcome, 0) + 1
        words = [f"{number} {what}" for what, number in sorted(counts.items())]
        hits = f", {self.hits} hits" if self.reads else ""
        return f"{', '.join(words)}{hits} ({self.seconds:.0f} s)"


class Difference(NamedTuple):
    """A test that ends otherwise with ormcache."""

    test: str
    without: Outcome
    with_ormcache: Outcome

    @property
    def counts_queries(self) -> bool:
        """Whether the test says no more than that there were fewer queries."""
        found = _COUNTED.match(self.with_ormcache.message)
        return bool(self.without.outcome == "passed" and found and int(found[1]) < int(found[2]))

    def __str__(self) -> str:
        return f"{self.test}\n    without: {self.without}\n    with:    {self.with_ormcache}"


def differences(without: Outcomes, with_ormcache: Outcomes) -> list[Difference]:
    """The tests that end otherwise. What one says that fails in both does not matter."""
    found = []
    for test in sorted(without.tests.keys() | with_ormcache.tests.keys()):
        pair = without.tests.get(test, ABSENT), with_ormcache.tests.get(test, ABSENT)
        if pair[0].outcome != pair[1].outcome:
            found.append(Difference(test, *pair))
    return found


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Why tests may end otherwise: an entry of `differences.toml`."""

    suite: str
    test: str
    reason: str
    runs: tuple[str, ...] = ("serving",)
    stacks: tuple[str, ...] = ("sqlite", "postgresql")
    message: str = ""
    """What the test says with ormcache, as a regular expression."""
    sometimes: bool = False
    """Whether the tests may just as well end as they do without: it depends on the machine."""

    def is_about(self, test: str, suite: str, stack: str, run: str) -> bool:
        return (
            suite == self.suite
            and stack in self.stacks
            and run in self.runs
            and fnmatch.fnmatchcase(test, self.test)
        )

    def explains(self, difference: Difference, suite: str, stack: str, run: str) -> bool:
        return (
            self.is_about(difference.test, suite, stack, run)
            and re.search(self.message, difference.with_ormcache.message) is not None
        )


def explanations(text: str | None = None) -> list[Explanation]:
    """The reviewed list. Raises ValueError for an entry that says too little, or too much."""
    entries = _parse(DIFFERENCES.read_text() if text is None else text).get("difference", [])
    found = []
    for entry in entries:
        if not str(entry.get("reason", "")).strip():
            raise ValueError(f"{entry} has no reason")
        try:
            values = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
            found.append(Explanation(**values))
        except TypeError as error:
            raise ValueError(f"{entry}: {error}") from None
    return found


def _parse(text: str) -> Mapping[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib  # pytest has it there
    return tomllib.loads(text)


class Verdict(NamedTuple):
    """What a comparison came to."""

    explained: list[tuple[Difference, Explanation]]
    fewer_queries: list[Difference]
    unexplained: list[Difference]
    unused: list[Explanation]
    """Those that have explained nothing though their tests were run. They could hide a bug."""

    @classmethod
    def of(
        cls,
        found: Iterable[Difference],
        known: Sequence[Explanation],
        suite: str,
        stack: str,
        run: str,
        tests: Collection[str] = (),
    ) -> "Verdict":
        """Sort the differences of one run by whether somebody has explained them.

        `tests` are all that were run.
        """
        unused = {
            explanation: None
            for explanation in known
            if not explanation.sometimes
            and any(explanation.is_about(test, suite, stack, run) for test in tests)
        }
        verdict = cls([], [], [], [])
        for difference in found:
            matching = [e for e in known if e.explains(difference, suite, stack, run)]
            for explanation in matching:
                unused.pop(explanation, None)
            if matching:
                verdict.explained.append((difference, matching[0]))
            elif run == "serving" and difference.counts_queries:
                verdict.fewer_queries.append(difference)
            else:
                verdict.unexplained.append(difference)
        verdict.unused.extend(unused)
        return verdict
