"""The form in which names are compared."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ormcache import sql
from tests.sql_texts import quickly


@pytest.mark.parametrize(
    ("db_table", "name"),
    [
        ("tests_book", "tests_book"),
        ("LegacyTable", "legacytable"),
        ('"Quoted"', "quoted"),
        ('schema"."table', "table"),
        ('"schema"."table"', "table"),
        ("schema`.`table", "table"),
        ("schema].[table", "table"),
        ("with.dot", "with.dot"),
        ("with space", "with space"),
        ("ÄPFEL", "äpfel"),
        ("STRASSE", "strasse"),
        ("straße", "strasse"),
    ],
)
def test_table_of_a_model_is_compared_without_quotes_case_and_schema(
    db_table: str, name: str
) -> None:
    assert sql.table_name(db_table) == name


@given(st.text())
@quickly()
def test_folding_twice_changes_nothing(name: str) -> None:
    assert sql.fold(sql.fold(name)) == sql.fold(name)
