"""That the runs of other projects' suites would find what is wrong."""

import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.suites import __main__ as program
from tests.suites import running, sources
from tests.suites.comparison import (
    ABSENT,
    Difference,
    Explanation,
    Outcome,
    Outcomes,
    Verdict,
    differences,
    explanations,
)
from tests.suites.running import STACKS, Suite, run
from tests.suites.sources import Source

FEWER = "AssertionError: 1 != 2 : 1 queries executed, 2 expected\nCaptured queries were:"
PASSED = Outcome("passed")


def outcomes(**tests: str) -> Outcomes:
    return Outcomes({test: Outcome(outcome) for test, outcome in tests.items()})


def difference(message: str = "", outcome: str = "failed") -> Difference:
    return Difference("app.tests.A.test_it", PASSED, Outcome(outcome, message))


def judge(found: Difference, known: list[Explanation], run: str = "serving") -> Verdict:
    return Verdict.of([found], known, "django", "sqlite", run)


# --- comparing -----------------------------------------------------------------------------


def test_only_tests_that_end_otherwise_differ() -> None:
    one = outcomes(same="passed", broken="failed", worse="passed", gone="passed")
    two = outcomes(same="passed", broken="failed", worse="error", new="passed")
    assert [
        (d.test, d.without.outcome, d.with_ormcache.outcome) for d in differences(one, two)
    ] == [
        ("gone", "passed", "absent"),
        ("new", "absent", "passed"),
        ("worse", "passed", "error"),
    ]


def test_a_test_that_counts_fewer_queries_while_serving_needs_no_explanation() -> None:
    verdict = judge(difference(FEWER), [])
    assert (len(verdict.fewer_queries), len(verdict.unexplained)) == (1, 0)


@pytest.mark.parametrize(
    ("found", "run"),
    [
        (difference(FEWER), "verifying"),
        (difference(FEWER.replace("1", "3")), "serving"),
        (difference("AssertionError: 1 != 2"), "serving"),
        (Difference("test", ABSENT, Outcome("failed", FEWER)), "serving"),
    ],
)
def test_every_other_difference_does(found: Difference, run: str) -> None:
    assert judge(found, [], run).unexplained == [found]


KNOWN = Explanation("django", "app.tests.A.*", "why")


@pytest.mark.parametrize(
    ("explanation", "explains"),
    [
        (KNOWN, True),
        (Explanation("django", "app.tests.A.*", "why", message="^Index"), True),
        (Explanation("django", "app.tests.A.*", "why", message="^Key"), False),
        (Explanation("django", "app.tests.B.*", "why"), False),
        (Explanation("treebeard", "app.tests.A.*", "why"), False),
        (Explanation("django", "app.tests.A.*", "why", runs=("verifying",)), False),
        (Explanation("django", "app.tests.A.*", "why", stacks=("postgresql",)), False),
    ],
)
def test_an_explanation_holds_for_what_it_names(explanation: Explanation, explains: bool) -> None:
    verdict = judge(difference("IndexError: x"), [explanation])
    assert bool(verdict.explained) == explains != bool(verdict.unexplained)


@pytest.mark.parametrize(
    ("explanation", "is_unused"),
    [
        (Explanation("django", "app.tests.B.*", "why"), True),
        (Explanation("django", "app.tests.[AB].*", "why"), False),
        (Explanation("django", "app.tests.A.*", "why", message="^Key"), True),
        (Explanation("django", "app.tests.B.*", "why", sometimes=True), False),
        (Explanation("django", "app.tests.C.*", "why"), False),
        (Explanation("treebeard", "app.tests.B.*", "why"), False),
        (Explanation("django", "app.tests.B.*", "why", runs=("verifying",)), False),
        (Explanation("django", "app.tests.B.*", "why", stacks=("postgresql",)), False),
    ],
    ids=[
        *("no difference", "one of its tests", "another message", "sometimes", "not run"),
        *("another suite", "another run", "another stack"),
    ],
)
def test_an_explanation_whose_tests_were_run_and_that_explains_nothing_is_told(
    explanation: Explanation, is_unused: bool
) -> None:
    ran = ["app.tests.A.test_it", "app.tests.B.test_it"]
    found = difference("IndexError: x")
    verdict = Verdict.of([found], [explanation], "django", "sqlite", "serving", ran)
    assert verdict.unused == [explanation] * is_unused


def test_of_two_explanations_of_one_difference_both_are_used() -> None:
    known = [KNOWN, Explanation("django", "app.tests.A.test_it", "why")]
    ran = ["app.tests.A.test_it"]
    verdict = Verdict.of([difference()], known, "django", "sqlite", "serving", ran)
    assert verdict.unused == []


def test_the_reviewed_list_can_be_read() -> None:
    explanations()


@pytest.mark.parametrize(
    "entry", ['test = "a"', 'test = "a"\nreason = " "', 'reason = "why"\nwhat = 1']
)
def test_an_entry_without_a_reason_or_with_too_much_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        explanations(f'[[difference]]\nsuite = "django"\n{entry}\n')


def test_an_entry_is_read() -> None:
    (found,) = explanations(
        '[[difference]]\nsuite = "django"\ntest = "a"\nruns = ["serving"]\nreason = "why"\n'
    )
    assert found == Explanation("django", "a", "why")


def test_a_run_that_was_cut_off_is_not_complete(tmp_path: Path) -> None:
    file = tmp_path / "outcomes"
    line = {"test": "a", "outcome": "passed", "message": "", "trace": ""}
    file.write_text(json.dumps(line) + "\n")
    assert not Outcomes.read(file).is_complete
    file.write_text(file.read_text() + json.dumps({"end": True, "reads": {}}) + "\n")
    assert Outcomes.read(file).is_complete
    assert not Outcomes.read(tmp_path / "none").is_complete


# --- running -------------------------------------------------------------------------------

RUNTESTS = """
import django
from django.conf import settings
from django.test.utils import get_runner

settings.INSTALLED_APPS = ["sample"]
django.setup()
get_runner(settings)(interactive=False).run_tests(["sample"])
"""
MODELS = """
from django.db import models

class Thing(models.Model):
    name = models.CharField(max_length=20)
"""
TESTS = """
import unittest
from django.db import connection
from django.test import TestCase
from sample.models import Thing

class Tests(TestCase):
    @classmethod
    def setUpTestData(cls):
        cls.thing = Thing.objects.create(name="one")

    def names(self):
        return [thing.name for thing in Thing.objects.all()]

    def test_passes(self):
        self.assertEqual(self.names(), ["one"])
        Thing.objects.create(name="two")
        self.assertEqual(len(self.names()), 2)

    def test_counts(self):
        with self.assertNumQueries(2):
            self.names()
            self.names()

    def test_fails(self):
        self.assertEqual(self.names(), [])

    def test_is_broken(self):
        raise KeyError

    @unittest.skip("no reason")
    def test_is_skipped(self):
        pass

    @unittest.expectedFailure
    def test_is_known_to_fail(self):
        self.fail()

    def test_has_parts(self):
        for number in range(3):
            with self.subTest(number=number):
                self.assertEqual(number, 1)
"""
UNSEEN = """
    def test_of_a_write_that_nobody_sees(self):
        self.names()
        connection.connection.execute("UPDATE sample_thing SET name = 'other'")
        self.assertEqual(self.names(), ["other"])
"""


@pytest.fixture
def sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file with the tests of a suite that is laid out as Django's."""
    app = tmp_path / "tests" / "sample"
    app.mkdir(parents=True)
    (app / "__init__.py").touch()
    (app / "models.py").write_text(MODELS)
    (app / "tests.py").write_text(TESTS)
    (tmp_path / "tests" / "runtests.py").write_text(RUNTESTS)
    monkeypatch.setattr(sources, "unpacked", lambda source: tmp_path)
    return app / "tests.py"


SAMPLE = Suite("sample", Source("sample", "1.0"), running.DJANGO.command)
ENDS = {
    "test_counts": "passed",
    "test_fails": "failed",
    "test_has_parts": "passed",
    "test_has_parts (number=0)": "failed",
    "test_has_parts (number=2)": "failed",
    "test_is_broken": "error",
    "test_is_known_to_fail": "failed as expected",
    "test_is_skipped": "skipped",
    "test_passes": "passed",
}


def ends(found: Outcomes) -> dict[str, str]:
    return {
        test.removeprefix("sample.tests.Tests."): outcome.outcome
        for test, outcome in sorted(found.tests.items())
    }


@pytest.mark.slow
def test_a_suite_is_run_without_ormcache_verifying_and_serving(sample: Path) -> None:
    found = run(SAMPLE, STACKS["sqlite"])
    # A test with parts of which some fail is told by these alone.
    expected = {k: v for k, v in ENDS.items() if k != "test_has_parts"}
    assert ends(found["without"]) == expected
    assert ends(found["verifying"]) == expected
    assert ends(found["serving"]) == {**expected, "test_counts": "failed"}
    assert found["without"].reads == {}
    assert found["verifying"].reads["verified"] == found["verifying"].hits > 0
    assert found["serving"].reads["hit"] == found["serving"].hits > 0
    assert not found["verifying"].mismatches


@pytest.mark.slow
@pytest.mark.parametrize("in_transactions", [False, True])
def test_tests_are_left_in_transactions_where_that_is_asked_for(
    sample: Path, in_transactions: bool
) -> None:
    found = run(SAMPLE, STACKS["sqlite"], ["serving"], in_transactions=in_transactions)
    assert bool(found["serving"].hits) != in_transactions


@pytest.mark.slow
def test_an_answer_that_is_out_of_date_is_found(
    sample: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sample.write_text(TESTS + UNSEEN)
    monkeypatch.setattr(program, "DJANGO", SAMPLE)
    assert program.main(["django", "--stack", "sqlite"]) == 1
    printed = capsys.readouterr().out
    assert "1 tests count fewer queries, 0 other differences are explained, 1 are not" in printed
    assert "'one'" in printed.partition("mismatch: ")[2].splitlines()[0]
    assert "test_of_a_write_that_nobody_sees" in printed


@pytest.mark.slow
def test_a_suite_without_fault_passes(
    sample: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "DJANGO", SAMPLE)
    assert program.main(["django", "--stack", "sqlite"]) == 0
    assert program.main(["django", "--stack", "sqlite", "--in-transactions"]) == 1
    assert "No hit: this run says nothing." in capsys.readouterr().out


@pytest.mark.slow
def test_an_explanation_that_explains_nothing_is_a_failure_where_that_is_asked_for(
    sample: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "DJANGO", SAMPLE)
    entry = Explanation("sample", "sample.tests.Tests.test_passes", "why")
    monkeypatch.setattr(program, "explanations", lambda: [entry])
    arguments = ["django", "--stack", "sqlite", "--run", "serving"]
    assert program.main(arguments) == 0
    told = "explains nothing (differences.toml): sample.tests.Tests.test_passes"
    assert told in capsys.readouterr().out
    assert program.main([*arguments, "--strict"]) == 1


@pytest.mark.slow
def test_a_run_that_breaks_off_is_an_error(sample: Path) -> None:
    sample.write_text(TESTS + "\nimport os\nos._exit(0)\n")
    with pytest.raises(RuntimeError, match="the run did not end"):
        run(SAMPLE, STACKS["sqlite"], ["without"])


# --- sources -------------------------------------------------------------------------------


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What pip would download, for pip does not run."""
    content = tmp_path / "some-project-1.0"
    content.mkdir()
    (content / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: some-project\nVersion: 1.0\n")
    archive = tmp_path / "some-project-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as members:
        members.add(content, content.name)
    monkeypatch.setenv("ORMCACHE_SUITES", str(tmp_path / "kept"))

    def pip(command: list[str], **kwargs: Any) -> None:
        into = Path(command[command.index("--dest") + 1])
        (into / archive.name).write_bytes(archive.read_bytes())

    monkeypatch.setattr(sources.subprocess, "run", pip)
    return archive


def test_a_source_is_kept_once_it_is_unpacked(archive: Path) -> None:
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    source = Source("some-project", "1.0", digest)
    place = sources.unpacked(source)
    assert "Version: 1.0" in (place / "some_project.egg-info" / "PKG-INFO").read_text()
    archive.unlink()
    assert sources.unpacked(source) == place


def test_an_archive_of_another_digest_is_refused(archive: Path) -> None:
    with pytest.raises(RuntimeError, match="is not what"):
        sources.unpacked(Source("some-project", "1.0", "0" * 64))
    assert not (archive.parent / "kept" / "some-project-1.0").exists()
