"""Each of the forty scenarios has a test, and the page that lists them names all of these.

The page is docs/explanation/scenarios.md. A test says by `tests.marks.scenario` what it shows.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "explanation" / "scenarios.md"
NUMBERS = set(range(1, 41))


class Shown(NamedTuple):
    number: int
    module: str
    test: str


def marked() -> Iterator[Shown]:
    """What the sources say, so that it does not matter which tests were selected for this run."""
    for file in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for decorator in node.decorator_list:
                    match = re.fullmatch(r"scenario\((\d+)\)", ast.unparse(decorator))
                    if match:
                        yield Shown(int(match[1]), file.stem, node.name)


def listed() -> Iterator[Shown]:
    """What the page says: `| 7 | … | test_module: test_one, test_two; test_other: test_it |`."""
    for number, tests in re.findall(r"^\| (\d+) \|.*\| (.*) \|$", PAGE.read_text(), re.MULTILINE):
        for part in tests.replace("`", "").split("; "):
            module, _, names = part.partition(": ")
            for name in names.split(", "):
                yield Shown(int(number), module, name)


def test_each_scenario_has_a_test() -> None:
    assert {shown.number for shown in marked()} == NUMBERS


def test_only_functions_that_are_collected_count() -> None:
    assert [shown for shown in marked() if not shown.test.startswith("test_")] == []


def test_the_page_names_the_tests_of_each_scenario_and_no_others() -> None:
    pages = list(listed())
    assert len(pages) == len(set(pages))
    assert set(pages) == set(marked())
