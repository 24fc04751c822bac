"""See the package."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import tests.suites
from tests import servers
from tests.suites.comparison import Explanation, Outcomes, Verdict, differences, explanations
from tests.suites.running import DJANGO, FAST, PROJECTS, RUNS, STACKS, Stack, Suite, run


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    suites = (DJANGO,) if options.suite == "django" else PROJECTS
    labels = [*options.labels, *(FAST if options.fast else ())]
    if options.suite == "projects" and labels:
        suites = tuple(suite for suite in suites if suite.name in labels)
        labels = []
    known = explanations()
    good = True
    for stack in map(STACKS.get, options.stack or STACKS):
        assert stack is not None
        if missing := servers.missing_programs(stack.kinds):
            print(f"{stack.name}: not run, for want of {', '.join(missing)}")
            good = good and not options.strict
            continue
        for suite in suites:
            outcomes = run(
                suite,
                stack,
                ["without", *(options.run or RUNS[1:])],
                labels,
                in_transactions=options.in_transactions,
                together=options.together,
                logs=options.logs,
            )
            for name in options.run or RUNS[1:]:
                verdict = _judge(suite, stack, name, outcomes, known)
                good = good and not verdict.unexplained and not outcomes[name].mismatches
                # In transactions hardly anything is cached, and so hardly anything differs.
                if verdict.unused and not options.in_transactions:
                    for explanation in verdict.unused:
                        print(f"  explains nothing (differences.toml): {explanation.test}")
                    good = good and not options.strict
                if not outcomes[name].hits:
                    print("  No hit: this run says nothing.")
                    good = False
    return 0 if good else 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.suites",
        description=tests.suites.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("suite", choices=["django", "projects"])
    parser.add_argument("labels", nargs="*", help="of Django's tests, or names of projects")
    parser.add_argument("--fast", action="store_true", help="the part that CI runs")
    parser.add_argument("--stack", action="append", choices=[*STACKS])
    parser.add_argument("--run", action="append", choices=RUNS[1:])
    parser.add_argument("--in-transactions", action="store_true")
    parser.add_argument("--together", type=int, default=2, help="how many runs at once")
    parser.add_argument("--logs", type=Path, help="a folder for what the runs print")
    parser.add_argument(
        "--strict",
        action="store_true",
        help="a missing server is a failure, and so is an explanation that explains nothing",
    )
    return parser.parse_intermixed_args(arguments)


def _judge(
    suite: Suite,
    stack: Stack,
    name: str,
    outcomes: dict[str, Outcomes],
    known: Sequence[Explanation],
) -> Verdict:
    without, found = outcomes["without"], outcomes[name]
    verdict = Verdict.of(
        differences(without, found), known, suite.name, stack.name, name, without.tests
    )
    print(f"=== {suite.name} {suite.source.version} on {stack.name}, {name}")
    print(f"  without: {without.summary()}")
    print(f"  with:    {found.summary()}")
    print(
        f"  {len(verdict.fewer_queries)} tests count fewer queries, {len(verdict.explained)} "
        f"other differences are explained, {len(verdict.unexplained)} are not; "
        f"{len(found.mismatches)} mismatches"
    )
    for difference in verdict.unexplained:
        print(f"  {difference}")
    for mismatch in found.mismatches:
        print(f"  mismatch: {mismatch}")
    sys.stdout.flush()
    return verdict


if __name__ == "__main__":
    sys.exit(main())
