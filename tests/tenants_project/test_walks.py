"""Random walks through all that may change what a name means: no answer is ever out of date."""

import contextlib
import os
import random
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection, connections, transaction

import ormcache
from ormcache import catalog
from tests.interleaving import switched_to
from tests.tenants_project.notes.models import Note
from tests.tenants_project.shop.models import Author
from tests.tenants_project.world import outside
from tests.watching import Watch, wait_for_quarantine

WALKS = int(os.environ.get("ORMCACHE_TEST_WALKS", "25"))
SCHEMAS = ("public", "alpha", "beta", "delta")


@pytest.fixture
def left_over() -> Iterator[None]:
    """A schema without tables, and a table that the public schema should not have.

    What is asked in "delta" comes from the public schema.
    """
    ormcache.flush()
    outside(
        "CREATE SCHEMA delta",
        "CREATE TABLE public.shop_author (LIKE alpha.shop_author INCLUDING ALL)",
    )
    yield
    outside("DROP SCHEMA delta CASCADE", "DROP TABLE public.shop_author")
    ormcache.flush()


class Walk:
    """One connection that does something at random, and another one that looks."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.watcher: Any = connection.copy()
        self.blocks: list[Any] = []
        self.held: Any = None
        self.has_own_notes = False
        self.memories: list[tuple[Any, Any]] = [({}, {}), ({}, {})]
        self.log: list[str] = []

    def run(self, steps: int) -> None:
        try:
            for _ in range(steps):
                self.step()
                self.look()
        except BaseException:
            print("\n".join(self.log))
            raise
        finally:
            while self.blocks:
                self.leave(undo=True)
            connection.close()
            self.watcher.close()

    def step(self) -> None:
        names = [name for name in dir(self) if name.startswith("do_")]
        name = self.chance.choice(names)
        self.log.append(name)
        getattr(self, name)()

    def say(self, text: str) -> None:
        self.log.append(f"    {text}")

    # What may happen. Those that appear twice are twice as likely.

    def do_switch(self) -> None:
        schema = self.chance.choice(SCHEMAS)
        self.say(schema)
        connection.set_schema(schema)

    do_switch_more = do_switch

    def do_write(self) -> None:
        model = self.chance.choice([Note, Author])
        field = "text" if model is Note else "name"
        what = self.chance.choice(["create", "update", "delete", "bulk"])
        text = str(self.chance.random())
        self.say(f"{what} {model.__name__} in {connection.schema_name}")
        if what == "create":
            model.objects.create(**{field: text})
        elif what == "update":
            model.objects.update(**{field: text})
        elif what == "delete":
            model.objects.all()._raw_delete("default")
        else:
            model.objects.bulk_create([model(**{field: text}), model(**{field: text})])

    do_write_more = do_write_still_more = do_write

    def do_write_by_name(self) -> None:
        schema = self.chance.choice(["", "public.", "alpha.", '"beta".'])
        statement = self.chance.choice(
            [
                f"INSERT INTO {schema}notes_note (text) VALUES ('by name')",
                f"UPDATE {schema}shop_author SET name = name || '!'",
                f"DELETE FROM {schema}notes_note",
                f"WITH x AS (DELETE FROM {schema}shop_author RETURNING 1) SELECT * FROM x",
                f"INSERT INTO {schema}notes_note (text) SELECT name FROM shop_author LIMIT 1",
            ]
        )
        self.execute(statement)

    def do_write_on_a_held_cursor(self) -> None:
        if self.held is None:
            self.held = connection.cursor()
        try:
            self.held.execute("INSERT INTO notes_note (text) VALUES ('held')")
            self.held.execute("INSERT INTO shop_author (name) VALUES ('held')")
        except BaseException:
            self.held = None
            raise

    do_write_on_a_held_cursor_more = do_write_on_a_held_cursor

    def do_hold_another_cursor(self) -> None:
        self.held = connection.cursor()

    def do_set_the_path(self) -> None:
        schema = self.chance.choice(SCHEMAS)
        self.execute(f"SET search_path TO {schema}, public")

    def do_set_the_path_and_write(self) -> None:
        schema = self.chance.choice(SCHEMAS)
        with connection.cursor() as cursor:
            cursor.execute(f"SET search_path TO {schema}, public")
            cursor.execute("INSERT INTO notes_note (text) VALUES ('path')")

    def do_several_statements(self) -> None:
        schema = self.chance.choice(SCHEMAS)
        row = self.chance.choice(["VALUES ('two')", "SELECT 'two'"])
        self.execute(f"SET search_path TO {schema}, public; INSERT INTO notes_note (text) {row}")

    def do_set_the_local_path(self) -> None:
        if self.blocks:
            self.execute(f"SET LOCAL search_path TO {self.chance.choice(SCHEMAS)}, public")

    def do_set_the_path_by_a_function(self) -> None:
        if self.chance.random() < 0.2:
            self.execute(
                f"SELECT set_config('search_path', '{self.chance.choice(SCHEMAS)}, public', false)"
            )

    def do_stream(self) -> None:
        list(Author.objects.iterator())

    def do_enter(self) -> None:
        if len(self.blocks) < 3:
            block = transaction.atomic()
            block.__enter__()
            self.blocks.append(block)

    do_enter_more = do_enter

    def do_leave(self) -> None:
        if self.blocks:
            self.leave(undo=self.chance.random() < 0.4)

    do_leave_more = do_leave_still_more = do_leave

    def leave(self, *, undo: bool) -> None:
        self.say("rolled back" if undo else "committed")
        error = ZeroDivisionError() if undo else None
        self.blocks.pop().__exit__(type(error) if error else None, error, None)
        if undo:
            self.held = None

    def do_undo_as_sql(self) -> None:
        if self.blocks:
            name = f"s{self.chance.random()}".replace(".", "")
            self.execute(f"SAVEPOINT {name}")
            self.do_switch()
            self.do_write()
            self.execute(f"ROLLBACK TO SAVEPOINT {name}")

    def do_close(self) -> None:
        if not self.blocks:
            self.held = None
            connection.close()

    def do_make_or_drop_a_table(self) -> None:
        if self.blocks or self.chance.random() < 0.5:
            return
        if self.has_own_notes:
            self.execute("DROP TABLE delta.notes_note")
        else:
            self.execute("CREATE TABLE delta.notes_note (LIKE public.notes_note INCLUDING ALL)")
        self.has_own_notes = not self.has_own_notes

    def do_be_another_process(self) -> None:
        """Two memories of what the database has told."""
        first, second = self.memories
        catalog._known, catalog._places = first
        self.memories = [second, (catalog._known, catalog._places)]

    def execute(self, statement: str) -> None:
        self.say(statement)
        with connection.cursor() as cursor:
            cursor.execute(statement)

    # What must be true all the time.

    def look(self) -> None:
        # Not each time: a query that is not answered from the cache sets the path.
        if self.chance.random() < 0.5:
            self.compare("own")
        if self.blocks and self.chance.random() < 0.5:
            return
        with switched_to(self.watcher):
            for schema in self.chance.sample(SCHEMAS, 2):
                connections["default"].set_schema(schema)
                self.compare(f"watcher's in {schema}")

    def compare(self, whose: str) -> None:
        public = Note.objects.extra(
            select={"many": "SELECT count(*) FROM public.notes_note AS others"}
        )
        questions = {
            "notes": Note.objects.order_by("pk").values_list("text", flat=True),
            "authors": Author.objects.order_by("pk").values_list("name", flat=True),
            "notes and public ones": public.order_by("pk").values_list("text", "many"),
        }
        for name, rows in questions.items():
            answers = []
            # First from the cache; a hit does not send SET search_path, the others do.
            for context in (contextlib.nullcontext(), ormcache.disabled()):
                with context:
                    answers.append(list(rows.all()))
            assert answers[0] == answers[1], f"{whose} {name}"


@pytest.mark.parametrize("seed", range(WALKS))
def test_no_walk_meets_an_answer_that_is_out_of_date(
    cached: Watch, left_over: None, seed: int
) -> None:
    wait_for_quarantine("default")
    Walk(seed).run(60)
    assert "hit" in cached.outcomes
