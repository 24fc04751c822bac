"""What else changes with a table, as the models and the settings tell it."""

from collections.abc import Iterator

import django
import pytest
from django.apps.registry import Apps
from django.db import models
from django.test.utils import isolate_apps

from ormcache import relations
from tests.models import (
    Author,
    Book,
    Category,
    CheapBook,
    Comment,
    ItalianRestaurant,
    Legacy,
    Place,
    Restaurant,
    Tag,
)

PLACES = {"tests_place", "tests_restaurant", "tests_italianrestaurant"}


# --- families ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "tables"),
    [
        (Legacy, {"legacytable"}),
        (Comment, {"tests_comment"}),
        (Category, {"tests_category"}),
        (Place, PLACES),
        (Restaurant, PLACES),
        (ItalianRestaurant, PLACES),
        (Book, {"tests_book", "tests_book_tags", "tests_contribution"}),
        (CheapBook, {"tests_book", "tests_book_tags", "tests_contribution"}),
        (Tag, {"tests_tag", "tests_book_tags"}),
        (Author, {"tests_author", "tests_contribution"}),
    ],
)
def test_family_of_a_model(model: type[models.Model], tables: set[str]) -> None:
    """Its table, those of its parents and heirs, and the through tables of both directions."""
    assert relations.family(model) == tables


def test_family_holds_through_tables_of_relations_without_a_name() -> None:
    with isolate_apps("tests"):

        class Target(models.Model):
            pass

        class Source(models.Model):
            targets = models.ManyToManyField(Target, related_name="+")

        assert relations.family(Target) == {"tests_target", "tests_source_targets"}


# --- WRITES --------------------------------------------------------------------------------


@pytest.mark.parametrize("deletes", [True, False])
def test_table_alone_changes_with_itself(deletes: bool) -> None:
    assert relations.written_with(["a"], {}, deletes=deletes) == {"a"}


def test_nothing_changes_with_nothing() -> None:
    assert relations.written_with([], {"a": ["b"]}) == set()


def test_triggers_fire_triggers() -> None:
    writes = {"A": ["b", "C"], "c": ["d"], "e": ["f"]}
    assert relations.written_with(["a"], writes, deletes=False) == {"a", "b", "c", "d"}


def test_triggers_may_fire_each_other() -> None:
    assert relations.written_with(["a"], {"a": ["b"], "b": ["a"]}) == {"a", "b"}


def test_names_are_compared_without_quotes_and_case() -> None:
    assert relations.written_with(["a"], {'"A"': ['"B"']}) == {"a", "b"}


# --- the database's own cascades -----------------------------------------------------------

if django.VERSION >= (6, 1):
    from django.db.models import DB_CASCADE, DB_SET_DEFAULT, DB_SET_NULL

    @pytest.fixture
    def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Apps]:
        """The models that are made in the test are all there are."""
        with isolate_apps("tests") as isolated:
            monkeypatch.setattr(relations, "apps", isolated)
            relations._cascades.cache_clear()
            yield isolated
        relations._cascades.cache_clear()

    def make(name: str, **parents: object) -> None:
        """A model with a foreign key to each of these models, and what deleting does to it."""
        fields: dict[str, object] = {"__module__": "tests.models"}
        for parent, on_delete in parents.items():
            nullable = on_delete is DB_SET_NULL
            default = {"db_default": 1} if on_delete is DB_SET_DEFAULT else {}
            fields[f"to_{parent}"] = models.ForeignKey(
                "self" if parent == name else f"tests.{parent}",
                on_delete,
                null=nullable,
                related_name="+",
                **default,
            )
        type(name, (models.Model,), {**fields, "Meta": type("Meta", (), {"db_table": name})})

    def deleted_with(name: str) -> set[str]:
        return relations.written_with([name], {})

    @pytest.mark.parametrize("on_delete", [DB_CASCADE, DB_SET_NULL, DB_SET_DEFAULT])
    def test_table_that_the_database_changes_when_rows_are_deleted(
        registry: Apps, on_delete: object
    ) -> None:
        make("a")
        make("b", a=on_delete)
        assert deleted_with("a") == {"a", "b"}
        assert deleted_with("b") == {"b"}

    def test_other_changes_than_deletes_cascade_nowhere(registry: Apps) -> None:
        make("a")
        make("b", a=DB_CASCADE)
        assert relations.written_with(["a"], {}, deletes=False) == {"a"}

    @pytest.mark.parametrize("on_delete", [models.CASCADE, models.SET_NULL, models.DO_NOTHING])
    def test_what_django_does_itself_is_not_the_databases(
        registry: Apps, on_delete: object
    ) -> None:
        make("a")

        class B(models.Model):
            a = models.ForeignKey("tests.a", on_delete, null=True)

            class Meta:
                app_label = "tests"

        assert deleted_with("a") == {"a"}

    def test_cascades_form_chains(registry: Apps) -> None:
        make("a")
        make("b", a=DB_CASCADE)
        make("c", b=DB_CASCADE)
        make("d", c=DB_SET_NULL)
        assert deleted_with("a") == {"a", "b", "c", "d"}
        assert deleted_with("c") == {"c", "d"}

    @pytest.mark.parametrize("on_delete", [DB_SET_NULL, DB_SET_DEFAULT])
    def test_rows_that_stay_end_a_chain(registry: Apps, on_delete: object) -> None:
        make("a")
        make("b", a=on_delete)
        make("c", b=DB_CASCADE)
        assert deleted_with("a") == {"a", "b"}

    @pytest.mark.parametrize("first", ["b", "c"])
    def test_rows_that_stay_on_one_way_may_vanish_on_another(registry: Apps, first: str) -> None:
        """a → b sets NULL, a → c → b cascades: what refers to b changes, too."""
        make("a")
        if first == "b":
            make("b", a=DB_SET_NULL, c=DB_CASCADE)
            make("c", a=DB_CASCADE)
        else:
            make("c", a=DB_CASCADE)
            make("b", a=DB_SET_NULL, c=DB_CASCADE)
        make("d", b=DB_SET_NULL)
        assert deleted_with("a") == {"a", "b", "c", "d"}

    def test_cascades_may_form_a_circle(registry: Apps) -> None:
        make("a", c=DB_CASCADE)
        make("b", a=DB_CASCADE)
        make("c", b=DB_CASCADE)
        make("d", c=DB_SET_NULL)
        for name in "abc":
            assert deleted_with(name) == {"a", "b", "c", "d"}

    def test_table_may_cascade_to_itself(registry: Apps) -> None:
        make("a", a=DB_CASCADE)
        make("b", a=DB_SET_NULL)
        assert deleted_with("a") == {"a", "b"}

    def test_cascades_fire_triggers(registry: Apps) -> None:
        make("a")
        make("b", a=DB_CASCADE)
        assert relations.written_with(["a"], {"b": ["log"]}) == {"a", "b", "log"}

    def test_triggers_may_delete_what_cascades(registry: Apps) -> None:
        """Even where what made the trigger fire deletes nothing."""
        make("a")
        make("b", a=DB_CASCADE)
        make("c", b=DB_SET_NULL)
        found = relations.written_with(["log"], {"log": ["a"]}, deletes=False)
        assert found == {"log", "a", "b", "c"}

    def test_new_model_is_taken_into_account(registry: Apps) -> None:
        make("a")
        assert deleted_with("a") == {"a"}
        make("b", a=DB_CASCADE)
        assert deleted_with("a") == {"a", "b"}

    def test_cascades_of_the_tests_models() -> None:
        assert deleted_with("tests_grandparent") == {
            *("tests_grandparent", "tests_parent", "tests_child", "tests_friend", "tests_ward")
        }
        assert deleted_with("tests_parent") == {"tests_parent", "tests_child", "tests_friend"}
