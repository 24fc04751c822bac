"""The list of cases: what is measured, and how often in one timed batch.

Kept apart from the operations so that the coordinator, which has no Django set up,
can name and describe the cases.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["hit", "miss", "write", "mixed"]


@dataclass(frozen=True)
class Case:
    """One row of the result."""

    name: str
    title: str
    kind: Kind
    # Operations per timed batch, chosen so that a batch takes some 15 to 40 ms: long
    # beside the clock and the wake-up of the process, short beside the machine's drift.
    batch: int


CASES = (
    Case("hit_get", "get(pk)", "hit", 60),
    Case("hit_list", "list of 20 rows", "hit", 30),
    Case("hit_count", "count()", "hit", 60),
    Case("hit_exists", "exists()", "hit", 60),
    Case("hit_select_related", "20 rows, select_related", "hit", 20),
    Case("hit_prefetch_related", "20 rows, prefetch_related", "hit", 15),
    Case("hit_values_list", "20 rows, values_list", "hit", 40),
    Case("hit_aggregate", "aggregate(3 functions)", "hit", 50),
    Case("miss_get", "get(pk)", "miss", 40),
    Case("miss_list", "list of 20 rows", "miss", 25),
    Case("save", "save() in autocommit", "write", 30),
    Case("create", "create() in autocommit", "write", 25),
    Case("update", "qs.update() in autocommit", "write", 30),
    Case("save_get", "save(), then get(pk)", "write", 20),
    Case("save_50_atomic", "50 saves in one atomic", "write", 2),
    Case("atomic_5_hits", "5 reads in one atomic", "hit", 12),
    Case("page", "10 reads, 1 write to a table 2 of them use", "mixed", 5),
    Case("page_hot", "10 reads, 1 write to the table all use", "mixed", 5),
)

BY_NAME = {case.name: case for case in CASES}
