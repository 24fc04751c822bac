"""The real django-tenants: it wants settings of its own, so its tests run in another process.

They are in `tenants_project`; what fails there is shown here in full.
"""

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.marks import needs

PROJECT = Path(__file__).parents[1] / "tenants_project"
FILES = [path.name for path in sorted(PROJECT.glob("test_*.py"))]
VARIANTS = ("plain", "limit", "pool")
# Repeated for each Django, and in each variant; with the others, variants are for the long run.
BRIEF = "test_schemas.py"


def cases() -> Iterator[Any]:
    for file, variant in itertools.product(FILES, VARIANTS):
        is_slow = variant != "plain" or file != BRIEF
        is_long = variant != "plain" and file != BRIEF
        marks = [pytest.mark.slow] * is_slow + [pytest.mark.long] * is_long
        yield pytest.param(file, variant, marks=marks)


@needs("postgresql", "redis")
@pytest.mark.parametrize(("file", "variant"), list(cases()))
def test_with_the_real_django_tenants(file: str, variant: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [*command, "--ds=tests.tenants_project.settings", str(PROJECT / file)],
        cwd=PROJECT.parents[1],
        env={**os.environ, "ORMCACHE_TEST_TENANTS": variant},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
