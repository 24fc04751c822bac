"""What executing a text does; `test_writes.py` has the effects themselves."""

from typing import Any

import pytest

from ormcache.effects import NOTHING, effect_of
from ormcache.sql import Kind


@pytest.fixture
def told(settings: Any) -> Any:
    """Sets options."""

    def tell(**options: Any) -> None:
        settings.ORMCACHE = {**settings.ORMCACHE, **options}

    return tell


def test_a_declared_procedure_that_may_alter_the_session_writes_what_is_declared(
    told: Any,
) -> None:
    told(WRITES={"tests_rename": ["tests_tag"]})
    effect = effect_of("CALL tests_rename('pg_settings')", "postgresql")
    assert effect.kind == Kind.WRITE | Kind.SESSION
    assert effect.tables == {"tests_rename", "tests_tag"}


def test_a_process_that_only_writes_knows_the_tables_of_no_model_that_others_read(
    told: Any,
) -> None:
    told(DEPENDS_ON={"tests_view": ["tests_never_read_here"]})
    effect = effect_of("INSERT tests_never_read_here SET id = 1", "mysql")
    assert effect.tables == {"tests_never_read_here"}


@pytest.mark.parametrize(
    "text",
    [
        "PREPARE TRANSACTION 'one'",
        "/* of a tool that tags statements */ PREPARE TRANSACTION 'one'",
        "UPDATE tests_tag SET name = ''; prepare transaction 'one'",
    ],
)
def test_a_transaction_is_prepared_wherever_the_text_says_so(text: str) -> None:
    assert effect_of(text, "postgresql").prepares


@pytest.mark.parametrize("text", ["COMMIT", "COMMIT; PREPARE one AS SELECT 'transaction'"])
def test_another_text_prepares_no_transaction(text: str) -> None:
    assert not effect_of(text, "postgresql").prepares


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("SET search_path TO %s, one, two", "SET search_path TO one, %s, two"),
        ('SET search_path TO "a b", one', 'SET search_path TO "a  b", one'),
    ],
)
def test_search_paths_are_told_apart(text: str, other: str) -> None:
    one = effect_of(text, "postgresql").search_path
    assert effect_of(other, "postgresql").search_path != one
    assert effect_of(text, "postgresql").search_path == one


def test_the_spaces_and_comments_of_a_search_path_do_not_matter() -> None:
    text = "SET  search_path  TO /* the tenant's */ one , two"
    path = effect_of(text, "postgresql").search_path
    assert path == effect_of("SET search_path TO one,two", "postgresql").search_path


def test_what_cannot_be_composed_may_write_anything() -> None:
    """The driver will refuse it, in words of Django's."""
    sql = pytest.importorskip("psycopg.sql")
    effect = effect_of(sql.SQL("SELECT {}").format(sql.Literal(object())), "postgresql")
    assert effect.kind == Kind.UNNAMED_WRITE


@pytest.mark.parametrize("text", ["SELECT 1", b"SELECT 1", "SHOW server_version", ""])
def test_a_text_that_only_reads_does_nothing(text: Any) -> None:
    assert effect_of(text, "postgresql") is NOTHING


def test_of_a_text_the_same_is_known_each_time(settings: Any) -> None:
    text = "UPDATE tests_author SET name = %s WHERE id IN (%s, %s)"
    effect = effect_of(text, "postgresql")
    assert (effect.kind, effect.tables) == (Kind.WRITE, {"tests_author"})
    assert effect.is_plain
    assert effect_of(text.encode(), "postgresql") is effect
    # Texts that differ in the length of a list are one.
    assert effect_of(text.replace("(%s, %s)", "(%s, %s, %s)"), "postgresql") is effect
    settings.ORMCACHE = {**settings.ORMCACHE, "WRITES": {"tests_author": ["tests_note"]}}
    assert effect_of(text, "postgresql").tables == {"tests_author", "tests_note"}
