"""What triggers and rules write is stored only if that is declared."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connections, transaction

import ormcache
from ormcache import catalog, sql, triggers
from ormcache.reasons import Reason
from tests.backdoor import execute as outside
from tests.describing import Tags, allow, made, not_stored
from tests.marks import on_databases, on_pairs
from tests.models import Author, Tag
from tests.watching import Watch, wait_for_quarantine

on_all = on_databases(transaction=True)
on_postgresql = on_pairs(("postgresql", "redis"), transaction=True)

COPY = "INSERT INTO tests_tag (name) VALUES (new.name)"


@contextlib.contextmanager
def trigger(using: str, table: str, body: str) -> Iterator[None]:
    """Inside, what is inserted into ``table`` makes the database run ``body`` as well."""
    name = f"copy_{table}"
    head = f"CREATE TRIGGER {name} AFTER INSERT ON {table} "
    undo: tuple[str, ...] = (f"DROP TRIGGER {name}",)
    if using == "postgresql":
        function = f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS "
        first = f"{function} $$ BEGIN {body}; RETURN NULL; END $$"
        statements = (first, f"{head} FOR EACH ROW EXECUTE FUNCTION {name}()")
        undo = (f"DROP FUNCTION {name} CASCADE",)
    elif using == "mariadb":
        statements = (f"{head} FOR EACH ROW {body}",)
    else:
        statements = (f"{head} BEGIN {body}; END",)
    with made(using, *statements, undo=undo):
        yield


@on_all
def test_what_a_trigger_writes_is_not_stored_unless_it_is_declared(
    cached: Watch, using: str, tags: Tags, settings: Any
) -> None:
    cached.warm(tags)
    with trigger(using, "tests_author", COPY):
        assert not_stored(cached, tags) is Reason.TRIGGER
        Author.objects.using(using).create(name="b")
        assert tags() == ["a", "b"]
        found = ormcache.explain(Tag.objects.using(using).all())
        assert (found.reason, found.cacheable) == (Reason.TRIGGER, False)
        assert found.detail == "tests_tag by a trigger of tests_author"
        allow(settings, WRITES={"Tests_Author": ["tests_tag"]})
        assert cached.warm(tags) == ["a", "b"]
        Author.objects.using(using).create(name="c")
        assert cached.warm(tags) == ["a", "b", "c"]
    allow(settings, WRITES={})
    wait_for_quarantine(using)
    assert cached.warm(tags) == ["a", "b", "c"]


@on_all
def test_the_table_that_has_the_trigger_is_stored(cached: Watch, using: str, tags: Tags) -> None:
    with trigger(using, "tests_author", COPY):
        cached.warm(Author.objects.using(using).count)
        Author.objects.using(using).create(name="b")
        assert cached.warm(Author.objects.using(using).count) == 1


@on_all
def test_enabling_the_model_vouches_for_what_triggers_write(
    cached: Watch, using: str, tags: Tags, settings: Any
) -> None:
    allow(settings, MODELS={"tests.Tag": {"ENABLED": True}})
    with trigger(using, "tests_author", COPY):
        cached.warm(tags)


@on_all
@pytest.mark.parametrize(
    "writes, is_stored",
    [
        ({"tests_note": ["tests_tag"]}, False),
        ({"tests_author": ["tests_note"]}, False),
        ({"tests_author": ["tests_tag"]}, False),
        ({"tests_author": ["tests_tag"], "tests_note": ["tests_tag"]}, True),
        ({"tests_author": ["tests_note"], "tests_note": ["tests_tag"]}, True),
    ],
)
def test_triggers_that_fire_each_other_have_to_be_declared_both(
    cached: Watch, using: str, tags: Tags, settings: Any, writes: Any, is_stored: bool
) -> None:
    allow(settings, WRITES=writes)
    on_note = COPY.replace("new.name", "new.text")
    with (
        trigger(using, "tests_author", "INSERT INTO tests_note (text) VALUES (new.name)"),
        trigger(using, "tests_note", on_note),
    ):
        if is_stored:
            cached.warm(tags)
        else:
            assert not_stored(cached, tags) is Reason.TRIGGER
        Author.objects.using(using).create(name="b")
        assert tags() == ["a", "b"]


@on_postgresql
@pytest.mark.parametrize("form", ["LANGUAGE sql AS $$ {} $$", "BEGIN ATOMIC {}; END"])
@pytest.mark.parametrize("depth", [1, 2])
def test_what_the_function_of_a_trigger_calls_is_looked_into(
    cached: Watch, using: str, cache: str, tags: Tags, depth: int, form: str
) -> None:
    """Also where PostgreSQL keeps a tree in place of the text."""
    head = "CREATE FUNCTION copy_{}(name text) RETURNS void "
    inner = head.format(1) + form.format(COPY.replace("new.name", "$1"))
    outer = head.format(2) + form.format("SELECT copy_1($1)")
    undo = ("DROP FUNCTION copy_2(text)", "DROP FUNCTION copy_1(text)")
    with (
        made(using, inner, outer, undo=undo),
        trigger(using, "tests_author", f"PERFORM copy_{depth}(new.name)"),
    ):
        assert not_stored(cached, tags) is Reason.TRIGGER
        Author.objects.using(using).create(name="b")
        assert tags() == ["a", "b"]


@on_postgresql
def test_what_a_rule_calls_is_looked_into_where_there_is_no_trigger(
    cached: Watch, using: str, cache: str, tags: Tags
) -> None:
    body = COPY.replace("new.name", "$1")
    function = f"CREATE FUNCTION copy_1(name text) RETURNS void LANGUAGE sql AS $$ {body} $$"
    rule = "CREATE RULE copy_author AS ON INSERT TO tests_author DO ALSO SELECT copy_1(new.name)"
    undo = ("DROP RULE copy_author ON tests_author", "DROP FUNCTION copy_1(text)")
    with made(using, function, rule, undo=undo):
        assert not_stored(cached, tags) is Reason.TRIGGER


@on_postgresql
def test_the_question_for_rules_and_routines_waits_for_no_lock(
    cached: Watch, using: str, cache: str, tags: Tags
) -> None:
    body = "INSERT INTO tests_tag (name) VALUES (name)"
    made_by = (
        f"CREATE FUNCTION copy_1(name text) RETURNS void BEGIN ATOMIC {body}; END",
        "CREATE RULE copy_author AS ON INSERT TO tests_author DO ALSO SELECT copy_1(new.name)",
    )
    undo = ("DROP RULE copy_author ON tests_author", "DROP FUNCTION copy_1(text)")
    other = connections[using].copy()
    with made(using, *made_by, undo=undo), contextlib.closing(other):
        other.set_autocommit(False)
        with other.cursor() as cursor:
            cursor.execute("LOCK TABLE tests_author, tests_tag IN ACCESS EXCLUSIVE MODE")
        with transaction.atomic(using=using):
            outside(using, "SET LOCAL lock_timeout = 1000", catalog._QUESTIONS["postgresql"])
        other.rollback()


@on_databases("mariadb", transaction=True)
@pytest.mark.parametrize(
    "body",
    [
        """UPDATE tests_book b JOIN tests_author a ON a.id = b.id JOIN tests_tag t ON t.id <> b.id
        SET t.name = new.text""",
        """DELETE t FROM tests_book b JOIN tests_author a ON a.id = b.id JOIN tests_tag t
        ON t.id <> b.id""",
    ],
)
def test_a_statement_of_a_trigger_may_write_the_last_of_many_tables(
    cached: Watch, using: str, tags: Tags, body: str
) -> None:
    with trigger(using, "tests_note", body):
        assert not_stored(cached, tags) is Reason.TRIGGER


@on_postgresql
@pytest.mark.parametrize(
    "writes, is_stored",
    [
        ({"tests_author": ["tests_tag"]}, False),
        ({"tests_author_2026": ["tests_tag"]}, False),
        ({"tests_author": ["tests_tag"], "tests_author_2026": ["tests_tag"]}, True),
    ],
)
def test_a_trigger_of_a_child_is_declared_for_all_that_may_make_it_fire(
    cached: Watch, using: str, cache: str, tags: Tags, settings: Any, writes: Any, is_stored: bool
) -> None:
    allow(settings, WRITES=writes)
    child = "CREATE TABLE tests_author_2026 () INHERITS (tests_author)"
    with (
        made(using, child, undo=("DROP TABLE tests_author_2026",)),
        trigger(using, "tests_author_2026", COPY),
    ):
        tags()
        reason = ormcache.explain(Tag.objects.using(using).all()).reason
        assert reason is (None if is_stored else Reason.TRIGGER)


@on_postgresql
def test_what_a_trigger_of_a_child_writes_is_written_by_who_writes_above_it(
    cached: Watch, using: str, cache: str, tags: Tags, settings: Any
) -> None:
    both = ["tests_author", "tests_author_2026"]
    allow(settings, WRITES={name: ["tests_tag"] for name in both})
    child = "CREATE TABLE tests_author_2026 () INHERITS (tests_author)"
    with (
        made(using, child, undo=("DROP TABLE tests_author_2026",)),
        trigger(using, "tests_author_2026", COPY),
        trigger(using, "tests_note", "UPDATE tests_author SET name = new.text"),
    ):
        assert not_stored(cached, tags) is Reason.TRIGGER
        allow(settings, WRITES={**settings.ORMCACHE["WRITES"], "tests_note": both})
        cached.warm(tags)


def test_routines_that_no_trigger_calls_are_not_looked_into(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There may be thousands of them. The others are looked into once."""
    seen = []
    original = sql.names_in

    def names_in(body: str) -> frozenset[str]:
        seen.append(body)
        return original(body)

    monkeypatch.setattr(sql, "names_in", names_in)
    body = "INSERT INTO t_{} VALUES (1); SELECT f_{}()"
    routines = {f"f_{i}": body.format(i, i + 1) for i in range(9)}
    bodies = [(f"a_{i}", f"SELECT f_7(); -- {i}") for i in range(3)]
    found = triggers.read(bodies, routines, {}, {}).sources
    assert found["t_7"] == found["t_8"] == {"a_0", "a_1", "a_2"}
    assert "t_6" not in found
    assert len(seen) == 5


@on_databases("mariadb", transaction=True)
def test_the_procedure_that_a_trigger_calls_is_looked_into(
    cached: Watch, using: str, tags: Tags
) -> None:
    procedure = "CREATE PROCEDURE copy_it(name text) INSERT INTO tests_tag (name) VALUES (name)"
    with (
        made(using, procedure, undo=("DROP PROCEDURE copy_it",)),
        trigger(using, "tests_author", "CALL copy_it(new.name)"),
    ):
        assert not_stored(cached, tags) is Reason.TRIGGER


@on_postgresql
@pytest.mark.parametrize(
    "body",
    [
        "EXECUTE 'INSERT INTO tests_tag (name) VALUES ($1)' USING new.name",
        'UPDATE ONLY public."tests_tag" SET name = new.name',
        "WITH gone AS (DELETE FROM tests_tag RETURNING 1) SELECT 1 INTO strict new.id",
        "MERGE INTO tests_tag t USING (SELECT 1) s ON false WHEN NOT MATCHED THEN DO NOTHING",
        "IF TG_OP = 'INSERT' THEN TRUNCATE tests_tag CASCADE; END IF",
    ],
)
def test_every_way_to_write_is_seen_in_the_body_of_a_trigger(
    cached: Watch, using: str, cache: str, tags: Tags, body: str
) -> None:
    with trigger(using, "tests_author", body):
        assert not_stored(cached, tags) is Reason.TRIGGER


@on_postgresql
def test_what_a_rule_writes_is_not_stored(
    cached: Watch, using: str, cache: str, tags: Tags
) -> None:
    rule = f"CREATE RULE copy_author AS ON INSERT TO tests_author DO ALSO {COPY}"
    with made(using, rule, undo=("DROP RULE copy_author ON tests_author",)):
        assert not_stored(cached, tags) is Reason.TRIGGER
        Author.objects.using(using).create(name="b")
        assert tags() == ["a", "b"]


@on_all
def test_a_trigger_that_changes_its_own_table_or_none_needs_no_declaration(
    cached: Watch, using: str, tags: Tags
) -> None:
    body = {
        "default": "UPDATE tests_tag SET name = name || '!' WHERE id = new.id",
        "postgresql": "UPDATE tests_tag SET name = name || '!' WHERE id = new.id",
        "mariadb": "SET @last = new.name",
    }
    with trigger(using, "tests_tag", body[using]):
        cached.warm(tags)
        Tag.objects.using(using).create(name="b")
        assert cached.warm(tags) == ["a", "b" if using == "mariadb" else "b!"]


@on_all
@pytest.mark.parametrize(
    "name, is_stored", [("Tests_Tag", True), ("*", True), ("tests_author", False)]
)
def test_a_trigger_that_says_in_the_fence_what_it_writes_needs_no_declaration(
    cached: Watch, using: str, tags: Tags, settings: Any, name: str, is_stored: bool
) -> None:
    allow(settings, FENCE=1)
    body = f"{COPY}; INSERT INTO ormcache_fence (table_name) VALUES ('{name}')"
    with trigger(using, "tests_author", f"BEGIN {body}; END" if using == "mariadb" else body):
        if is_stored:
            cached.warm(tags)
        else:
            assert not_stored(cached, tags) is Reason.TRIGGER


@on_all
def test_what_a_trigger_says_in_the_fence_counts_for_nothing_where_nobody_looks(
    cached: Watch, using: str, tags: Tags, settings: Any
) -> None:
    body = f"{COPY}; INSERT INTO ormcache_fence (table_name) VALUES ('tests_tag')"
    with trigger(using, "tests_author", f"BEGIN {body}; END" if using == "mariadb" else body):
        allow(settings, ON_CACHE_FAILURE="raise", FENCE=None)
        assert not_stored(cached, tags) is Reason.TRIGGER


@on_all
def test_a_cascade_of_the_database_does_not_declare_a_trigger(
    cached: Watch, using: str, tags: Tags, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It follows a DELETE only, and triggers other statements as well."""
    monkeypatch.setattr("ormcache.relations._cascades", lambda: {"tests_author": ("tests_tag",)})
    with trigger(using, "tests_author", COPY):
        assert not_stored(cached, tags) is Reason.TRIGGER
