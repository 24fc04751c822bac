"""The command line: `python -m benchmarks`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks import report, targets
from benchmarks.cases import BY_NAME, CASES, Case
from benchmarks.contenders import CONTENDERS, NO_CACHE, STACKS
from benchmarks.coordinator import run_stack
from benchmarks.results import StackResult
from benchmarks.servers import services

_PACKAGES = (
    "django",
    "django-cachalot",
    "django-cacheops",
    "django-redis",
    "redis",
    "hiredis",
    "psycopg",
)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    facts = _facts(options.rounds)
    print(", ".join(f"{name} {value}" for name, value in facts.items()), flush=True)
    results: list[StackResult] = []
    for stack in STACKS if options.stack == "all" else [options.stack]:
        with services(stack, options.postgres, options.redis, durable=not options.no_fsync) as (
            opened,
            about,
        ):
            rounds = _rounds(options, stack)
            result = run_stack(opened, about, options.contenders, options.cases, rounds, _say)
        results.append(result)
        print()
        for line in report.render(result, options.contenders, options.cases):
            print(line)
        sys.stdout.flush()
    verdicts = targets.judge(results)
    print()
    for line in report.render_targets(verdicts):
        print(line)
    if options.json:
        document: dict[str, Any] = {
            "facts": facts,
            "stacks": {result.stack: result.as_json() for result in results},
            "targets": [str(verdict) for verdict in verdicts],
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    reached = all(verdict.word == "PASS" for verdict in verdicts)
    return 0 if reached or not options.check_targets else 1


def _rounds(options: argparse.Namespace, stack: str) -> Callable[[Case], int]:
    """How many rounds each case of a stack takes."""

    def rounds(case: Case) -> int:
        is_judged = options.check_targets and targets.judged(stack, case.name)
        return int(options.rounds) * (targets.PRECISION if is_judged else 1)

    return rounds


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog="cases: " + ", ".join(case.name for case in CASES),
    )
    parser.add_argument("--stack", choices=[*STACKS, "all"], default="all")
    parser.add_argument(
        "--cases",
        type=lambda text: [BY_NAME[name] for name in _names(text, BY_NAME)],
        default=list(CASES),
        help="names with commas between them; all if not given",
    )
    parser.add_argument(
        "--contenders",
        # The others are ratios to it.
        type=lambda text: [
            name for name in CONTENDERS if name in {NO_CACHE, *_names(text, CONTENDERS)}
        ],
        default=list(CONTENDERS),
        help=f"names with commas between them; {NO_CACHE} always takes part",
    )
    parser.add_argument("--rounds", type=_positive, default=41)
    parser.add_argument(
        "--no-fsync",
        action="store_true",
        help="the private PostgreSQL does not wait for the disk: the worst case for writes",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument(
        "--check-targets",
        action="store_true",
        help="exit with 1 unless every target is measured and reached; their cases take "
        f"{targets.PRECISION} times as many rounds",
    )
    parser.add_argument(
        "--postgres",
        metavar="URL",
        help="a running PostgreSQL instead of a private one; the database "
        "ormcache_benchmark there is dropped",
    )
    parser.add_argument(
        "--redis",
        metavar="URL",
        help="a running Redis, without a database number, instead of a private one; "
        "its databases 1 to 4 are emptied",
    )
    return parser


def _names(text: str, known: Sequence[str] | dict[str, Any]) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"unknown: {', '.join(unknown)}; known: {', '.join(known)}"
        )
    return names


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _facts(rounds: int) -> dict[str, str]:
    facts = {
        "at": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "rounds": str(rounds),
        "cores": str(os.cpu_count()),
        "load": f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "?",
        "Python": platform.python_version(),
    }
    for package in _PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "absent"
    return facts


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
