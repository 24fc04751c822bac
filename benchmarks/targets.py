"""What ormcache wants to reach, on PostgreSQL with Redis."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from benchmarks.results import StackResult

STACK = "postgres-redis"
CONTENDER = "ormcache"


@dataclass(frozen=True)
class Target:
    """A case must not take more than so many times what it takes without a cache."""

    case: str
    at_most: float


TARGETS = (
    Target("hit_get", 0.75),
    Target("hit_list", 0.7),
    Target("miss_get", 1.5),
    Target("miss_list", 1.5),
    Target("save", 1.4),
    Target("save_50_atomic", 1.1),
)


PRECISION = 5
"""How many times as many rounds a case takes that is to be judged.

In 41 rounds on a virtual machine with two cores, the median of a ratio strays by some 0.04, which
is more than lies between some figures and their targets.
"""


def judged(stack: str, case: str) -> bool:
    """Whether there is a target for the case on this stack."""
    return stack == STACK and any(target.case == case for target in TARGETS)


@dataclass(frozen=True)
class Verdict:
    """A target beside what was measured."""

    target: Target
    ratio: float | None
    # What makes the figure worthless, such as a hit that asked the database.
    doubt: str = ""

    @property
    def word(self) -> Literal["PASS", "MISS", "SKIP"]:
        if self.ratio is None:
            return "SKIP"
        return "PASS" if self.ratio <= self.target.at_most and not self.doubt else "MISS"

    def __str__(self) -> str:
        case, limit = self.target.case, self.target.at_most
        measured = "not measured" if self.ratio is None else f"{self.ratio:.2f}"
        doubt = f"  ({self.doubt})" if self.doubt else ""
        return f"{self.word}  {case:<16} {measured:>12}  target <= {limit:.2f}{doubt}"


def judge(results: Iterable[StackResult]) -> list[Verdict]:
    """One verdict per target; a target that was not measured is skipped, not passed."""
    result = next((result for result in results if result.stack == STACK), None)
    return [_verdict(target, result) for target in TARGETS]


def _verdict(target: Target, result: StackResult | None) -> Verdict:
    ratio = result.ratio(target.case, CONTENDER) if result else None
    if result is None or ratio is None:
        return Verdict(target, None)
    marks = result.cells[target.case][CONTENDER].marks
    doubts = {"!": "the case is not what it says", "s": "served a stale row"}
    return Verdict(target, ratio.middle, ", ".join(doubts[mark] for mark in marks))
