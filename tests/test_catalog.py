"""What the database says of its tables keeps answers from being stored, or adds registers."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from django import db
from django.core.management import call_command
from django.db import DataError, connections, models, transaction
from django.test.utils import isolate_apps

import ormcache
from ormcache import catalog, conf, sessions
from ormcache.catalog import Catalog
from ormcache.connection_state import state_of
from ormcache.reasons import Reason
from ormcache.stores import Breaker
from tests.backdoor import execute as outside
from tests.describing import Tags, allow, execute, made, not_stored
from tests.handlers import TimeLimit, handling, interrupted
from tests.interleaving import route_of, session
from tests.marks import needs, on_caches, on_databases, on_pairs
from tests.models import Author, AuthorBooks, Book, Tag
from tests.settings import WORKER_SUFFIX
from tests.watching import Watch, wait_for_quarantine

on_all = on_databases(transaction=True)
on_postgresql = on_pairs(("postgresql", "redis"), transaction=True)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The aliases whose catalog was asked for, from now on."""
    found: list[str] = []
    original = catalog._ask

    def ask(connection: Any, *args: Any) -> Any:
        found.append(connection.alias)
        return original(connection, *args)

    monkeypatch.setattr(catalog, "_ask", ask)
    return found


# --- views -------------------------------------------------------------------------------------

VIEW = (
    "ALTER TABLE tests_tag RENAME TO tests_tag_rows",
    "CREATE VIEW tests_tag AS SELECT id, name FROM tests_tag_rows",
)
NO_VIEW = ("DROP VIEW tests_tag", "ALTER TABLE tests_tag_rows RENAME TO tests_tag")


@on_all
def test_a_view_in_the_place_of_a_table_is_not_stored(
    cached: Watch, using: str, tags: Tags
) -> None:
    cached.warm(tags)
    with made(using, *VIEW, undo=NO_VIEW):
        assert not_stored(cached, tags) is Reason.VIEW
        outside(using, "INSERT INTO tests_tag_rows (name) VALUES ('b')")
        assert tags() == ["a", "b"]
        found = ormcache.explain(Tag.objects.using(using).all())
        assert (found.reason, found.cacheable) == (Reason.VIEW, False)
        assert found.detail == "view tests_tag"
    wait_for_quarantine(using)
    assert cached.warm(tags) == ["a", "b"]


@on_all
def test_a_view_is_stored_if_its_tables_are_declared(
    cached: Watch, using: str, tags: Tags, settings: Any
) -> None:
    allow(settings, DEPENDS_ON={"tests_tag": ["tests_tag_rows"]})
    with made(using, *VIEW, undo=NO_VIEW):
        cached.warm(tags)
        execute(using, "INSERT INTO tests_tag_rows (name) VALUES ('b')")
        assert cached.warm(tags) == ["a", "b"]


@on_all
@pytest.mark.parametrize("label", ["tests.Tag", "tests.*"])
def test_enabling_the_model_vouches_for_its_table(
    cached: Watch, using: str, tags: Tags, settings: Any, label: str
) -> None:
    allow(settings, MODELS={label: {"ENABLED": True}})
    with made(using, *VIEW, undo=NO_VIEW):
        cached.warm(tags)


@on_all
def test_a_timeout_of_the_model_does_not_vouch_for_its_table(
    cached: Watch, using: str, tags: Tags, settings: Any
) -> None:
    allow(settings, MODELS={"tests.Tag": {"TIMEOUT": 5}, "tests.Book": {"ENABLED": True}})
    with made(using, *VIEW, undo=NO_VIEW):
        assert not_stored(cached, tags) is Reason.VIEW


@on_all
def test_a_query_that_joins_a_view_is_not_stored(cached: Watch, using: str, tags: Tags) -> None:
    def books() -> int:
        return Book.objects.using(using).filter(tags__name="a").count()

    with made(using, *VIEW, undo=NO_VIEW):
        assert not_stored(cached, books) is Reason.VIEW
        cached.warm(Book.objects.using(using).count)


@on_postgresql
def test_a_materialized_view_is_not_stored(
    cached: Watch, using: str, cache: str, tags: Tags
) -> None:
    with made(
        using,
        VIEW[0],
        "CREATE MATERIALIZED VIEW tests_tag AS SELECT id, name FROM tests_tag_rows",
        undo=("DROP MATERIALIZED VIEW tests_tag", NO_VIEW[1]),
    ):
        assert not_stored(cached, tags) is Reason.VIEW


@on_postgresql
@pytest.mark.parametrize("is_child", [False, True])
def test_a_foreign_table_is_not_stored(
    cached: Watch, using: str, cache: str, tags: Tags, is_child: bool
) -> None:
    """Nor is a table that has one among its children. The rows are those of a program."""
    name = "tests_tag_there" if is_child else "tests_tag"
    with made(
        using,
        *(() if is_child else VIEW[:1]),
        "CREATE EXTENSION file_fdw",
        "CREATE SERVER tests_files FOREIGN DATA WRAPPER file_fdw",
        f"CREATE FOREIGN TABLE {name} (id bigint NOT NULL, name varchar(50) NOT NULL) "
        "SERVER tests_files OPTIONS (program 'echo 7,there', format 'csv')",
        *([f"ALTER FOREIGN TABLE {name} INHERIT tests_tag"] if is_child else []),
        undo=(
            "DROP EXTENSION file_fdw CASCADE",
            *(() if is_child else NO_VIEW[1:]),
        ),
    ):
        assert not_stored(cached, tags) is Reason.VIEW
        assert tags() == (["a", "there"] if is_child else ["there"])
        found = ormcache.explain(Tag.objects.using(using).all())
        assert found.detail == f"foreign table {name}"


@on_databases("default", transaction=True)
def test_a_virtual_table_is_not_stored(cached: Watch, using: str, tags: Tags) -> None:
    with made(
        using,
        VIEW[0],
        "CREATE VIRTUAL TABLE tests_tag USING fts5 (id UNINDEXED, name)",
        "INSERT INTO tests_tag (id, name) VALUES (5, 'b')",
        undo=("DROP TABLE tests_tag", NO_VIEW[1]),
    ):
        assert not_stored(cached, tags) is Reason.VIEW


@on_databases("mariadb", transaction=True)
def test_a_merge_of_tables_is_not_stored(cached: Watch, using: str, tags: Tags) -> None:
    with made(
        using,
        VIEW[0],
        "CREATE TABLE tests_tag_one (id bigint NOT NULL, name varchar(50)) ENGINE = MyISAM",
        "CREATE TABLE tests_tag (id bigint NOT NULL, name varchar(50)) "
        "ENGINE = MERGE UNION = (tests_tag_one) INSERT_METHOD = LAST",
        undo=("DROP TABLE tests_tag", "DROP TABLE tests_tag_one", NO_VIEW[1]),
    ):
        assert not_stored(cached, tags) is Reason.VIEW


@on_databases("mariadb", transaction=True)
def test_a_column_that_depends_on_the_moment_of_reading_is_not_stored(
    cached: Watch, using: str, tags: Tags
) -> None:
    with made(
        using,
        "ALTER TABLE tests_tag ADD now datetime(6) AS (current_timestamp(6)) VIRTUAL",
        undo=("ALTER TABLE tests_tag DROP now",),
    ):
        assert not_stored(cached, tags) is Reason.NON_DETERMINISTIC
        found = ormcache.explain(Tag.objects.using(using).all())
        assert found.detail == "current_timestamp in a column of tests_tag"


@pytest.mark.parametrize("expression", ["upper(name)", "natural_sort_key(name)", "quote(name)"])
@on_databases("mariadb", transaction=True)
def test_a_column_that_is_worked_out_of_others_is_stored(
    cached: Watch, using: str, tags: Tags, expression: str
) -> None:
    with made(
        using,
        f"ALTER TABLE tests_tag ADD loud varchar(200) AS ({expression}) VIRTUAL",
        undo=("ALTER TABLE tests_tag DROP loud",),
    ):
        cached.warm(tags)


@on_all
def test_an_unmanaged_model_that_is_vouched_for_is_stored_though_it_is_a_view(
    cached: Watch, using: str, settings: Any
) -> None:
    allow(settings, DEPENDS_ON={"tests_author_books": ["tests_author", "tests_book"]})
    cached.warm(AuthorBooks.objects.using(using).count)


# --- row-level security ------------------------------------------------------------------------

SECURED = ("ALTER TABLE tests_tag ENABLE ROW LEVEL SECURITY",)
# Roles belong to the server, which all workers of pytest-xdist share.
READER = f"tests_reader{WORKER_SUFFIX}"
NOT_SECURED = ("ALTER TABLE tests_tag DISABLE ROW LEVEL SECURITY",)


@on_postgresql
def test_a_table_with_row_level_security_is_not_stored(
    cached: Watch, using: str, cache: str, tags: Tags
) -> None:
    cached.warm(tags)
    with made(using, *SECURED, undo=NOT_SECURED):
        assert not_stored(cached, tags) is Reason.ROW_SECURITY
        found = ormcache.explain(Tag.objects.using(using).all())
        assert (found.reason, found.detail) == (Reason.ROW_SECURITY, "tests_tag")
        assert "not cached: row-level security (tests_tag)" in str(found)
        cached.warm(Author.objects.using(using).count)
    wait_for_quarantine(using)
    cached.warm(tags)


@on_postgresql
def test_the_command_explains_what_the_database_says(
    cached: Watch, using: str, cache: str, tags: Tags, capsys: pytest.CaptureFixture[str]
) -> None:
    with made(using, *SECURED, undo=NOT_SECURED):
        call_command("ormcache", "explain", "Tag.objects.all()", database=using)
    assert "not cached: row-level security (tests_tag)" in capsys.readouterr().out


@on_postgresql
def test_answers_from_before_are_not_given_once_a_policy_is_there(
    cached: Watch, using: str, cache: str, tags: Tags
) -> None:
    cached.warm(tags)
    with session(using):
        execute(using, *SECURED)
    try:
        assert not_stored(cached, tags) is Reason.ROW_SECURITY
    finally:
        execute(using, *NOT_SECURED)


@pytest.fixture
def reader(using: str, tags: Tags) -> Iterator[str]:
    """A user for whom the policy counts: it sees the tag that the variable app.tag names."""
    Tag.objects.using(using).create(name="b")
    execute(
        using,
        *SECURED,
        f"CREATE ROLE {READER} LOGIN",
        f"GRANT SELECT, INSERT ON tests_tag TO {READER}",
        # As all users of Django's need it who may read from the cache.
        f"GRANT SELECT, DELETE ON ormcache_fence TO {READER}",
        f"GRANT USAGE ON SEQUENCE tests_tag_id_seq TO {READER}",
        "CREATE POLICY tests_policy ON tests_tag USING (name = current_setting('app.tag', true))",
    )
    wait_for_quarantine(using)
    yield READER
    execute(
        using,
        "DROP POLICY tests_policy ON tests_tag",
        *NOT_SECURED,
        f"DROP OWNED BY {READER}",
        f"DROP ROLE {READER}",
    )


@on_postgresql
def test_a_policy_that_looks_at_a_variable_never_leaks(
    cached: Watch, using: str, cache: str, tags: Tags, reader: str, settings: Any
) -> None:
    """Vouched for, too: a session in which a variable was set is not cached."""
    for options in ({}, {"DEPENDS_ON": {"tests_tag": []}}):
        allow(settings, **options)
        assert tags() == tags() == ["a", "b"]
        with session(using, USER=reader):
            assert tags() == tags() == []
            for tag in ("a", "b", "a"):
                execute(using, f"SET app.tag = '{tag}'")
                with cached.expect(Reason.SESSION):
                    assert tags() == [tag]
        with session(using, USER=reader):
            assert tags() == tags() == []
            execute(using, "SELECT set_config('app.tag', 'b', false)")
            assert tags() == tags() == ["b"]
        assert tags() == ["a", "b"]


@on_postgresql
@pytest.mark.parametrize(
    "statement", ["SET LOCAL app.tag = 'a'", "SELECT set_config('app.tag', 'a', true)"]
)
@pytest.mark.parametrize("is_undone", [False, True])
def test_a_local_variable_never_leaks(
    cached: Watch,
    using: str,
    cache: str,
    tags: Tags,
    reader: str,
    settings: Any,
    statement: str,
    is_undone: bool,
) -> None:
    allow(settings, DEPENDS_ON={"tests_tag": []})
    with session(using, USER=reader):
        assert tags() == tags() == []
        with transaction.atomic(using=using):
            execute(using, statement)
            assert tags() == tags() == ["a"]
            transaction.set_rollback(is_undone, using=using)
        assert tags() == tags() == []
    with session(using, USER=reader):
        assert tags() == []


@on_postgresql
@pytest.mark.parametrize("scope", ["", "LOCAL "])
@pytest.mark.parametrize("is_undone", [False, True])
def test_a_role_that_is_switched_never_leaks(
    cached: Watch,
    using: str,
    cache: str,
    tags: Tags,
    reader: str,
    settings: Any,
    scope: str,
    is_undone: bool,
) -> None:
    allow(settings, DEPENDS_ON={"tests_tag": []})
    cached.warm(tags)
    with session(using):
        assert cached.hit(tags) == ["a", "b"]
        with transaction.atomic(using=using):
            execute(using, f"SET {scope}ROLE {reader}")
            assert tags() == tags() == []
            transaction.set_rollback(is_undone, using=using)
        stays = not scope and not is_undone
        assert tags() == tags() == ([] if stays else ["a", "b"])
    assert cached.hit(tags) == ["a", "b"]


@on_postgresql
def test_a_session_of_a_pool_that_has_another_role_never_leaks(
    cached: Watch, using: str, cache: str, tags: Tags, reader: str, settings: Any
) -> None:
    """The pool hands the session on as it is."""
    allow(settings, DEPENDS_ON={"tests_tag": []})
    pytest.importorskip("psycopg_pool")
    with session(using, OPTIONS={"pool": {"min_size": 1, "max_size": 1}}) as connection:
        try:
            assert tags() == tags() == ["a", "b"]
            execute(using, f"SET ROLE {reader}")
            assert tags() == []
            connection.close()
            assert tags() == tags() == []
            execute(using, "RESET ROLE")
            assert tags() == tags() == ["a", "b"]
            connection.close()
            assert tags() == ["a", "b"]
        finally:
            connection.close()
            connection.close_pool()
            sessions._altered.pop(using, None)
    assert tags() == ["a", "b"]


@on_postgresql
def test_a_policy_that_reads_a_table_follows_it_once_that_is_declared(
    cached: Watch, using: str, cache: str, tags: Tags, reader: str, settings: Any
) -> None:
    execute(
        using,
        f"GRANT SELECT ON tests_author TO {reader}",
        "CREATE POLICY tests_authors ON tests_tag USING (name IN (SELECT name FROM tests_author))",
    )
    wait_for_quarantine(using)
    owner = connections[using].settings_dict["USER"]
    with session(using, USER=reader):
        assert not_stored(cached, tags) is Reason.ROW_SECURITY
        assert tags() == []
        with session(using, USER=owner):
            Author.objects.using(using).create(name="a")
        assert tags() == ["a"]
    allow(settings, DEPENDS_ON={"tests_tag": ["tests_author"]})
    with session(using, USER=reader):
        assert cached.warm(tags) == ["a"]
        with session(using, USER=owner):
            Author.objects.using(using).create(name="b")
        assert cached.warm(tags) == ["a", "b"]


# --- partitions and children -------------------------------------------------------------------

CHILD = "CREATE TABLE tests_tag_2026 () INHERITS (tests_tag)"
GRANDCHILD = "CREATE TABLE tests_tag_may () INHERITS (tests_tag_2026)"
NO_CHILDREN = ("DROP TABLE IF EXISTS tests_tag_may", "DROP TABLE IF EXISTS tests_tag_2026")


def insert(table: str, name: str) -> str:
    return f"INSERT INTO {table} (id, name) VALUES (nextval('tests_tag_id_seq'), '{name}')"


@on_postgresql
def test_a_row_written_to_a_child_is_one_of_its_ancestors(
    cached: Watch, using: str, cache: str, tags: Tags
) -> None:
    cached.warm(tags)
    with made(using, CHILD, GRANDCHILD, undo=NO_CHILDREN):
        # Now it is known that there are children, and next time they are asked for.
        with cached.expect("miss"):
            tags()
        assert cached.reads[-1].reason is Reason.CATALOG_UNKNOWN
        cached.warm(tags)
        execute(using, insert("tests_tag_2026", "b"))
        assert cached.warm(tags) == ["a", "b"]
        with transaction.atomic(using=using):
            execute(using, insert("tests_tag_may", "c"))
            with cached.expect(Reason.WRITTEN_HERE):
                assert tags() == ["a", "b", "c"]
            with session(using):
                assert cached.hit(tags) == ["a", "b"]
        assert cached.warm(tags) == ["a", "b", "c"]


PARTITIONED = (
    "ALTER TABLE tests_tag RENAME TO tests_tag_rows",
    "CREATE TABLE tests_tag (id bigint DEFAULT nextval('tests_tag_id_seq'), name varchar(50)) "
    "PARTITION BY LIST (name)",
    "CREATE TABLE tests_tag_a PARTITION OF tests_tag FOR VALUES IN ('a')",
    "CREATE TABLE tests_tag_others PARTITION OF tests_tag DEFAULT",
)
NOT_PARTITIONED = ("DROP TABLE tests_tag", "ALTER TABLE tests_tag_rows RENAME TO tests_tag")


@on_postgresql
def test_a_row_written_to_a_partition_is_one_of_the_table(
    cached: Watch, using: str, cache: str, tags: Tags
) -> None:
    with made(using, *PARTITIONED, undo=NOT_PARTITIONED):
        tags()
        assert cached.warm(tags) == []
        execute(using, insert("tests_tag_others", "b"))
        assert cached.warm(tags) == ["b"]
        Tag.objects.using(using).create(name="a")
        assert cached.warm(tags) == ["a", "b"]
        execute(using, "ALTER TABLE tests_tag DETACH PARTITION tests_tag_a")
        assert tags() == ["b"]
        execute(using, "DROP TABLE tests_tag_a")


@on_postgresql
def test_a_row_written_through_the_table_is_one_of_the_partition(
    cached: Watch, using: str, cache: str, tags: Tags
) -> None:
    """A model of its own may stand for a partition."""
    with isolate_apps("tests"):

        class Others(models.Model):
            name = models.CharField(max_length=50)

            class Meta:
                app_label = "tests"
                db_table = "tests_tag_others"

    def of_partition() -> list[str]:
        return sorted(Others.objects.using(using).values_list("name", flat=True))

    with made(using, *PARTITIONED, undo=NOT_PARTITIONED):
        of_partition()
        assert cached.warm(of_partition) == []
        Tag.objects.using(using).create(name="b")
        assert cached.warm(of_partition) == ["b"]


@on_postgresql
def test_a_partition_that_is_attached_later_is_known_at_once(
    cached: Watch, using: str, cache: str, tags: Tags
) -> None:
    with made(using, CHILD, undo=NO_CHILDREN):
        tags()
        cached.warm(tags)
        # By another process, which has a memory of its own.
        with session(using):
            execute(using, GRANDCHILD)
        tags()
        cached.warm(tags)
        execute(using, insert("tests_tag_may", "b"))
        assert tags() == ["a", "b"]


@on_postgresql
def test_a_process_that_does_not_know_the_children_gives_no_wrong_answer(
    cached: Watch, using: str, cache: str, tags: Tags, monkeypatch: pytest.MonkeyPatch
) -> None:
    with made(using, CHILD, undo=NO_CHILDREN):
        tags()
        cached.warm(tags)
        execute(using, insert("tests_tag_2026", "b"))
        tags()
        outside(using, insert("tests_tag_2026", "unseen"))
        assert cached.hit(tags) == ["a", "b"]
        # The other process asks for the parent's register alone, and the entry is not for it.
        monkeypatch.setattr(catalog, "_known", {})
        with cached.expect("miss"):
            assert tags() == ["a", "b", "unseen"]


@on_postgresql
def test_explain_finds_what_is_stored_under_more_registers(
    cached: Watch, using: str, cache: str, tags: Tags, monkeypatch: pytest.MonkeyPatch
) -> None:
    with made(using, CHILD, undo=NO_CHILDREN):
        names = Tag.objects.using(using).values_list("name", flat=True)
        list(names.all())
        list(names.all())
        monkeypatch.setattr(catalog, "_known", {})
        assert ormcache.explain(names.all()).cached


@on_postgresql
def test_more_children_than_are_asked_for_are_a_reason(
    cached: Watch,
    using: str,
    cache: str,
    tags: Tags,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(catalog, "_RELATIVES_LIMIT", 1)
    with made(using, CHILD, GRANDCHILD, undo=NO_CHILDREN):
        assert not_stored(cached, tags) is Reason.PARTITIONS
        # Who promises that they are written through the parent only, needs no more registers.
        allow(settings, DEPENDS_ON={"tests_tag": []})
        cached.warm(tags)
        connection = connections[using]
        assert catalog.registers(
            connection, state_of(connection), route_of(using), ("tests_tag",), frozenset()
        ) == ("tests_tag",)


# --- asking ------------------------------------------------------------------------------------


@on_all
def test_the_catalog_is_asked_once_and_never_for_a_hit(
    cached: Watch, using: str, tags: Tags, asked: list[str]
) -> None:
    ormcache.flush(using)
    cached.warm(tags)
    assert asked == [using]
    for name in ("b", "c"):
        Tag.objects.using(using).create(name=name)
        cached.warm(tags)
        cached.warm(Author.objects.using(using).count)
        Author.objects.using(using).create(name=name)
    assert asked == [using]


@on_all
@pytest.mark.parametrize(
    "change", ["CREATE VIEW tests_other AS SELECT 1 AS one", "ALTER TABLE tests_tag RENAME TO x"]
)
def test_the_catalog_is_asked_again_after_ddl_that_changes_meanings(
    cached: Watch, using: str, tags: Tags, asked: list[str], change: str
) -> None:
    ormcache.flush(using)
    tags()
    undo = "DROP VIEW tests_other" if "VIEW" in change else "ALTER TABLE x RENAME TO tests_tag"
    execute(using, change, undo)
    cached.warm(tags)
    assert asked == [using, using]


@on_all
def test_the_question_is_none_of_the_users_queries(
    cached: Watch, using: str, tags: Tags, asked: list[str], django_assert_num_queries: Any
) -> None:
    ormcache.flush(using)
    with django_assert_num_queries(1, using=using):
        tags()
    assert asked == [using]


@on_postgresql
def test_in_a_transaction_the_catalog_is_asked_as_well(
    cached: Watch, using: str, cache: str, tags: Tags, asked: list[str]
) -> None:
    ormcache.flush(using)
    with transaction.atomic(using=using):
        cached.warm(tags)
    assert asked == [using]


@pytest.fixture
def failing(using: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The question fails, as it does where a statement timeout is short."""
    vendor = connections[using].vendor
    question = "SELECT nothing" if vendor != "postgresql" else "SELECT 1 / 0"
    monkeypatch.setitem(catalog._QUESTIONS, vendor, question)
    monkeypatch.setattr(catalog, "_known", {})
    monkeypatch.setattr(catalog, "_breakers", {})
    yield


@on_all
def test_a_question_that_fails_is_no_reason_for_the_read_to_fail(
    cached: Watch, using: str, tags: Tags, failing: None
) -> None:
    with cached.expect("miss"):
        assert tags() == ["a"]
    assert cached.reads[-1].reason is Reason.CATALOG_UNKNOWN


@on_all
def test_a_time_limit_that_comes_during_a_question_is_raised(
    cached: Watch, using: str, tags: Tags, failing: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "ask", interrupted)
    with handling(), pytest.raises(TimeLimit):
        tags()


@on_databases("postgresql", "mariadb", transaction=True)
def test_a_question_that_fails_leaves_the_transaction_as_it_was(
    cached: Watch, using: str, tags: Tags, failing: None
) -> None:
    with transaction.atomic(using=using):
        Author.objects.using(using).create(name="before")
        with cached.expect("miss"):
            assert tags() == ["a"]
        Author.objects.using(using).create(name="after")
    assert Author.objects.using(using).count() == 2


@on_all
def test_a_question_that_failed_is_asked_again_after_a_while(
    cached: Watch, using: str, tags: Tags, failing: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tags()
    monkeypatch.undo()
    assert catalog._breakers is not None
    monkeypatch.setattr(catalog, "_known", {})
    monkeypatch.setitem(catalog._breakers, route_of(using).namespace, Breaker())
    catalog._breakers[route_of(using).namespace].failed()
    # The breaker is open: no further question for now.
    with cached.expect("miss"):
        tags()
    assert cached.reads[-1].reason is Reason.CATALOG_UNKNOWN
    monkeypatch.setitem(catalog._breakers, route_of(using).namespace, Breaker())
    cached.warm(tags)


@on_postgresql
def test_a_connection_that_is_lost_with_the_question_is_no_error_of_the_read(
    cached: Watch, using: str, cache: str, tags: Tags, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "_known", {})
    monkeypatch.setattr(catalog, "_breakers", {})
    connection = connections[using].copy()
    monkeypatch.setitem(
        catalog._QUESTIONS, "postgresql", "SELECT pg_terminate_backend(pg_backend_pid())"
    )
    with session(using):
        assert tags() == ["a"]
        assert cached.reads[-1].reason is Reason.CATALOG_UNKNOWN
        with pytest.raises(db.OperationalError):
            Author.objects.using(using).count()
    connection.close()


@on_postgresql
def test_no_question_is_asked_in_a_broken_transaction(
    cached: Watch, using: str, cache: str, tags: Tags, asked: list[str]
) -> None:
    ormcache.flush(using)
    with pytest.raises(DataError), transaction.atomic(using=using):
        try:
            execute(using, "SELECT 1 / 0")
        finally:
            with contextlib.suppress(db.Error):
                tags()
    assert asked == []


@needs("postgresql")
@on_databases("postgresql", transaction=True)
@on_caches("memcached", "locmem")
def test_other_caches_tell_when_to_ask_again_as_well(
    cached: Watch, using: str, cache: str, tags: Tags, asked: list[str]
) -> None:
    ormcache.flush(using)
    tags()
    tags()
    ormcache.flush(using)
    tags()
    assert asked == [using, using]


@on_postgresql
def test_explain_of_a_database_that_is_down_says_what_it_can(
    cached: Watch, using: str, cache: str, tags: Tags, settings: Any
) -> None:
    # The fence is in that database, too.
    settings.ORMCACHE = {**settings.ORMCACHE, "ON_CACHE_FAILURE": "raise"}
    with session(using) as connection:
        connection.settings_dict["PORT"] = connections[using].settings_dict["PORT"]
        connection.ensure_connection = lambda: (_ for _ in ()).throw(db.OperationalError("down"))
        found = ormcache.explain(Tag.objects.using(using).all())
    assert (found.reason, found.cacheable) == (None, True)


# --- temporary tables --------------------------------------------------------------------------


@on_all
def test_a_temporary_table_in_front_of_a_table_is_for_its_session_only(
    cached: Watch, using: str, tags: Tags
) -> None:
    cached.warm(tags)
    with session(using):
        cached.hit(tags)
        execute(using, "CREATE TEMPORARY TABLE tests_tag AS SELECT 7 AS id, 'mine' AS name")
        with cached.expect(Reason.SESSION, Reason.SESSION):
            assert tags() == tags() == ["mine"]
    assert tags() == ["a"]


@pytest.mark.parametrize(
    "into", ["TEMP", "TEMPORARY TABLE", "LOCAL TEMP", "GLOBAL TEMPORARY TABLE"]
)
@on_databases("postgresql", transaction=True)
def test_so_is_one_that_a_selection_is_put_into(
    cached: Watch, using: str, tags: Tags, into: str
) -> None:
    cached.warm(tags)
    with session(using):
        execute(using, f"SELECT 7 AS id, 'mine' AS name INTO {into} tests_tag")
        with cached.expect(Reason.SESSION, Reason.SESSION):
            assert tags() == tags() == ["mine"]
    assert tags() == ["a"]


_TAGS = "tests_tag AS SELECT 7 AS id, 'mine' AS name"


@pytest.mark.parametrize(
    ("using", "statements"),
    [
        pytest.param(*place.values, statements, marks=place.marks)
        for alias, *statements in (
            ("postgresql", f'CREATE TABLE "pg_temp".{_TAGS}'),
            ("postgresql", f"EXPLAIN ANALYZE CREATE TEMP TABLE {_TAGS}"),
            ("postgresql", "SET search_path TO pg_temp, public", f"CREATE TABLE {_TAGS}"),
            ("default", f'CREATE TABLE "temp".{_TAGS}'),
            ("default", f"CREATE TABLE 'temp'.{_TAGS}"),
            ("mariadb", f'EXECUTE IMMEDIATE "CREATE TEMPORARY TABLE {_TAGS}"'),
            ("mariadb", f"BEGIN NOT ATOMIC CREATE TEMPORARY TABLE {_TAGS}; END"),
        )
        for place in on_databases(alias, transaction=True).args[1]
    ],
)
def test_so_is_one_that_is_made_in_an_unusual_way(
    cached: Watch, using: str, tags: Tags, statements: list[str], settings: Any
) -> None:
    # There is no fence in the schema that is searched first.
    settings.ORMCACHE = {**settings.ORMCACHE, "ON_CACHE_FAILURE": "raise"}
    cached.warm(tags)
    with session(using):
        execute(using, *statements)
        with cached.expect(Reason.SESSION, Reason.SESSION):
            assert tags() == tags() == ["mine"]
    assert tags() == ["a"]


@on_databases("postgresql", transaction=True)
def test_so_is_one_for_whose_schema_the_path_has_a_parameter(
    cached: Watch, using: str, tags: Tags, settings: Any
) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, "ON_CACHE_FAILURE": "raise"}
    with session(using) as connection:
        with connection.cursor() as cursor:
            cursor.execute("SET search_path TO %s, public", ["pg_temp"])
        execute(using, f"CREATE TABLE {_TAGS}")
        with cached.expect(Reason.SESSION, Reason.SESSION):
            assert tags() == tags() == ["mine"]


@on_all
def test_other_temporary_tables_leave_the_session_as_it_was(
    cached: Watch, using: str, tags: Tags
) -> None:
    cached.warm(tags)
    with session(using):
        execute(using, "CREATE TEMPORARY TABLE tests_scratch AS SELECT 7 AS id, 'mine' AS name")
        cached.hit(tags)


# --- what is made of the answer ----------------------------------------------------------------


def test_relatives_are_all_above_and_below() -> None:
    rows = [("child", "B", "a"), ("child", "c", "B"), ("child", "d", "a"), ("child", "d", "x")]
    found = catalog._read(rows)
    assert found.relatives == {
        "a": {"b", "c", "d"},
        "b": {"a", "c"},
        "c": {"a", "b"},
        "d": {"a", "x"},
        "x": {"d"},
    }


def test_names_are_compared_as_everywhere() -> None:
    found = catalog._read([("view", "My View", None), ("row security", "Docs", None)])
    assert found.views == {"my view": "view"}
    assert found.row_security == {"docs"}


def test_a_database_of_plain_tables_needs_nothing_more() -> None:
    found = catalog._read([])
    assert isinstance(found, Catalog)
    assert catalog.judge(found, ("a",), conf.current()) == (None, "")
