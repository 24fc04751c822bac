"""The real django-tenants: it wants settings of its own, so its tests run in another process.

They are in `tenants_project`; what fails there is shown here in full.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.marks import needs

PROJECT = Path(__file__).parents[1] / "tenants_project"
SLOW = {"test_walks.py"}
# The other variants need not be repeated for each Django.
VARIANTS = ["plain", *(pytest.param(name, marks=pytest.mark.slow) for name in ("limit", "pool"))]
FILES = [
    pytest.param(path.name, marks=pytest.mark.slow if path.name in SLOW else ())
    for path in sorted(PROJECT.glob("test_*.py"))
]


@needs("postgresql", "redis")
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("file", FILES)
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
