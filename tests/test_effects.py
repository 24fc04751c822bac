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
