"""The figures of a run, and what is computed from them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from statistics import median, quantiles
from typing import Any

from benchmarks.contenders import NO_CACHE


@dataclass(frozen=True)
class Spread:
    """A median with its quartiles."""

    low: float
    middle: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        if len(values) < 2:
            return cls(values[0], values[0], values[0])
        low, _, high = quantiles(values, n=4, method="inclusive")
        return cls(low, median(values), high)


@dataclass
class Cell:
    """One contender in one case on one stack."""

    # One timed batch per round, µs per operation.
    microseconds: list[float] = field(default_factory=list)
    inspection: dict[str, Any] | None = None
    # Rounds in which a hit case had to ask the database just before or after.
    cold_rounds: int = 0
    error: str | None = None

    @property
    def time(self) -> Spread | None:
        if self.error or not self.microseconds:
            return None
        return Spread.of(self.microseconds)

    def ratio_to(self, baseline: Cell) -> Spread | None:
        """The spread of the ratios within each round: drift hits both sides alike."""
        if self.error or baseline.error or not self.microseconds:
            return None
        rounds = zip(self.microseconds, baseline.microseconds, strict=True)
        return Spread.of([mine / base for mine, base in rounds])

    @property
    def marks(self) -> str:
        """One letter per doubt about the cell; the report explains them."""
        if self.inspection is None:
            return ""
        marks = ""
        if not self.inspection["as_named"] or self.cold_rounds:
            marks += "!"
        if self.inspection["stale"]:
            marks += "s"
        return marks


@dataclass
class StackResult:
    """All cells of one stack: case name -> contender -> cell."""

    stack: str
    facts: dict[str, str]
    absent: dict[str, str] = field(default_factory=dict)
    cells: dict[str, dict[str, Cell]] = field(default_factory=dict)

    def ratio(self, case: str, contender: str) -> Spread | None:
        row = self.cells.get(case, {})
        if contender not in row or NO_CACHE not in row:
            return None
        return row[contender].ratio_to(row[NO_CACHE])

    def as_json(self) -> dict[str, Any]:
        cases: dict[str, dict[str, Any]] = {}
        for case, row in self.cells.items():
            cases[case] = {}
            for contender, cell in row.items():
                ratio = self.ratio(case, contender)
                cases[case][contender] = {
                    "median_us": cell.time.middle if cell.time else None,
                    "ratio": asdict(ratio) if ratio else None,
                    **asdict(cell),
                }
        return {"facts": self.facts, "absent": self.absent, "cases": cases}
